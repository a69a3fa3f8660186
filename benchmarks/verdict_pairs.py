"""The verdict on labelled registrations: does ``register()`` know when it has failed?

    python benchmarks/verdict_pairs.py --workers 2                  # 200 + 200 registrations, then the page
    python benchmarks/verdict_pairs.py --counts 12 12               # a first look
    python benchmarks/verdict_pairs.py --only-report                # the page of what the ledger holds

Each line of ``results/verdict_pairs.jsonl`` holds the case's kind, its label (right: within 10 mm of the truth, in 2D
5 mm), and the verdict with the evidence it rests on. The verdict is calibrated on the split "calibration" and judged on
the split "test", which shares neither people nor painted patients with it and has anatomies of its own. An interrupted
run continues where it stopped; results of other weights or code are not used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import torch
from capture_cases import share
from capture_methods import own_settings
from common import keep, machine, publish
from matplotlib import pyplot as plt
from scipy.stats import rankdata
from verdict_cases import NEAR_MM, SPLITS, case, prepare

from regagents.common import jobs
from regagents.registration.register import register
from regenv.data.banks import downloads

MAKERS = ("verdict_cases.py", "hard_images.py", "capture_cases.py")      # a case depends on these
STATES = ("aligned", "doubtful", "failed")
Judge = Callable[[dict[str, float], int], tuple[str, float]]
"""From a row's evidence and dimension to its state and probability: a verdict that is newer than the ledger."""


def run_case(split: str, index: int, seed: int, agent: str) -> dict[str, Any]:
    """One registration with its label and its verdict; a refusal is kept with its message."""
    torch.set_num_threads(1)
    one = case(split, index, seed)
    row: dict[str, Any] = {"split": split, "index": index, "kind": one.kind, "anatomy": one.anatomy,
                           "ndim": one.fixed.ndim, "possible": one.truth is not None}
    began = process_time()
    try:
        result = register(one.fixed, one.moving, agent=agent)
    except ValueError as error:
        return row | {"refused": str(error)[:300], "right": False, "error_mm": None, "verdict": None,
                      "seconds": process_time() - began}
    return row | {"refused": "", "right": one.succeeded(result.pull_back), "error_mm": one.error_mm(result.pull_back),
                  "verdict": result.metrics.get("verdict"), "seconds": process_time() - began,
                  "pull_back": result.pull_back.tolist()}


# ------------------------------------------------------------------------------------------------------------ measures

def auc(right: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Area under the ROC curve: the chance that a right registration scores above a failed one, ties half (Mann and
    Whitney 1947). None without both."""
    labels = np.asarray(right, dtype=bool)
    if not labels.any() or labels.all():
        return None
    ranks = rankdata(scores)
    positive = int(labels.sum())
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def auc_interval(right: Sequence[bool], scores: Sequence[float], draws: int = 2000) -> list[float] | None:
    """95 % percentile bootstrap interval over the registrations, right and failed ones each drawn among themselves."""
    labels, values = np.asarray(right, dtype=bool), np.asarray(scores, dtype=float)
    if auc(right, scores) is None:
        return None
    rng, found = np.random.default_rng(0), []
    groups = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    for _ in range(draws):
        chosen = np.concatenate([rng.choice(group, len(group)) for group in groups])
        found.append(auc(labels[chosen].tolist(), values[chosen].tolist()))
    return [float(end) for end in np.percentile(np.array(found, dtype=float), (2.5, 97.5))]


def judged(rows: Sequence[dict[str, Any]], judge: Judge | None = None) -> list[dict[str, Any]]:
    """Rows with "state" and "probability": as told in the run, or as ``judge`` tells of the stored evidence. A refusal
    counts as failed and told so; rows without a verdict are left out."""
    found = []
    for row in rows:
        if row["refused"]:
            found.append(row | {"state": "failed", "probability": 0.0})
        elif row["verdict"]:
            state, probability = ((row["verdict"]["state"], row["verdict"]["probability"]) if judge is None
                                  else judge(row["verdict"]["evidence"], row["ndim"]))
            found.append(row | {"state": state, "probability": float(probability)})
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the verdict is worth on judged rows; shares are lists of value and Wilson interval, None without a case."""
    right = [row["right"] for row in rows]
    aligned = [row["state"] == "aligned" for row in rows]
    silent = [said and not true for said, true in zip(aligned, right, strict=True)]
    scores = [row["probability"] for row in rows]
    of_failures = [one for one, true in zip(silent, right, strict=True) if not true]
    of_right = [not said for said, true in zip(aligned, right, strict=True) if true]
    return {"registrations": len(rows), "right": sum(right), "auc": auc(right, scores),
            "auc_interval": auc_interval(right, scores), "silent": sum(silent),
            "silent_of_all": share(silent) if rows else None,
            "silent_of_failures": share(of_failures) if of_failures else None,
            "false_alarms": share(of_right) if of_right else None,
            "states": {state: sum(row["state"] == state for row in rows) for state in STATES},
            "brier": float(np.mean((np.array(scores) - np.array(right)) ** 2)) if rows else None,
            "seconds": float(np.median([row["seconds"] for row in rows])) if rows else None}


def roc(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """False alarms (right ones below the threshold) and silent failures (failed ones at or above it), as shares, from
    the least threshold to beyond the largest."""
    right = np.array([row["right"] for row in rows], dtype=bool)
    scores = np.array([row["probability"] for row in rows], dtype=float)
    limits = [*np.unique(scores).tolist(), float("inf")]
    return ([float((scores[right] < limit).mean()) for limit in limits],
            [float((scores[~right] >= limit).mean()) for limit in limits])


# ------------------------------------------------------------------------------------------------------------- the page

def cell(numbers: Sequence[float] | None) -> str:
    return "" if numbers is None else f"{100 * numbers[0]:.1f} % ({100 * numbers[1]:.1f} to {100 * numbers[2]:.1f})"


def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    told = summary(rows)
    area = "" if told["auc"] is None else "{:.3f} ({:.3f} to {:.3f})".format(told["auc"], *told["auc_interval"])
    return (f"| {name} | {told['registrations']} | {told['right']} | {area} | {told['silent']} | "
            f"{cell(told['silent_of_failures'])} | {cell(told['silent_of_all'])} | {cell(told['false_alarms'])} | "
            f"{' / '.join(str(count) for count in told['states'].values())} |")


def page(rows: Sequence[dict[str, Any]], without: int, command: str, agent: str) -> str:
    """The Markdown page of judged rows; ``without``: rows that have no verdict."""
    head = ["| | registrations | right | AUC | silent failures | of the failures | of all | false alarms | aligned / "
            "doubtful / failed |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    parts = ["# The verdict on labelled registrations", "",
             f"Made by `{command}` on {machine()}, one thread a run. Agent {agent}. Right: within {NEAR_MM[3]:g} mm of "
             f"the truth in the mean over the fixed foreground, in 2D {NEAR_MM[2]:g} mm; between two people the truth "
             "is that found from their centres when both lie upright; of breathing lungs and of two people's pelvises, "
             "the rigid map nearest to their landmarks. A third of the pairs has no right pose. The splits share no "
             "person and no painted patient; chests and pelvises are in the test alone. Silent failure: said to be "
             "aligned and wrong. False alarm: right and not said to be aligned. Intervals: 95 %, Wilson; of the AUC, "
             "bootstrap.",
             f"{without} registrations had no verdict and are left out." if without else "", ""]
    for split in SPLITS:
        those = [row for row in rows if row["split"] == split]
        groups = {"all": those}
        groups |= {f"anatomy: {name}": [row for row in those if row["anatomy"] == name]
                   for name in dict.fromkeys(row["anatomy"] for row in those)}
        kinds = dict.fromkeys((row["possible"], row["kind"], row["anatomy"]) for row in those)
        groups |= {f"{'' if real else 'no truth: '}{kind} ({anatomy})":
                   [row for row in those if (row["possible"], row["kind"], row["anatomy"]) == (real, kind, anatomy)]
                   for real, kind, anatomy in sorted(kinds, key=lambda one: (not one[0], one[1]))}
        if those:
            parts += [f"## {split.capitalize()}", "", *head, *(line(*group) for group in groups.items()), ""]
    return "\n".join([*parts, "![Silent failures over false alarms](verdict_pairs.png)", ""])


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Silent failures over false alarms, and how often what is given a probability is right."""
    figure, (left, middle) = plt.subplots(1, 2, figsize=(10.5, 4.4))
    for split, color in zip(SPLITS, ("#9aa7b4", "#0b4f8a"), strict=True):
        those = [row for row in rows if row["split"] == split]
        if auc([row["right"] for row in those], [row["probability"] for row in those]) is None:
            continue
        alarms, silent = roc(those)
        told = summary(those)
        left.step([100 * one for one in alarms], [100 * one for one in silent], where="post", color=color,
                  label=f"{split}: AUC {told['auc']:.3f}")
        left.plot(100 * told["false_alarms"][0], 100 * told["silent_of_failures"][0], "o", color=color)
        order = sorted(those, key=lambda row: row["probability"])
        groups = np.array_split(np.arange(len(order)), min(8, max(1, len(order) // 8)))
        middle.plot([np.mean([order[i]["probability"] for i in group]) for group in groups],
                    [np.mean([order[i]["right"] for i in group]) for group in groups], "o-", color=color, label=split)
    left.axvline(5, color="#c0392b", linewidth=0.8, linestyle=":")
    left.set(xlabel="false alarms, % of the right ones", ylabel="silent failures, % of the failed ones",
             xlim=(-1, 60), ylim=(-1, 60))
    middle.plot([0, 1], [0, 1], color="#c0392b", linewidth=0.8, linestyle=":")
    middle.set(xlabel="probability told", ylabel="share that is right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for panel in (left, middle):
        panel.grid(alpha=0.25)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    keep(figure, path)


# -------------------------------------------------------------------------------------------------------------- command

def main(argv: Sequence[str] | None = None, judge: Judge | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs=2, default=(200, 200), metavar=("CALIBRATION", "TEST"))
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only-report", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    ledger = jobs.Ledger(arguments.out / "verdict_pairs.jsonl", {"benchmark": "verdict_pairs", "version": 1})
    stamp = own_settings(arguments.agent, *(Path(__file__).with_name(name) for name in MAKERS))
    work = {f"{split} / {index} / seed {arguments.seed} / {stamp}": (split, index, arguments.seed, arguments.agent)
            for split, count in zip(SPLITS, arguments.counts, strict=True) for index in range(count)}
    if arguments.only_report:
        work = {key: values for key, values in work.items() if key in ledger.results}
    elif arguments.workers > 1:
        for split in SPLITS:
            prepare(split)
    rows = []
    engine = "processes" if arguments.workers > 1 else "serial"
    for _, row in jobs.run(run_case, work, engine, arguments.workers, ledger):
        rows.append(row)
        error = "no truth" if row["error_mm"] is None else f"{row['error_mm']:.1f} mm"
        state = (row["verdict"] or {}).get("state", row["refused"] or "no verdict")
        print(f"{len(rows)}/{len(work)} {row['kind']}, {row['anatomy']}: {error}, {state}, {row['seconds']:.1f} s",
              flush=True)
    told = judged(rows, judge)
    command = ("python benchmarks/verdict_pairs.py " + " ".join(sys.argv[1:] if argv is None else argv)).strip()
    text = page(told, len(rows) - len(told), command, arguments.agent)
    publish(arguments.out / "verdict_pairs", text, {
        "command": command, "machine": machine(), "without_verdict": len(rows) - len(told),
        **{split: summary([row for row in told if row["split"] == split]) for split in SPLITS}})
    draw(arguments.out / "verdict_pairs.png", told)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except downloads.DatasetError as error:
        sys.exit(f"verdict_pairs: {error}")
