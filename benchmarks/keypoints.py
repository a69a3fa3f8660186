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

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from figures import keep
from torch import Tensor

from regagents.classical.instance import AdamInstance, CoupledConvex
from regagents.deformation import walk
from regagents.train import load, resolve
from regenv.core import RegistrationCore
from regenv.data.io import atomic
from regenv.ops import regularity
from regenv.registry import build
from regenv.state import EpisodeState

RESULTS = Path(__file__).parent / "results"
ENV, SIZE = "RegKeypoint3D-v0", 64
WEIGHTS = "lung3d-l2o"
ITERATIONS, BEYOND = 8, 16          # of the learned optimiser: as trained, and what figure and table go to
SEEN = (0, 1, 2, 5, 10, 20, 40, 80)  # iterations of Adam whose errors are measured


@dataclass(frozen=True)
class Row:
    """A method: key-point error of each pair, mm; spread of log det J and folded voxels within the lungs; seconds."""

    method: str
    tre: np.ndarray
    sd_log_jacobian: np.ndarray
    folded: np.ndarray
    seconds: float

    @classmethod
    def of(cls, method: str, state: EpisodeState, seconds: float) -> Row:
        assert state.displacement is not None and state.pair.fixed_labels is not None
        lungs = state.pair.fixed_labels > 0
        return cls(method, state.tre.numpy(), regularity.sd_log_jacobian(state.displacement, lungs).double().numpy(),
                   regularity.folding(state.displacement, lungs).double().numpy(), seconds)


def placed(core: RegistrationCore, start: EpisodeState, field: Tensor) -> EpisodeState:
    """The episodes with a displacement as their present estimate."""
    return core.begin(start.pair, field)


def learned(core: RegistrationCore, start: EpisodeState, title: str) -> tuple[list[Row], np.ndarray]:
    """Rows after as many iterations as in training and twice as many, and the mean error over them."""
    agent = load(resolve(WEIGHTS), algorithm="L2O", size=SIZE, spacing=core.task.grid.spacing[0])
    lanes = [start.select(slice(lane, lane + 1)) for lane in range(start.lanes)]
    curve, ends, seconds = np.zeros(BEYOND + 1), {ITERATIONS: [], BEYOND: []}, 0.0
    for lane in lanes:
        curve[0] += float(lane.tre)
        with torch.inference_mode():
            begin = perf_counter()
            for step, state in enumerate(walk(agent, core, lane, BEYOND), 1):
                curve[step] += float(state.tre)
                if step == ITERATIONS:
                    seconds += perf_counter() - begin
                if step in ends:
                    ends[step].append(state.displacement)
    rows = [Row.of(f"{title}, {step} iterations", placed(core, start, torch.cat(fields)),
                   seconds / start.lanes * step / ITERATIONS) for step, fields in ends.items()]
    return rows, curve / start.lanes


def optimised(core: RegistrationCore, start: EpisodeState, title: str) -> tuple[Row, np.ndarray]:
    """The row of Adam after all its iterations, and the mean error over them."""
    adam, curve, fields, seconds = AdamInstance(), np.zeros(len(SEEN)), [], 0.0
    for lane in (start.select(slice(n, n + 1)) for n in range(start.lanes)):
        pair = lane.pair
        assert pair.fixed_labels is not None and pair.moving_labels is not None
        given = {"fixed_mask": pair.fixed_labels > 0, "moving_mask": pair.moving_labels > 0,
                 "initial": lane.displacement}
        begin = perf_counter()
        adam.solve(pair.fixed, pair.moving, **given)
        seconds += perf_counter() - begin
        path = adam.path(pair.fixed, pair.moving, SEEN, **given)
        curve += [float(placed(core, lane, field).tre) for field in path]
        fields.append(path[-1])
    end = placed(core, start, torch.cat(fields))
    return Row.of(f"{title}, {SEEN[-1]} iterations", end, seconds / start.lanes), curve / start.lanes


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


def draw(path: Path, learned_curves: dict[str, np.ndarray], adam_curves: dict[str, np.ndarray]) -> None:
    """Mean key-point error over the iterations."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, curve in learned_curves.items():
        axis.plot(curve, label=name, marker=".")
    for name, curve in adam_curves.items():
        axis.plot(SEEN, curve, label=name, marker=".", linestyle="--")
    axis.axvline(ITERATIONS, color="0.7", lw=1)
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
    rows = [Row.of("initial", start, 0.0)]
    learned_curves, adam_curves = {}, {}
    for state, name in ((start, ""), (begun, " after coupled convex")):
        if name:
            rows.append(Row.of("coupled convex", begun, seconds))
        adam, adam_curves[f"Adam{name}"] = optimised(core, state, f"Adam{name}")
        found, learned_curves[f"L2O{name}"] = learned(core, state, f"L2O{name}")
        rows += [adam, *found]
        print(table(rows), flush=True)
    assert start.pair.landmarks is not None
    command = " ".join(["python benchmarks/keypoints.py", *typed])
    told = (f"# Learned optimisation on key-points\n\nMade by `{command}` on {date.today()}, {platform.machine()}, "
            f"1 thread, torch {torch.__version__}: {start.lanes} pairs of held-out patients, {SIZE} voxels of "
            f"{core.task.grid.spacing[0]:.1f} mm an axis; errors on {start.pair.landmarks.shape[1]} key-points a pair."
            f"\n\n{table(rows)}")
    print(told)
    out = arguments.out
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(told)
    with atomic(out.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "tre_mm", "tre_sd", "sd_log_jacobian", "folding", "seconds_per_pair"])
        writer.writerows([row.method, row.tre.mean(), row.tre.std(), row.sd_log_jacobian.mean(), row.folded.mean(),
                          row.seconds] for row in rows)
    draw(out.with_suffix(".png"), learned_curves, adam_curves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
