"""``regagents watch``."""

from __future__ import annotations

import argparse

from regagents.cli.common import Commands, environment, progress_bar


def add(commands: Commands) -> None:
    command = commands.add_parser("watch", help="an episode as a page with a slider over its steps",
                                  description="Play one episode and write it as one HTML page, which opens from disk.")
    command.add_argument("env", metavar="ID", help="environment id")
    command.add_argument("--agent", metavar="NAME|PATH", default="random", help="random (default), expert, weights "
                         "(see `regagents agents`), or a .zip of Stable-Baselines3, which can run code: trust it first")
    command.add_argument("-o", "--out", metavar="FILE.html", required=True, help="the page")
    command.add_argument("--seed", type=int, default=0, help="of the episode (default 0)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.training.watching import watch

    with progress_bar() as progress:
        told = watch(arguments.env, arguments.agent, arguments.out, arguments.seed,
                     environment(arguments.env, arguments.env_kwargs), progress)
    print(", ".join(f"{name} {value:.4g}" for name, value in told.items()))
    print(f"written: {arguments.out}")
    return 0
