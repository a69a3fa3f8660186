"""One table of tuned classical settings, found by the source of the pairs."""

from __future__ import annotations

import pytest

from regagents.classical.deformable import BSpline, Demons
from regagents.evaluation.tuned import FIELDS, OTHERS, motion_of, tuned_fields, tuned_mi
from regenv.data.sources.digits import Digits
from regenv.data.sources.livers import Livers
from regenv.data.sources.lungs import Lungs
from regenv.data.sources.organs import OrganPairs
from regenv.registry import build


def test_settings_are_found_through_the_clusters_of_a_source() -> None:
    digits = tuned_fields(build("RegDenseDigits-v0"))
    assert digits == FIELDS[Digits, 2] and digits.bspline == BSpline(control=3.5)
    livers = build("RegDense3D-v0", size=32, spacing=8.0, source={"name": "livers", "split": "test"})
    assert tuned_fields(livers) == FIELDS[Livers, 3] and tuned_fields(livers).demons == Demons(0.7, levels=2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_organs_and_lungs_have_settings_in_both_dimensions(ndim: int) -> None:
    assert tuned_fields(build(f"RegSDM{ndim}D-v0")) == FIELDS[OrganPairs, ndim]
    lungs = tuned_fields(build(f"RegKeypoint{ndim}D-v0"))
    assert lungs == FIELDS[Lungs, ndim] and lungs.masked
    assert tuned_fields(build(f"RegDense{ndim}D-v0")) == OTHERS[ndim]


@pytest.mark.parametrize(("env_id", "motion"), [("RegSimilarity2D-v0", "similarity"), ("RegRigid3D-v0", "rigid")])
def test_mutual_information_moves_what_the_environment_moves(env_id: str, motion: str) -> None:
    task = build(env_id)
    assert motion_of(task) == motion and tuned_mi(motion, task.grid.ndim).motion == motion
