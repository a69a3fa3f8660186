"""Capture range on real heads: from how far out does a registration still find the one right pose?

Every case is a pair of real heads and many random starts. No truth is known between two people, so a method is measured
by agreement: the share of its starts that end within 10 mm of the pose that most of them share, and the spread about
it. That pose is also compared with a reference, which shows a method that is always wrong in the same way.

    python benchmarks/capture_range.py                                 # all cases, 64 starts, two ranges
    python benchmarks/capture_range.py --starts 16 --ranges 30,30      # a first look
    python benchmarks/capture_range.py --rire FOLDER                   # and CT to MR with a published gold standard
    python benchmarks/capture_range.py --pair FIXED MOVING NAME        # and your own images

An interrupted run continues where it stopped; results of other weights, images or settings are dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from capture_cases import Case, built_in_cases, rire_case
from capture_methods import METHODS, Keys, Record, Runs
from tqdm import tqdm

from regagents.agents import load
from regagents.common.checkpoints import CheckpointError
from regagents.registration.pipeline import AGENTS, pipeline
from regenv.atomic import atomic
from regenv.data.banks import downloads as datasets
from regenv.data.io.images import ImageError, read_image

COLORS = {"agent": "#4c9fdc", "refined": "#0b4f8a", "mi": "#e08214", "multi": "#8c4a00"}


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
    chain = pipeline(arguments.agent)
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
              "machine": f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = Record(arguments.out / "capture_range.jsonl", header,
                    {case.name: {keys(case, method) for method in METHODS} for case in cases})
    results: dict[tuple[float, float], dict[str, Any]] = {reach: {} for reach in ranges}
    with tqdm(total=len(cases) * len(ranges), unit="case", disable=None) as bar:
        for case in cases:
            for reach in ranges:
                def tell(what: str, case: Case = case, reach: tuple[float, float] = reach) -> None:
                    bar.set_description(f"{case.name}, ±{reach[0]:g} mm ±{reach[1]:g}°: {what}")

                results[reach][case.name] = Runs(
                    case, chain, agents, reach, arguments.starts, min(arguments.starts, arguments.classical_starts),
                    arguments.seed, keys, record, tell).finish()
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
