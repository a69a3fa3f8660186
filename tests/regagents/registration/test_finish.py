"""The final transform of a near pose: of one object, of two of different size, and what is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regagents.registration.finish import TRANSFORMS, Finished, finished
from regagents.registration.score import COARSE, FINE, FINEST, Score, rigid_part, stretches
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
    masks = tuple(replace(image, array=(image.array > 0.1).astype(np.uint8)) for image in (fixed, moving))
    coarse, fine, finest = (Score.of(fixed, moving, masks if masked else None, level)
                            for level in (COARSE, FINE, FINEST))
    start = coarse.climb(coarse.climb(near, "similarity", 15), "affine", 15)
    return finished(start, transform, fine, finest)


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
    score = Score.of(fixed, fixed)
    with pytest.raises(ValueError, match=r"transform is 'rigd'; take one of " + ", ".join(TRANSFORMS)):
        finished(np.eye(3), "rigd", score, score)


@NDIM
def test_a_coarse_map_that_has_shrunk_is_left_for_the_one_near_the_rigid_pose(ndim: int) -> None:
    """The map given is an optimum of no use: it squeezes the object to a half."""
    fixed = seen(GRIDS[ndim])
    fine, finest = (Score.of(fixed, fixed, None, level) for level in (FINE, FINEST))
    squeezed = np.diag([*[0.5] * ndim, 1.0])
    found = finished(squeezed, "affine", fine, finest)
    assert error_mm(found.pull_back, np.eye(ndim + 1)) < FOUND_MM
