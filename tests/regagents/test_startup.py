"""How the package and its command start: at once, with nothing heavy, and ended by a signal in one line."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import regagents
from regagents.a3c.workers import WorkerError
from regagents.cli import common
from regagents.common.jobs import ENGINES, JobError
from regenv import shell
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from tests.regagents.toys import blobs

HELP_SECONDS = 0.4  # of the processor


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "regagents", *arguments], capture_output=True, text=True, timeout=120,
                          env=os.environ | environment, check=False)


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    listed = process("agents")
    assert listed.returncode == 0 and "rigid2d" in listed.stdout and listed.stderr == ""
    refused = process("register", str(tmp_path / "nowhere.nii.gz"), str(tmp_path / "moving.nii.gz"),
                      "-o", str(tmp_path / "OUT"))
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.count("\n") == 1 and "nowhere.nii.gz: no such file" in refused.stderr


def test_a_parser_needs_nothing_but_python() -> None:
    code = ("import sys; before = set(sys.modules); from regagents.cli import parser; parser(); "
            "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "regagents"), done.stderr


@pytest.mark.parametrize("command", [[], ["register"]], ids=["regagents", "register"])
def test_help_is_there_at_once(command: list[str]) -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = process(*command, "--help")
        assert (found.returncode, found.stderr) == (0, "") and found.stdout.startswith("usage: regagents")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_SECONDS


def test_the_version_is_the_packages() -> None:
    assert process("--version").stdout == f"regagents {importlib.metadata.version('regenv')}\n"


@pytest.mark.parametrize(("module", "sent", "status", "line"), [
    ("gymnasium", "SIGINT", 130, "interrupted"), ("torch", "SIGINT", 130, "interrupted"),
    ("torch", "SIGTERM", 143, "terminated")])
def test_a_signal_during_the_imports_is_one_line(module: str, sent: str, status: int, line: str,
                                                 tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background inherit as ignored\n"
        f"os.kill(os.getpid(), signal.{sent})\ntime.sleep(60)")
    found = process("agents", PYTHONPATH=str(tmp_path))
    assert (found.returncode, found.stdout, found.stderr) == (status, "", f"regagents: {line}.\n")


# ----------------------------------------------------------------------------------- what the parsers know beforehand

def test_the_engines_are_those_that_there_are() -> None:
    assert common.ENGINES == ENGINES


@pytest.mark.parametrize("error", [JobError, WorkerError])
def test_a_lost_process_is_one_line(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error("worker 3 of 8 died")

    assert shell.run("regagents", work) == 2
    assert capsys.readouterr().err == "regagents: worker 3 of 8 died\n"


def test_every_public_name_is_there_and_no_other() -> None:
    assert {name for name in regagents.__all__ if hasattr(regagents, name)} == set(regagents.__all__)
    assert set(regagents.__all__) <= set(dir(regagents))
    with pytest.raises(AttributeError, match=r"regagents.*regster"):
        regagents.regster  # noqa: B018


# ------------------------------------------------------------------------------------------------ what work needs not

def test_a_registration_loads_neither_torchs_compiler_nor_readers_of_other_formats(tmp_path: Path) -> None:
    grid = Grid.centered((64, 60), 2.0)
    for name in ("fixed", "moving"):
        write_image(tmp_path / f"{name}.nii", blobs(grid), grid)
    code = ("import sys; from regagents.cli import main; status = main(sys.argv[1:]); "
            "print(status, *({'torch._dynamo', 'sympy', 'pydicom', 'scipy.interpolate'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, "register", *(str(tmp_path / f"{name}.nii") for name in (
        "fixed", "moving")), "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0"], done.stdout + done.stderr
