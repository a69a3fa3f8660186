"""What is true of starting poses: bounded, uniform and reproducible lane by lane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from regenv.parts.start import UniformStart


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + i) for i in range(count)]


def test_starts_are_uniform_within_their_ranges(rng: np.random.Generator) -> None:
    ranges = (30.0, 30.0, 150.0, 30.0, 30.0, 10.0)
    poses = UniformStart(ranges).draw([rng] * 8000)
    assert (np.abs(poses) <= ranges).all()
    np.testing.assert_allclose(poses.mean(0), 0, atol=0.05 * np.max(ranges))
    np.testing.assert_allclose(poses.std(0), np.array(ranges) / math.sqrt(3), rtol=0.03)


@pytest.mark.parametrize("near", [0.0, 0.4, 1.0])
def test_near_is_the_share_of_starts_near_the_solution(near: float, rng: np.random.Generator) -> None:
    poses = UniformStart((30.0,) * 6, near=near, near_scale=0.1).draw([rng] * 4000)
    within = (np.abs(poses) <= 3.0).all(1).mean()  # a wide start lies there once in a million
    assert within == pytest.approx(near, abs=0.03)


def test_whole_starts_are_integers_and_reach_scales(rng: np.random.Generator) -> None:
    poses = UniformStart((30.0,) * 3, whole=True).draw([rng] * 200)
    assert np.array_equal(poses, np.round(poses))
    assert np.abs(UniformStart((30.0,) * 3).draw([rng] * 500, 0.2)).max() <= 6.0


def test_a_start_depends_on_its_own_generator_only() -> None:
    many = UniformStart((30.0,) * 6, near=0.5).draw(generators(5))
    for lane in range(5):
        assert np.array_equal(UniformStart((30.0,) * 6, near=0.5).draw(generators(1, lane))[0], many[lane])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"ranges": (30.0, -1.0)}, r"ranges is \(30.0, -1.0\)"), ({"ranges": (math.nan,)}, "ranges"),
    ({"ranges": (1.0,), "near": 1.5}, "near is 1.5"), ({"ranges": (1.0,), "near_scale": -1.0}, "near_scale is -1.0")])
def test_wrong_starts_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UniformStart(**arguments)
