"""``regagents benchmark``."""

from __future__ import annotations

import argparse
from pathlib import Path

from regagents.cli.common import Commands, engine, names, progress_bar


def add(commands: Commands) -> None:
    command = commands.add_parser("benchmark", help="agents on a named, frozen suite of pairs: a leaderboard's entries")
    command.add_argument("suite", metavar="SUITE", nargs="?", help="which (default: list them)")
    command.add_argument("--agent", metavar="NAME|PATH", nargs="+", default=[], help="agents or checkpoints")
    command.add_argument("--baselines", metavar="LIST", help="classical methods, as for evaluate (default: the usual)")
    command.add_argument("--leaderboard", metavar="FILE", help="JSON to put the entries into; the others stay")
    command.add_argument("--ledger", metavar="FILE", help="keep finished parts here; go on from them")
    engine(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.evaluation.suites import benchmark, joined, read_board, save_board, suite_named, suites

    if arguments.suite is None:
        for name, suite in suites().items():
            print(f"{name:20}  {suite.pairs} pairs, {suite.measure}, {suite.hash}  {suite.about}")
        return 0
    suite_named(arguments.suite)
    board = arguments.leaderboard
    if board is not None and not Path(board).absolute().parent.is_dir():
        raise ValueError(f"{board}: folder {Path(board).parent} does not exist. Create it first.")
    known = read_board(board) if board is not None and Path(board).exists() else []
    with progress_bar() as progress:
        report, found = benchmark(arguments.suite, arguments.agent, names(arguments.baselines), progress=progress,
                                  engine=arguments.engine, workers=arguments.workers, ledger=arguments.ledger)
    if board is not None:
        save_board(board, joined(known, found))
    print(f"{arguments.suite}, {report.pairs} pairs, {found[0].hash}")
    print(report.table())
    return 0
