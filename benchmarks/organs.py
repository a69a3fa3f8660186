"""Table 1 of Krebs et al. 2017: organ-focused deformable registration of the 56 held-out pairs.

    python benchmarks/organs.py                     # 2D, 3D and 3D* (perfect rigid alignment)
    python benchmarks/organs.py --settings 2D
    python benchmarks/organs.py --add --rows nfc ours     # these rows again, the others are kept
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor

from regagents.agents import load, resolve
from regagents.classical.deformable import Demons, FreeForm
from regagents.evaluation.dense import Metrics, deform, searched
from regenv.atomic import atomic
from regenv.core import RegistrationCore
from regenv.data.banks.pelvises import population
from regenv.data.sources.organs import OrganPairs, composition_error
from regenv.registry import build
from regenv.state import EpisodeState

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"2D": (2, "translation"), "3D": (3, "translation"), "3D*": (3, "labels")}
FREE_FORM = {2: {"FFD-16": FreeForm(16.0, iterations=20), "FFD-8": FreeForm(8.0)},
             3: {"FFD-16": FreeForm((8.0, 16.0, 16.0), iterations=20), "FFD-8": FreeForm((4.0, 8.0, 8.0))}}
DEMONS = {2: Demons(smoothing=1.0), 3: Demons(smoothing=1.0, iterations=40)}
ROWS = ("initial", "FFD-16", "FFD-8", "demons", "nfc", "ours")
PAPER = {"2D": {"initial": (.76, .78, .10, 11.6, 11.7, 4.3), "FFD-16": (.74, .79, .15, 15.2, 13.2, 6.8),
                "FFD-8": (.77, .81, .13, 14.5, 13.0, 6.7), "ours": (.87, .88, .05, 7.7, 7.2, 2.5)},
         "3D": {"initial": (.62, .61, .11, 16.1, 15.2, 3.9), "FFD-16": (.63, .71, .22, 21.2, 18.0, 10.7),
                "FFD-8": (.64, .70, .20, 25.3, 21.7, 10.9), "demons": (.67, .67, .11, 15.9, 15.8, 3.9),
                "ours": (.75, .76, .06, 11.8, 11.2, 2.9)},
         "3D*": {"initial": (.74, .75, .08, 9.2, 9.0, 2.3), "FFD-16": (.72, .77, .17, 13.4, 11.6, 6.8),
                 "FFD-8": (.67, .76, .23, 14.5, 13.5, 6.4), "demons": (.79, .80, .07, 10.4, 10.8, 2.5),
                 "nfc": (.79, .79, .05, 8.9, 8.8, 2.2), "ours": (.80, .81, .04, 8.0, 7.9, 1.9)}}


def run(setting: str, rows: Sequence[str], batch: int, seed: int) -> dict[str, tuple[Metrics, float]]:
    """Metrics of the 56 pairs and seconds a pair, by row."""
    ndim, alignment = SETTINGS[setting]
    people = population(ndim, alignment)
    pair = OrganPairs(ndim, split="test", alignment=alignment).real(np.array(people.test_pairs))

    def begun(fuzzy: bool) -> tuple[RegistrationCore, EpisodeState]:
        core = RegistrationCore(build(f"RegSDM{ndim}D-v0", fuzzy=fuzzy))
        theta = torch.zeros(pair.lanes, core.task.transform.model.count, dtype=torch.float64)
        return core, core.begin(pair, theta, guard_seed=torch.arange(pair.lanes) + (seed << 20))

    def agent(fuzzy: bool) -> Tensor:
        core, state = begun(fuzzy)
        learned = load(f"organ{ndim}d")
        parts = [deform(learned, core, state.select(slice(first, first + batch))).displacement
                 for first in range(0, pair.lanes, batch)]
        return torch.cat([part for part in parts if part is not None])

    start = begun(False)[1]
    makers: dict[str, Callable[[], Tensor | None]] = {
        "initial": lambda: None, "FFD-16": lambda: searched(FREE_FORM[ndim]["FFD-16"], start, people.grid),
        "FFD-8": lambda: searched(FREE_FORM[ndim]["FFD-8"], start, people.grid),
        "demons": lambda: searched(DEMONS[ndim], start, people.grid),
        "nfc": lambda: agent(False), "ours": lambda: agent(True)}
    out = {}
    for row in rows:
        if row in ("nfc", "ours") and not resolve(f"organ{ndim}d").is_file():
            continue
        torch.manual_seed(seed)
        begun_at = perf_counter()
        field = makers[row]()
        seconds = (perf_counter() - begun_at) / pair.lanes
        out[row] = Metrics.of(start, field, people.grid), seconds
        print(f"{setting:4} {row:8} Dice {out[row][0].dice.mean():.3f}  HD {out[row][0].hausdorff.mean():.1f} mm  "
              f"{seconds:.2f} s/pair", flush=True)
    return out


def table(results: dict[str, dict[str, tuple[Metrics, float]]]) -> str:
    lines = ["| | | Dice mean | median | sd | HD mean, mm | median | sd | folded voxels | s/pair | paper: Dice, HD |",
             "| --- | --- |" + " ---: |" * 9]
    for setting, rows in results.items():
        for row, (m, seconds) in rows.items():
            told = PAPER[setting].get(row)
            dice, far = (f"{v.mean():.{n}f} | {np.median(v):.{n}f} | {v.std():.{n}f}"
                         for v, n in ((m.dice, 3), (m.hausdorff, 1)))
            lines.append(f"| {setting} | {row} | {dice} | {far} | {m.folding.mean():.2%} | {seconds:.2f} | "
                         + (f"{told[0]:.2f} / {told[1]:.2f} / {told[2]:.2f}, {told[3]} / {told[4]} / {told[5]}"
                            if told else "") + " |")
    return "\n".join(lines) + "\n"


def fuzzy_tests(results: dict[str, dict[str, tuple[Metrics, float]]]) -> str:
    """Paired tests over the pairs: is the Hausdorff distance lower with fuzzy control than without?"""
    lines = []
    for setting, rows in results.items():
        if "ours" in rows and "nfc" in rows:
            ours, nfc = rows["ours"][0], rows["nfc"][0]
            test = wilcoxon(ours.hausdorff, nfc.hausdorff, alternative="less")
            lines.append(f"{setting}: Hausdorff with fuzzy control {ours.hausdorff.mean():.2f} mm, without "
                         f"{nfc.hausdorff.mean():.2f} mm; Wilcoxon signed-rank, one-sided, p = {test.pvalue:.2g}; "
                         f"Dice {ours.dice.mean():.3f} and {nfc.dice.mean():.3f}.")
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


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--add", action="store_true", help="keep the rows that OUT.json has besides")
    parser.add_argument("--batch", type=int, default=56, help="pairs that the agent registers at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "organs")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    results = stored(arguments.out.with_suffix(".json")) if arguments.add else {}
    for setting in arguments.settings:
        rows = results.get(setting, {}) | run(setting, arguments.rows, arguments.batch, arguments.seed)
        results[setting] = {row: rows[row] for row in ROWS if row in rows}
    results = {setting: results[setting] for setting in SETTINGS if setting in results}
    earlier = "; other rows by earlier commands" if arguments.add else ""
    head = (f"# Organ-focused deformable registration, table 1 of Krebs et al. 2017\n\nMade by `"
            f"{' '.join(['python benchmarks/organs.py', *typed])}` on {date.today()}, {platform.machine()}, 1 thread, "
            f"torch {torch.__version__}{earlier}: the 56 ordered pairs of 8 made test subjects. The paper's numbers "
            "are on its own images.\n\n")
    told = "\n".join((table(results), fuzzy_tests(results), compositions()))
    print(told)
    with atomic(arguments.out.with_suffix(".md")) as temporary:
        temporary.write_text(head + told)
    with atomic(arguments.out.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "method", "dice_mean", "dice_median", "dice_sd", "hd_mean_mm", "hd_median_mm",
                         "hd_sd_mm", "folding", "seconds_per_pair"])
        writer.writerows([setting, row, *(float(f(v)) for v in (m.dice, m.hausdorff) for f in (np.mean, np.median,
                                                                                              np.std)),
                          m.folding.mean(), seconds]
                         for setting, rows in results.items() for row, (m, seconds) in rows.items())
    with atomic(arguments.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({setting: {
            row: {name: np.round(value, 4).tolist() for name, value in asdict(m).items()} | {"seconds": seconds}
            for row, (m, seconds) in rows.items()} for setting, rows in results.items()}) + "\n")
    return 0


def stored(path: Path) -> dict[str, dict[str, tuple[Metrics, float]]]:
    """Results as an earlier run wrote them; none where there are none."""
    plain = json.loads(path.read_text()) if path.is_file() else {}
    return {setting: {row: (Metrics(**{name: np.array(each[name]) for name in each if name != "seconds"}),
                            each["seconds"]) for row, each in rows.items()} for setting, rows in plain.items()}


if __name__ == "__main__":
    sys.exit(main())
