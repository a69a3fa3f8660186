"""Grid: the geometry of an image's voxels in the world.

World points are millimetres in ITK order (x, y[, z]), LPS. Voxel points are continuous indices in array-axis
order ([k, ]j, i), so that they index tensors directly. Metadata (spacing, origin, direction) is in ITK order,
as SimpleITK prints it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SINGULAR = 1e-6


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in 2D or 3D.

    Args:
        shape: voxels along each array axis, (D, H, W) or (H, W).
        spacing: millimetres between voxel centres, ITK order (x, y[, z]).
        origin: world position of the first voxel's centre, mm, ITK order.
        direction: direction cosines, row-major, as ``SimpleITK.Image.GetDirection()``.

    Raises:
        ValueError: a field has the wrong length, a spacing is not positive and finite, or the direction is singular.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        n = len(self.shape)
        if n not in (2, 3):
            raise ValueError(f"Grid: shape is {self.shape}; it must have 2 or 3 axes.")
        if any(int(s) < 1 for s in self.shape):
            raise ValueError(f"Grid: shape is {self.shape}; every axis needs at least one voxel.")
        for name, length in (("spacing", n), ("origin", n), ("direction", n * n)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"Grid: {name} is {getattr(self, name)}; a {n}D grid needs {length} numbers.")
        if not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise ValueError(f"Grid: spacing is {self.spacing} mm; every spacing must be positive and finite.")
        if not all(map(math.isfinite, self.origin)):
            raise ValueError(f"Grid: origin is {self.origin} mm; it must be finite.")
        cosines = np.asarray(self.direction, dtype=np.float64)
        if not np.isfinite(cosines).all() or abs(np.linalg.det(cosines.reshape(n, n))) < _SINGULAR:
            raise ValueError(f"Grid: direction is {self.direction}; it is singular.")

    @classmethod
    def centered(cls, shape: Sequence[int], spacing: float | Sequence[float], center: Sequence[float] | None = None,
                 direction: Sequence[float] | None = None) -> Grid:
        """A grid whose middle lies at ``center`` (mm, default the world's origin)."""
        n = len(shape)
        spacings = tuple(np.broadcast_to(np.asarray(spacing, dtype=np.float64), n).tolist())
        cosines = np.eye(n) if direction is None else np.asarray(direction, dtype=np.float64).reshape(n, n)
        middle = np.zeros(n) if center is None else np.asarray(center, dtype=np.float64)
        half = (np.asarray(shape[::-1], dtype=np.float64) - 1) / 2
        origin = middle - cosines @ (half * np.asarray(spacings))
        return cls(tuple(int(s) for s in shape), spacings, tuple(origin.tolist()), tuple(cosines.ravel().tolist()))

    @classmethod
    def from_sitk(cls, image: Any) -> Grid:
        """The grid of a SimpleITK image."""
        return cls(tuple(image.GetSize()[::-1]), tuple(image.GetSpacing()), tuple(image.GetOrigin()),
                   tuple(image.GetDirection()))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels per axis in ITK order."""
        return self.shape[::-1]

    @property
    def extent(self) -> tuple[float, ...]:
        """Edge-to-edge length along each axis, mm, ITK order."""
        return tuple(n * s for n, s in zip(self.size, self.spacing, strict=True))

    @property
    def center(self) -> NDArray[np.float64]:
        """World position of the grid's middle, mm, (D,)."""
        return self.to_world((np.asarray(self.shape, dtype=np.float64) - 1) / 2)

    @property
    def voxel_to_world(self) -> NDArray[np.float64]:
        """Homogeneous matrix from voxel points (array-axis order) to world points, (D+1, D+1) float64."""
        n = self.ndim
        matrix = np.eye(n + 1)
        scaled = np.asarray(self.direction, dtype=np.float64).reshape(n, n) * np.asarray(self.spacing)
        matrix[:n, :n] = scaled[:, ::-1]
        matrix[:n, n] = self.origin
        return matrix

    @property
    def world_to_voxel(self) -> NDArray[np.float64]:
        """Inverse of :attr:`voxel_to_world`."""
        return np.asarray(np.linalg.inv(self.voxel_to_world), dtype=np.float64)

    def to_world(self, points_vox: NDArray[Any]) -> NDArray[np.float64]:
        """Voxel points (..., D) to world points (..., D) mm."""
        return _apply(self.voxel_to_world, points_vox)

    def to_voxel(self, points_mm: NDArray[Any]) -> NDArray[np.float64]:
        """World points (..., D) mm to voxel points (..., D)."""
        return _apply(self.world_to_voxel, points_mm)

    def resized(self, *, shape: Sequence[int] | None = None, spacing: float | None = None) -> Grid:
        """A grid over the same edge-to-edge extent with another shape, or with (about) another isotropic spacing."""
        if (shape is None) == (spacing is None):
            raise ValueError("Grid.resized: give exactly one of shape and spacing.")
        if spacing is not None:
            shape = tuple(max(1, round(e / spacing)) for e in self.extent[::-1])
        assert shape is not None
        spacings = tuple(e / n for e, n in zip(self.extent, shape[::-1], strict=True))
        return Grid.centered(shape, spacings, self.center.tolist(), self.direction)


def _apply(matrix: NDArray[np.float64], points: NDArray[Any]) -> NDArray[np.float64]:
    n = matrix.shape[0] - 1
    return np.asarray(points, dtype=np.float64) @ matrix[:n, :n].T + matrix[:n, n]
