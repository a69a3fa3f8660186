"""Images with a known pose between them, and the error of a pose."""

from itertools import islice

import numpy as np
import SimpleITK as sitk

from regagents.classical import random_starts
from regenv.data.io.resampling import framed
from regenv.grid import Grid

SHAPES = {2: (64, 64), 3: (32, 32, 32)}
SPACING_MM = 3.0
FOUND_MM = 0.5
FAR_MM = 1e4
EXACT = 1e-9


def blobs(grid: Grid, rng: np.random.Generator, points_mm: np.ndarray) -> np.ndarray:
    """A smooth random image, defined everywhere: a sum of Gaussians, at world points (..., D)."""
    values = np.zeros(points_mm.shape[:-1])
    for _ in range(12):
        middle = grid.center + rng.uniform(-0.3, 0.3, grid.ndim) * grid.extent
        width = rng.uniform(0.06, 0.14) * grid.extent[0]
        values += rng.uniform(0.3, 1) * np.exp(-((points_mm - middle) ** 2).sum(-1) / (2 * width**2))
    return values


def pair(ndim: int, seed: int, translation: float, rotation: float) -> tuple[sitk.Image, sitk.Image, np.ndarray, Grid]:
    """Fixed and moving blobs of opposite contrast on an oblique grid, and the pull-back between them."""
    rng = np.random.default_rng(seed)
    angle = np.radians(25)
    direction = np.eye(ndim)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grid = Grid.centered(SHAPES[ndim], SPACING_MM, rng.uniform(-50, 50, ndim), direction.ravel())
    truth = next(islice(random_starts(np.eye(ndim + 1), grid.center, rng, translation, rotation), 1, None))
    points_vox = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    points_mm = grid.to_world(points_vox)
    back = np.linalg.inv(truth)
    draw = seed + 1000
    fixed = blobs(grid, np.random.default_rng(draw), points_mm)
    moving = blobs(grid, np.random.default_rng(draw), points_mm @ back[:ndim, :ndim].T + back[:ndim, ndim])
    return framed(fixed, grid, np.float32), framed(1 / (1 + moving), grid, np.float32), truth, grid


def error_mm(pose: np.ndarray, truth: np.ndarray, grid: Grid) -> float:
    """Mean distance over the middle of the fixed grid."""
    n = grid.ndim
    middle = np.stack(np.meshgrid(*(np.linspace(0.25, 0.75, 4) * (s - 1) for s in grid.shape), indexing="ij"), -1)
    points_mm = grid.to_world(middle.reshape(-1, n))
    difference = pose - truth
    return float(np.linalg.norm(points_mm @ difference[:n, :n].T + difference[:n, n], axis=1).mean())
