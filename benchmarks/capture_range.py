"""Capture range on real heads: from how far out does a registration still find the one right pose?

Every case is a pair of real heads and many random starts. No truth is known between two people, so a method is measured
by agreement: the share of its starts that end within 10 mm of the pose that most of them share, and the spread about
it. That pose is also compared with a reference, so that a method which is always wrong in the same way shows.

    python benchmarks/capture_range.py                                 # all cases, 64 starts, two ranges
    python benchmarks/capture_range.py --starts 16 --ranges 30,30      # a first look
    python benchmarks/capture_range.py --rire FOLDER                   # and CT to MR with a published gold standard
    python benchmarks/capture_range.py --pair FIXED MOVING NAME        # and your own images

A run that was cut off goes on where it stopped; results of other weights, images or settings are dropped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from regagents.agents import load, resolve
from regagents.classical import MattesMI, Refinement, evaluate_metric, working
from regagents.common.checkpoints import CheckpointError
from regagents.registration import pipeline as alignment
from regagents.registration import register as registration
from regagents.registration.pipeline import AGENTS, Aligned, Pipeline, align, centered, choose, scattered
from regenv.atomic import atomic
from regenv.data.banks import downloads as datasets
from regenv.data.banks import heads as headbank
from regenv.data.io.images import Image, ImageError, read_image
from regenv.data.io.resampling import foreground_center, to_sitk
from regenv.grid import Grid
from regenv.ops.affine import about
from regenv.transforms.rigid import Rigid

NEAR_MM = 10.0           # an end this near to the common pose counts as found
GOLD_MM = 4.0            # at the corners of RIRE; mutual information's own optimum lies 1.4 to 3.1 mm from the gold
LATTICE_MM = 60.0        # landmarks: 3 x 3 x 3 points, this far apart, about the fixed foreground's centre
LANES = 128              # of one batch of the agent
LONE_STARTS = 3          # full runs of one start each, for the time a registration takes

METHODS = {"agent": "agent, one start", "pipeline": "agent, pipeline", "refined": "pipeline + refinement",
           "mi": "tuned MI, one start", "mi refined": "tuned MI + refinement",
           "multi": "tuned MI, multi-start in the same time + refinement"}
COLORS = {"agent": "#4c9fdc", "refined": "#0b4f8a", "mi": "#e08214", "multi": "#8c4a00"}


# ----------------------------------------------------------------------------------------------------------- cases

@dataclass(eq=False)
class Case:
    """Two images to register, and what is known of their pose.

    Attributes:
        gold: (8, 6) corners, fixed world then moving world, mm, if there is a gold standard.
        asked: run only where ``--cases`` names it.
    """

    name: str
    fixed: Image
    moving: Image
    gold: np.ndarray | None = None
    asked: bool = False

    @cached_property
    def center(self) -> np.ndarray:
        return foreground_center(self.fixed)

    @cached_property
    def sitk_images(self) -> tuple[sitk.Image, sitk.Image]:
        return to_sitk(self.fixed), to_sitk(self.moving)

    @cached_property
    def for_search(self) -> tuple[sitk.Image, sitk.Image]:
        """Both at the resolution that the classical search works at, so that only the search itself is timed."""
        fixed, moving = (working(image, MattesMI().voxels) for image in self.sitk_images)
        return fixed, moving

    @cached_property
    def for_refinement(self) -> tuple[sitk.Image, sitk.Image]:
        fixed, moving = (working(image, Refinement().voxels) for image in self.sitk_images)
        return fixed, moving

    @cached_property
    def for_choice(self) -> tuple[Image, Image]:
        """Both at the resolution at which mutual information chooses between candidates."""
        fixed, moving = (Image(sitk.GetArrayFromImage(image), Grid.from_sitk(image), self.name)
                         for image in self.for_search)
        return fixed, moving

    @cached_property
    def digest(self) -> str:
        both = hashlib.sha256()
        for image in (self.fixed, self.moving):
            both.update(np.ascontiguousarray(image.array).data)
            both.update(repr(image.grid).encode())
        return both.hexdigest()[:12]

    @cached_property
    def landmarks(self) -> np.ndarray:
        """(27, 3) points of the fixed world, mm."""
        ticks = [[-LATTICE_MM, 0.0, LATTICE_MM]] * 3
        return self.center + np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3)

    def starts(self, mm: float, degrees: float, count: int, seed: int) -> np.ndarray:
        """(count, 4, 4) pull-backs, uniform per axis about the pose with both foregrounds' centres on each other."""
        width = np.array([mm] * 3 + [degrees] * 3)
        moves = np.random.default_rng(seed).uniform(-width, width, (count, 6))
        return centered(self.fixed, self.moving) @ about(self.center, Rigid(3).matrix(torch.from_numpy(moves))).numpy()

    @cached_property
    def reference(self) -> np.ndarray:
        """The gold pose; else the best of searches and refinements from the centred and from the stored pose."""
        if self.gold is not None:
            return fitted(self.gold[:, :3], self.gold[:, 3:])
        found = []
        for start in (np.eye(4), centered(self.fixed, self.moving)):
            searched = MattesMI().register(*self.for_search, start, self.center).pull_back
            found += [Refinement().register(*self.for_refinement, pose).pull_back for pose in (start, searched)]
        return min(found, key=lambda pose: evaluate_metric(*self.for_search, pose))


def built_in_cases() -> Iterator[Case]:
    """Real heads that anyone can fetch. Colin27 and CSI3 were never in training."""
    _, colin_brain = headbank._load("colin27")
    mni = read_image(datasets.mni152()["t1"])
    head = read_image(datasets.get("colin27")["colin27"])
    mask = sitk.GetArrayFromImage(colin_brain) > 0
    brain = replace(head, array=np.where(mask, head.array, 0).astype(np.float32))
    person = read_image(datasets.get("bold5000")["csi3"])
    yield Case("MNI152 ← Colin27", mni, head)
    yield Case("MNI152 ← Colin27, brain only", mni, brain)
    yield Case("MNI152 ← CSI3", mni, person)
    yield Case("Colin27 ← CSI3", head, person)
    yield Case("Colin27 ← MNI 2009c T2", head, read_image(datasets.get("mni2009c")["t2"]), asked=True)


def rire_case(folder: Path) -> Case:
    """RIRE patient 001, CT to MR T1, with the eight published corners."""
    path = folder / "gold_ct_to_mr.csv"
    if not path.is_file():
        raise ImageError(f"{path}: is not a file; --rire needs a folder with ct.nii.gz, mr_t1.nii.gz and this file.")
    gold = np.genfromtxt(path, delimiter=",", skip_header=2)
    if gold.shape != (8, 6) or not np.isfinite(gold).all():
        raise ImageError(f"{path}: holds an array of {gold.shape}; 8 corners by 6 numbers (CT, then MR) are needed.")
    return Case("RIRE 001: CT ← MR T1", read_image(folder / "ct.nii.gz"), read_image(folder / "mr_t1.nii.gz"), gold)


# -------------------------------------------------------------------------------------------------------- methods

def agent_poses(case: Case, chain: Pipeline, agents: Sequence[Any], starts: np.ndarray) -> np.ndarray:
    """What :func:`regagents.registration.run` makes of every start (K, 4, 4), start i with seed i, as few batches."""
    if chain.attention:
        return np.stack([registration.run(chain, case.fixed, case.moving, start, seed, agents=agents)[0]
                         for seed, start in enumerate(starts)])
    center = case.center if chain.view == "foreground" else case.fixed.grid.center
    groups = [scattered(start, center, chain.starts, seed) for seed, start in enumerate(starts)]
    for agent, steps in zip(agents, chain.steps or [None] * len(agents), strict=True):
        ends = in_batches(agent, case, np.concatenate(groups), steps, center)
        size = len(groups[0])
        groups = [best_of(case, ends, slice(first, first + size)) for first in range(0, len(ends.pull_backs), size)]
    return np.concatenate(groups)


def in_batches(agent: Any, case: Case, starts: np.ndarray, steps: int | None, center: np.ndarray) -> Aligned:
    parts = [align(agent, case.fixed, case.moving, starts[first:first + LANES], steps, center)
             for first in range(0, len(starts), LANES)]
    return Aligned(np.concatenate([part.pull_backs for part in parts]), np.empty((0,)),
                   np.concatenate([part.steps for part in parts]), center)


def best_of(case: Case, ends: Aligned, lanes: slice) -> np.ndarray:
    group = replace(ends, pull_backs=ends.pull_backs[lanes], steps=ends.steps[lanes])
    return choose(*case.for_choice, group)[1][None]


def multi_start(metrics: np.ndarray, count: int, seed: int) -> np.ndarray:
    """For each run the best by mutual information (K,) of itself and ``count - 1`` others: indices of runs (K,).

    The other runs began about the right place and not about this start: better than a user could do.
    """
    rng, lanes = np.random.default_rng(seed), np.arange(len(metrics))
    picked = [np.append(lane, rng.permutation(np.delete(lanes, lane))[:count - 1]) for lane in lanes]
    return np.array([tried[np.argmin(metrics[tried])] for tried in picked])


# -------------------------------------------------------------------------------------------------------- measures

def moved(pull_backs: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) under each pose (K, 4, 4): (K, N, 3)."""
    return np.einsum("kij,nj->kni", pull_backs[:, :3, :3], points) + pull_backs[:, None, :3, 3]


def gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of corresponding points (..., N, 3): (...)."""
    return np.linalg.norm(a - b, axis=-1).mean(-1)


def common_points(points: np.ndarray) -> np.ndarray:
    """Where most ends put the landmarks: the mean over the end that has most others within 10 mm, and over those.
    (K, N, 3) to (N, 3)."""
    between = np.stack([gaps(points, one) for one in points])
    near = between <= NEAR_MM
    order = np.lexsort((between.mean(1), -near.sum(1)))
    return points[near[order[0]]].mean(0)


def fitted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rigid map (4, 4) of points a (N, 3) to b (N, 3), least squares (Kabsch 1976)."""
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    pull_back = np.eye(4)
    pull_back[:3, :3] = (u @ sign @ vt).T
    pull_back[:3, 3] = b.mean(0) - pull_back[:3, :3] @ a.mean(0)
    return pull_back


def measure(case: Case, ends: np.ndarray, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    points, reference = moved(ends, case.landmarks), moved(case.reference[None], case.landmarks)[0]
    common = common_points(points)
    spread = gaps(points, common)
    row = {"starts": len(ends), "within_10mm": float(np.mean(spread <= NEAR_MM)),
           "median_spread_mm": float(np.median(spread)), "p90_spread_mm": float(np.percentile(spread, 90)),
           "common_to_reference_mm": float(gaps(common, reference)),
           "within_10mm_of_reference": float(np.mean(gaps(points, reference) <= NEAR_MM)), "seconds": seconds}
    if case.gold is not None:
        error = gaps(moved(ends, case.gold[:, :3]), case.gold[:, 3:])
        row |= {"gold_within_4mm": float(np.mean(error <= GOLD_MM)), "gold_median_mm": float(np.median(error))}
    return row


# ------------------------------------------------------------------------------------------------------- the record

class Record:
    """What has been run: one JSON line per (case, range, method, start), each with the key of what made it.

    Args: keys: those that count, of each case; other lines of these cases are stale and go, those of other cases stay.
    """

    def __init__(self, path: Path, header: dict[str, Any], keys: dict[str, set[str]]) -> None:
        self.path = path
        self.lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for text in path.read_text().splitlines()[1:] if path.is_file() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the run before was cut off while writing
                continue
            if line["key"] in keys.get(line["case"], {line["key"]}):
                self.lines[self._index(**line)] = line
        with atomic(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (header, *self.lines.values())))

    def add(self, **line: Any) -> None:
        self.lines[self._index(**line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, key: str, reach: Sequence[float], method: str, start: int) -> bool:
        return (key, *reach, method, start) in self.lines

    def of(self, key: str, reach: Sequence[float], method: str, count: int) -> list[dict[str, Any]]:
        return [self.lines[(key, *reach, method, i)] for i in range(count) if self.has(key, reach, method, i)]

    @staticmethod
    def _index(key: str, reach: Sequence[float], method: str, start: int, **_: Any) -> tuple[Any, ...]:
        return (key, *reach, method, start)


def poses(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([line["pull_back"] for line in lines])


class Keys:
    """Names of what a result depends on: the two images, the seed, and the classical settings or the weights, the
    pipeline and its code."""

    def __init__(self, chain: Pipeline, seed: int) -> None:
        self.weights = {name: hashlib.sha256(resolve(name).read_bytes()).hexdigest() for name in chain.stages}
        code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (registration, alignment)))
        self.learned = repr((list(self.weights.values()), replace(chain, stages=()), code.hexdigest(), Refinement(),
                             seed))
        self.classical = repr((MattesMI(), Refinement(), seed))

    def __call__(self, case: Case, method: str) -> str:
        what = self.classical if method.startswith("mi") else self.learned
        return hashlib.sha256((case.digest + what).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------- run

def run_case(case: Case, chain: Pipeline, agents: Sequence[Any], reach: tuple[float, float], count: int,
             classical: int, seed: int, keys: Keys, record: Record,
             tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Run what is missing of a case and one range, the classical search from the first ``classical`` starts only; the
    table's rows by method."""
    starts = case.starts(*reach, count, seed)

    def missing(method: str, most: int = count) -> list[int]:
        return [i for i in range(most) if not record.has(keys(case, method), reach, method, i)]

    def add(method: str, start: int, pull_back: np.ndarray, seconds: float | None, **more: Any) -> None:
        record.add(key=keys(case, method), case=case.name, reach=reach, method=method, start=start,
                   pull_back=pull_back.tolist(), seconds=seconds, **more)

    for method, form in (("agent", replace(chain, starts=1)), ("pipeline", chain)):
        lone = f"{method}, alone"
        for i in missing(lone, min(count, LONE_STARTS)):
            tell(lone)
            began = process_time()
            pose = registration.run(form, case.fixed, case.moving, starts[i], seed=i, agents=agents)[0]
            add(lone, i, pose, process_time() - began)
        if missing(method):
            tell(method)
            for i, pose in enumerate(agent_poses(case, form, agents, starts)):
                add(method, i, pose, None)
    _ = case.for_search, case.for_refinement  # prepared before anything is timed
    for i in missing("refined"):
        tell(f"refinement {i + 1}/{count}")
        rough = record.of(keys(case, "pipeline"), reach, "pipeline", count)[i]["pull_back"]
        began = process_time()
        add("refined", i, Refinement().register(*case.for_refinement, np.array(rough)).pull_back,
            process_time() - began)
    for i in missing("mi refined", classical):
        tell(f"mutual information {i + 1}/{classical}")
        began = process_time()
        found = MattesMI(seed=i).register(*case.for_search, starts[i], case.center).pull_back
        add("mi", i, found, process_time() - began, metric=evaluate_metric(*case.for_search, found))
        began = process_time()
        add("mi refined", i, Refinement().register(*case.for_refinement, found).pull_back, process_time() - began)

    tell("measures")
    lines = {method: record.of(keys(case, method), reach, method, classical if method.startswith("mi") else count)
             for method in ("agent", "agent, alone", "pipeline", "pipeline, alone", "refined", "mi", "mi refined")}
    took = {method: float(np.median([line["seconds"] for line in those]))
            for method, those in lines.items() if those[0]["seconds"] is not None}
    tries = min(classical, math.ceil(took["pipeline, alone"] / took["mi"]))
    seconds = {"agent": took["agent, alone"], "pipeline": took["pipeline, alone"],
               "refined": took["pipeline, alone"] + took["refined"], "mi": took["mi"],
               "mi refined": took["mi"] + took["mi refined"], "multi": tries * took["mi"] + took["mi refined"]}
    ends = {method: poses(lines[method]) for method in METHODS if method != "multi"}
    ends["multi"] = ends["mi refined"][multi_start(np.array([line["metric"] for line in lines["mi"]]), tries, seed)]
    rows: dict[str, dict[str, Any]] = {m: measure(case, ends[m], seconds[m]) for m in METHODS}
    rows["multi"]["runs"] = tries
    singly = moved(poses(lines["pipeline, alone"]), case.landmarks)
    batched = moved(ends["pipeline"][:len(singly)], case.landmarks)
    rows["pipeline"]["lone_run_differs_mm"] = float(np.max(gaps(singly, batched)))
    near: dict[str, list[bool]] = {}
    for method, pull_backs in ends.items():
        points = moved(pull_backs, case.landmarks)
        near[method] = (gaps(points, common_points(points)) <= NEAR_MM).tolist()
    reference = moved(case.reference[None], case.landmarks)[0]
    return rows | {"_": {"start_mm": gaps(moved(starts, case.landmarks), reference).tolist(), "found": near}}


# ------------------------------------------------------------------------------------------------------------ report

def table(results: dict[str, dict[str, dict[str, Any]]], gold: bool) -> str:
    """Markdown rows of one range."""
    head = ["case", "method", "within 10 mm of the common pose", "median spread, mm", "90th percentile, mm",
            "common pose to reference, mm", "within 10 mm of the reference"]
    head += ["gold: within 4 mm", "gold: median, mm"] if gold else []
    head += ["seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for case, rows in results.items():
        for method, label in METHODS.items():
            row = rows[method]
            name = label + (f" (runs: {row['runs']})" if "runs" in row else "")
            cells = [case, name, f"{100 * row['within_10mm']:.0f} %", f"{row['median_spread_mm']:.2f}",
                     f"{row['p90_spread_mm']:.1f}", f"{row['common_to_reference_mm']:.1f}",
                     f"{100 * row['within_10mm_of_reference']:.0f} %"]
            if gold:
                cells += ([f"{100 * row['gold_within_4mm']:.0f} %", f"{row['gold_median_mm']:.1f}"]
                          if "gold_median_mm" in row else ["", ""])
            lines.append("| " + " | ".join([*cells, f"{row['seconds']:.1f}"]) + " |")
    return "\n".join(lines)


def report(results: dict[tuple[float, float], dict[str, Any]], header: dict[str, Any], gold: bool) -> str:
    """The whole Markdown page."""
    stages = ", ".join(f"`{Path(name).stem}` (sha256 {digest[:12]})" for name, digest in header["weights"].items())
    parts = ["# Capture range on real heads", "",
             f"Made by `{header['command']}` on {header['date']}, {header['machine']}. Agent: {stages}. Pipeline: "
             f"{header['scatter']} starts scattered about the given one and takes what they agree on. Every case "
             f"has {header['starts']} random starts, the classical search the first "
             f"{min(header['starts'], header['classical_starts'])} of them. Spread: mean "
             "distance over 27 landmarks (a lattice of ±60 mm) to where most ends of the same method put them. "
             "Reference: the gold standard where there is one, else the best by mutual information of searches and "
             "refinements from the centred and from the stored pose. Multi-start: as many runs as fit into the "
             "pipeline's time, rounded up, then the refinement of the best. Seconds: CPU time of one thread, without "
             "reading images and weights. MNI152 and MNI 2009c were in training; the others were not.", ""]
    for (mm, degrees), cases in results.items():
        parts += [f"## Starts within ±{mm:g} mm and ±{degrees:g}° on every axis", "", table(cases, gold), ""]
    return "\n".join([*parts, "![Success over start distance](capture_range.png)", ""])


def draw(path: Path, results: dict[tuple[float, float], dict[str, Any]]) -> None:
    """Success over the start's distance, one panel per case, all ranges pooled."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for cases in results.values() for name in cases))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows + 0.5), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")
    for panel, name in zip(axes.flat, names, strict=False):
        points = [cases[name]["_"] for cases in results.values() if name in cases]
        every = np.concatenate([point["start_mm"] for point in points])
        edges = np.quantile(every, np.linspace(0, 1, max(4, min(9, len(every) // 8 + 1))))
        for method, color in COLORS.items():
            far = np.concatenate([point["start_mm"][:len(point["found"][method])] for point in points])
            found = np.concatenate([point["found"][method] for point in points])
            which = np.clip(np.digitize(far, edges) - 1, 0, len(edges) - 2)
            used = [i for i in range(len(edges) - 1) if (which == i).any()]
            panel.plot([far[which == i].mean() for i in used], [100 * found[which == i].mean() for i in used],
                       marker="o", markersize=4, color=color, label=METHODS[method],
                       linestyle="-" if method in ("agent", "refined") else "--")
        panel.set_title(name, fontsize=10)
        panel.set_xlim(left=0)
        panel.set_ylim(-4, 104)
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(names):]:
        panel.axis("off")
    figure.supxlabel("mean landmark distance at the start, mm", fontsize=10)
    figure.supylabel("ends within 10 mm of the common pose, %", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=(1, 2, 4)[columns - 1], frameon=False, fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="head", help="name of an agent, or a checkpoint's path")
    parser.add_argument("--scatter", type=int, help="starts of the pipeline (default: the agent's; 8 for a checkpoint)")
    parser.add_argument("--starts", type=int, default=64, help="random starts of each case")
    parser.add_argument("--classical-starts", type=int, default=24, help="of them, for the classical search")
    parser.add_argument("--ranges", nargs="+", default=["30,30", "60,90"], metavar="MM,DEGREES")
    parser.add_argument("--cases", nargs="*", metavar="TEXT", help="only built-in cases whose name has one of these "
                        "(with T2, also Colin27 ← MNI 2009c T2); none at all with an empty list")
    parser.add_argument("--pair", nargs=3, action="append", default=[], metavar=("FIXED", "MOVING", "NAME"))
    parser.add_argument("--rire", type=Path, metavar="FOLDER", help="ct.nii.gz, mr_t1.nii.gz, gold_ct_to_mr.csv")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    if min(arguments.starts, arguments.classical_starts) < 2:
        parser.error(f"--starts is {arguments.starts}, --classical-starts {arguments.classical_starts}; agreement "
                     "needs at least 2.")
    try:
        ranges = [(float(mm), float(degrees)) for mm, degrees in (text.split(",") for text in arguments.ranges)]
    except ValueError:
        parser.error(f"--ranges is {' '.join(arguments.ranges)}; write MM,DEGREES, such as 30,30.")
    torch.set_num_threads(1)
    command = "python benchmarks/capture_range.py " + " ".join(sys.argv[1:] if argv is None else argv)
    try:
        benchmark(arguments, ranges, command.strip())
    except (datasets.DatasetError, ImageError, CheckpointError, FileNotFoundError) as error:
        print(f"capture_range: {error}", file=sys.stderr)
        return 2
    return 0


def benchmark(arguments: argparse.Namespace, ranges: list[tuple[float, float]], command: str) -> None:
    """Run all cases; write the table after each of them."""
    chain = registration.pipeline(arguments.agent)
    scatter = arguments.scatter or (chain.starts if arguments.agent in AGENTS else 8)
    chain = replace(chain, starts=scatter)
    agents = [load(name) for name in chain.stages]
    cases = [case for case in (built_in_cases() if arguments.cases != [] else ())
             if (not case.asked if arguments.cases is None
                 else any(text.lower() in case.name.lower() for text in arguments.cases))]
    cases += [rire_case(arguments.rire)] if arguments.rire else []
    cases += [Case(name, read_image(fixed), read_image(moving)) for fixed, moving, name in arguments.pair]
    if not cases:
        raise ImageError(f"--cases is {arguments.cases}; no built-in case has that in its name, and no --pair or "
                         "--rire is given.")
    keys = Keys(chain, arguments.seed)
    header = {"command": command, "date": date.today().isoformat(), "weights": keys.weights, "scatter": chain.starts,
              "seed": arguments.seed, "starts": arguments.starts, "classical_starts": arguments.classical_starts,
              "machine": f"{platform.processor() or platform.machine()}, 1 thread, "
                                                 f"torch {torch.__version__}"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = Record(arguments.out / "capture_range.jsonl", header,
                    {case.name: {keys(case, method) for method in METHODS} for case in cases})
    results: dict[tuple[float, float], dict[str, Any]] = {reach: {} for reach in ranges}
    with tqdm(total=len(cases) * len(ranges), unit="case", disable=None) as bar:
        for case in cases:
            for reach in ranges:
                def tell(what: str, case: Case = case, reach: tuple[float, float] = reach) -> None:
                    bar.set_description(f"{case.name}, ±{reach[0]:g} mm ±{reach[1]:g}°: {what}")

                results[reach][case.name] = run_case(case, chain, agents, reach, arguments.starts,
                                                     min(arguments.starts, arguments.classical_starts), arguments.seed,
                                                     keys, record, tell)
                bar.update()
            done = {reach: rows for reach, rows in results.items() if rows}
            page = report(done, header, any(one.gold is not None for one in cases))
            with atomic(arguments.out / "capture_range.md") as temporary:
                temporary.write_text(page)
            tables = {f"{mm:g},{degrees:g}": rows for (mm, degrees), rows in done.items()}
            with atomic(arguments.out / "capture_range.json") as temporary:
                temporary.write_text(json.dumps(header | {"results": tables}, indent=1) + "\n")
            draw(arguments.out / "capture_range.png", done)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
