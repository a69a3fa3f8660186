"""The final transform of a near pose: of one object, of two of different size, and what is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from regagents.classical import Refinement
from regagents.registration.finish import FINE_SAMPLES, TRANSFORMS, Finished, finished
from regagents.registration.score import FINE_VOXELS, Score, rigid_part, stretches
from regenv.grid import Grid
from tests.regagents.registration.phantoms import GRIDS, error_mm, seen
from tests.regagents.toys import rigid

NDIM = pytest.mark.parametrize("ndim", [2, 3])
FOUND_MM = 0.5


def pose(ndim: int) -> np.ndarray:
    return rigid([30.0, -20.0, 10.0][:ndim] + [25.0, -15.0, 10.0][:1 if ndim == 2 else 3], np.zeros(ndim))


def finish(ndim: int, truth: np.ndarray, transform: str, masked: bool = False) -> Finished:
    """From the candidate near a pose that is 3 mm and 4 degrees off."""
    fixed = seen(GRIDS[ndim])
    moving = seen(Grid.centered([n + 8 for n in fixed.grid.shape], fixed.grid.spacing[0], truth[:-1, -1]), truth)
    near = pose(ndim) @ rigid([3.0] * ndim + [4.0] * (1 if ndim == 2 else 3), np.zeros(ndim))
    score = Score.of(fixed, moving)
    fine = Score.of(fixed, moving, None, FINE_VOXELS, FINE_SAMPLES)
    start = score.climb(score.climb(near, "similarity", 15), "affine", 15)
    return finished(fixed, moving, start, transform, score, fine, masked)


@NDIM
@pytest.mark.parametrize("masked", [False, True])
def test_one_object_is_met_by_its_rigid_pose(ndim: int, masked: bool) -> None:
    found = finish(ndim, pose(ndim), "rigid", masked)
    assert not found.differs
    assert error_mm(found.pull_back, pose(ndim)) < FOUND_MM
    assert stretches(found.pull_back) == pytest.approx(0, abs=1e-9)


@NDIM
def test_two_objects_of_different_size_are_met_by_the_rigid_part_of_the_map_between_them(ndim: int) -> None:
    """A copy a fifth larger; about the object's middle the pose is that of the map without its scale."""
    truth = pose(ndim) @ np.diag([1.2] * ndim + [1.0])
    found = finish(ndim, truth, "rigid")
    assert found.differs
    assert error_mm(found.pull_back, rigid_part(truth, np.zeros(ndim))) < 1.0
    assert stretches(found.pull_back) == pytest.approx(0, abs=1e-9)
    assert error_mm(found.affine, truth) < 1.0


@NDIM
def test_a_similarity_that_is_asked_for_is_found(ndim: int) -> None:
    truth = pose(ndim) @ np.diag([1.15] * ndim + [1.0])
    found = finish(ndim, truth, "similarity").pull_back
    assert error_mm(found, truth) < 1.0
    assert np.ptp(stretches(found)) == pytest.approx(0, abs=1e-9)


@NDIM
def test_an_affine_map_that_is_asked_for_is_found(ndim: int) -> None:
    truth = pose(ndim) @ np.diag([*[1.15, 0.9, 1.05][:ndim], 1.0])
    found = finish(ndim, truth, "affine")
    assert error_mm(found.pull_back, truth) < FOUND_MM
    assert found.pull_back is found.affine and found.differs


def test_another_transform_is_refused() -> None:
    fixed = seen(GRIDS[2])
    score = Score.of(fixed, fixed, samples=100)
    with pytest.raises(ValueError, match=r"transform is 'rigd'; take one of " + ", ".join(TRANSFORMS)):
        finished(fixed, fixed, np.eye(3), "rigd", score, score, False)


@NDIM
@pytest.mark.parametrize("away_mm", [0.1, 400.0])
def test_the_last_refinement_counts_only_where_it_agrees(ndim: int, away_mm: float,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves the objects for the emptiness beside them is given up; a tenth of a millimetre is followed."""
    ends: list[np.ndarray] = []

    def leave(_: object, fixed: object, moving: object, start: np.ndarray) -> SimpleNamespace:
        ends.extend([start, start @ rigid([away_mm] + [0.0] * (2 if ndim == 2 else 5), np.zeros(ndim))])
        return SimpleNamespace(pull_back=ends[1])

    monkeypatch.setattr(Refinement, "register", leave)
    found = finish(ndim, pose(ndim), "rigid").pull_back
    assert found is ends[1 if away_mm < FOUND_MM else 0]
