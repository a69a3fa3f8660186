"""The command ``regenv``, run as a module as users run it."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = pytest.mark.parametrize("module", ["regenv", "regenv.cli"])
SECONDS = 120
HELP_SECONDS = 0.8      # of the processor, with room for a machine half as fast


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False,
                          timeout=SECONDS, env=os.environ | environment)


def test_help_is_there_at_once() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("regenv", "--help").stdout.startswith("usage: regenv")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_SECONDS


def test_a_parser_needs_nothing_heavy() -> None:
    code = ("import sys; from regenv import cli; cli.parser(); "
            "print(*{'torch', 'numba', 'scipy', 'SimpleITK', 'cv2', 'safetensors', 'tqdm'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_version_is_the_packages() -> None:
    assert run("regenv", "--version").stdout == f"regenv {importlib.metadata.version('regenv')}\n"


@pytest.mark.parametrize(("sent", "status", "told"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_during_the_imports_is_one_line(sent: str, status: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background inherit as ignored\n"
        f"os.kill(os.getpid(), signal.{sent})\ntime.sleep(60)")
    found = run("regenv", "data", "list", PYTHONPATH=str(tmp_path))
    assert (found.returncode, found.stdout, found.stderr) == (status, "", f"regenv: {told}.\n")


@MODULES
def test_data_list_names_the_data_sets(module: str) -> None:
    found = run(module, "data", "list")
    assert found.returncode == 0, found.stderr
    assert "mni2009c" in found.stdout


@MODULES
def test_sdm_without_its_folder_exits_2_with_one_line(module: str, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "model.safetensors"
    found = run(module, "sdm", "2", "-o", str(out))
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == f"regenv: {out}: folder {out.parent} does not exist. Create it first.\n"
