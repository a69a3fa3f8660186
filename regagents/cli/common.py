"""What the commands share: their parser, options of several, and the progress bar."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

ENGINES = ("serial", "processes", "ray")
"""As :data:`regagents.common.jobs.ENGINES`, which stands behind torch."""


class Parser(argparse.ArgumentParser):
    """A parser with --debug; argparse makes those of its commands of the same class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of errors")


class Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from regenv import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=ENGINES, default="serial", help="where it runs (default serial)")
    command.add_argument("--workers", type=int, metavar="N", help="how many parts at once (default: every core)")


def names(listed: str | None) -> list[str] | None:
    """Names of a list with commas; None where none was given."""
    return None if listed is None else [name for name in listed.split(",") if name]


def environment(env_id: str | None, text: str, option: str = "--env-kwargs") -> dict[str, Any]:
    """Arguments of an environment from JSON. Raises ValueError for those that the id's builder does not take."""
    from regagents.common.cards import check_environment
    from regenv.registry import CATALOGUE
    from regenv.stored import parse_json

    value = parse_json(text, option)
    if not isinstance(value, dict):
        raise ValueError(f"{option} is {text:.80}; it must be a JSON object, such as {{\"size\": 32}}.")
    if env_id in CATALOGUE:
        check_environment(env_id, value, option, files=True)
    return value


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal, nothing elsewhere. It is removed at the end, so an error is on its own line."""
    from tqdm import tqdm

    layout = "{desc:24.24}|{bar}| {percentage:3.0f} % {elapsed}"
    with tqdm(total=1.0, leave=False, disable=None, bar_format=layout) as bar:
        def progress(name: str, share: float) -> None:
            bar.set_description_str(name, refresh=False)
            bar.update(max(0.0, share - bar.n))

        yield progress
