"""Table 1 of the learned optimiser's paper: key-point errors on held-out breathing lungs, also over iterations.

    python benchmarks/keypoints.py                        # 3D
    python benchmarks/keypoints.py --pairs 10 --out DIR/NAME
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep
from torch import Tensor

from regagents.agents import load, resolve
from regagents.classical.convexadam import AdamInstance, CoupledConvex
from regagents.evaluation import learn2reg
from regagents.evaluation.dense import deform
from regenv.atomic import atomic
from regenv.core import RegistrationCore
from regenv.ops import regularity
from regenv.registry import build
from regenv.state import EpisodeState

RESULTS = Path(__file__).parent / "results"
ENV, SIZE = "RegKeypoint3D-v0", 64
WEIGHTS, ONE_SHOT = "lung3d-l2o", "lung3d-oneshot"
TRAINED, BEYOND = 8, 16             # iterations of the learned optimiser: as trained, and how far the figure goes
OF_ADAM = (0, 1, 2, 5, 10, 20, 40, 80)  # iterations whose errors are measured


class Iterative(Protocol):
    """Such as AdamInstance or L2OPolicy."""

    def path(self, fixed: Tensor, moving: Tensor, at: Sequence[int], fixed_mask: Tensor | None = None,
             moving_mask: Tensor | None = None, initial: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Row:
    """A method: of each pair the key-point error, mm; spread of log det J and share of folded voxels within the lungs;
    and the Learn2Reg measures. Seconds a pair."""

    method: str
    tre: np.ndarray
    sd_log_jacobian: np.ndarray
    folded: np.ndarray
    challenge: dict[str, float]
    seconds: float

    @classmethod
    def of(cls, method: str, core: RegistrationCore, state: EpisodeState, seconds: float) -> Row:
        pair, field = state.pair, state.displacement
        assert field is not None and pair.fixed_labels is not None and pair.moving_labels is not None
        lungs = pair.fixed_labels > 0
        known = RegistrationCore(core.task, privileged=True).info(state)
        cases = [learn2reg.measured(field[lane].numpy(), pair.fixed_labels[lane, 0].numpy(),
                                    pair.moving_labels[lane, 0].numpy(), known["keypoints"][lane].numpy(),
                                    known["keypoint_targets"][lane].numpy(), core.task.grid.spacing,
                                    lungs[lane, 0].numpy()) for lane in range(state.lanes)]
        return cls(method, state.tre.numpy(), regularity.sd_log_jacobian(field, lungs).double().numpy(),
                   regularity.folding(field, lungs).double().numpy(), learn2reg.summary(cases), seconds)


def placed(core: RegistrationCore, start: EpisodeState, field: Tensor) -> EpisodeState:
    """The episodes with a displacement as their present estimate."""
    return core.begin(start.pair, field)


def iterated(core: RegistrationCore, start: EpisodeState, solver: Iterative, title: str, at: Sequence[int],
             ends: Sequence[int]) -> tuple[list[Row], np.ndarray]:
    """Rows after some iterations, ``ends``, and the mean error after those of ``at``, which has the ends, too."""
    curve, fields, seconds = np.zeros(len(at)), [], 0.0
    for lane in (start.select(slice(n, n + 1)) for n in range(start.lanes)):
        pair = lane.pair
        assert pair.fixed_labels is not None and pair.moving_labels is not None
        given = {"fixed_mask": pair.fixed_labels > 0, "moving_mask": pair.moving_labels > 0,
                 "initial": lane.displacement}
        begin = perf_counter()
        solver.path(pair.fixed, pair.moving, (ends[0],), **given)
        seconds += perf_counter() - begin
        path = solver.path(pair.fixed, pair.moving, at, **given)
        curve += [float(placed(core, lane, field).tre) for field in path]
        fields.append(path)
    rows = [Row.of(f"{title}, {end} iterations", core,
                   placed(core, start, torch.cat([path[at.index(end)] for path in fields])),
                   seconds / start.lanes * end / ends[0]) for end in ends]
    return rows, curve / start.lanes


def in_one_step(core: RegistrationCore, start: EpisodeState, title: str) -> Row:
    """The row of a network that was trained without key-points to register in one step."""
    spacing = core.task.grid.spacing[0]
    agent = load(resolve(ONE_SHOT), algorithm="SPAC", size=SIZE, spacing=spacing)
    own, fields, seconds = RegistrationCore(agent.task()), [], 0.0
    assert start.displacement is not None
    for lane in range(start.lanes):
        state = own.begin(start.pair.select(slice(lane, lane + 1)), start.displacement[lane: lane + 1])
        begin = perf_counter()
        fields.append(deform(agent, own, state, 1).displacement)
        seconds += perf_counter() - begin
    return Row.of(title, core, placed(core, start, torch.cat(fields)), seconds / start.lanes)


def pre_registered(core: RegistrationCore, start: EpisodeState) -> tuple[EpisodeState, float]:
    """The episodes after coupled convex optimisation, as pre-registration, and its seconds a pair."""
    pair = start.pair
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    begin = perf_counter()
    fields = [CoupledConvex().solve(*(part[lane: lane + 1] for part in (
        pair.fixed, pair.moving, pair.fixed_labels > 0, pair.moving_labels > 0))) for lane in range(start.lanes)]
    return placed(core, start, torch.cat(fields)), (perf_counter() - begin) / start.lanes


def table(rows: Sequence[Row]) -> str:
    lines = ["| method | error, mm | 50th | 90th | SDlogJ, lungs | folded, lungs | pairs with folds | s/pair |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        middle, high = np.percentile(row.tre, [50, 90])
        lines.append(f"| {row.method} | {row.tre.mean():.2f} ± {row.tre.std():.2f} | {middle:.2f} | {high:.2f} | "
                     f"{row.sd_log_jacobian.mean():.3f} | {row.folded.mean():.3%} | {(row.folded > 0).sum()} | "
                     f"{row.seconds:.2f} |")
    return "\n".join(lines) + "\n"


def challenge_table(rows: Sequence[Row]) -> str:
    """The Learn2Reg measures; SDlogJ is of det J + 3."""
    names = {"tre": "TRE, mm", "tre30": "TRE30, mm", "dice": "Dice", "dice30": "Dice30", "hd95": "HD95, voxels",
             "sd_log_jacobian": "SDlogJ (+3)", "sd_log_jacobian_honest": "SDlogJ", "folding": "folded"}
    lines = [f"| method | {' | '.join(names.values())} |", "| --- |" + " ---: |" * len(names)]
    lines += [f"| {row.method} | {' | '.join(f'{row.challenge[name]:.4f}' for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def draw(path: Path, learned_curves: dict[str, np.ndarray], adam_curves: dict[str, np.ndarray]) -> None:
    """Mean key-point error over the iterations."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, curve in learned_curves.items():
        axis.plot(curve, label=name, marker=".")
    for name, curve in adam_curves.items():
        axis.plot(OF_ADAM, curve, label=name, marker=".", linestyle="--")
    axis.axvline(TRAINED, color="0.7", lw=1)
    axis.set(xlabel="iteration", ylabel="mean key-point error, mm", xscale="symlog", xlim=(-0.1, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    keep(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "keypoints")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    core = RegistrationCore(build(ENV, size=SIZE, observation="dict", source={"name": "lungs", "split": "test"}))
    start = core.reset([np.random.default_rng(arguments.seed + lane) for lane in range(arguments.pairs)])
    begun, seconds = pre_registered(core, start)
    agent = load(resolve(WEIGHTS), algorithm="L2O", size=SIZE, spacing=core.task.grid.spacing[0])
    rows = [Row.of("initial", core, start, 0.0)]
    learned, adam = {}, {}
    for state, name in ((start, ""), (begun, " after coupled convex")):
        if name:
            rows.append(Row.of("coupled convex", core, begun, seconds))
        rows.append(in_one_step(core, state, f"one-shot U-Net{name}"))
        found, adam[f"Adam{name}"] = iterated(core, state, AdamInstance(), f"Adam{name}", OF_ADAM, OF_ADAM[-1:])
        rows += found
        found, learned[f"L2O{name}"] = iterated(core, state, agent.policy, f"L2O{name}", range(BEYOND + 1),
                                                (TRAINED, BEYOND))
        rows += found
        print(table(rows), flush=True)
    assert start.pair.landmarks is not None
    command = " ".join(["python benchmarks/keypoints.py", *typed])
    told = (f"# Learned optimisation on key-points\n\nMade by `{command}` on {date.today()}, {platform.machine()}, "
            f"1 thread, torch {torch.__version__}: {start.lanes} pairs of held-out patients, {SIZE} voxels of "
            f"{core.task.grid.spacing[0]:.1f} mm an axis; errors on {start.pair.landmarks.shape[1]} key-points a pair."
            f"\n\n{table(rows)}\nThe measures of the Learn2Reg challenge, and the honest spread of log det J and share "
            f"of folds beside its own:\n\n{challenge_table(rows)}")
    print(told)
    out = arguments.out
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(told)
    with atomic(out.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "tre_mm", "tre_sd", "sd_log_jacobian", "folding", "seconds_per_pair",
                         *(f"learn2reg_{name}" for name in rows[0].challenge)])
        writer.writerows([row.method, row.tre.mean(), row.tre.std(), row.sd_log_jacobian.mean(), row.folded.mean(),
                          row.seconds, *row.challenge.values()] for row in rows)
    draw(out.with_suffix(".png"), learned, adam)
    return 0


if __name__ == "__main__":
    sys.exit(main())
