"""Key-points: a known similarity is found from any start."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.interpolate import RegularGridInterpolator

from regagents.classical import SiftSimilarity
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from tests.regagents.classical.images import FOUND_MM, error_mm, pair


def textured(turn: float, scale: float) -> tuple[sitk.Image, sitk.Image, np.ndarray, Grid]:
    """A picture full of key-points, seen a second time through a similarity map, and that map (fixed to moving)."""
    grid = Grid.centered((160, 160), 1.5, [30.0, -40.0])
    picture = np.random.default_rng(3).random((24, 24))
    axes = [np.linspace(-80, 80, 24)] * 2
    sampled = RegularGridInterpolator(axes, picture, method="cubic", bounds_error=False, fill_value=0.0)
    points_mm = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)) - grid.center
    angle = np.radians(turn)
    truth = np.eye(3)
    truth[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth[:2, 2] = [6.0, -9.0]
    back = np.linalg.inv(truth)
    fixed, moving = sampled(points_mm), sampled(points_mm @ back[:2, :2].T + back[:2, 2])
    about_center = np.eye(3)
    about_center[:2, :2] = truth[:2, :2]
    about_center[:2, 2] = grid.center + truth[:2, 2] - truth[:2, :2] @ grid.center
    return framed(fixed, grid, np.float32), framed(moving, grid, np.float32), about_center, grid


def test_sift_recovers_a_similarity_from_any_start() -> None:
    fixed, moving, truth, grid = textured(turn=100.0, scale=0.85)
    found = SiftSimilarity().register(fixed, moving, np.eye(3))
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM and found.metric < -20


def test_sift_without_matches_keeps_the_start() -> None:
    fixed, _, _, grid = textured(0.0, 1.0)
    start = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
    for image in (framed(np.zeros(grid.shape), grid, np.float32), framed(np.eye(160), grid, np.float32)):
        found = SiftSimilarity().register(fixed, image, start)
        assert np.array_equal(found.pull_back, start) and found.metric == np.inf
    with pytest.raises(ValueError, match="3D; SIFT needs 2D"):
        SiftSimilarity().register(*pair(3, 1, 5, 5)[:2], np.eye(4))
