"""However a command's work ends, there is one line on stderr and the status that says how."""

from __future__ import annotations

import argparse
import os
import signal

import pytest

from regenv import shell
from regenv.data.banks.downloads import DatasetError


def raising(error: BaseException) -> shell.Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(("error", "status", "told"), [
    (ValueError("x.mha: NDims is 99."), 2, "x.mha: NDims is 99."), (OSError(28, "No space left on device"), 2, "space"),
    (MemoryError(), 2, "memory"), (KeyError("env"), 70, "unexpected KeyError: 'env'"),
    (RecursionError("too\ndeep"), 70, "unexpected RecursionError: too deep"), (OverflowError("x"), 70, "please report"),
    (ModuleNotFoundError("No module named 'minari'", name="minari.core"), 2, 'pip install "regenv[clients]"'),
    (ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard"), 2, 'pip install "regenv[viz]"'),
    (ModuleNotFoundError("No module named 'nowhere'", name="nowhere"), 70, "unexpected ModuleNotFoundError"),
    (KeyboardInterrupt(), 130, "interrupted"), (shell.Terminated(), 143, "terminated")])
def test_an_error_is_one_line_and_a_status(error: BaseException, status: int, told: str,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("tool", raising(error)) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tool: ") and err.count("\n") == 1 and told in err


def test_the_traceback_is_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("tool", raising(KeyError("env")), debug=True) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [shell.PlainError, DatasetError])
def test_errors_that_say_all_themselves_are_told_as_they_are(error: type[Exception],
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("tool", raising(error("there is no network"))) == 2
    assert capsys.readouterr().err == "tool: there is no network\n"


def test_sigterm_unwinds_and_the_users_own_handler_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    unwound = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert shell.run("tool", work) == 143 and unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before and capsys.readouterr().err == "tool: terminated.\n"


def test_debug_stands_before_and_after_a_command() -> None:
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("go").add_argument("place")
    shell.add_debug(parser)
    assert parser.parse_args(["--debug", "go", "x"]).debug and parser.parse_args(["go", "x", "--debug"]).debug
    assert not hasattr(parser.parse_args(["go", "x"]), "debug")
