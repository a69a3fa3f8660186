"""What each optimiser scores on training pairs of each kind: the table that `--deform auto` chooses from.

    python benchmarks/choice.py                          # writes regagents/registration/choice.json
    python benchmarks/choice.py --kinds "3D lung"        # renews one kind, keeps the others
    python benchmarks/choice.py --pairs 1 --coarse 3 --without bspline      # a first look, in a few minutes

No pair here shows a person or patient that is held out. An optimiser that folds more than a share ``FOLDED`` of the
voxels comes after all that do not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
import torch
from common import made_by
from dense_pairs import Pair, of_people, slices
from torch import Tensor

from regagents.classical.syn import SyN
from regagents.evaluation.dense import field_measures
from regagents.evaluation.pairs import drawn
from regagents.registration.choice import FILE, correlation
from regagents.registration.deformation import LABELLED, OPTIMISERS
from regagents.registration.score import Score
from regenv.atomic import atomic
from regenv.data.banks.brain_preparation import FRAME
from regenv.data.io.images import Image
from regenv.grid import Grid
from regenv.ops.features import spread
from regenv.ops.regularity import folding

OUT = Path(__file__).parents[1] / "regagents" / "registration" / FILE
FOLDED = 0.002
T1, T2 = (("csi1", "csi2"), ("csi2", "csi1")), (("csi1", "mni2009c-T2"), ("mni2009c-T2", "csi2"))
SLICES = 4              # of each pair of people
CHEST_MM, ABDOMEN_MM = (326, 272, 340), (320, 288, 352)     # registered in voxels of 1.7 and of twice the brains'
SEED = 4_000


@dataclass(frozen=True)
class Case:
    """Images and masks for a solver, and what its field scores: higher is better."""

    given: list[Tensor]
    score: Callable[[Tensor], float]


def of_brains(people: Sequence[tuple[str, str]], coarse: int | None = None) -> list[Case]:
    """Volumes averaged over ``coarse`` mm, or slices of 1 mm."""
    pairs = [of_people(*each) for each in people]
    if coarse is None:
        return [Case([each.fixed, each.moving], each.score) for pair in pairs for each in slices(pair, SLICES)]

    def scored(pair: Pair) -> Case:
        seen, shape = pair.averaged(coarse), tuple(pair.fixed.shape[2:])
        return Case([seen.fixed, seen.moving], lambda field: pair.score(spread(field, coarse, shape)))

    return [scored(pair) for pair in pairs]


def of_phantoms(env: str, source: str, extent: Sequence[int], spacing: float, measure: str, sign: int, masked: bool,
                most: int) -> list[Case]:
    arguments = {"size": [round(mm / spacing) for mm in extent], "spacing": spacing,
                 "source": {"name": source, "split": "train"}}
    cases = []
    for number in range(most):
        chunk = drawn(env, arguments, number, 1, SEED)
        pair = chunk.state.pair
        assert pair.fixed_labels is not None and pair.moving_labels is not None
        masks = [pair.fixed_labels > 0, pair.moving_labels > 0] if masked else []

        def score(field: Tensor, chunk: Any = chunk) -> float:
            [value] = field_measures(chunk.state, field, chunk.core.task.grid, (measure,))[measure]
            return sign * float(value)

        cases.append(Case([pair.fixed, pair.moving, *masks], score))
    return cases


KINDS: dict[str, tuple[str, Callable[[int, int], list[Case]]]] = {
    "2D same": ("Dice of tissues; slices of CSI1 and CSI2, T1", lambda most, mm: of_brains(T1[:most])),
    "2D different": ("Dice of tissues; slices of CSI1 and CSI2, T1, and of MNI2009c, T2",
                     lambda most, mm: of_brains(T2[:most])),
    "3D same": ("Dice of tissues; CSI1 and CSI2, T1", lambda most, mm: of_brains(T1[:most], mm)),
    "3D different": ("Dice of tissues; CSI1 and CSI2, T1, and MNI2009c, T2",
                     lambda most, mm: of_brains(T2[:most], mm)),
    "3D lung": ("minus the key-points' error, mm; synthetic chests, masked", lambda most, mm: of_phantoms(
        "RegKeypoint3D-v0", "lungs", CHEST_MM, 1.7 * mm, "tre_mm", -1, True, most)),
    "3D ct": ("Dice of the liver; synthetic abdomens", lambda most, mm: of_phantoms(
        "RegDense3D-v0", "livers", ABDOMEN_MM, 2.0 * mm, "dice", 1, False, most)),
}


def solvers(ndim: int) -> dict[str, Any]:
    """All that `--deform` has for images of so many axes."""
    found = {name: choice.solver for name, choice in OPTIMISERS.items()
             if name != LABELLED and (name != "syn" or SyN.available())}
    if ndim == 2:       # these have the settings of "greedy" there
        found = {name: solver for name, solver in found.items() if name not in ("greedy:brain", "greedy:lung",
                                                                                "greedy:organ")}
    return found


def measured(kind: str, most: int, coarse: int, without: Sequence[str]) -> dict[str, Any]:
    """Rows of a kind, best first, from so many of its pairs."""
    told, make = KINDS[kind]
    cases = make(most, coarse)
    rows = []
    for name, solver in {"none": None, **solvers(int(kind[0]))}.items():
        if name in without:
            continue
        scores, seconds, folded = [], [], []
        for case in cases:
            begun = process_time()
            field = torch.zeros(1, case.given[0].ndim - 2, *case.given[0].shape[2:]) if solver is None else (
                solver.solve(*case.given))
            seconds.append(process_time() - begun)
            scores.append(case.score(field))
            folded.append(folding(field).item())
        rows.append({"name": name, "score": round(float(np.mean(scores)), 4),
                     "seconds": round(float(np.mean(seconds)), 2), "folding": round(float(np.mean(folded)), 6)})
        print(kind, rows[-1], flush=True)
    start, *rows = rows
    rows.sort(key=lambda row: (row["folding"] > FOLDED, -row["score"]))
    return {"measured": told, "pairs": len(cases), "shape": list(cases[0].given[0].shape[2:]),
            "start": start["score"], "optimisers": rows}


def correlations() -> dict[str, list[float]]:
    """Of training pairs of one modality and of two, in 3D and in slices, as they lie."""
    found: dict[str, list[float]] = {}
    for name, people in (("same", T1), ("different", T2)):
        values = []
        for pair in (of_people(*each) for each in people):
            images = [Image(each[0, 0].numpy(), FRAME, pair.name) for each in (pair.fixed, pair.moving)]
            values.append(correlation(Score.of(*images), np.eye(4)))
            for flat in slices(pair, SLICES):
                grid = Grid.centered(tuple(flat.fixed.shape[2:]), 1.0)
                images = [Image(each[0, 0].numpy(), grid, flat.name) for each in (flat.fixed, flat.moving)]
                values.append(correlation(Score.of(*images), np.eye(3)))
        found[name] = [round(value, 3) for value in values]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--coarse", type=int, default=2, metavar="MM", help="voxels of brains in 3D")
    parser.add_argument("--without", nargs="*", choices=OPTIMISERS, default=[], help="optimisers to leave out")
    parser.add_argument("--pairs", type=int, default=6, help="of people or patients, at most")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    known = json.loads(OUT.read_text()) if OUT.is_file() else {"kinds": {}}
    seen = correlations()
    page: dict[str, Any] = {"limits": {
        "correlation": round((min(seen["same"]) + max(seen["different"])) / 2, 2), "lungs": 0.05},
        "limits_from": {"correlation": seen, "lungs": "lungs take a sixth and more of a chest's CT, air and fat about "
                        "other organs a hundredth"},
        "kinds": known["kinds"]}
    for kind in arguments.kinds:
        page["kinds"][kind] = {"made": made_by("choice.py", typed),
                               **measured(kind, arguments.pairs, arguments.coarse, arguments.without)}
        with atomic(OUT) as temporary:
            temporary.write_text(json.dumps(page, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
