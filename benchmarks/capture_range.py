"""Capture range on real heads: from how far out does a registration still find the one right pose?

Every case is a pair of real heads and many random starts: the moving image is turned by a rotation uniform on SO(3) and
shifted by up to 100 mm on every axis, in its header, and a method sees nothing but the two images. No truth is known
between two people, so a method is measured by agreement: the share of its starts that end within 10 mm of the pose that
most of them share, and the spread about it. That pose is also compared with a reference, which shows a method that is
always wrong in the same way. RIRE has a gold standard.

    python benchmarks/capture_range.py --peers FOLDER --rire FOLDER ...   # all cases, 64 starts, all opponents
    python benchmarks/capture_range.py --starts 8 --cases Colin27         # a first look, without opponents
    python benchmarks/capture_range.py --pair FIXED MOVING NAME --cases   # and your own images only

An interrupted run continues where it stopped; results of other weights, code, images or settings are never mixed in.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import capture_methods as methods
import numpy as np
from capture_cases import Spec, degrees_of, load, measure, motions, specs
from capture_methods import MI, OWN, Task
from capture_peers import LABELS as PEERS
from capture_peers import installed, missing
from common import machine
from tqdm import tqdm

from regagents.common import jobs
from regagents.common.checkpoints import CheckpointError
from regenv.atomic import atomic
from regenv.data.banks import downloads
from regenv.data.io.images import ImageError

LABELS = {OWN: "register()", MI: "tuned MI, 24 rotations + refinement", **PEERS}
COLORS = {OWN: "#0b4f8a", MI: "#e08214", "elastix": "#7b5aa6", "ants": "#3a9a5b", "greedy": "#c0392b"}
TIMED = 5       # of our own runs, whose median is the opponents' time


@dataclass(frozen=True)
class Runs:
    """All runs of one case, through a ledger. Args: opponents: starts that they get, the first ones."""

    task: Task
    opponents: int
    names: Sequence[str]
    workers: int
    ledger: jobs.Ledger
    tell: Callable[[str], None]

    def finish(self) -> dict[str, Any]:
        """Run what the ledger lacks; the case's rows by method."""
        task, case = self.task, load(self.task.spec)
        key = f"{case.name} / {case.digest}"
        reference = self._run(methods.run_reference, {f"{key} / reference / {methods.mi_settings(0)}": (task,)})[0]
        key = f"{key} / seed {task.seed}"
        self.tell(LABELS[OWN])
        stem = f"{key} / {OWN} / {methods.own_settings(task.agent)}"
        outcomes = {OWN: self._run(methods.run_own, {f"{stem} / {i}": (task, i, reference)
                                                     for i in range(task.count)})}
        seconds = float(np.median([one["seconds"] for one in outcomes[OWN][:TIMED]]))
        few, efforts = range(min(task.count, self.opponents)), {}
        if MI in self.names:
            self.tell(LABELS[MI])
            stem = f"{key} / {MI} / {methods.mi_settings(seconds)}"
            outcomes[MI] = self._run(methods.run_mi, {f"{stem} / {i}": (task, i, reference, seconds) for i in few})
        for name in [name for name in self.names if name in PEERS]:
            self.tell(LABELS[name])
            stem = f"{key} / {name} / {methods.peer_settings(name, seconds, task.peers)}"
            efforts[name] = self._run(methods.run_effort, {f"{stem} / effort": (task, reference, name, seconds)})[0]
            outcomes[name] = self._run(methods.run_peer, {f"{stem} / {i}": (task, i, reference, name, efforts[name])
                                                          for i in few})
        rows: dict[str, Any] = {}
        for name, found in outcomes.items():
            ends = np.array([one["pull_back"] for one in found])
            rows[name] = measure(case, np.array(reference), ends, [one["seconds"] for one in found])
            rows[name] |= {"gave_up": sum(bool(one.get("failed")) for one in found), "effort": efforts.get(name)}
        return rows | {"degrees": [degrees_of(motion) for motion in motions(task.count, task.seed)]}

    def _run(self, function: Callable[..., Any], work: dict[str, tuple[Any, ...]]) -> list[Any]:
        """Results of jobs, in their order."""
        left = sum(key not in self.ledger.results for key in work)
        engine = "processes" if min(self.workers, left) > 1 else "serial"
        done = dict(jobs.run(function, work, engine, min(self.workers, left) or None, self.ledger))
        return [done[key] for key in work]


# ------------------------------------------------------------------------------------------------------------- the page

def percent(numbers: Sequence[float]) -> str:
    """A share with its interval."""
    return f"{100 * numbers[0]:.0f} % ({100 * numbers[1]:.0f} to {100 * numbers[2]:.0f})"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown rows of all cases."""
    head = ["case", "method", "starts", "within 10 mm of the common pose", "median spread, mm", "90th percentile, mm",
            "common pose to reference, mm", "within 10 mm of the reference", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for case, rows in results.items():
        for method in [name for name in LABELS if name in rows]:
            row = rows[method]
            effort = "" if row["effort"] is None else f" (effort {row['effort']})"
            lines.append("| " + " | ".join([
                case, LABELS[method] + effort, str(row["starts"]), percent(row["within_10mm"]),
                f"{row['median_spread_mm']:.2f}", f"{row['p90_spread_mm']:.1f}", f"{row['common_to_reference_mm']:.1f}",
                percent(row["within_10mm_of_reference"]), f"{row['seconds']:.1f}"]) + " |")
    return "\n".join(lines)


def gold_table(results: dict[str, dict[str, Any]]) -> list[str]:
    """The cases with a gold standard: error at the eight corners."""
    lines = []
    for case, rows in results.items():
        for method in [name for name in LABELS if "gold_median_mm" in rows.get(name, {})]:
            row = rows[method]
            lines.append(f"| {case} | {LABELS[method]} | {row['gold_median_mm']:.2f} | {row['gold_p90_mm']:.1f} | "
                         f"{percent(row['gold_within_4mm'])} |")
    return ["## Against the gold standard", "",
            "Mean distance over the eight published corners, of every start.", "",
            "| case | method | median, mm | 90th percentile, mm | within 4 mm |", "| --- | --- | ---: | ---: | ---: |",
            *lines, ""] if lines else []


def report(results: dict[str, dict[str, Any]], header: dict[str, Any]) -> str:
    """The whole Markdown page."""
    every = [row[OWN]["within_10mm"][0] for row in results.values()]
    spread = [row[OWN]["median_spread_mm"] for row in results.values()]
    parts = ["# Capture range on real heads", "",
             f"Made by `{header['command']}` on {header['machine']}, one thread a run. The moving image is turned in "
             "its header by a rotation uniform on SO(3) about the fixed head's centre and shifted by up to 100 mm on "
             f"every axis from the reference pose; a method is given the two images and nothing else. "
             f"{header['starts']} starts; opponents get the first {header['opponent_starts']}. Images of two people "
             "are averaged down to about 2 mm first, for all methods alike; those with a gold standard are not. MNI152 "
             f"shows the brain only. `register()` runs with agent {header['agent']} and nothing else is set.", "",
             "Spread: mean distance over 27 landmarks (a lattice of ±60 mm) to where most ends of the same method put "
             "them. Reference: the gold standard where there is one; of two people the rigid map nearest to the affine "
             "one that leads through MNI space (the best by mutual information is none: between Colin27 and CSI3 it "
             "nods by 18 degrees more, and tissues overlap less); else the best by mutual information of searches and "
             "refinements from the centred and from the stored pose. Intervals: 95 %, Wilson. Seconds: CPU time of "
             "one run, median, without reading. Equal time: mutual information begins no further start after "
             "`register()`'s time is over; of the others the largest effort is taken that stays within it (elastix: "
             "iterations a resolution; ANTs: degrees between rotations, searched at 4 mm; greedy: random "
             "transforms), or the least there is. Weights saw MNI152, MNI 2009c and CSI1-2 in "
             "training, never Colin27, CSI3 or RIRE.",
             header["missing"], "",
             f"`register()`, all cases: {100 * np.mean(every):.1f} % within 10 mm of the common pose, median spread at "
             f"most {max(spread):.2f} mm.", "",
             table(results), "", *gold_table(results), "![Success over the start's angle](capture_range.png)", ""]
    return "\n".join(parts)


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Success over the start's angle: one panel for all cases, then one a case."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {"all cases": list(results.values())} | {name: [rows] for name, rows in results.items()}
    columns = min(3, len(panels))
    figure, axes = plt.subplots(-(-len(panels) // columns), columns, squeeze=False, sharex=True, sharey=True,
                                figsize=(4.2 * columns, 2.9 * -(-len(panels) // columns) + 0.6), layout="constrained")
    for panel, (name, cases) in zip(axes.flat, panels.items(), strict=False):
        for method, color in COLORS.items():
            angle = np.concatenate([rows["degrees"][:len(rows[method]["found"])] for rows in cases if method in rows]
                                   or [[]])
            found = np.concatenate([rows[method]["found"] for rows in cases if method in rows] or [[]])
            order = np.argsort(angle)
            groups = [group for group in np.array_split(order, max(1, min(6, len(order) // 6))) if len(group)]
            panel.plot([angle[group].mean() for group in groups], [100 * found[group].mean() for group in groups],
                       marker="o", markersize=4, color=color, label=LABELS[method],
                       linestyle="-" if method == OWN else "--")
        panel.set_title(name, fontsize=10)
        panel.set(xlim=(0, 182), ylim=(-4, 104), xticks=range(0, 181, 45))
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(panels):]:
        panel.axis("off")
    figure.supxlabel("rotation of the start, degrees", fontsize=10)
    figure.supylabel("ends within 10 mm of the common pose, %", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


# -------------------------------------------------------------------------------------------------------------- command

def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="auto", help="of register(); default auto")
    parser.add_argument("--starts", type=int, default=64, help="random starts of each case")
    parser.add_argument("--opponent-starts", type=int, default=24, help="of them, for each opponent")
    parser.add_argument("--opponents", nargs="*", choices=[MI, *PEERS], default=[MI, *PEERS])
    parser.add_argument("--peers", default="", metavar="FOLDER", help="with the packages of requirements.txt")
    parser.add_argument("--cases", nargs="*", metavar="TEXT", help="only cases whose name has one of these; none with "
                        "an empty list")
    parser.add_argument("--pair", nargs=3, action="append", default=[], metavar=("FIXED", "MOVING", "NAME"))
    parser.add_argument("--rire", type=Path, nargs="+", default=[], metavar="FOLDER",
                        help="ct.nii.gz, mr_t1.nii.gz, gold_ct_to_mr.csv; also mr_NAME with gold_ct_to_mr_NAME.csv or "
                        "ct_NAME.standard")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    if min(arguments.starts, arguments.opponent_starts) < 2:
        parser.error(f"--starts is {arguments.starts}, --opponent-starts {arguments.opponent_starts}; agreement needs "
                     "at least 2.")
    command = "python benchmarks/capture_range.py " + " ".join(sys.argv[1:] if argv is None else argv)
    try:
        benchmark(arguments, command.strip())
    except (downloads.DatasetError, ImageError, CheckpointError, FileNotFoundError, ValueError) as error:
        print(f"capture_range: {error}", file=sys.stderr)
        return 2
    return 0


def chosen_specs(arguments: argparse.Namespace) -> list[Spec]:
    """The cases asked for."""
    found = [spec for spec in specs(arguments.rire)
             if arguments.cases is None or any(text.lower() in spec.name.lower() for text in arguments.cases)]
    found += [Spec(name, fixed, moving) for fixed, moving, name in arguments.pair]
    if not found:
        raise ValueError(f"--cases is {arguments.cases}; no case has that in its name, and no --pair is given.")
    return found


def benchmark(arguments: argparse.Namespace, command: str) -> None:
    """Run all cases; write the page after each of them."""
    there = installed(arguments.peers)
    names = [name for name in arguments.opponents if there.get(name, True)]
    header = {"command": command, "agent": arguments.agent, "seed": arguments.seed, "starts": arguments.starts,
              "opponent_starts": min(arguments.starts, arguments.opponent_starts), "machine": machine(),
              "missing": missing(arguments.peers)}
    print(header["missing"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    ledger = jobs.Ledger(arguments.out / "capture_range.jsonl", {"benchmark": "capture_range", "version": 2})
    results: dict[str, dict[str, Any]] = {}
    with tqdm(chosen_specs(arguments), unit="case", disable=None) as bar:
        for spec in bar:
            task = Task(spec, arguments.agent, arguments.seed, arguments.starts, arguments.peers)
            results[spec.name] = Runs(task, arguments.opponent_starts, names, arguments.workers, ledger,
                                      lambda what, name=spec.name: bar.set_description(f"{name}: {what}")).finish()
            page = report(results, header)
            with atomic(arguments.out / "capture_range.md") as temporary:
                temporary.write_text(page)
            with atomic(arguments.out / "capture_range.json") as temporary:
                temporary.write_text(json.dumps(header | {"results": results}, indent=1) + "\n")
            draw(arguments.out / "capture_range.png", results)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
