"""Every command and every Python block of README.md runs as it stands.

A comment before a block, which the rendered page does not show, says where that would take too long or needs more:

    <!-- example
    slow                        run by `make test-slow` only
    clients                     needs the extra "clients": skipped without it
    data mni2009c bold5000      needs these downloads: skipped without them
    parse                       needs another machine: the command line is parsed, not run
    learn(2048) => learn(64)    with a smaller number
    -->
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from regagents.cli import parser as regagents_parser
from regenv.cli import parser as regenv_parser
from regenv.data.banks import downloads
from regenv.data.catalogue import source_named
from regenv.data.io import write_image
from regenv.grid import Grid

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- example\n(?P<notes>(?:(?!-->).)*)-->\n+)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```",
                   re.S | re.M)
INLINE = re.compile(r"`((?:regagents|regenv|python|make) [^`]+)`")
PARSERS = {"regagents": regagents_parser, "regenv": regenv_parser}
LUNGS = {"INHALE": "fixed", "EXHALE": "moving"}


@dataclass(frozen=True)
class Block:
    """A block of the README: its language ("python", or "" for the shell), text, and hidden notes."""

    language: str
    text: str
    flags: tuple[str, ...]
    data: tuple[str, ...]

    @classmethod
    def of(cls, match: re.Match[str]) -> Block:
        notes = [line.strip() for line in (match["notes"] or "").splitlines()]
        text = re.sub(r"^ +", "", match["text"], flags=re.M) if not match["language"] else match["text"]
        for before, after in (line.split(" => ") for line in notes if " => " in line):
            assert before in text, f"README: {before!r} is not in the block that a note would change"
            text = text.replace(before, after)
        data = tuple(name for line in notes if line.startswith("data ") for name in line.split()[1:])
        return cls(match["language"], text, tuple(line for line in notes if line and " " not in line), data)


README = (ROOT / "README.md").read_text()
BLOCKS = [Block.of(match) for match in BLOCK.finditer(README)]


def marked(block: Block, number: int) -> object:
    name = f"{number} {block.text.strip().splitlines()[0][:50]}"
    return pytest.param(block, id=name, marks=[pytest.mark.slow] if "slow" in block.flags else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images that the README's reader has."""
    here = tmp_path_factory.mktemp("readme")
    grid = Grid.centered((48, 56, 48), 4.0)
    for source, names in (("phantoms", ("FIXED", "MOVING")), ("lungs", tuple(LUNGS))):
        pair = source_named(source, 3).draw([np.random.default_rng(5)], grid, torch.device("cpu"))
        for name, image, labels in zip(names, (pair.fixed, pair.moving), (pair.fixed_labels, pair.moving_labels),
                                       strict=True):
            array = image[0, 0].numpy()
            moving = grid if array.shape == grid.shape else Grid.centered(array.shape, 4.0)
            write_image(here / f"{name}.{'mha' if name in LUNGS else 'nii.gz'}", array, moving)
            write_image(here / f"{name.lower()}.nii.gz", array, moving)
            if name in LUNGS and labels is not None:
                write_image(here / f"{name}_LUNGS.mha", labels[0, 0].numpy().astype(np.uint8), moving)
    (here / "benchmarks").symlink_to(ROOT / "benchmarks")
    return here


def test_the_readme_has_blocks() -> None:
    assert len(BLOCKS) >= 4 and {block.language for block in BLOCKS} >= {"python", ""}
    assert README.count("```") == 2 * len(BLOCKS) and README.count("\n") < 120     # a screen and a half


@pytest.mark.parametrize("block", [marked(block, number) for number, block in enumerate(BLOCKS)])
def test_block_runs(block: Block, folder: Path) -> None:
    missing = [name for name in block.data if not downloads.paths(name)]
    if missing:
        pytest.skip(f"not downloaded: {', '.join(missing)}")
    if "clients" in block.flags and importlib.util.find_spec("rl_zoo3") is None:
        pytest.skip('the extra "clients" is not installed')
    if "parse" in block.flags:
        for line in block.text.strip().splitlines():
            check_parses(line)
        return
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-ec", block.text]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200,
                          env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("command", sorted(set(INLINE.findall(README))))
def test_inline_command_is_one(command: str) -> None:
    check_parses(command)


def check_parses(command: str) -> None:
    """A command's own parser takes it, its script exists, or make has its target."""
    words = shlex.split(command.replace("...", ""))
    while words and ("torchrun" in words[0] or words[0].startswith("-") or words[0].isdigit() or ":" in words[0]):
        words = words[1:]
    if not words:
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1].partition('=')[0]}:", (ROOT / "Makefile").read_text(), re.M), command
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), command
    elif words[0] == "python":
        assert importlib.util.find_spec(words[2]) is not None, command
    elif words[0] in PARSERS and len(words) > 1:
        PARSERS[words[0]]().parse_args(words[1:])
