"""Landmarks: lattices and SIFT keypoints, the target registration error, and success rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.grid import Grid


def tre(points_a: Tensor, points_b: Tensor) -> Tensor:
    """Target registration error: the mean distance between corresponding points, mm.

    Args: points_a, points_b: (B, N, D), world mm, point n of one corresponding to point n of the other.
    Returns: (B,).
    """
    return torch.linalg.vector_norm(points_a - points_b, dim=-1).mean(-1)


def lattice(grid: Grid, per_axis: int = 5, margin: float = 0.1) -> Tensor:
    """A regular lattice of points inside a grid.

    Args:
        grid: that holds the points.
        per_axis: points along each axis; 1 is the middle.
        margin: distance of the outermost points from the grid's edges, as a fraction of its extent, in [0, 0.5].
    Returns: (per_axis**D, D) float64, world mm; the grid's last array axis runs fastest.
    """
    if per_axis < 1:
        raise ValueError(f"lattice: per_axis is {per_axis}; it must be at least 1.")
    if not 0 <= margin <= 0.5:
        raise ValueError(f"lattice: margin is {margin}; it must be between 0 and 0.5 of the extent.")
    ticks = np.linspace(margin, 1 - margin, per_axis) if per_axis > 1 else np.array([0.5])
    mesh = np.stack(np.meshgrid(*(n * ticks - 0.5 for n in grid.shape), indexing="ij"), axis=-1)
    return torch.from_numpy(grid.to_world(mesh.reshape(-1, grid.ndim)))


def sift(image: Any, count: int) -> NDArray[np.float64]:
    """The most salient points of a 2D image: SIFT keypoints (Lowe 2004), strongest first, at most one per pixel.

    Needs OpenCV, which is imported where SIFT is used and nowhere else.

    Args:
        image: (H, W) array or tensor, intensities in [0, 1].
        count: points wanted.
    Returns: (N, 2) float64, voxel points (row, column); N is below ``count`` if the image has fewer keypoints.
    """
    keypoints, _ = _key_points(image)
    pixel_of: dict[tuple[int, int], tuple[float, float]] = {}
    for keypoint in sorted(keypoints, key=lambda k: (-k.response, k.pt)):
        x, y = keypoint.pt  # one point may have several keypoints, one per orientation
        pixel_of.setdefault((round(y), round(x)), (y, x))
    return np.array(list(pixel_of.values())[:count], dtype=np.float64).reshape(-1, 2)


def sift_matches(first: Any, second: Any, ratio: float = 0.8,
                 contrast: float = 0.04) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corresponding SIFT keypoints of two 2D images: nearest descriptors that pass Lowe's ratio test (Lowe 2004).

    Args:
        first, second: (H, W) arrays or tensors, intensities in [0, 1].
        ratio: a match must be closer than this times the second closest.
        contrast: weakest extremum that is a keypoint, OpenCV's ``contrastThreshold``.
    Returns: two (N, 2) float64, voxel points (row, column) of the one and of the other; N may be 0.
    """
    import cv2

    (points, descriptors), (others, candidates) = (_key_points(image, contrast) for image in (first, second))
    if len(points) == 0 or len(others) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors, candidates, k=2)
    good = [one for one, two in nearest if one.distance < ratio * two.distance]
    pairs = np.array([(*points[m.queryIdx].pt, *others[m.trainIdx].pt) for m in good]).reshape(-1, 4)
    return pairs[:, 1::-1].copy(), pairs[:, :1:-1].copy()


def _key_points(image: Any, contrast: float = 0.04) -> tuple[Any, Any]:
    """OpenCV's keypoints and descriptors of an image (H, W) in [0, 1]."""
    pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64)
    if pixels.ndim != 2:
        raise ValueError(f"sift: the image has shape {pixels.shape}; SIFT needs a 2D image (H, W). "
                         f"In 3D use regenv.ops.landmarks.lattice.")
    import cv2

    quantised = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
    return cv2.SIFT.create(contrastThreshold=contrast, enable_precise_upscale=True).detectAndCompute(quantised, None)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), (low, high) in [0, 1]; (0, 1) without trials.

    Args:
        successes: out of ``n`` trials.
        z: normal quantile, 1.96 for 95 %.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n} trials; there must be from 0 to n.")
    if n == 0:
        return 0.0, 1.0
    rate, spread = successes / n, z * z / n
    middle = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return (0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def success_rate(errors_mm: Tensor | NDArray[np.float64], threshold_mm: float) -> tuple[float, float, float]:
    """Fraction of errors at or below a threshold, and its 95 % Wilson interval. A NaN error counts as a failure.

    Args: errors_mm (N,), such as the TRE of N pairs; threshold_mm, 10 mm in Liao et al. 2017.
    Returns: rate, low, high, each in [0, 1].
    """
    errors = np.asarray(errors_mm.detach().cpu() if isinstance(errors_mm, Tensor) else errors_mm, dtype=np.float64)
    if errors.size == 0:
        raise ValueError("success_rate: no errors were given; it needs at least one.")
    successes = int((errors <= threshold_mm).sum())
    return (successes / errors.size, *wilson(successes, errors.size))
