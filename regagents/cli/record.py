"""``regagents record``."""

from __future__ import annotations

import argparse

from regagents.cli.common import Commands, environment, progress_bar


def add(commands: Commands) -> None:
    command = commands.add_parser("record", help="a Minari dataset of the expert's or an agent's episodes")
    command.add_argument("dataset", metavar="DATASET", help="its id, such as regenv/rigid2d/expert-v0")
    command.add_argument("--env", metavar="ID", help="environment id (default: the agent's)")
    command.add_argument("--agent", metavar="NAME|PATH", default="expert", help="weights (default: expert)")
    command.add_argument("--episodes", type=int, default=100, help="default 100")
    command.add_argument("--seed", type=int, default=0, help="of the first episode (default 0)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.training.recording import record

    with progress_bar() as progress:
        dataset = record(arguments.dataset, arguments.env, arguments.agent, arguments.episodes, arguments.seed,
                         environment(arguments.env, arguments.env_kwargs), progress)
    print(f"{dataset.spec.dataset_id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, "
          f"{dataset.storage.data_path}")
    return 0
