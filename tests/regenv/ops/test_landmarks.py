"""Landmarks: errors in millimetres, lattices, keypoints and success rates."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from regenv.grid import Grid
from regenv.ops import landmarks

OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_tre_is_the_mean_distance(ndim):
    points = torch.randn(4, 7, ndim, dtype=torch.float64)
    shift = torch.tensor([3.0, 4.0, 12.0][:ndim], dtype=torch.float64)
    expected = torch.full((4,), {2: 5.0, 3: 13.0}[ndim], dtype=torch.float64)
    torch.testing.assert_close(landmarks.tre(points, points + shift), expected)
    other = torch.randn(4, 7, ndim, dtype=torch.float64)
    by_numpy = np.linalg.norm((points - other).numpy(), axis=-1).mean(-1)
    np.testing.assert_allclose(landmarks.tre(points, other).numpy(), by_numpy, rtol=1e-12)


def test_tre_of_equal_points_is_zero_with_a_finite_gradient():
    points = torch.randn(2, 5, 3, requires_grad=True)
    error = landmarks.tre(points, points.detach())
    error.sum().backward()
    assert torch.equal(error.detach(), torch.zeros(2))
    assert points.grad is not None and points.grad.isfinite().all()


@pytest.mark.parametrize("grid", [Grid.centered((20, 30), (2.0, 0.5), (5.0, 6.0)),
                                  Grid.centered((10, 20, 30), (0.7, 1.3, 2.9), (-50.0, 3.0, 9.0), OBLIQUE)],
                         ids=["2D", "3D"])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4])
def test_lattice_lies_regularly_inside_the_grid(grid, margin):
    points = landmarks.lattice(grid, per_axis=4, margin=margin)
    assert points.shape == (4**grid.ndim, grid.ndim)
    assert points.dtype == torch.float64
    part = (grid.to_voxel(points.numpy()) + 0.5) / grid.shape  # of the extent, from edge to edge
    np.testing.assert_allclose(part.min(0), margin, rtol=0, atol=1e-9)
    np.testing.assert_allclose(part.max(0), 1 - margin, rtol=0, atol=1e-9)
    np.testing.assert_allclose(points.numpy().mean(0), grid.center, rtol=0, atol=1e-9)
    steps = np.diff(np.unique(part[:, 0].round(9)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_lattice_of_one_point_is_the_middle():
    grid = Grid.centered((7, 8, 9), 1.5, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(landmarks.lattice(grid, per_axis=1).numpy(), [[1.0, 2.0, 3.0]], atol=1e-12)


def test_sift_finds_blobs_where_they_are_strongest_first():
    pytest.importorskip("cv2")
    rows, columns = np.indices((128, 128))
    centers = [(30.0, 40.0), (90.0, 35.0), (64.0, 100.0)]
    heights = [1.0, 0.7, 0.5]
    image = sum(h * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * 4.0**2))
                for h, (r, c) in zip(heights, centers, strict=True))
    points = landmarks.sift(torch.from_numpy(image), 3)
    assert points.shape == (3, 2)
    np.testing.assert_allclose(points, centers, rtol=0, atol=0.5)  # voxels
    assert landmarks.sift(image, 1).shape == (1, 2)
    np.testing.assert_array_equal(landmarks.sift(image, 3), landmarks.sift(image, 3))


def test_sift_of_nothing_is_no_points():
    pytest.importorskip("cv2")
    assert landmarks.sift(np.zeros((64, 64)), 10).shape == (0, 2)


def test_sift_refuses_volumes():
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\); SIFT needs a 2D image"):
        landmarks.sift(np.zeros((4, 4, 4)), 10)


def test_opencv_is_imported_only_for_sift():
    code = "import sys, regenv.ops.landmarks, regenv.render; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("successes", "n", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (196, 200, 0.9497, 0.9922),
    (1, 29, 0.0061, 0.1718),
])
def test_wilson_interval_has_its_known_values(successes, n, low, high):
    """1 of 29 stands in Newcombe 1998, table I (method 3)."""
    assert landmarks.wilson(successes, n) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


@pytest.mark.parametrize("successes", [0, 1, 7, 19, 20])
def test_wilson_bounds_solve_the_score_equation(successes):
    """At either bound p the rate lies z standard errors of p away: |rate - p| = z sqrt(p (1 - p) / n)."""
    n, z = 20, 1.96
    for p in landmarks.wilson(successes, n, z):
        if 0 < p < 1:
            assert abs(successes / n - p) == pytest.approx(z * (p * (1 - p) / n) ** 0.5, rel=1e-9)


def test_success_rate_counts_unknown_errors_as_failures():
    rate, low, high = landmarks.success_rate(torch.tensor([1.0, 10.0, 10.1, float("nan")]), threshold_mm=10.0)
    assert rate == 0.5
    assert (low, high) == landmarks.wilson(2, 4)
    assert landmarks.wilson(0, 0) == (0.0, 1.0)


def test_errors_name_the_argument_and_its_value():
    grid = Grid.centered((4, 4), 1.0)
    with pytest.raises(ValueError, match="per_axis is 0"):
        landmarks.lattice(grid, per_axis=0)
    with pytest.raises(ValueError, match=r"margin is 0\.6"):
        landmarks.lattice(grid, margin=0.6)
    with pytest.raises(ValueError, match="5 successes of 4"):
        landmarks.wilson(5, 4)
    with pytest.raises(ValueError, match="no errors"):
        landmarks.success_rate(np.array([]), 10.0)
