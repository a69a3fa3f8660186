"""Thin-plate splines: what they must reproduce."""

from __future__ import annotations

import numpy as np
import pytest

from regenv.ops.thin_plate import thin_plate


@pytest.mark.parametrize("shape", [(12, 17), (9, 12, 8)])
def test_affine_motion_is_reproduced_whatever_the_smoothing(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    ndim = len(shape)
    points = rng.uniform(0, np.array(shape) - 1, (40, ndim))
    linear, shift = rng.normal(0, 0.2, (ndim, ndim)), rng.normal(0, 1, ndim)
    ticks = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for smoothing in (0.0, 0.1, 10.0):
        field = thin_plate(points, points @ linear.T + shift, shape, spacing=3, smoothing=smoothing)
        np.testing.assert_allclose(np.moveaxis(field, 0, -1), ticks @ linear.T + shift, atol=1e-6)


def test_without_smoothing_it_goes_through_the_points_and_with_it_it_need_not(rng: np.random.Generator) -> None:
    points = rng.integers(0, 20, (30, 2)).astype(float)
    points = np.unique(points, axis=0)
    values = rng.normal(0, 1, (len(points), 2))
    through, beside = (thin_plate(points, values, (20, 20), spacing=1, smoothing=s) for s in (0.0, 1.0))
    at = tuple(points.astype(int).T)
    np.testing.assert_allclose(through[(slice(None), *at)].T, values, atol=1e-6)
    assert np.abs(beside[(slice(None), *at)].T - values).mean() > 0.1
    assert np.square(np.diff(beside, 2, axis=1)).mean() < np.square(np.diff(through, 2, axis=1)).mean()


@pytest.mark.parametrize(("arguments", "words"), [
    ({"points": np.zeros((2, 2))}, "2 points"), ({"spacing": 0}, "spacing is 0"), ({"smoothing": -1.0}, "-1.0")])
def test_bad_arguments_are_named(arguments: dict, words: str, rng: np.random.Generator) -> None:
    points = rng.uniform(0, 9, (10, 2))
    given = {"points": points, **arguments}
    with pytest.raises(ValueError, match=words):
        thin_plate(values=np.zeros((len(given["points"]), 2)), shape=(10, 10), **given)
