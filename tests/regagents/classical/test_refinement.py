"""Local refinement reaches the optimum from nearby, and never makes a pose worse."""

from itertools import islice

import numpy as np
import pytest

from regagents.classical import Refinement, evaluate_metric, random_starts, refine_pose
from regagents.classical.refinement import generators
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


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("motion", "factors"), [("similarity", (1.06, 1.06, 1.06)), ("affine", (1.06, 0.95, 1.03))])
def test_refinement_finds_scales_and_shears_where_it_may(ndim: int, motion: str, factors: tuple[float, ...]) -> None:
    """The start has another scale, about the middle of the image, than the truth."""
    fixed, moving, truth, grid = pair(ndim, seed=7, translation=5, rotation=5)
    stretch = np.eye(ndim + 1)
    stretch[:ndim, :ndim] = np.diag(factors[:ndim])
    stretch[:ndim, ndim] = grid.center - stretch[:ndim, :ndim] @ grid.center
    near = truth @ stretch
    assert error_mm(near, truth, grid) > FOUND_MM
    assert error_mm(refine_pose(fixed, moving, near, grid.center, motion).pull_back, truth, grid) < 0.2
    rigid = refine_pose(fixed, moving, near, grid.center).pull_back
    np.testing.assert_allclose(np.linalg.svd(rigid[:ndim, :ndim])[1], sorted(factors[:ndim], reverse=True), atol=EXACT)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_similarity_has_one_scale_and_an_affine_map_every_linear_part(ndim: int) -> None:
    """The generators span the skew matrices, those with one scale, and all; then the translations."""
    linear = {motion: generators(ndim, motion)[:, :ndim, :ndim].reshape(-1, ndim * ndim)
              for motion in ("rigid", "similarity", "affine")}
    turns = ndim * (ndim - 1) // 2
    assert {motion: np.linalg.matrix_rank(parts) for motion, parts in linear.items()} == {
        "rigid": turns, "similarity": turns + 1, "affine": ndim * ndim}
    skew = linear["rigid"].reshape(-1, ndim, ndim)
    np.testing.assert_array_equal(skew, -np.swapaxes(skew, 1, 2))
    both = np.vstack([linear["similarity"], np.eye(ndim).ravel()])
    assert np.linalg.matrix_rank(both) == turns + 1
    for motion, parts in linear.items():
        moves = generators(ndim, motion)
        assert len(moves) == np.linalg.matrix_rank(parts) + ndim
        np.testing.assert_array_equal(moves[-ndim:, :ndim, ndim], np.eye(ndim))
        np.testing.assert_array_equal(moves[:, ndim], 0)


def test_another_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="motion is 'elastic'; take one of rigid, similarity, affine"):
        Refinement(motion="elastic")
