"""A page's voxels: intensities in 8 bits on a reduced grid, and a displacement with its Jacobian determinant.

Voxels are embedded as base64 of gzip of the raw array in C order, which every browser unpacks by itself.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regenv.data.io.images import Image
from regenv.grid import Grid
from regenv.ops.regularity import jacobian
from regenv.viewer.geometry import lifted_frame, view_grid

# Three volumes of noise, a displacement and its determinant stay below 10 MB together.
MOST_VOXELS, LONGEST = 2_000_000, {2: 800, 3: 160}
MOST_VECTORS, MOST_DETERMINANTS = 100_000, 500_000
_DRAWN = 200_000                # voxels that percentiles are told by, about
PERCENTILES = (0.5, 99.5)       # of what is not background, between which intensities are shown
DETERMINANT_OCTAVES = 2.0       # determinants are told apart from 1/4 to 4
_FOLDED = 0                     # the code of a determinant of 0 or less


def packed(array: NDArray[Any]) -> str:
    """An array's numbers, little-endian, as base64 of gzip."""
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def window_of(array: NDArray[Any]) -> tuple[float, float]:
    """The intensities shown as black and as white: two percentiles of what is more than the least value, of at most
    some hundred thousand voxels spread over a finite array."""
    values = np.asarray(array).ravel()
    least, most = float(values.min()), float(values.max())
    drawn = values[::max(1, values.size // _DRAWN)].astype(np.float64)
    drawn = drawn[drawn > least]
    low, high = (float(p) for p in np.percentile(drawn, PERCENTILES)) if drawn.size else (least, most)
    return (low, high) if high > low else (least, max(most, least + 1.0))


def shrunk(array: NDArray[Any], shape: Sequence[int]) -> NDArray[np.float32]:
    """An array (*any) with fewer voxels over the same extent: linear interpolation, widened against aliasing by the
    factor of each axis, as Pillow's and torch's antialiased resizing."""
    values = np.asarray(array, dtype=np.float32)
    for axis, (n, m) in enumerate(zip(array.shape, shape, strict=True)):
        if n != m:
            at = (np.arange(m) + 0.5) * (n / m) - 0.5
            weights = np.clip(1 - np.abs(at[:, None] - np.arange(n)) / max(1.0, n / m), 0, None)
            weights /= weights.sum(1, keepdims=True)
            values = np.moveaxis(np.tensordot(weights.astype(np.float32), values, axes=(1, axis)), 0, axis)
    return values


@dataclass(frozen=True, eq=False)
class Volume:
    """An image as a page shows it.

    Attributes:
        name: to be shown, such as the file's.
        array: (D, H, W) or (H, W) uint8: 0 at the window's lower end, 255 at its upper one.
        grid: where its voxels lie.
        window: the intensities of 0 and of 255, in the image's own unit.
    """

    name: str
    array: NDArray[np.uint8]
    grid: Grid
    window: tuple[float, float]

    @classmethod
    def of(cls, name: str, image: Image, window: tuple[float, float] | None = None,
           most: int = MOST_VOXELS) -> Volume:
        """An image of finite intensities, reduced to what a page can carry.

        Args: window: the intensities of black and white; default by :func:`window_of`. most: voxels.
        """
        low, high = window_of(image.array) if window is None else window
        grid = view_grid(image.grid, most, LONGEST[image.ndim])
        values = shrunk(image.array, grid.shape).astype(np.float64)
        array = np.round((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        return cls(name, array, grid, (low, high))

    def data(self) -> dict[str, Any]:
        """What is embedded, JSON-able."""
        return {"name": self.name, "window": list(self.window), **_placed(self.array, self.grid)}


@dataclass(frozen=True, eq=False)
class DisplacementMap:
    """A displacement as a page shows it: its vectors, and where it shrinks, grows or folds.

    Attributes:
        vectors: (D, *shape), mm, world axes, of the map x -> x + u(x) that comes before the pose.
        grid: of the vectors.
        determinant: uint8, see :func:`coded`.
        determinant_grid: of the determinant.
    """

    vectors: NDArray[np.float32]
    grid: Grid
    determinant: NDArray[np.uint8]
    determinant_grid: Grid

    @classmethod
    def of(cls, displacement: NDArray[np.float64], grid: Grid, most_vectors: int = MOST_VECTORS,
           most_determinants: int = MOST_DETERMINANTS) -> DisplacementMap:
        """Of a displacement (D, *shape), voxels, array-axis order, on its grid, with so many vectors and determinants
        at most. A fold is never averaged away."""
        millimetres = np.moveaxis(displacement, 0, -1) @ grid.voxel_to_world[:-1, :-1].T
        coarse = view_grid(grid, most_vectors, LONGEST[grid.ndim])
        vectors = np.stack([shrunk(component, coarse.shape) for component in np.moveaxis(millimetres, -1, 0)])
        determinant = jacobian(torch.from_numpy(np.ascontiguousarray(displacement, dtype=np.float64))[None])[0].numpy()
        return cls(vectors, coarse, *blocks(determinant, grid, most_determinants))

    def data(self) -> dict[str, Any]:
        """What is embedded, JSON-able: the vectors as 16 bits, 32767 for the largest component."""
        largest = float(np.abs(self.vectors).max()) or 1.0
        steps = np.round(self.vectors * (32767 / largest)).astype(np.int16)
        lifted = np.zeros((3, *_lifted(self.grid.shape)), np.int16)
        lifted[:len(steps)] = steps.reshape(len(steps), *lifted.shape[1:])
        return {"vectors": _placed(lifted, self.grid) | {"largest": largest},
                "determinant": _placed(self.determinant, self.determinant_grid) | {"octaves": DETERMINANT_OCTAVES}}


def coded(determinant: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Determinants in 8 bits: 0 where it is 0 or less, else 1 to 255 by its binary logarithm, 128 where it is 1."""
    logarithm = np.log2(np.maximum(determinant, 1e-9)) / DETERMINANT_OCTAVES
    return np.where(determinant <= 0, _FOLDED, np.round(128 + 127 * logarithm.clip(-1, 1))).astype(np.uint8)


def blocks(determinant: NDArray[np.float64], grid: Grid,
           most: int = MOST_DETERMINANTS) -> tuple[NDArray[np.uint8], Grid]:
    """Codes of blocks of voxels, as small as a page can carry, and their grid: the mean, or a fold if there is one."""
    factor = 1
    while math.prod(-(-n // factor) for n in grid.shape) > most:
        factor += 1
    shape = tuple(-(-n // factor) for n in grid.shape)
    padded = np.pad(determinant, [(0, m * factor - n) for m, n in zip(shape, grid.shape, strict=True)], mode="edge")
    parts = padded.reshape([k for m in shape for k in (m, factor)])
    inner = tuple(range(1, 2 * grid.ndim, 2))
    least = parts.min(inner)
    origin = grid.to_world(np.full(grid.ndim, (factor - 1) / 2))
    spacing = tuple(factor * s for s in grid.spacing)
    return (coded(np.where(least <= 0, least, parts.mean(inner))),
            Grid(shape, spacing, tuple(origin.tolist()), grid.direction))


def _placed(array: NDArray[Any], grid: Grid) -> dict[str, Any]:
    return {"shape": _lifted(grid.shape), "toWorld": lifted_frame(grid)[:3].ravel().tolist(), "voxels": packed(array)}


def _lifted(shape: tuple[int, ...]) -> list[int]:
    """(D, H, W); of a 2D image (1, H, W)."""
    return [1] * (3 - len(shape)) + list(shape)
