"""What is true of the rigid family: its ranges, its grid, and the errors of wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regenv.registry import build


def test_ranges_are_the_papers() -> None:
    assert build("RegRigid2D-v0").start.ranges == (30.0,) * 3
    assert build("RegRigid3D-v0").start.ranges == (30.0,) * 6
    assert build("RegRigid3D-v0", source="spine").start.ranges == (30.0, 30.0, 150.0, 30.0, 30.0, 30.0)
    assert build("RegRigid3D-v0", source={"name": "spine"}).start.ranges[2] == 150.0


def test_size_and_spacing_make_the_grid() -> None:
    grid = build("RegRigid3D-v0", size=(20, 24, 28), spacing=(1.0, 2.0, 3.0)).grid
    assert (grid.shape, tuple(grid.spacing)) == ((20, 24, 28), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(grid.center, 0, atol=1e-12)
    assert build("RegRigid3D-v0", size=32).grid.spacing == pytest.approx((7.0,) * 3)


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ({"source": "cats"}, ValueError, ["cats", "phantoms", "spine", "heads"]),
    ({"source": {"name": "spine", "legs": 4}}, TypeError, ["legs"]),
    ({"observation": "sound"}, ValueError, ["observation", "sound", "difference", "pair"]),
    ({"reward": "praise"}, ValueError, ["reward", "praise", "distance", "mi"]),
    ({"motion": "dance"}, ValueError, ["motion", "dance", "parameters", "disentangled"]),
    ({"stop": "later"}, ValueError, ["stop", "later", "arrived", "never"]),
    ({"ranges": [30.0] * 3}, ValueError, ["ranges", "3", "6"]),
    ({"step_sizes": [1.0, -2.0]}, ValueError, ["step_sizes", "-2.0", "positive"]),
    ({"step_sizes": []}, ValueError, ["step_sizes"]),
    ({"targets": "q", "motion": "disentangled"}, ValueError, ["targets", "drop"]),
    ({"targets": "z"}, ValueError, ["targets", "z", "drop"]),
    ({"obs_dtype": "float16"}, ValueError, ["obs_dtype", "float16", "uint8", "float32"]),
    ({"size": 0}, ValueError, ["size", "0"]),
    ({"spacing": -1.0}, ValueError, ["spacing", "-1.0"]),
    ({"near": 1.5}, ValueError, ["near", "1.5"]),
    ({"ranges": [-1.0] * 6}, ValueError, ["ranges", "-1.0"]),
    ({"max_episode_steps": 0}, ValueError, ["max_episode_steps", "0"]),
    ({"colour": "red"}, TypeError, ["colour"]),
])
def test_a_wrong_argument_is_named_with_its_value_and_the_way_out(arguments: dict[str, Any], error: type[Exception],
                                                                  words: list[str]) -> None:
    with pytest.raises(error) as caught:
        build("RegRigid3D-v0", **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
