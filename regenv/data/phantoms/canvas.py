"""Soft geometric bodies painted over a grid, and the smooth textures within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from regenv.grid import Grid


def step(depth_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a voxel that lies inside a body, by the depth below its surface: a ramp of the given width."""
    return np.clip(depth_mm / width_mm + 0.5, 0, 1)


class Canvas:
    """Channels over a grid, painted body by body, each within its bounding box.

    Args:
        grid: 3D, direction identity.
        channels: names of the channels.
        blur: width of edges, mm.
    """

    def __init__(self, grid: Grid, channels: Sequence[str], blur: float) -> None:
        self.ticks = [(grid.origin[a] + grid.spacing[a] * np.arange(grid.size[a])).astype(np.float32) for a in range(3)]
        self.channel = {name: np.zeros(grid.shape, np.float32) for name in channels}
        self.blur = blur

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """Index of the box between two corners (x, y, z), and broadcastable world coordinates x, y, z within."""
        pad = self.blur
        cut = [slice(int(np.searchsorted(t, a - pad)), int(np.searchsorted(t, b + pad)))
               for t, a, b in zip(self.ticks, low, high, strict=True)]
        x, y, z = (t[c] for t, c in zip(self.ticks, cut, strict=True))
        return (cut[2], cut[1], cut[0]), [x[None, None, :], y[None, :, None], z[:, None, None]]

    def paint(self, name: str, index: tuple[slice, ...], share: np.ndarray, value: float | np.ndarray) -> None:
        """Paint a body over the channel; ``share``: of each voxel that it covers."""
        view = self.channel[name][index]
        view += share * (value - view)

    def ellipsoid(self, center: Sequence[float], radii: Sequence[float], shear: float = 0.0
                  ) -> tuple[tuple[slice, ...], np.ndarray]:
        """Index of an ellipsoid's box, and its share of the voxels there; ``shear``: rise of z per mm of y."""
        lean = abs(shear) * radii[1]
        reach = (radii[0], radii[1], radii[2] + lean)
        index, (x, y, z) = self.box([c - r for c, r in zip(center, reach, strict=True)],
                                    [c + r for c, r in zip(center, reach, strict=True)])
        dy = y - center[1]
        radius = np.sqrt(((x - center[0]) / radii[0]) ** 2 + (dy / radii[1]) ** 2
                         + ((z - center[2] - shear * dy) / radii[2]) ** 2)
        return index, step((1 - radius) * min(radii), self.blur)


def waves(rng: np.random.Generator, count: int, shortest: float, longest: float
          ) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A smooth random texture of about unit variance: a sum of plane waves, wavelengths in mm."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wave = (2 * np.pi * directions / rng.uniform(shortest, longest, (count, 1))).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, count).astype(np.float32)

    def texture(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for w, p in zip(wave, phase, strict=True):
            total += np.cos(w[0] * x + w[1] * y + w[2] * z + p)
        return total * np.float32(math.sqrt(2 / count))
    return texture
