"""How a command ends: with its status, and with one line on stderr where something is wrong."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

LONGEST = 1200      # characters of a message
BAD_INPUT, UNEXPECTED, INTERRUPTED, TERMINATED = 2, 70, 130, 143

EXTRAS = {"data": ("nilearn", "mlxtend"), "viz": ("matplotlib", "tensorboard", "moviepy", "pygame", "PIL"),
          "ray": ("ray",),
          "learn2reg": ("surface_distance",),
          "clients": ("minari", "h5py", "rl_zoo3", "optuna", "pandas", "seaborn", "rliable",
                      "huggingface_sb3", "torchrl", "tianshou")}
"""What a bare installation lacks: the modules of each extra that commands import."""


class PlainError(RuntimeError):
    """An error, not of what was given, whose message alone says what is wrong and the way out."""


class Terminated(BaseException):
    """The process was asked to end (SIGTERM): files that are being written are removed on the way out."""


KNOWN: tuple[type[Exception], ...] = (ValueError, OSError, MemoryError, PlainError)
"""Errors whose message is all that a user needs; those of readers and of checkpoints are ValueErrors."""


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Give a parser and those of its commands the option --debug."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of errors")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                add_debug(command)


def run(name: str, work: Callable[[], int], debug: bool = False) -> int:
    """The exit status of a command's work.

    0 or what ``work`` returns; 2 after bad input, 70 after an error that nobody foresaw, 130 after Ctrl-C, 143 after
    SIGTERM: each after one line on stderr.

    Args: name: of the command; work: imports what it needs itself, so that Ctrl-C ends an import, too, in one line;
    debug: print the traceback, too.
    """
    try:
        with _terminable():
            return work()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        told, status = _account(error)
        if debug:
            traceback.print_exception(error)
    print(f"{name}: {_one_line(told)}", file=sys.stderr)
    return status


def _one_line(text: str) -> str:
    """A message without line breaks and control characters of what it quotes, and without its middle if it is long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST] + text[LONGEST:][-LONGEST:])
    line = " ".join(plain.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST * 3 // 4]} ... {line[-LONGEST // 4:]}"


def _account(error: BaseException) -> tuple[str, int]:
    """What is told of an error, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", INTERRUPTED
    if isinstance(error, Terminated):
        return "terminated.", TERMINATED
    if isinstance(error, KNOWN):
        return str(error) or f"{type(error).__name__}; there is not enough memory.", BAD_INPUT
    lacking = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else None
    extra = next((extra for extra, modules in EXTRAS.items() if lacking in modules), None)
    if extra is not None:
        return f'{error}; pip install "regenv[{extra}]".', BAD_INPUT
    return f"unexpected {type(error).__name__}: {error}; please report it, with what --debug shows.", UNEXPECTED


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` here, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
