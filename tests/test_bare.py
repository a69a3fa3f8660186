"""The wheel in an environment without extras: every command's first step works, or says in one line what it lacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.regagents.toys import image_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[1]
EXTRA = re.compile(r"regenv\[(data|viz|ray|learn2reg|clients)\]")
WORKS = [
    "regenv --help", "regenv data list", "regenv describe RegRigid2D-v0",
    "regagents watch RegRigid2D-v0 -o page.html", "regagents agents",
    "regagents register {}/fixed2d.nii.gz {}/moving2d.nii.gz -o OUT",
    "regagents register {}/fixed2d.nii.gz {}/moving2d.nii.gz -o OUT --agent none --deform adam",
    "regagents evaluate --env RegRigid2D-v0 --pairs 1",
    "regagents evaluate --env RegSDM2D-v0 --pairs 1 --baselines initial",
    "regagents evaluate --env RegRigid2D-v0 --pairs 1 --engine processes --workers 1 --baselines initial"]
LACKS = [
    "regagents compare --env RegRigid2D-v0 --agents ppo --budget 8", "regagents record toy/toy-v0 --env RegRigid2D-v0",
    "regagents evaluate --env RegRigid2D-v0 --pairs 1 --engine ray", "regagents train digits-spac --steps 8 --out run",
    "regagents evaluate --env RegDenseDigits-v0 --pairs 1", "regagents train head-unit --steps 8 --out run",
    *(f"python -m regagents.training.zoo {command}" for command in ("train", "enjoy", "record_video", "plot",
                                                                     "benchmark"))]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's commands."""
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    venv.create(folder / "venv", with_pip=True)
    wheel, = folder.glob("regenv-*.whl")
    subprocess.run([str(folder / "venv/bin/python"), *pip[1:], "install", "-c", str(ROOT / "constraints.txt"),
                    str(wheel)], check=True)
    subprocess.run([str(folder / "venv/bin/regenv"), "warmup"], check=True)    # tells on stderr that it compiles
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    image_pair(folder, 2)
    return folder


def run(command: str, bare: Path, images: Path, place: Path) -> subprocess.CompletedProcess[str]:
    program, *words = command.split()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(bare / program), *(word.format(images) for word in words)], capture_output=True,
                          text=True, cwd=place, env=environment | {"XDG_CACHE_HOME": str(place)}, timeout=600)


@pytest.mark.parametrize("command", WORKS)
def test_it_works(command: str, bare: Path, images: Path, tmp_path: Path) -> None:
    done = run(command, bare, images, tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("command", LACKS)
def test_it_says_which_extra_it_lacks(command: str, bare: Path, images: Path, tmp_path: Path) -> None:
    done = run(command, bare, images, tmp_path)
    assert done.returncode == 2 and EXTRA.search(done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_training_works_without_tensorboard_and_says_so(bare: Path, images: Path, tmp_path: Path) -> None:
    done = run("regagents train rigid2d --steps 48 --out run", bare, images, tmp_path)
    assert done.returncode == 0 and EXTRA.search(done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "run" / "progress.csv").is_file() and (tmp_path / "run" / "rigid2d.safetensors").is_file()


def test_a_newcomer_plays_trains_and_sees_success_rise(bare: Path, images: Path, tmp_path: Path) -> None:
    done = run(f"python {ROOT / 'tests' / 'newcomer.py'} 20000", bare, images, tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    before, after = map(float, re.findall(r"success ([\d.]+) before, ([\d.]+) after", done.stdout)[0])
    assert after > before + 0.05
