"""Table 1 of Krebs et al. 2017: organ-focused deformable registration of the 56 held-out pairs.

    python benchmarks/organs.py                     # 2D, 3D and 3D* (perfect rigid alignment)
    python benchmarks/organs.py --settings 2D
    python benchmarks/organs.py --add --rows nfc ours     # these rows again, the others are kept
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from common import made_by, write
from scipy.stats import wilcoxon

from regagents.agents import load, resolve
from regagents.classical.deformable import BSpline
from regagents.evaluation.evaluate import row_of
from regagents.evaluation.methods import ClassicalField, Initial, Method, Policy
from regagents.evaluation.pairs import Chunk
from regagents.evaluation.report import Row
from regagents.evaluation.tuned import tuned_fields
from regenv.atomic import atomic
from regenv.core import RegistrationCore
from regenv.data.banks.pelvises import population
from regenv.data.sources.organs import OrganPairs, composition_error
from regenv.registry import build

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"2D": (2, "translation"), "3D": (3, "translation"), "3D*": (3, "labels")}
COARSE = {2: BSpline(16.0, iterations=20), 3: BSpline((8.0, 16.0, 16.0), iterations=20)}  # the paper's FFD-16
ROWS = ("initial", "FFD-16", "FFD-8", "demons", "nfc", "ours")
MEASURES = {"dice": "dice", "hausdorff_mm": "hausdorff", "folding": "folding",
            "sd_log_jacobian": "sd_log_jacobian"}  # and their names in OUT.json
PAPER = {"2D": {"initial": (.76, .78, .10, 11.6, 11.7, 4.3), "FFD-16": (.74, .79, .15, 15.2, 13.2, 6.8),
                "FFD-8": (.77, .81, .13, 14.5, 13.0, 6.7), "ours": (.87, .88, .05, 7.7, 7.2, 2.5)},
         "3D": {"initial": (.62, .61, .11, 16.1, 15.2, 3.9), "FFD-16": (.63, .71, .22, 21.2, 18.0, 10.7),
                "FFD-8": (.64, .70, .20, 25.3, 21.7, 10.9), "demons": (.67, .67, .11, 15.9, 15.8, 3.9),
                "ours": (.75, .76, .06, 11.8, 11.2, 2.9)},
         "3D*": {"initial": (.74, .75, .08, 9.2, 9.0, 2.3), "FFD-16": (.72, .77, .17, 13.4, 11.6, 6.8),
                 "FFD-8": (.67, .76, .23, 14.5, 13.5, 6.4), "demons": (.79, .80, .07, 10.4, 10.8, 2.5),
                 "nfc": (.79, .79, .05, 8.9, 8.8, 2.2), "ours": (.80, .81, .04, 8.0, 7.9, 1.9)}}
Results = dict[str, dict[str, Row]]
"""Rows by setting and name."""


def drawn(setting: str, fuzzy: bool, count: int, batch: int, seed: int) -> list[Chunk]:
    """The first ``count`` test pairs, some at a time."""
    ndim, alignment = SETTINGS[setting]
    pairs = np.array(population(ndim, alignment).test_pairs)[:count]
    pair = OrganPairs(ndim, split="test", alignment=alignment).real(pairs)
    env = f"RegSDM{ndim}D-v0"
    core = RegistrationCore(build(env, fuzzy=fuzzy))
    theta = torch.zeros(pair.lanes, len(core.task.transform.names), dtype=torch.float64)
    state = core.begin(pair, theta, guard_seed=torch.arange(pair.lanes) + (seed << 20))
    return [Chunk(core, state.select(slice(first, first + batch)), env, seed) for first in range(0, pair.lanes, batch)]


def run(setting: str, rows: Sequence[str], count: int, batch: int, seed: int) -> dict[str, Row]:
    """Measures of the test pairs and seconds a pair, by row."""
    ndim, weights = SETTINGS[setting][0], f"organ{SETTINGS[setting][0]}d"
    chunks = {fuzzy: drawn(setting, fuzzy, count, batch, seed) for fuzzy in (False, True)}
    tuned = tuned_fields(chunks[True][0].core.task)
    methods: dict[str, Method] = {"initial": Initial(), "FFD-16": ClassicalField("FFD-16", COARSE[ndim]),
                                  "FFD-8": ClassicalField("FFD-8", tuned.bspline),
                                  "demons": ClassicalField("demons", tuned.demons)}
    if resolve(weights).is_file():  # without and with fuzzy control
        methods |= {name: Policy(name, load(weights)) for name in ("nfc", "ours")}
    out = {}
    for name in (name for name in rows if name in methods):
        torch.manual_seed(seed)
        out[name] = row_of(methods[name], chunks[name == "ours"], tuple(MEASURES))
        print(f"{setting:4} {name:8} Dice {out[name].values('dice').mean():.3f}  HD "
              f"{out[name].values('hausdorff_mm').mean():.1f} mm  {out[name].seconds:.2f} s/pair", flush=True)
    return out


def numbers(row: Row) -> list[float]:
    """Mean, median and deviation of Dice and of the Hausdorff distance, mean of folding, seconds a pair."""
    spread = [float(f(row.values(name))) for name in ("dice", "hausdorff_mm") for f in (np.mean, np.median, np.std)]
    return [*spread, float(row.values("folding").mean()), row.seconds]


def table(results: Results) -> str:
    lines = ["| | | Dice mean | median | sd | HD mean, mm | median | sd | folded voxels | s/pair | paper: Dice, HD |",
             "| --- | --- |" + " ---: |" * 9]
    for setting, rows in results.items():
        for name, row in rows.items():
            told, values = PAPER[setting].get(name), numbers(row)
            shown = [f"{value:.3f}" for value in values[:3]] + [f"{value:.1f}" for value in values[3:6]]
            lines.append(f"| {setting} | {name} | {' | '.join(shown)} | {values[6]:.2%} | {values[7]:.2f} | "
                         + (f"{told[0]:.2f} / {told[1]:.2f} / {told[2]:.2f}, {told[3]} / {told[4]} / {told[5]}"
                            if told else "") + " |")
    return "\n".join(lines) + "\n"


def fuzzy_tests(results: Results) -> str:
    """Paired tests over the pairs: is the Hausdorff distance lower with fuzzy control than without?"""
    lines = []
    for setting, rows in results.items():
        if "ours" in rows and "nfc" in rows:
            (ours, dice), (nfc, nfc_dice) = ((rows[name].values("hausdorff_mm"), rows[name].values("dice").mean())
                                             for name in ("ours", "nfc"))
            test = wilcoxon(ours, nfc, alternative="less")
            lines.append(f"{setting}: Hausdorff with fuzzy control {ours.mean():.2f} mm, without {nfc.mean():.2f} mm; "
                         f"Wilcoxon signed-rank, one-sided, p = {test.pvalue:.2g}; Dice {dice:.3f} and {nfc_dice:.3f}.")
    return "\n\n".join(lines) + "\n"


def compositions(pairs: int = 100) -> str:
    """What the paper's composition by opposite parameters costs against the dense one, training pairs."""
    lines = []
    for ndim in (2, 3):
        for spread in (0.3, 1.0):
            source = OrganPairs(ndim, spread=spread)
            parts = [composition_error(source, [np.random.default_rng(seed) for seed in range(first, first + 20)])
                     for first in range(0, pairs, 20)]
            apart, lost = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
            lines.append(f"{ndim}D, random deformations of {spread} standard deviations: opposite against dense "
                         f"composition, {apart.mean():.2f} mm rms and {lost.mean():.1%} Dice apart (paper: below 2 %).")
    return "\n\n".join(lines) + "\n"


def stored(path: Path) -> Results:
    """Results as an earlier run wrote them; none where there are none."""
    plain = json.loads(path.read_text()) if path.is_file() else {}
    return {setting: {name: Row(name, {measure: tuple(row[key]) for measure, key in MEASURES.items()}, row["seconds"])
                      for name, row in rows.items()} for setting, rows in plain.items()}


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--add", action="store_true", help="keep the rows that OUT.json has besides")
    parser.add_argument("--pairs", type=int, default=56, help="the first so many (default all 56)")
    parser.add_argument("--batch", type=int, default=56, help="pairs that the agent registers at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "organs")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    results = stored(arguments.out.with_suffix(".json")) if arguments.add else {}
    for setting in arguments.settings:
        rows = results.get(setting, {}) | run(setting, arguments.rows, arguments.pairs, arguments.batch, arguments.seed)
        results[setting] = {name: rows[name] for name in ROWS if name in rows}
    results = {setting: results[setting] for setting in SETTINGS if setting in results}
    earlier = "; other rows by earlier commands" if arguments.add else ""
    told = "\n".join((table(results), fuzzy_tests(results), compositions()))
    print(told)
    page = ("# Organ-focused deformable registration, table 1 of Krebs et al. 2017\n\n"
            f"{made_by('organs.py', typed)}{earlier}: {arguments.pairs} ordered pairs of 8 synthetic test subjects. "
            f"The paper's numbers are on its own images.\n\n{told}")
    write(arguments.out, page, ["setting", "method", "dice_mean", "dice_median", "dice_sd", "hd_mean_mm",
                                "hd_median_mm", "hd_sd_mm", "folding", "seconds_per_pair"],
          [[setting, name, *numbers(row)] for setting, rows in results.items() for name, row in rows.items()])
    with atomic(arguments.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({setting: {
            name: {key: np.round(row.values(measure), 4).tolist() for measure, key in MEASURES.items()}
            | {"seconds": row.seconds} for name, row in rows.items()} for setting, rows in results.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
