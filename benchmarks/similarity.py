"""Table 2 and figure 5 of Sun et al. 2018: multimodal similarity registration of held-out slices.

Ten rows (and mutual information, and elastix where it is installed) on the same pairs from the same starts: E1 as in
training, E2 wider. Errors are mean landmark distances after registration, in pixels of 1.33 mm.

    python benchmarks/similarity.py                       # 1,000 pairs of E1 and of E2
    python benchmarks/similarity.py --pairs 100           # a first look
    python benchmarks/similarity.py --add --methods similarity-rl+mc    # one row again, the others are kept
    python benchmarks/similarity.py --curves-only         # figure 5 from the logs that lie beside the results
    python benchmarks/similarity.py --sets E2 --pairs 64 --out benchmarks/results/similarity-fine --peers FOLDER \\
        --methods initial,mi,elastix,similarity-rl,similarity-rl+mc,similarity-value+mc,similarity-value+mc+fine

FOLDER holds itk-elastix, see requirements.txt.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, made_by, mean_interval, write
from tqdm import tqdm

from regagents.agents import resolve
from regagents.classical import Elastix
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.report import Report
from regenv.atomic import atomic

RESULTS = Path(__file__).parent / "results"
CURVES = RESULTS / "similarity-curves"
ENV = "RegSimilarity2D-v0"
PIXEL_MM = 224 / 168
STEPS = 150  # that agents may take; the best path from E2 takes 120 at most
LOST_PX = 10.0
COMPARED = (("similarity-value+mc", "similarity-rl+mc"), ("similarity-value+mc+fine", "mi"),
            ("similarity-value+mc+fine", "elastix"))
HELD_OUT = {"name": "slices", "subjects": ["mni2009c", "colin27", "csi3"], "split": "test"}
ROWS = {"initial": "initial", "sift": "SIFT", "elastix": "elastix", "mi": "tuned MI",
        "similarity-oneshot": "pure SL",
        "similarity-sl-matrix": "SL-matrix", "similarity-sl-matrix+mc": "SL-matrix-MC",
        "similarity-sl": "SL-LME", "similarity-sl+mc": "SL-LME-MC",
        "similarity-rl-matrix": "RL-matrix", "similarity-rl-matrix+mc": "RL-matrix-MC",
        "similarity-rl": "RL-LME", "similarity-rl+mc": "RL-LME-MC, plain mean",
        "similarity-value+mc": "RL-LME-MC", "similarity-value+mc+fine": "RL-LME-MC + fine",
        "similarity-cnn": "CNN-LME", "similarity-cnn+mc": "CNN-LME-MC"}
PAPER = {"SIFT": ("11.79±9.81", 9.04, 19.99, "12.15±9.89", 9.13, 20.06),
         "elastix": ("1.31±1.06", 0.91, 2.46, "2.33±1.86", 1.07, 5.33),
         "pure SL": ("4.59±3.00", 3.72, 8.28, "6.62±5.11", 5.11, 13.12),
         "SL-matrix": ("2.29±2.92", 1.81, 3.77, "2.99±4.72", 2.04, 4.83),
         "SL-matrix-MC": ("2.88±4.52", 2.12, 4.39, "3.58±13.20", 2.20, 5.17),
         "SL-LME": ("2.60±6.62", 1.34, 3.15, "3.06±7.12", 1.41, 4.35),
         "SL-LME-MC": ("3.10±41.67", 1.09, 3.03, "3.16±20.69", 1.19, 4.20),
         "RL-matrix": ("1.59±1.61", 1.32, 2.96, "1.95±3.55", 1.40, 3.41),
         "RL-matrix-MC": ("1.31±1.64", 1.00, 2.38, "1.81±8.00", 1.07, 3.21),
         "RL-LME": ("1.66±1.56", 1.30, 3.12, "1.91±2.39", 1.41, 3.61),
         "RL-LME-MC": ("1.39±1.45", 0.98, 2.59, "1.66±2.30", 1.08, 3.17)}
PANELS = (("RL-LME and CNN-LME", ("similarity-rl", "similarity-cnn")),
          ("CNN-LME and CNN-matrix", ("similarity-cnn", "similarity-cnn-matrix")))


def numbers(report: Report, method: str) -> dict[str, float]:
    """Mean, standard deviation, median and 90th percentile of a row, pixels; the share lost; its seconds a pair."""
    errors = pixels(report, method)
    return {"mean": float(errors.mean()), "std": float(errors.std()), "p50": float(np.percentile(errors, 50)),
            "p90": float(np.percentile(errors, 90)), "lost": float((errors > LOST_PX).mean()),
            "seconds": report.row(method).seconds}


def pixels(report: Report, method: str) -> np.ndarray:
    """A row's error of every pair, pixels."""
    return np.asarray(report.row(method).errors_mm) / PIXEL_MM


def differences(reports: dict[str, Report]) -> str:
    """Sentences: how methods differ on the same pairs, with intervals."""
    lines = []
    for name, report in reports.items():
        there = {row.method for row in report.rows}
        for one, other in COMPARED:
            if {one, other} <= there:
                mean, low, high = mean_interval(pixels(report, one) - pixels(report, other))
                lines.append(f"* {name}, {ROWS[one]} less {ROWS[other]}: {mean:.2f} ({low:.2f} to {high:.2f}) pixels.")
    head = "\nMean differences over the same pairs, 95 % bootstrap intervals:\n"
    return "\n".join([head, *lines, ""]) if lines else ""


def methods_of(reports: dict[str, Report]) -> list[str]:
    """The methods that every set has, in the table's order."""
    shared = set.intersection(*({row.method for row in report.rows} for report in reports.values()))
    return [name for name in ROWS if name in shared]


def table(reports: dict[str, Report]) -> str:
    """Markdown; the last column has the paper's numbers, which are of other images."""
    heads, told = ([f"{name} {column}" for name in reports for column in columns]
                   for columns in (("mean±std", "50th", "90th", "lost"), ("mean±std", "50th", "90th")))
    lines = ["| method | " + " | ".join([*heads, "s/pair", "paper: " + ", ".join(told)]) + " |",
             "| --- |" + " ---: |" * (len(heads) + 2)]
    for method in methods_of(reports):
        cells, seconds = [], []
        for report in reports.values():
            n = numbers(report, method)
            cells += [f"{n['mean']:.2f}±{n['std']:.2f}", f"{n['p50']:.2f}", f"{n['p90']:.2f}", f"{n['lost']:.1%}"]
            seconds.append(n["seconds"])
        paper = PAPER.get(ROWS[method], ())
        stated = ", ".join(str(v) for name in reports for v in (paper[:3] if name == "E1" else paper[3:]))
        lines.append("| " + " | ".join([ROWS[method], *cells, f"{np.mean(seconds):.2f}", stated]) + " |")
    return "\n".join(lines) + "\n"


def save(reports: dict[str, Report], out: Path, typed: Sequence[str]) -> None:
    """Write OUT.md, OUT.csv and OUT.json (with the error of every pair)."""
    earlier = "; rows of other methods by earlier commands" if "--add" in typed else ""
    page = (f"# Multimodal similarity registration, table 2 of Sun et al. 2018\n\n{made_by('similarity.py', typed)}"
            f"{earlier}.\nErrors in pixels, at the middles of the cells of the lattice that rewards are made of; lost: "
            f"more than {LOST_PX:.0f}. {next(iter(reports.values())).pairs} pairs of held-out slices: "
            f"{', '.join(HELD_OUT['subjects'])}, slabs never trained on (of these subjects only mni2009c was in "
            f"training). The paper's numbers are on its own CT and MR images.\n\n{table(reports)}"
            f"{differences(reports)}")
    write(out, page, ["set", "method", "mean_px", "std_px", "p50_px", "p90_px", "lost", "seconds_per_pair"],
          [[name, ROWS[method], *numbers(report, method).values()]
           for name, report in reports.items() for method in methods_of(reports)])
    with atomic(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({name: _rounded(report.to_dict()) for name, report in reports.items()}) + "\n")


def _rounded(plain: Any) -> Any:
    if isinstance(plain, float):
        return round(plain, 4)
    if isinstance(plain, dict):
        return {key: _rounded(value) for key, value in plain.items()}
    return [_rounded(value) for value in plain] if isinstance(plain, (list, tuple)) else plain


def draw(path: Path) -> None:
    """Figure 5: steps until the episode ends and return per episode, over training."""
    figure, axes = plt.subplots(2, len(PANELS), figsize=(10, 6), squeeze=False)
    for column, (title, names) in enumerate(PANELS):
        for name in names:
            log = CURVES / f"{name}.csv"
            if not log.is_file():
                continue
            rows = [row for row in csv.DictReader(log.open()) if row["rollout/ep_len_mean"]]
            steps = [float(row["time/total_timesteps"]) for row in rows]
            for line, key in enumerate(("rollout/ep_len_mean", "rollout/ep_rew_mean")):
                axes[line][column].plot(steps, [float(row[key]) for row in rows], label=name)
        for line, label in enumerate(("steps an episode", "return an episode")):
            axes[line][column].set(xlabel="training steps", ylabel=label, title=title if line == 0 else "")
            axes[line][column].legend()
            axes[line][column].grid(alpha=0.3)
    keep(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--sets", nargs="+", choices=("E1", "E2"), default=["E1", "E2"])
    parser.add_argument("--methods", help="comma-separated, default every row whose weights are there")
    parser.add_argument("--add", action="store_true", help="keep the rows that OUT.json has of other methods")
    parser.add_argument("--out", type=Path, default=RESULTS / "similarity")
    parser.add_argument("--curves-only", action="store_true")
    parser.add_argument("--peers", default="", metavar="FOLDER", help="with the packages of requirements.txt")
    arguments = parser.parse_args(typed)
    sys.path += [arguments.peers] if arguments.peers else []    # last: NumPy and SimpleITK are the project's own
    torch.set_num_threads(1)
    if not arguments.curves_only:
        plain = ("initial", "sift", "mi", *(["elastix"] if Elastix.available() else []))
        methods = arguments.methods.split(",") if arguments.methods else [
            name for name in ROWS if name in plain or resolve(name.removesuffix("+fine").removesuffix("+mc")).is_file()]
        stored = arguments.out.with_suffix(".json")
        reports = ({name: Report.from_dict(plain) for name, plain in json.loads(stored.read_text()).items()}
                   if arguments.add and stored.is_file() else {})
        ROWS.update({name: name for name in methods if name not in ROWS})
        for name in arguments.sets:
            kwargs = {"source": HELD_OUT, "perturbation": name, "landmarks": "between", "max_episode_steps": STEPS}
            with tqdm(total=1.0, desc=name, disable=None) as bar:
                report = evaluate(ENV, methods, arguments.pairs, arguments.seed, kwargs,
                                  progress=lambda _, share, bar=bar: bar.update(share - bar.n))
            reports[name] = reports[name].joined(report) if name in reports else report
            save(reports, arguments.out, typed)
        print(table(reports))
    if not arguments.methods:
        draw(arguments.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
