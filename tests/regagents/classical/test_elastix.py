"""elastix, where it is installed: a known pose is found from a given start."""

from itertools import islice

import numpy as np
import pytest

from regagents.classical import Elastix, random_starts
from tests.regagents.classical.images import FAR_MM, FOUND_MM, error_mm, pair


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", ["rigid", "similarity"])
def test_elastix_finds_a_known_pose_from_a_given_start(ndim: int, motion: str) -> None:
    pytest.importorskip("itk")
    fixed, moving, truth, grid = pair(ndim, seed=1, translation=30, rotation=40)
    near = next(islice(random_starts(truth, grid.center, np.random.default_rng(2), 6, 6), 1, None))
    found = Elastix(motion).register(fixed, moving, near, grid.center)
    assert error_mm(near, truth, grid) > 3
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM


def test_elastix_gives_back_the_start_where_it_cannot_register() -> None:
    pytest.importorskip("itk")
    fixed, moving, _, grid = pair(2, seed=1, translation=5, rotation=5)
    far = np.eye(3)
    far[:2, 2] = FAR_MM
    found = Elastix().register(fixed, moving, far, grid.center)
    assert np.array_equal(found.pull_back, far) and found.metric == np.inf
    with pytest.raises(ValueError, match="motion is 'bent'"):
        Elastix("bent")
