"""Hard inputs: slabs, thick slices, fMRI-like scans, wrong patient positions, partial heads, unknown contrasts.

    python benchmarks/hard_inputs.py                     # every kind, three poses, two fixed heads
    python benchmarks/hard_inputs.py --poses 1 --kinds slab prone

The moving image is made from Colin27 or the MNI 2009c average with a known pose; the fixed one is the same head, or
CSI3, another person, whose pose to it was agreed once from a good start. Everything that a scanner would change is
synthetic, see :data:`KINDS`. Every case goes through the command ``regagents register`` with files, as a user's would;
the error is that of the transform it writes. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import SimpleITK as sitk
import torch
from capture_cases import Case, about, coarser, head_files, moved_grid, random_rotation, share
from capture_methods import own_settings
from common import machine, publish
from hard_images import ct_like, fmri_like, hands_off, partial, slab, thick_slices

from regagents.cli import main as regagents
from regagents.common import jobs
from regenv.data.banks import downloads
from regenv.data.io.images import Image, normalize, read_image
from regenv.data.io.resampling import foreground_center
from regenv.data.io.transforms import read_transform
from regenv.data.io.writing import write_image

NEAR_MM = 10.0
POSE_MM, POSE_DEGREES = 40.0, 30.0          # of a moderate pose: largest shift an axis, largest angle
POINTS = 100                                # of the moving foreground, at which the error is taken


Maker = Callable[[Image, np.random.Generator], Image]
KINDS: dict[str, Maker] = {
    "whole head": lambda image, rng: image,
    **{f"slab, {n} slices": lambda image, rng, n=n: slab(image, rng, n) for n in (8, 12, 16, 24, 40)},
    "slab, 16 coronal slices": lambda image, rng: slab(image, rng, 16, 1),
    "slab, 16 sagittal slices": lambda image, rng: slab(image, rng, 16, 2),
    **{f"slices of {n} mm": lambda image, rng, n=n: thick_slices(image, rng, float(n)) for n in (3, 4, 5, 6)},
    "fMRI-like": fmri_like,
    "fMRI-like slab, 20 slices": lambda image, rng: slab(fmri_like(image, rng), rng, 20),
    "prone": lambda image, rng: image,
    "feet first": lambda image, rng: image,
    "CT-like": ct_like,
    "partial CT-like head": lambda image, rng: partial(ct_like(image, rng), rng),
    "partial head": partial,
    "hands-off contrast": hands_off,
    "any pose": lambda image, rng: image,
}


# ------------------------------------------------------------------------------------------------------------ the runs

@dataclass(frozen=True)
class Task:
    """A case: kind, fixed head ("same" or "other"), number of the pose."""

    kind: str
    fixed: str
    number: int
    agent: str
    seed: int
    reference: tuple[tuple[float, ...], ...]


@lru_cache(maxsize=4)
def head(name: str) -> Image:
    return coarser(read_image(head_files()[name]))


def moving_head(kind: str) -> str:
    """The head that a kind is made of: T2 for what is like fMRI."""
    return "MNI 2009c T2" if kind.startswith("fMRI") else "Colin27"


def fixed_head(kind: str, fixed: str) -> str:
    if fixed == "other person":
        return "CSI3"
    return "MNI 2009c" if kind.startswith("fMRI") else "Colin27"


def agreed(fixed: str, moving: str) -> list[list[float]]:
    """The pose between two heads as they are, from good starts: of one head, and of one average's T1 and T2, the
    identity."""
    one = fixed == moving or {fixed, moving} == {"MNI 2009c", "MNI 2009c T2"}
    pose: list[list[float]] = (np.eye(4) if one else Case("", head(fixed), head(moving)).reference()).tolist()
    return pose


def motion_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Where the scanner's header puts the patient: a moderate pose; with a half turn; or any."""
    motion = np.eye(4)
    axis = rng.normal(size=3)
    turn = sitk.VersorTransform((axis / np.linalg.norm(axis)).tolist(), np.radians(rng.uniform(0, POSE_DEGREES)))
    motion[:3, :3] = np.reshape(turn.GetMatrix(), (3, 3))
    motion[:3, 3] = rng.uniform(-POSE_MM, POSE_MM, 3)
    if kind == "any pose":
        motion[:3, :3] = random_rotation(rng)
    if kind == "prone":
        motion[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ motion[:3, :3]
    if kind == "feet first":
        motion[:3, :3] = np.diag([-1.0, 1.0, -1.0]) @ motion[:3, :3]
    return motion


def run_case(task: Task) -> dict[str, Any]:
    """Make the images, run the command on their files, read what it wrote."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([task.seed, list(KINDS).index(task.kind), task.number])
    source = head(moving_head(task.kind))
    there = about(foreground_center(source), motion_of(task.kind, rng))
    made = KINDS[task.kind](source, rng)
    moving = replace(made, grid=moved_grid(made.grid, there))
    truth = there @ np.array(task.reference)
    with tempfile.TemporaryDirectory() as folder:
        files = {"fixed": head(fixed_head(task.kind, task.fixed)), "moving": moving}
        for side, image in files.items():
            write_image(f"{folder}/{side}.nii.gz", image.array, image.grid)
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            status = regagents(["register", f"{folder}/fixed.nii.gz", f"{folder}/moving.nii.gz", "-o", f"{folder}/out",
                                "--agent", task.agent, *strict()])
        if status > 128:        # the command was told to end, and so is this run: that is no result
            raise KeyboardInterrupt
        outcome: dict[str, Any] = {"rc": status, "line": any("verdict" in line.lower()
                                                             for line in told.getvalue().splitlines())}
        if not Path(f"{folder}/out/metrics.json").is_file():
            return outcome | {"error_mm": None, "verdict": None, "told": told.getvalue()[-300:]}
        metrics = json.loads(Path(f"{folder}/out/metrics.json").read_text())
        found = read_transform(f"{folder}/out/transform.tfm")
    return outcome | {"error_mm": error_mm(moving, truth, found), "verdict": metrics.get("verdict"),
                      "seconds": sum(metrics.get("seconds", {}).values())}


def error_mm(moving: Image, truth: np.ndarray, found: np.ndarray) -> float:
    """Mean error, in the moving world, at points of the moving image's foreground."""
    values = normalize(moving.array)
    places = np.argwhere(values > 0.15)
    chosen = places[np.linspace(0, len(places) - 1, POINTS).astype(int)]
    points = moving.grid.to_world(chosen)
    carried = np.c_[points, np.ones(len(points))] @ (found @ np.linalg.inv(truth)).T
    return float(np.linalg.norm(carried[:, :3] - points, axis=1).mean())


@lru_cache(maxsize=1)
def strict() -> tuple[str, ...]:
    """``--strict``, where the command knows it."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        regagents(["register", "--help"])
    return ("--strict",) if "--strict" in told.getvalue() else ()


# ------------------------------------------------------------------------------------------------------------- the page

def rows_of(results: dict[str, dict[str, Any]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """One row a kind and fixed head."""
    rows = []
    for kind in kinds:
        for fixed in ("same head", "other person"):
            ends = [one for key, one in results.items() if key.startswith(f"{kind} / {fixed} / ")]
            errors = [one["error_mm"] for one in ends if one["error_mm"] is not None]
            states = [(one["verdict"] or {}).get("state", "none") for one in ends]
            right = [one["error_mm"] is not None and one["error_mm"] <= NEAR_MM for one in ends]
            rows.append({"kind": kind, "fixed": fixed, "cases": len(ends),
                         "median_mm": float(np.median(errors)) if errors else None, "right": share(right),
                         "right_aligned": sum(a and b == "aligned" for a, b in zip(right, states, strict=True)),
                         "wrong_aligned": sum(not a and b == "aligned" for a, b in zip(right, states, strict=True)),
                         "states": {state: states.count(state) for state in sorted(set(states))},
                         "rc": {str(rc): [one["rc"] for one in ends].count(rc)
                                for rc in sorted({one["rc"] for one in ends})},
                         "silent": sum(one["rc"] == 0 and not one["line"] for one in ends)})
    return rows


def page(rows: Sequence[dict[str, Any]], command: str, agent: str) -> str:
    def counts(of: dict[str, int]) -> str:
        return ", ".join(f"{count} × {name}" for name, count in of.items())

    lines = []
    for row in rows:
        median = "" if row["median_mm"] is None else f"{row['median_mm']:.1f}"
        lines.append(f"| {row['kind']} | {row['fixed']} | {row['cases']} | {median} | "
                     f"{round(row['right'][0] * row['cases'])} | {counts(row['states'])} | {row['wrong_aligned']} | "
                     f"{counts(row['rc'])} |")
    silent, wrong = sum(row["silent"] for row in rows), sum(row["wrong_aligned"] for row in rows)
    return "\n".join([
        "# Hard inputs", "",
        f"Made by `{command}` on {machine()}, one thread. Agent {agent}, `regagents register {' '.join(strict())}` on "
        "files. The moving image is made from Colin27 (fMRI-like ones from the T2 of MNI 2009c), so its pose is known; "
        "the fixed image is the same head (T1), or CSI3, another person, whose pose to it was agreed from good starts. "
        f"Poses: up to {POSE_MM:g} mm an axis and {POSE_DEGREES:g} degrees; prone and feet first add a half turn of "
        "the header; any pose is uniform on SO(3). Whole heads have voxels of 2 mm, slabs slices of 4 mm. Contrast, "
        "distortion, slices, CT and cuts are synthetic. Error: mean over the moving foreground; right: within 10 mm.",
        "",
        "| moving image | fixed image | cases | median error, mm | right | verdicts | wrong, but said aligned | exit "
        "status |", "| --- | --- | ---: | ---: | ---: | --- | ---: | --- |", *lines, "",
        f"Wrong, but said aligned: {wrong} of {sum(row['cases'] for row in rows)}. Exit status 0 without a line of the "
        f"verdict: {silent}.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--poses", type=int, default=3, help="of every kind and fixed head")
    parser.add_argument("--kinds", nargs="+", metavar="TEXT", help="only kinds whose name has one of these")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    kinds = [kind for kind in KINDS if not arguments.kinds or any(text in kind for text in arguments.kinds)]
    if not kinds or arguments.poses < 1:
        parser.error(f"--kinds is {arguments.kinds}, --poses {arguments.poses}; there are {', '.join(KINDS)}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    ledger = jobs.Ledger(arguments.out / "hard_inputs.jsonl", {"benchmark": "hard_inputs", "version": 1})
    makers = [Path(__file__), Path(__file__).with_name("hard_images.py"),
              Path(__file__).parents[1] / "regagents" / "cli" / "register.py"]
    stamp, work = own_settings(arguments.agent, *makers), {}
    for kind in kinds:
        for fixed in ("same head", "other person"):
            names = fixed_head(kind, fixed), moving_head(kind)
            pose = next(one for _, one in jobs.run(agreed, {" ← ".join(names): names}, ledger=ledger))
            for number in range(arguments.poses):
                key = f"{kind} / {fixed} / {number} / seed {arguments.seed} / {stamp}"
                work[key] = (Task(kind, fixed, number, arguments.agent, arguments.seed, tuple(map(tuple, pose))),)
    results = {}
    engine = "processes" if arguments.workers > 1 else "serial"
    for key, outcome in jobs.run(run_case, work, engine, arguments.workers, ledger):
        results[key] = outcome
        error = "none" if outcome["error_mm"] is None else f"{outcome['error_mm']:.1f} mm"
        print(f"{key.rsplit(' / ', 2)[0]}: {error}, rc {outcome['rc']}", flush=True)
    rows = rows_of(results, kinds)
    command = ("python benchmarks/hard_inputs.py " + " ".join(sys.argv[1:] if argv is None else argv)).strip()
    text = page(rows, command, arguments.agent)
    publish(arguments.out / "hard_inputs", text, {"command": command, "machine": machine(), "rows": rows})
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except downloads.DatasetError as error:
        sys.exit(f"hard_inputs: {error}")
