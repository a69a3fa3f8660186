"""``regagents train``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from regagents.cli.common import Commands


def add(commands: Commands) -> None:
    command = commands.add_parser("train", help="train a preset")
    command.add_argument("preset", metavar="PRESET", nargs="?", help="a name that --list shows")
    command.add_argument("--list", action="store_true", help="show the presets and end")
    command.add_argument("--out", metavar="DIR", help="folder for weights and logs (default runs/PRESET)")
    command.add_argument("--steps", type=int, help="samples in all (default: the preset's)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--init", metavar="CHECKPOINT", help="take over the convolutions of another agent")
    command.add_argument("--resume", action="store_true", help="go on from the last state in DIR")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list()
    if arguments.preset is None:
        raise ValueError("train: PRESET is missing; `regagents train --list` shows them.")
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"train: steps is {arguments.steps}; it must be at least 1.")
    from regagents.common.checkpoints import load_card
    from regagents.training.progress import HAS_TENSORBOARD
    from regagents.training.train import train

    path = train(arguments.preset, arguments.out or Path("runs") / arguments.preset, arguments.steps, arguments.seed,
                 arguments.device, arguments.init, arguments.resume, command=arguments.typed,
                 progress_bar=sys.stderr.isatty())
    print(path)
    summary = load_card(path).get("summary")
    if summary:
        print(summary)
    if not HAS_TENSORBOARD:
        print('regagents: tensorboard is not installed: progress.csv alone was written; pip install "regenv[viz]".',
              file=sys.stderr)
    return 0


def _list() -> int:
    from regagents.agents import algorithm_of
    from regagents.training.presets import PRESETS

    for name, preset in PRESETS.items():
        begins = f", begins with {Path(preset['init']).stem}" if preset.get("init") else ""
        print(f"{name:24}{algorithm_of(preset):14}{preset['env']:28}{preset['steps']:>10,} samples{begins}")
    return 0
