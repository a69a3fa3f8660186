"""elastix, where it is installed: a known pose is found from a given start."""

from itertools import islice

import numpy as np
import pytest

from regagents.classical import Elastix, random_starts
from tests.regagents.classical.images import FAR_MM, FOUND_MM, error_mm, pair


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", ["rigid", "similarity", "affine"])
def test_elastix_finds_a_known_pose_from_a_given_start(ndim: int, motion: str) -> None:
    pytest.importorskip("itk")
    fixed, moving, truth, grid = pair(ndim, seed=1, translation=30, rotation=40)
    near = next(islice(random_starts(truth, grid.center, np.random.default_rng(2), 6, 6), 1, None))
    found = Elastix(motion).register(fixed, moving, near, grid.center)
    assert error_mm(near, truth, grid) > 3
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM


def test_elastix_starts_from_its_own_initializer_and_not_from_the_given_pose() -> None:
    pytest.importorskip("itk")
    fixed, moving, truth, grid = pair(3, seed=1, translation=15, rotation=5)
    far = np.eye(4)
    far[:3, 3] = FAR_MM
    found = Elastix("rigid", initializer="CenterOfGravity").register(fixed, moving, far, grid.center)
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM


def test_an_initializer_that_elastix_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="initializer is 'Middle'"):
        Elastix(initializer="Middle")


def test_elastix_gives_back_the_start_where_it_cannot_register() -> None:
    pytest.importorskip("itk")
    fixed, moving, _, grid = pair(2, seed=1, translation=5, rotation=5)
    far = np.eye(3)
    far[:2, 2] = FAR_MM
    found = Elastix().register(fixed, moving, far, grid.center)
    assert np.array_equal(found.pull_back, far) and found.metric == np.inf
    with pytest.raises(ValueError, match="motion is 'bent'"):
        Elastix("bent")
