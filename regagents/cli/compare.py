"""``regagents compare``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from regagents.cli.common import Commands, engine, environment, names, progress_bar


def add(commands: Commands) -> None:
    command = commands.add_parser("compare", help="agents trained on one budget, on the same held-out pairs",
                                  description="Writes OUT.md (the table), OUT.png (learning curves) and OUT.json; "
                                  "keeps finished runs in OUT.jsonl and goes on from them.")
    command.add_argument("--env", metavar="ID", required=True, help="environment id")
    command.add_argument("--agents", metavar="LIST", required=True, help="such as ppo,dqn,dsl")
    command.add_argument("--budget", metavar="STEPS", type=int, required=True, help="environment steps of each agent")
    command.add_argument("--pairs", type=int, default=64, help="held out (default 64)")
    command.add_argument("--seeds", type=int, default=3, help="runs of each agent (default 3)")
    command.add_argument("--seed", type=int, default=900_000, help="of the first pair (default 900000)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.add_argument("--held-out", metavar="JSON", default="{}", help="those that differ for the held-out pairs")
    command.add_argument("--baselines", metavar="LIST", help="default: as those of evaluate")
    command.add_argument("--out", metavar="OUT", help="default runs/compare-ID")
    engine(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    importlib.import_module("matplotlib")  # which draws the curves at the end
    from regagents.evaluation.compare import compare

    env_kwargs, held_out = (environment(arguments.env, *given) for given in (
        (arguments.env_kwargs, "--env-kwargs"), (arguments.held_out, "--held-out")))
    out = Path(arguments.out or Path("runs") / f"compare-{arguments.env}")
    with progress_bar() as progress:
        found = compare(arguments.env, arguments.agents.split(","), arguments.budget, arguments.pairs, arguments.seeds,
                        arguments.seed, env_kwargs, held_out, names(arguments.baselines), out, arguments.engine,
                        arguments.workers, progress)
    found.save(out, arguments.typed)
    print(found.table(), end="")
    return 0
