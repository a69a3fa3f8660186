"""Local refinement reaches the optimum from nearby, and never makes a pose worse."""

from itertools import islice

import numpy as np
import pytest

from regagents.classical import evaluate_metric, random_starts, refine_pose
from tests.regagents.classical.images import EXACT, FOUND_MM, error_mm, pair


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_refinement_reaches_the_optimum_from_nearby(ndim: int, seed: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed, translation=30, rotation=40)
    near = next(islice(random_starts(truth, grid.center, np.random.default_rng(seed), 3, 3), 1, None))
    result = refine_pose(fixed, moving, near, grid.center)
    assert error_mm(near, truth, grid) > FOUND_MM
    assert error_mm(result.pull_back, truth, grid) < 0.2


def test_refined_poses_from_scattered_starts_are_one() -> None:
    fixed, moving, truth, grid = pair(3, seed=4, translation=10, rotation=10)
    starts = islice(random_starts(truth, grid.center, np.random.default_rng(0), 3, 3), 1, 5)
    refined = [refine_pose(fixed, moving, start, grid.center).pull_back for start in starts]
    assert max(error_mm(pose, refined[0], grid) for pose in refined) < 0.2


def test_refinement_is_never_worse_than_its_start() -> None:
    fixed, moving, truth, grid = pair(3, seed=5, translation=5, rotation=5)
    assert evaluate_metric(fixed, moving, refine_pose(fixed, moving, truth, grid.center).pull_back) <= (
        evaluate_metric(fixed, moving, truth) + 1e-2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_refinement_keeps_the_size_of_things(ndim: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed=6, translation=5, rotation=5)
    rotation = refine_pose(fixed, moving, truth, grid.center).pull_back[:ndim, :ndim]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(ndim), atol=EXACT)
    assert np.linalg.det(rotation) > 0
