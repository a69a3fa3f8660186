"""A sample of benchmarks/durability.py: a killed command leaves nothing partial, and the next run mends all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "durability.py"


@pytest.mark.parametrize("command", ["register", "train", "evaluate", "data get"])
def test_nothing_is_lost(command: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--commands", command, "--moments", "3", "--seed", "7"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
