"""Every example runs as it stands; here with less to do."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regagents.registration.pipeline import AGENTS
from regagents.registration.register import register
from tests.regagents.toys import image_pair

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


def test_the_demo_measures_a_motion_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """With one small image in both heads' place, and no network."""
    path = EXAMPLES / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    image, _, _ = image_pair(tmp_path, 3)
    monkeypatch.setattr(demo.datasets, "mni152", lambda: {"t1": image})
    monkeypatch.setattr(demo.datasets, "get", lambda name: {name: image})
    asked: dict[str, Any] = {}

    def given(fixed: Any, moving: Any, agent: str, **options: Any) -> Any:
        asked.update(agent=agent, found=register(fixed, moving, "none", refine=False, **options))
        return asked["found"]

    monkeypatch.setattr(demo, "register", given)
    assert demo.main(["--out", str(tmp_path / "out")]) == 0
    assert asked["agent"] in {"auto", *AGENTS} and (tmp_path / "out" / "report.html").is_file()
    before = asked["found"].metrics["tre_mm"]["before"]
    assert before > 5 and np.isfinite(asked["found"].metrics["tre_mm"]["after"])
    assert f"TRE {before:.1f} mm before" in capsys.readouterr().out


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
