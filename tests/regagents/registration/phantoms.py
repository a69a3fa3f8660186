"""An object with a known pose between two views of it: no turn, and no mirror, brings it onto itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from regagents.registration.score import COARSE, Level
from regenv.data.io.images import Image
from regenv.grid import Grid

GRIDS = {2: Grid.centered((64, 64), 2.0), 3: Grid.centered((40, 42, 38), 3.0)}
RADII = np.array([30.0, 38.0, 26.0])
EDGE_MM = 2.0


def few(points: int) -> Level:
    """The coarse level with fewer points."""
    return replace(COARSE, samples=points)


def intensity(points_mm: np.ndarray) -> np.ndarray:
    """Of a body with a shell, a nose, and inside it lumps of every size, at world points (..., D)."""
    n = points_mm.shape[-1]
    depth = (1 - np.linalg.norm(points_mm / RADII[:n], axis=-1)) * RADII[:n].mean()
    inside, core = (1 / (1 + np.exp(-(depth - at) / EDGE_MM * 2)) for at in (0.0, 5.0))
    values = 0.9 * inside - 0.5 * core
    rng = np.random.default_rng(12)
    for _ in range(14):
        middle, width = rng.uniform(-0.55, 0.55, 3)[:n] * RADII[:n], rng.uniform(3.5, 8.0)
        values += rng.choice([-0.3, 0.5]) * core * np.exp(-((points_mm - middle) ** 2).sum(-1) / (2 * width**2))
    for middle, width in (([0.0, 40.0, -6.0], 6.0), ([-31.0, -4.0, 3.0], 5.0)):
        values += 0.8 * np.exp(-((points_mm - np.array(middle[:n])) ** 2).sum(-1) / (2 * width**2))
    return np.clip(values, 0, None)


def seen(grid: Grid, pull_back: np.ndarray | None = None, name: str = "phantom.nii") -> Image:
    """The object on a grid, after a motion of its world, (D+1, D+1): the pull-back from the object where it was."""
    n = grid.ndim
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    back = np.linalg.inv(np.eye(n + 1) if pull_back is None else pull_back)
    return Image(intensity(points @ back[:n, :n].T + back[:n, n]).astype(np.float32), grid, name)


def moved(image: Image, motion: np.ndarray) -> Image:
    """The image moved in the world by a rigid motion (D+1, D+1), by its header alone."""
    n, grid = image.ndim, image.grid
    direction = motion[:n, :n] @ np.reshape(grid.direction, (n, n))
    origin = motion[:n, :n] @ np.array(grid.origin) + motion[:n, n]
    return Image(image.array, Grid(grid.shape, grid.spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist())),
                 image.path)


def error_mm(pull_back: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance between where two maps take points of the object (of its middle, 25 mm about)."""
    n = len(truth) - 1
    points = np.random.default_rng(0).uniform(-25, 25, (60, n))
    difference = pull_back - truth
    return float(np.linalg.norm(points @ difference[:n, :n].T + difference[:n, n], axis=1).mean())
