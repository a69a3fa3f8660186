"""``regagents batch``."""

from __future__ import annotations

import argparse
from pathlib import Path

from regagents.cli.common import Commands, engine, progress_bar
from regagents.cli.register import GB, NOT_ALIGNED, add_options

NOT_REGISTERED = 2
"""Exit status where a pair could not be registered."""
BIDS = """
TABLE.csv (or .tsv) has the columns fixed and moving and may have name, fixed_mask, moving_mask, fixed_labels,
moving_labels, fixed_landmarks, moving_landmarks and init; paths are relative to it, cells may be empty.
Of a BIDS folder, the first T1w image of each session (of the subject's first session that has one, where it has none)
is the fixed image of all others in the session's anat and func folders; of 4D images the first volume is taken unless
--time says another. With --fixed the first T1w image of each session is registered to that file.
Run again, pairs that are done are left alone; those that failed, or whose files changed, are registered anew.
"""


def add(commands: Commands) -> None:
    command = commands.add_parser("batch", help="register many pairs: a table or a BIDS folder",
                                  description="Register every pair of SOURCE into its own folder in OUT, as register "
                                  "does, and sum them up: OUT/summary.csv, summary.md and index.html.", epilog=BIDS)
    command.add_argument("source", metavar="SOURCE", help="TABLE.csv or a BIDS folder")
    command.add_argument("-o", "--out", metavar="OUT", required=True, help="folder for the results")
    command.add_argument("--fixed", metavar="FILE", help="register every subject's T1w image of a BIDS folder to this "
                         "image, such as a template")
    add_options(command)
    engine(command)
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from regagents.registration.batch import batch
    from regagents.registration.batch_page import counted

    with progress_bar() as progress:
        found = batch(arguments.source, arguments.out, agent=arguments.agent, refine=not arguments.no_refine,
                      initial=arguments.init, deform=arguments.deform, fill=arguments.fill,
                      transform=arguments.transform, spacing=arguments.spacing, time=arguments.time,
                      memory=round(arguments.memory * GB), fixed=arguments.fixed, progress=progress,
                      engine=arguments.engine, workers=arguments.workers)
    for line in found.of("error", "failed", "doubtful"):
        print(f"{line.pair.name}: {line.state}{f': {line.why}' if line.why else ''}")
    for each in found.left_out:
        print(f"left out: {each}")
    print(counted(found.lines))
    print(f"written: {arguments.out}")
    print(f"summary: {Path(arguments.out) / 'index.html'}")
    if found.of("error"):
        return NOT_REGISTERED
    return NOT_ALIGNED if arguments.strict and len(found.of("aligned")) < len(found.lines) else 0
