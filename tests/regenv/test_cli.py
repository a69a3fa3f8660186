"""The command ``regenv``, run as a module as users run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULES = pytest.mark.parametrize("module", ["regenv", "regenv.cli"])
SECONDS = 120


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False,
                          timeout=SECONDS)


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
