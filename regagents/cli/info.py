"""``regagents info``."""

from __future__ import annotations

import argparse

from regagents.cli.common import Commands


def add(commands: Commands) -> None:
    command = commands.add_parser("info", help="what a file is: image, transform, checkpoint",
                                  description="Tell what FILE is: an image's size, place and values; what a transform "
                                  "does, and what it maps to what; an agent's card.")
    command.add_argument("file", metavar="FILE", help="image, DICOM folder, transform, displacement field, checkpoint "
                         "or the name of shipped weights")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from json import dumps

    from regagents.registration.info import describe, text

    told = describe(arguments.file)
    print(dumps(told, indent=2, allow_nan=False) if arguments.json else text(told))
    return 0
