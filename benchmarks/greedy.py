"""Two people's brains, registered by the greedy method and by the classical ones at their best: accuracy over time.

    python benchmarks/greedy.py                     # 3D, people that nothing was tuned on
    python benchmarks/greedy.py --slices 30         # 2D slices of the same people
    python benchmarks/greedy.py --fast --out DIR/NAME

The brains are aligned to MNI space (affine), stripped and freed of their bias field; see ``regenv.data.banks.brains``.
A person's labels are the classes of tissue, found in that person's image alone. Only held-out people are in the table:
settings, also of demons and Adam, were tuned on CSI1 and CSI2. Seconds are of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, made_by, write
from torch import Tensor

from regagents.classical.convexadam import AdamInstance, ConvexAdam, Solver
from regagents.classical.deformable import Demons
from regagents.classical.greedy import SETTINGS, Greedy
from regagents.classical.levels import AdamLevels
from regagents.classical.syn import SyN
from regagents.registration.deformation import Fields
from regenv.data.banks import brains
from regenv.ops.features import pooled, spread
from regenv.ops.overlap import mean_dice
from regenv.ops.regularity import folding, sd_log_jacobian
from regenv.ops.warp import warp_through

RESULTS = Path(__file__).parent / "results"
TISSUES = (1, 2, 3)
PAIRS = (("csi3", "colin27"), ("colin27", "csi3"))     # fixed, moving
OTHER_PAIRS = (("mni152", "csi3"), ("csi3", "mni152"))
WIDE = 8                                                # of the slices, every how many millimetres


@dataclass(frozen=True)
class Coarse:
    """A solver on images averaged over blocks, such as 2 mm of 1 mm."""

    solver: Solver
    stride: int = 2

    def solve(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Displacements (B, D, *shape), voxels of the images given."""
        found = self.solver.solve(pooled(fixed, self.stride), pooled(moving, self.stride))
        return spread(found, self.stride, tuple(fixed.shape[2:]))


@dataclass(frozen=True)
class Pair:
    """Images (1, 1, *shape) in [0, 1] and labels (1, 1, *shape)."""

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor
    moving_labels: Tensor

    def dice(self, field: Tensor) -> float:
        ndim = field.shape[1]
        warped = warp_through(self.moving_labels, torch.eye(ndim + 1)[None].double(), field, tuple(field.shape[2:]),
                              mode="nearest")
        return float(mean_dice(self.fixed_labels, warped, TISSUES))


@dataclass(frozen=True)
class Line:
    """Of a method, a value a pair."""

    name: str
    dice: list[float]
    seconds: list[float]
    folded: list[float]
    spread: list[float]


def of_people(fixed: str, moving: str) -> Pair:
    kept = [brains.subject(name) for name in (fixed, moving)]
    return Pair(*(each["image"].float()[None, None] / 255 for each in kept),
                *(each["labels"].short()[None, None] for each in kept))


def slices(pair: Pair, most: int) -> list[Pair]:
    """Axial slices of two people that both show much brain."""
    parts = (pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels)
    good = [z for z in range(0, pair.fixed.shape[2], WIDE)
            if all(float((labels[0, 0, z] > 0).float().mean()) > 0.2 for labels in parts[2:])]
    return [Pair(*(part[:, :, z].contiguous() for part in parts)) for z in good[:most]]


def measured(name: str, solver: Solver | Coarse | None, pairs: Sequence[Pair]) -> Line:
    line = Line(name, [], [], [], [])
    for pair in pairs:
        begun = process_time()
        field = torch.zeros(1, pair.fixed.ndim - 2, *pair.fixed.shape[2:]) if solver is None else (
            solver.solve(pair.fixed, pair.moving))
        line.seconds.append(process_time() - begun)
        line.dice.append(pair.dice(field))
        line.folded.append(folding(field).item())
        line.spread.append(sd_log_jacobian(field).item())
    print(f"{name}: {np.mean(line.dice):.3f}, {np.mean(line.seconds):.1f} s", flush=True)
    return line


def solvers(ndim: int, fast: bool) -> dict[str, Solver | Coarse | None]:
    """The rows of the table."""
    found: dict[str, Solver | Coarse | None] = {"start": None}
    if ndim == 2:
        found |= {"greedy": SETTINGS["brain"], "demons": Fields(Demons(smoothing=0.7)), "adam": AdamInstance(),
                  "convexadam": ConvexAdam()}
        return found | ({"SyN, CC": Fields(SyN("CC"))} if SyN.available() else {})
    brain = SETTINGS["brain"].deep
    found |= {"greedy, 2 mm": of_levels(brain, 2), "demons, 2 mm": Coarse(Fields(Demons(smoothing=0.7))),
              "adam, 2 mm": Coarse(AdamInstance(weight=0.3)), "convexadam, 2 mm": Coarse(ConvexAdam())}
    if SyN.available():
        found["SyN (MI), 2 mm"] = Coarse(Fields(SyN("mattes")))
    if not fast:                # SyN takes more than six minutes a pair at 1 mm, and gains .03 over 2 mm
        found |= {"greedy, 1 mm": brain, "demons, 1 mm": Fields(Demons(smoothing=0.7)),
                  "adam, two levels, 1 mm": AdamLevels()}
    return found


def of_levels(solver: Greedy, finest: int, share: float = 1.0) -> Greedy:
    """The solver without levels finer than that, and with a share of the iterations."""
    kept = [(stride, max(1, round(share * n))) for stride, n in zip(solver.strides, solver.iterations, strict=True)
            if stride >= finest]
    return Greedy(**{**vars(solver), "strides": tuple(s for s, _ in kept), "iterations": tuple(n for _, n in kept)})


def table(lines: Sequence[Line]) -> str:
    told = ["| method | Dice | least | CPU s | folded | SDlogJ |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    told += [f"| {line.name} | {np.mean(line.dice):.3f} ± {np.std(line.dice):.3f} | {min(line.dice):.3f} | "
             f"{np.mean(line.seconds):.1f} | {np.mean(line.folded):.4%} | {np.mean(line.spread):.3f} |"
             for line in lines]
    return "\n".join(told) + "\n"


def draw(out: Path, lines: Sequence[Line], curve: Sequence[Line]) -> None:
    """Mean Dice over seconds."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    axis.plot([np.mean(line.seconds) for line in curve], [np.mean(line.dice) for line in curve], marker=".",
              label="greedy, by iterations")
    for line in lines[1:]:
        axis.plot(np.mean(line.seconds), np.mean(line.dice), "o", label=line.name)
    axis.axhline(float(np.mean(lines[0].dice)), color="0.6", lw=1, ls="--")
    axis.set(xlabel="seconds on one core", ylabel="mean Dice of tissues", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    keep(figure, out)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, metavar="N", help="2D: at most N slices of each pair of people")
    parser.add_argument("--fast", action="store_true", help="3D: without what works at 1 mm")
    parser.add_argument("--one", action="store_true", help="only the first pair of people")
    parser.add_argument("--averages", action="store_true", help="CSI3 and the MNI152 average instead of two people")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/greedy, or greedy-2d")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    names = (OTHER_PAIRS if arguments.averages else PAIRS)[:1 if arguments.one else None]
    pairs = [of_people(*each) for each in names]
    if arguments.slices:
        pairs = [each for pair in pairs for each in slices(pair, arguments.slices)]
    ndim = pairs[0].fixed.ndim - 2
    SETTINGS["brain"].solve(*(torch.rand(1, 1, *(12,) * ndim) for _ in range(2)))     # compiles
    lines = [measured(name, solver, pairs) for name, solver in solvers(ndim, arguments.fast).items()]
    whole = SETTINGS["brain"].flat if ndim == 2 else of_levels(SETTINGS["brain"].deep, 2)
    curve = [measured(f"greedy, {share:.0%}", of_levels(whole, 1, share), pairs)
             for share in (0.1, 0.25, 0.5, 1.0, 1.5)]
    out = arguments.out or RESULTS / ("greedy-2d" if ndim == 2 else "greedy")
    page = (f"# Two people's brains, by the greedy method and others\n\n{made_by('greedy.py', typed)}: {len(pairs)} "
            f"pairs of {', '.join(sorted({name for each in names for name in each}))}, on whom nothing was tuned; mean "
            f"Dice of three tissues, labelled in each person's image alone.\n\n{table(lines)}\nAt shares of the "
            f"iterations{'' if ndim == 2 else ', 2 mm'}:\n\n{table(curve)}")
    print(page)
    write(out, page, ["method", "dice", "cpu_seconds", "folded", "sd_log_jacobian"],
          [[line.name, np.mean(line.dice), np.mean(line.seconds), np.mean(line.folded), np.mean(line.spread)]
           for line in (*lines, *curve)])
    draw(out.with_suffix(".png"), lines, curve)
    return 0


if __name__ == "__main__":
    sys.exit(main())
