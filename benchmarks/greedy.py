"""Dense methods on real pairs: our greedy one and its opponents at their best. Accuracy, folds, time and memory.

    python benchmarks/greedy.py --peers FOLDER                      # two people's brains in 3D
    python benchmarks/greedy.py --slices 16 --peers FOLDER          # slices of the same people
    python benchmarks/greedy.py --lungs DATA/lung_ct --peers FOLDER # a real pair of inhale and exhale
    python benchmarks/greedy.py --limit 1 --only greedy "demons, 2 mm" --out DIR/NAME

The brains are aligned to MNI space (affine), stripped and freed of their bias field; see ``regenv.data.banks.brains``.
A person's labels are the classes of tissue, found in that person's image alone. Only held-out people are in the table,
and the MNI2009c average. Settings, the opponents' too, were tuned on CSI1 and CSI2 (``--tune``), for lungs on synthetic
chests or left as their authors have them. Every method runs in a process of its own, on one core; memory is what it
takes beyond the images. OUT.jsonl keeps every run: an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, made_by, write
from dense_pairs import Pair, lungs, of_people, people_of, slices
from dense_peers import Method, Process

from regagents.common.jobs import Ledger
from regenv.ops.regularity import folding, non_diffeomorphic_volume, sd_log_jacobian

RESULTS = Path(__file__).parent / "results"
PEOPLE = ("csi3", "colin27", "mni2009c")
PAIRS = [(fixed, moving) for moving in PEOPLE for fixed in PEOPLE if fixed != moving]
TUNED_ON = [("csi1", "csi2")]
SHARES = (0.1, 0.25, 0.5, 1.5)      # of greedy's iterations
MEASURES = ("score", "seconds", "memory", "folding", "ndv", "sd_log_jacobian")


@dataclass
class Line:
    """Of a method, a value a pair and measure."""

    method: Method
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    failed: str = ""

    def mean(self, measure: str) -> float:
        return float(np.mean(self.values[measure]))


def of_levels(kind: str, finest: int, share: float = 1.0) -> Method:
    """Our method without levels finer than ``finest`` mm of a 1 mm image, and with a share of the iterations."""
    stride = f", {finest} mm" if finest else ""
    return Method(f"greedy{stride}" + ("" if share == 1 else f", {share:.0%}"), kind,
                  {"finest": finest or 1, "share": share})


SLICES = [of_levels("greedy:brain", 0), Method("greedy, MIND", "greedy:mind"), Method("greedy, MSE", "greedy:mse"),
          Method("demons", "demons", {"smoothing": 0.7}),
          Method("adam", "adam"), Method("convexadam", "convexadam"),
          Method("bspline", "bspline", {"control": 6.0, "levels": 1}),
          Method("SyN, MI", "syn", {"metric": "mattes"}), Method("SyN, CC", "syn", {"metric": "CC"}),
          Method("picsl-greedy", "picsl-greedy"), Method("elastix B-spline", "elastix")]
COARSE = [of_levels("greedy:brain", 2),
          Method("greedy, MIND, 2 mm", "greedy:mind", stride=2),
          Method("demons, 2 mm", "demons", {"smoothing": 0.7}, 2),
          Method("adam, 2 mm", "adam", {"weight": 0.3}, 2), Method("convexadam, 2 mm", "convexadam", {}, 2),
          Method("bspline, 2 mm", "bspline", {"control": 4.0, "sampling": 0.1}, 2),
          Method("SyN, MI, 2 mm", "syn", {"metric": "mattes"}, 2),
          Method("SyN, CC, 2 mm", "syn", {"metric": "CC"}, 2),
          Method("picsl-greedy, 2 mm", "picsl-greedy", {}, 2), Method("elastix B-spline, 2 mm", "elastix", {}, 2)]
FINE = [of_levels("greedy:brain", 1), Method("demons, 1 mm", "demons", {"smoothing": 0.7}),
        Method("picsl-greedy, 1 mm", "picsl-greedy"), Method("adam, two levels, 1 mm", "adam-levels")]
LUNGS = [Method("greedy:lung", "greedy:lung"), Method("adam, two levels", "adam-levels"), Method("adam", "adam"),
         Method("convexadam", "convexadam"), Method("demons", "demons", {"smoothing": 2.0}),
         Method("bspline", "bspline", {"control": 8.0, "sampling": 0.1}),
         Method("SyN, MI", "syn", {"metric": "mattes"}), Method("SyN, CC", "syn", {"metric": "CC"}),
         Method("picsl-greedy", "picsl-greedy"), Method("elastix B-spline", "elastix")]
TUNING = {      # settings that are tried on TUNED_ON, at 2 mm or on slices
    "syn": [{"metric": metric, "smoothing": smoothing, "step": step} for metric in ("mattes", "CC")
            for smoothing, step in ((3.0, 0.2), (1.0, 0.2), (1.0, 0.5))],
    "picsl-greedy": [{"smoothing": smoothing} for smoothing in ((1.7, 0.7), (1.2, 0.5), (1.0, 0.3), (0.8, 0.0))],
    "elastix": [{"control": control, "metric": metric} for control in (8.0, 4.0, 3.0)
                for metric in ("AdvancedNormalizedCorrelation", "AdvancedMattesMutualInformation")],
}


def measured(method: Method, pairs: Sequence[Pair], ledger: Ledger, folder: str) -> Line:
    """A method on all pairs, but for those that the ledger knows."""
    line = Line(method)
    keys = {f"{method.kind} {method.settings} {method.stride}: {pair.name}": pair for pair in pairs}
    try:
        with Process(method, folder) as process:
            for key in [key for key in keys if key not in ledger.results]:
                run = process.register(keys[key])
                ledger.add(key, dict(zip(MEASURES, (
                    keys[key].score(run.field), run.seconds, run.memory, folding(run.field).item(),
                    non_diffeomorphic_volume(run.field).item(), sd_log_jacobian(run.field).item()), strict=True)))
    except RuntimeError as error:
        line.failed = str(error)
        print(line.failed, file=sys.stderr)
    for key in keys:
        for name in MEASURES if key in ledger.results else ():
            line.values[name].append(ledger.results[key][name])
    if line.values["score"]:
        print(f"{method.name}: {line.mean('score'):.3f}, {line.mean('seconds'):.1f} s", flush=True)
    return line


def started(pairs: Sequence[Pair]) -> list[float]:
    """Scores without a deformation."""
    return [pair.score(torch.zeros(1, pair.fixed.ndim - 2, *pair.fixed.shape[2:])) for pair in pairs]


def table(lines: Sequence[Line], start: Sequence[float], score: str) -> str:
    told = [f"| method | {score} | worst | CPU s | memory, MB | folded | NDV | SDlogJ |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            f"| start | {spread(start)} | {worst(start, score):.3f} | | | | | |"]
    for line in lines:
        found = line.values["score"]
        told.append(f"| {line.method.name} | {spread(found)} | {worst(found, score):.3f} | "
                    f"{line.mean('seconds'):.1f} | {max(line.values['memory']) / 1e6:.0f} | "
                    f"{line.mean('folding'):.4%} | {line.mean('ndv'):.4%} | {line.mean('sd_log_jacobian'):.3f} |")
    return "\n".join(told) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over the pairs."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def worst(values: Sequence[float], score: str) -> float:
    return max(values) if score.endswith("mm") else min(values)


def draw(out: Path, lines: Sequence[Line], curve: Sequence[Line], start: Sequence[float], score: str) -> None:
    """Accuracy over seconds."""
    figure, axis = plt.subplots(figsize=(8, 5))
    curve = sorted(curve, key=lambda line: line.mean("seconds"))
    axis.plot([line.mean("seconds") for line in curve], [line.mean("score") for line in curve], ".-", color="C0",
              label="greedy, by iterations")
    for number, line in enumerate(lines):
        axis.plot(line.mean("seconds"), line.mean("score"), "os^vD"[number // 10], color=f"C{number % 10}",
                  label=line.method.name)
    axis.axhline(float(np.mean(start)), color="0.6", lw=1, ls="--", label="start")
    axis.set(xlabel="CPU seconds on one core", ylabel=f"mean {score}", xscale="log")
    if score.endswith("mm"):
        axis.invert_yaxis()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    keep(figure, out)


def tuned(ndim: int, pairs: Sequence[Pair], ledger: Ledger, folder: str, kinds: Sequence[str]) -> None:
    """Print what the opponents' settings score on training people."""
    for kind in kinds:
        for settings in TUNING[kind]:
            measured(Method(f"{kind} {settings}", kind, settings, 1 if ndim == 2 else 2), pairs, ledger, folder)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, metavar="N", help="2D: at most N slices of each pair of people")
    parser.add_argument("--lungs", type=Path, metavar="FOLDER", help="the lungs of this folder")
    parser.add_argument("--peers", default="", metavar="FOLDER", help="where opponents' packages are installed")
    parser.add_argument("--fast", action="store_true", help="3D: without what works at 1 mm")
    parser.add_argument("--limit", type=int, help="only so many pairs of people")
    parser.add_argument("--only", nargs="*", help="only these rows")
    parser.add_argument("--tune", nargs="*", choices=TUNING, help="print what settings score on training people")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/greedy, greedy-2d or greedy-lungs")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    ndim = 2 if arguments.slices else 3
    out = arguments.out or RESULTS / ("greedy-2d" if ndim == 2 else "greedy-lungs" if arguments.lungs else "greedy")
    pairs = lungs(arguments.lungs) if arguments.lungs else [
        of_people(*each) for each in (PAIRS if arguments.tune is None else TUNED_ON)[:arguments.limit]]
    if ndim == 2:
        pairs = [each for pair in pairs for each in slices(pair, arguments.slices)]
    ledger = Ledger(out.with_suffix(".jsonl"), {"benchmark": "greedy.py"})
    if arguments.tune is not None:
        tuned(ndim, pairs, ledger, arguments.peers, arguments.tune or list(TUNING))
        return 0
    rows = LUNGS if arguments.lungs else SLICES if ndim == 2 else COARSE + ([] if arguments.fast else FINE)
    rows = [row for row in rows if arguments.only is None or row.name in arguments.only]
    absent = [row.name for row in rows if not row.installed(arguments.peers)]
    lines = [measured(row, pairs, ledger, arguments.peers) for row in rows if row.name not in absent]
    lines = [line for line in lines if line.values["score"]]
    kind = "greedy:lung" if arguments.lungs else "greedy:brain"
    finest = 0 if ndim == 2 or arguments.lungs else 2
    curve = [measured(of_levels(kind, finest, share), pairs, ledger, "") for share in SHARES]
    curve += [line for line in lines if line.method == of_levels(kind, finest)]
    score, start = ("TRE, mm" if arguments.lungs else "Dice"), started(pairs)
    what = ("mean error of ten landmarks, inhale and exhale in either role, 2.5 mm, with masks" if arguments.lungs else
            f"mean Dice of three tissues, {people_of(pairs)}, on none of whom anything was tuned")
    page = (f"# Dense registration of real {'lungs' if arguments.lungs else 'brains'}, by our greedy method and "
            f"others\n\n{made_by('greedy.py', typed)}: {len(pairs)} pairs; {what}. CPU time is of one core, memory "
            f"what is taken beyond the images.\n\n{table(lines, start, score)}")
    page += f"\nNot installed, and left out: {', '.join(absent)}.\n" if absent else ""
    page += "".join(f"\n{line.failed}\n" for line in lines if line.failed)
    page += f"\nAt shares of the iterations:\n\n{table(curve, start, score)}"
    print(page)
    write(out, page, ["method", *MEASURES], [[line.method.name, *(line.mean(name) for name in MEASURES)]
                                             for line in (*lines, *curve)])
    draw(out.with_suffix(".png"), lines, curve, start, score)
    return 0


if __name__ == "__main__":
    sys.exit(main())
