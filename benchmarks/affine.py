"""Affine registration of real people's heads beside elastix, ANTs and greedy: overlap of tissues and regions, and time.

    python benchmarks/affine.py --peers FOLDER                # tissues
    python benchmarks/affine.py --peers FOLDER --aal FOLDER   # and AAL's regions; FOLDER holds aal.nii.gz, on Colin27
    python benchmarks/affine.py --cases "CSI1 ← CSI2"         # a first look

Every method gets the same two images, averaged down to about 2 mm, as their headers place them, and runs once on one
thread. Labels never reach a method. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import SimpleITK as sitk
import torch
from capture_cases import coarser
from capture_methods import own_settings, peer_settings
from capture_peers import PACKAGES, installed, missing, peer
from common import keep, machine, mean_interval, publish
from matplotlib import pyplot as plt

from regagents.common import jobs
from regagents.registration.register import register
from regenv.data.banks import brain_preparation, brains, cache, downloads
from regenv.data.io.images import Image, read_image, read_labels
from regenv.data.io.resampling import framed, matrix_to_sitk, resampled_labels
from regenv.ops.overlap import classes, dice

PEOPLE = {"CSI1": "csi1", "CSI2": "csi2", "CSI3": "csi3", "Colin27": "colin27"}
AVERAGES = {"MNI152 (brain only)": "mni152", "MNI 2009c": "mni2009c"}
HEADERS, RIGID, OWN = "headers", "rigid", "affine"
LABELS = {HEADERS: "as the headers say", RIGID: "register(), rigid", OWN: "register(), affine",
          "elastix": "elastix, affine", "ants": "ANTs, translation to affine (TRSAA)",
          "greedy": "greedy, rigid then affine"}
EFFORT = {"elastix": 1000, "ants": 0, "greedy": 1000}


@dataclass(frozen=True)
class Task:
    """A pair by the names of its subjects. Args: aal: the atlas's file, or ""."""

    fixed: str
    moving: str
    agent: str
    peers: str
    aal: str


@lru_cache(maxsize=8)
def scan(name: str) -> Image:
    """A subject's head (of MNI152, the brain), about 2 mm."""
    return coarser(read_image(downloads.t1_scan(name)))


@lru_cache(maxsize=8)
def tissues(name: str) -> Image:
    """CSF, grey and white matter of a subject, in the world of its scan, 1 mm: of the averages by their tissue maps, of
    the people by K-means within the average's brain mask."""
    return _in_scan(name, brains.subject(name)["labels"].numpy())


@lru_cache(maxsize=8)
def regions(name: str, atlas: str) -> Image:
    """AAL's regions of a subject: Colin27's own, carried to the others by demons. The same for all methods."""
    digest = hashlib.sha256(Path(atlas).read_bytes()).hexdigest()[:12]
    path = downloads.cache_dir() / "brains" / f"{name}-aal-{digest}.safetensors"
    return _in_scan(name, cache.kept(path, lambda: {"labels": _carried(name, atlas)})["labels"].numpy())


def _carried(name: str, atlas: str) -> torch.Tensor:
    """AAL's labels of a subject on the frame of MNI space."""
    colin, frame = brains.subject("colin27"), brain_preparation.FRAME
    given = read_labels(atlas)
    image = framed(given.array.astype(np.int32), given.grid)
    labels = brain_preparation.on_frame(image, matrix_to_sitk(colin["pull_back"].numpy()), sitk.sitkNearestNeighbor)
    own = brains.subject(name)
    if name != "colin27":
        labels = brain_preparation.carried(labels, *(framed(each["image"].numpy().astype(np.float32), frame)
                                                     for each in (own, colin)))
    return torch.from_numpy(np.where(own["labels"].numpy() > 0, sitk.GetArrayFromImage(labels), 0).astype(np.int32))


def _in_scan(name: str, labels: np.ndarray) -> Image:
    """Labels on the frame of MNI space in the world of the subject's scan, on the scan's grid at about 1 mm."""
    back = np.linalg.inv(brains.subject(name)["pull_back"].numpy())
    grid = read_image(downloads.t1_scan(name)).grid
    return resampled_labels(Image(labels.astype(np.int32), brain_preparation.FRAME, f"labels of {name}"), grid, back)


def run_pair(task: Task, method: str) -> dict[str, Any]:
    """One registration, and the overlap that it leaves."""
    torch.set_num_threads(1)
    fixed, moving = scan(task.fixed), scan(task.moving)
    told = {"failed": "", "seconds": 0.0, "wall_seconds": 0.0, "verdict": None}
    if method in (RIGID, OWN):
        began, clock = process_time(), perf_counter()
        result = register(fixed, moving, agent=task.agent, transform=method)
        told |= {"seconds": process_time() - began, "wall_seconds": perf_counter() - clock,
                 "verdict": result.metrics.get("verdict", {}).get("state")}
        pose = result.pull_back
    elif method in PACKAGES:
        answer = peer(method, task.peers).register(fixed, moving, "affine", EFFORT[method], 0)
        told |= {key: answer[key] for key in ("failed", "seconds", "wall_seconds")}
        pose = np.eye(4) if answer["pull_back"] is None else np.array(answer["pull_back"])
    else:
        pose = np.eye(4)
    told["tissue"] = overlap(tissues(task.fixed), tissues(task.moving), pose)
    if task.aal:
        told["aal"] = overlap(regions(task.fixed, task.aal), regions(task.moving, task.aal), pose)
    return told | {"pull_back": pose.tolist()}


def overlap(fixed: Image, moving: Image, pose: np.ndarray) -> float:
    """Mean Dice over the labels that both have."""
    here, there = (torch.from_numpy(np.asarray(array, np.int64))[None, None]
                   for array in (fixed.array, resampled_labels(moving, fixed.grid, pose).array))
    return float(dice(here, there, classes(here)).nanmean())


# ------------------------------------------------------------------------------------------------------------- the page

def rows_of(results: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a method: Dice, the difference to ours pair by pair, and seconds."""
    methods = [name for name in LABELS if any(name in pair for pair in results.values())]
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method,
                               "seconds": float(np.median([pair[method]["seconds"] for pair in results.values()])),
                               "gave_up": sum(bool(pair[method]["failed"]) for pair in results.values())}
        for kind in ("tissue", "aal"):
            if all(kind in pair[method] for pair in results.values()):
                values = np.array([pair[method][kind] for pair in results.values()])
                own = np.array([pair[OWN][kind] for pair in results.values()])
                row |= {kind: mean_interval(values), f"{kind}_behind": mean_interval(own - values)}
        rows.append(row)
    return rows


def page(results: dict[str, dict[str, dict[str, Any]]], rows: Sequence[dict[str, Any]], told: str, command: str) -> str:
    """The Markdown page."""
    def cell(numbers: Sequence[float] | None, sign: str = "") -> str:
        return "" if numbers is None else f"{numbers[0]:{sign}.3f} ({numbers[1]:{sign}.3f} to {numbers[2]:{sign}.3f})"

    lines = [f"| {LABELS[row['method']]} | {cell(row.get('tissue'))} | {cell(row.get('tissue_behind'), '+')} | "
             f"{cell(row.get('aal'))} | {cell(row.get('aal_behind'), '+')} | {row['seconds']:.1f} | {row['gave_up']} |"
             for row in rows]
    names = [row["method"] for row in rows]
    each = [f"| {pair} | " + " | ".join(f"{of[name]['tissue']:.3f} / {of[name]['aal']:.3f}" if "aal" in of[name]
                                        else f"{of[name]['tissue']:.3f}" for name in names) + " |"
            for pair, of in results.items()]
    return "\n".join([
        "# Affine registration of real people", "",
        f"Made by `{command}` on {machine()}, one thread. {len(results)} ordered pairs of T1 heads (fixed ← moving), "
        "averaged down to about 2 mm, as their headers place them. Dice is measured on 1 mm labels that no method saw: "
        "cerebrospinal fluid, grey and white matter (of the averages by their own maps, of the people by K-means), and "
        "AAL's regions, Colin27's own, carried to the others by demons: no gold standard, but one for all. MNI152 "
        "shows the brain only. Intervals: 95 %, bootstrap over the pairs. Seconds: CPU time, median, without reading. "
        f"elastix: {EFFORT['elastix']} iterations a resolution; greedy: {EFFORT['greedy']} random transforms first.",
        told, "", "| method | tissue Dice | ours less it | AAL Dice | ours less it | seconds | gave up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |", *lines, "", "## Pairs: tissue Dice / AAL Dice", "",
        "| pair | " + " | ".join(LABELS[name] for name in names) + " |", "| --- |" + " ---: |" * len(names), *each, "",
        "![Dice of every pair](affine.png)", ""])


def draw(path: Path, results: dict[str, dict[str, dict[str, Any]]], rows: Sequence[dict[str, Any]]) -> None:
    """Dice of every pair, a column a method, one line a pair."""
    kinds = [kind for kind in ("tissue", "aal") if kind in rows[0]]
    figure, axes = plt.subplots(1, len(kinds), figsize=(6.0 * len(kinds), 4.2), squeeze=False)
    names = [row["method"] for row in rows]
    for panel, kind in zip(axes[0], kinds, strict=True):
        for pair in results.values():
            panel.plot(range(len(names)), [pair[name][kind] for name in names], color="#9aa7b4", linewidth=0.8,
                       marker="o", markersize=3)
        panel.plot(range(len(names)), [row[kind][0] for row in rows], color="#0b4f8a", marker="D", linewidth=0,
                   label="mean")
        panel.set_xticks(range(len(names)), [LABELS[name].replace(", ", ",\n").replace(" (", "\n(") for name in names],
                         fontsize=7)
        panel.set_ylabel({"tissue": "tissue Dice", "aal": "AAL Dice"}[kind])
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)
    keep(figure, path)


# -------------------------------------------------------------------------------------------------------------- command

def benchmark(arguments: argparse.Namespace, command: str) -> None:
    there = installed(arguments.peers)
    methods = [HEADERS, RIGID, OWN, *(name for name in PACKAGES if there[name])]
    aal = str(next(iter(sorted(arguments.aal.glob("aal.nii*"))), "")) if arguments.aal else ""
    if arguments.aal and not aal:
        raise ValueError(f"--aal is {arguments.aal}; it holds no aal.nii.gz.")
    names = [*permutations(PEOPLE, 2), *((average, person) for average in AVERAGES for person in PEOPLE)]
    pairs = {f"{a} ← {b}": (a, b) for a, b in names}
    chosen = [pair for pair in pairs if not arguments.cases or any(text in pair for text in arguments.cases)]
    if not chosen:
        raise ValueError(f"--cases is {arguments.cases}; there are {', '.join(pairs)}.")
    files = PEOPLE | AVERAGES
    arguments.out.mkdir(parents=True, exist_ok=True)
    ledger = jobs.Ledger(arguments.out / "affine.jsonl", {"benchmark": "affine", "version": 1})
    work, labels = {}, hashlib.sha256(Path(aal).read_bytes()).hexdigest()[:8] if aal else "tissue"
    for pair in chosen:
        task = Task(*(files[name] for name in pairs[pair]), arguments.agent, arguments.peers, aal)
        for method in methods:
            stamp = (own_settings(arguments.agent) if method in (RIGID, OWN) else
                     peer_settings(method, EFFORT[method], arguments.peers) if method in PACKAGES else "")
            work[f"{pair} / {method} / {labels} / {stamp}"] = (task, method)
    for name in dict.fromkeys(files[side] for pair in chosen for side in pairs[pair]):
        tissues(name)       # prepared before processes share the work
    results: dict[str, dict[str, dict[str, Any]]] = {pair: {} for pair in chosen}
    engine = "processes" if arguments.workers > 1 else "serial"
    for key, outcome in jobs.run(run_pair, work, engine, arguments.workers, ledger):
        pair, method = key.split(" / ")[:2]
        results[pair][method] = outcome
        print(f"{pair}, {LABELS[method]}: {outcome['tissue']:.3f}, {outcome['seconds']:.1f} s", flush=True)
    rows = rows_of(results)
    text = page(results, rows, missing(arguments.peers), command)
    publish(arguments.out / "affine", text, {"command": command, "machine": machine(), "rows": rows, "pairs": results})
    draw(arguments.out / "affine.png", results, rows)
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="auto", help="of register(); default auto")
    parser.add_argument("--peers", default="", metavar="FOLDER", help="with the packages of requirements.txt")
    parser.add_argument("--aal", type=Path, metavar="FOLDER", help="holds aal.nii.gz in the space of Colin27")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only pairs whose name has one of these")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    command = "python benchmarks/affine.py " + " ".join(sys.argv[1:] if argv is None else argv)
    try:
        benchmark(arguments, command.strip())
    except (downloads.DatasetError, ValueError) as error:
        print(f"affine: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
