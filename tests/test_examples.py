"""Every example runs as it stands; here with less to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {"train_ppo": ["8192"], "ppo_torch": ["12288"], "evaluate_against_simpleitk": ["2"]}
SAYS = {"make_env": "eight episodes: \\(8, 1, 32, 32, 32\\)", "custom_agent": "greedy on correlation",
        "train_ppo": "after 8192",
        "train_on_folder": "trained on 3 images", "new_environment": "batch: torch.Size\\(\\[4",
        "evaluate_against_simpleitk": "rigid2d, refined", "ppo_torch": "12288 steps"}


@lru_cache
def run(name: str) -> str:
    """What an example prints; each runs once."""
    done = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), *ARGUMENTS.get(name, [])], text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_all_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "demo"}  # the demo is a make target of its own


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(name: str) -> None:
    assert re.search(SAYS[name], run(name))


def test_the_single_file_ppo_learns() -> None:
    found = [float(value) for value in re.findall(r"reward a step (-?[0-9.]+)", run("ppo_torch"))]
    assert found[-1] > found[0] + 0.1


def test_sb3_learns_on_the_native_batch() -> None:
    told = re.findall(r"return before (-?[0-9.]+), after 8192 steps (-?[0-9.]+)", run("train_ppo"))
    before, after = map(float, told[0])
    assert after > before + 5
