"""``regagents evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from regagents.cli.common import Commands, engine, environment, names, progress_bar


def add(commands: Commands) -> None:
    command = commands.add_parser("evaluate", help="agents and classical baselines on held-out pairs: one table")
    command.add_argument("--env", metavar="ID", required=True, help="environment id, or: whole-head, spine")
    command.add_argument("--agent", metavar="NAME|PATH", nargs="+", default=[], help="agents or checkpoints")
    command.add_argument("--pairs", type=int, default=32, help="how many (default 32)")
    command.add_argument("--seed", type=int, default=0, help="of the first pair (default 0)")
    command.add_argument("--env-kwargs", metavar="JSON", default="{}", help="arguments of the environment")
    command.add_argument("--refine", action="store_true", help="a second row for every agent, refined")
    command.add_argument("--baselines", metavar="LIST",
                         help="for poses of initial, random, expert, mi, mi-multistart (the slowest agent's time), "
                         "sift, elastix (default initial,mi); for displacements of initial, random, demons, bspline, "
                         "adam, convexadam, greedy, syn (default all that are installed but random)")
    command.add_argument("--json", metavar="FILE", help="write the report, every pair's error too")
    command.add_argument("--csv", metavar="FILE", help="write the table")
    command.add_argument("--ledger", metavar="FILE", help="keep finished parts here; go on from them")
    engine(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    for path in (arguments.json, arguments.csv):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: folder {Path(path).parent} does not exist. Create it first.")
    from regagents.evaluation.evaluate import chosen_baselines, evaluate
    from regagents.evaluation.pairs import HELD_OUT

    env_kwargs = environment(HELD_OUT.get(arguments.env, (arguments.env,))[0], arguments.env_kwargs)
    baselines = chosen_baselines(arguments.env, env_kwargs, names(arguments.baselines))
    with progress_bar() as progress:
        report = evaluate(arguments.env, [*arguments.agent, *baselines], arguments.pairs, arguments.seed,
                          env_kwargs, arguments.refine, progress=progress, engine=arguments.engine,
                          workers=arguments.workers, ledger=arguments.ledger)
    if arguments.json is not None:
        report.save_json(arguments.json)
    if arguments.csv is not None:
        report.save_csv(arguments.csv)
    print(report.table())
    return 0
