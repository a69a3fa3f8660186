"""Table 1 of the learned optimiser's paper: key-point errors on held-out breathing lungs, also over iterations.

    python benchmarks/keypoints.py                        # 3D
    python benchmarks/keypoints.py --pairs 10 --out DIR/NAME
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import ClassVar, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, made_by, write
from torch import Tensor

from regagents.agents import load
from regagents.classical.convexadam import CoupledConvex
from regagents.evaluation import learn2reg
from regagents.evaluation.evaluate import measured
from regagents.evaluation.methods import Found, Initial, Method, Optimiser, Policy
from regagents.evaluation.pairs import Chunk, drawn
from regagents.evaluation.report import Row
from regagents.evaluation.tuned import tuned_fields
from regagents.l2o.policies import ITERATIONS
from regenv.core import RegistrationCore

RESULTS = Path(__file__).parent / "results"
ENV, SIZE = "RegKeypoint3D-v0", 64
ARGUMENTS = {"size": SIZE, "observation": "dict", "source": {"name": "lungs", "split": "test"}}
WEIGHTS = "lung3d-l2o"
ONE_SHOT = Path("runs/lung3d-oneshot/lung3d-oneshot.safetensors")    # not shipped: `regagents train lung3d-oneshot`
BEYOND = 16                             # iterations of the learned optimiser in the figure, twice those of training
OF_ADAM = (0, 1, 2, 5, 10, 20, 40, 80)  # iterations of Adam in the figure
MEASURES = ("tre_mm", "sd_log_jacobian_organs", "folding_organs")
CHALLENGE = {"tre": "TRE, mm", "tre30": "TRE30, mm", "dice": "Dice", "dice30": "Dice30", "hd95": "HD95, voxels",
             "sd_log_jacobian": "SDlogJ (+3)", "sd_log_jacobian_honest": "SDlogJ", "folding": "folded"}
Line = tuple[Row, dict[str, float]]
"""Of the tables: what was measured within the lungs, and the measures of the Learn2Reg challenge."""


class Iterative(Protocol):
    """An optimiser that tells its way, such as AdamInstance or L2OPolicy."""

    def path(self, fixed: Tensor, moving: Tensor, at: Sequence[int], fixed_mask: Tensor | None = None,
             moving_mask: Tensor | None = None, initial: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Iterations:
    """An optimiser after some iterations, from the displacements of the start."""

    name: str
    solver: Iterative
    iterations: int
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found.displaced(chunk, path(self.solver, chunk, (self.iterations,))[0])


def path(solver: Iterative, chunk: Chunk, at: Sequence[int]) -> Tensor:
    """Displacements (len(at), B, D, *shape), voxels, after some iterations."""
    pair = chunk.state.pair
    return solver.path(pair.fixed, pair.moving, at, pair.fixed_labels > 0, pair.moving_labels > 0,
                       chunk.state.displacement)


def singly(chunk: Chunk) -> list[Chunk]:
    """The pairs one by one."""
    return [Chunk(chunk.core, chunk.state.select(slice(lane, lane + 1)), ENV, chunk.seed + lane)
            for lane in range(chunk.state.lanes)]


def found_by(method: Method, chunk: Chunk) -> Tensor:
    """Displacements (B, D, *shape), voxels, pair by pair."""
    return torch.cat([method(one).displacements for one in singly(chunk)])


def line(method: Method, chunk: Chunk) -> Line:
    """A method's line of the tables."""
    begun = perf_counter()
    fields = found_by(method, chunk)
    seconds = (perf_counter() - begun) / chunk.state.lanes
    pair = chunk.state.pair
    known = RegistrationCore(chunk.core.task, privileged=True).info(chunk.state)
    parts = fields, pair.fixed_labels[:, 0], pair.moving_labels[:, 0], known["keypoints"], known["keypoint_targets"]
    cases = [learn2reg.measured(*(part[lane].numpy() for part in parts), chunk.core.task.grid.spacing,
                                pair.fixed_labels[lane, 0].numpy() > 0) for lane in range(chunk.state.lanes)]
    return (Row(method.name, measured(chunk, Found.displaced(chunk, fields), MEASURES), seconds),
            learn2reg.summary(cases))


def curve(solver: Iterative, chunk: Chunk, at: Sequence[int]) -> list[float]:
    """Mean key-point error after some iterations, mm."""
    fields = torch.cat([path(solver, one, at) for one in singly(chunk)], 1)
    return [float(np.mean(measured(chunk, Found.displaced(chunk, field), MEASURES[:1])["tre_mm"])) for field in fields]


def table(lines: Sequence[Line]) -> str:
    told = ["| method | error, mm | 50th | 90th | SDlogJ, lungs | folded, lungs | pairs with folds | s/pair |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row, _ in lines:
        tre, spread, folded = map(row.values, MEASURES)
        middle, high = np.percentile(tre, [50, 90])
        told.append(f"| {row.method} | {tre.mean():.2f} ± {tre.std():.2f} | {middle:.2f} | {high:.2f} | "
                    f"{spread.mean():.3f} | {folded.mean():.3%} | {(folded > 0).sum()} | {row.seconds:.2f} |")
    return "\n".join(told) + "\n"


def challenge_table(lines: Sequence[Line]) -> str:
    """The Learn2Reg measures; SDlogJ is of det J + 3."""
    told = [f"| method | {' | '.join(CHALLENGE.values())} |", "| --- |" + " ---: |" * len(CHALLENGE)]
    told += [f"| {row.method} | {' | '.join(f'{found[name]:.4f}' for name in CHALLENGE)} |" for row, found in lines]
    return "\n".join(told) + "\n"


def draw(out: Path, learned: dict[str, list[float]], adam: dict[str, list[float]]) -> None:
    """Mean key-point error over the iterations."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, values in learned.items():
        axis.plot(values, label=name, marker=".")
    for name, values in adam.items():
        axis.plot(OF_ADAM, values, label=name, marker=".", linestyle="--")
    axis.axvline(ITERATIONS, color="0.7", lw=1)
    axis.set(xlabel="iteration", ylabel="mean key-point error, mm", xscale="symlog", xlim=(-0.1, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    keep(figure, out)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "keypoints")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    start = drawn(ENV, ARGUMENTS, 0, arguments.pairs, arguments.seed)
    grid, adam = start.core.task.grid, tuned_fields(start.core.task).adam
    optimiser = load(WEIGHTS, size=SIZE, spacing=grid.spacing[0]).policy
    one_shot = load(ONE_SHOT, size=SIZE, spacing=grid.spacing[0]) if ONE_SHOT.is_file() else None
    lines, of_learned, of_adam = [line(Initial(), start)], {}, {}
    convex = Optimiser("coupled convex", CoupledConvex(), masked=True)
    for chunk, name in ((start, ""), (None, " after coupled convex")):
        if chunk is None:
            lines.append(line(convex, start))
            chunk = Chunk(start.core, start.core.begin(start.state.pair, found_by(convex, start)), ENV, start.seed)
        lines += [*([] if one_shot is None else
                    [line(Policy(f"one-shot U-Net{name}", one_shot, one_shot.task(), 1), chunk)]),
                  *(line(Iterations(f"{title}{name}, {n} iterations", solver, n), chunk) for title, solver, n in (
                      ("Adam", adam, adam.iterations), ("L2O", optimiser, ITERATIONS), ("L2O", optimiser, BEYOND)))]
        of_adam[f"Adam{name}"] = curve(adam, chunk, OF_ADAM)
        of_learned[f"L2O{name}"] = curve(optimiser, chunk, range(BEYOND + 1))
        print(table(lines), flush=True)
    page = (f"# Learned optimisation on key-points\n\n{made_by('keypoints.py', typed)}: {arguments.pairs} pairs of "
            f"held-out patients, {SIZE} voxels of {grid.spacing[0]:.1f} mm an axis; errors on "
            f"{start.state.pair.landmarks.shape[1]} key-points a pair.\n\n{table(lines)}\nThe measures of the "
            "Learn2Reg challenge, and the spread of log det J and share of folds without its offset:\n\n"
            f"{challenge_table(lines)}")
    print(page)
    write(arguments.out, page, ["method", "tre_mm", "tre_sd", "sd_log_jacobian", "folding", "seconds_per_pair",
                                *(f"learn2reg_{name}" for name in lines[0][1])],
          [[row.method, tre.mean(), tre.std(), spread.mean(), folded.mean(), row.seconds, *challenge.values()]
           for row, challenge in lines for tre, spread, folded in [map(row.values, MEASURES)]])
    draw(arguments.out.with_suffix(".png"), of_learned, of_adam)
    return 0


if __name__ == "__main__":
    sys.exit(main())
