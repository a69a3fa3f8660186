"""Pairs of an abdominal spine: CT against cone-beam CT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.phantoms.bank import Bank, build, check, check_grid, resample
from regenv.data.phantoms.effects import between, noise_at, per_lane, ramp
from regenv.data.phantoms.spine_anatomy import paint_spine
from regenv.grid import Grid
from regenv.ops.affine import matmul

_SPINE_BANK_EXTENT = (224.0, 208.0, 448.0)  # mm, x, y, z
_MIN_MOVING_SPACING = 2.0  # mm


@lru_cache(maxsize=8)
def spine_bank(split: str, patients: int, spacing: float, device: str) -> Bank:
    if device != "cpu":
        bank = spine_bank(split, patients, spacing, "cpu")
        return Bank(bank.volumes.to(device), bank.grid, bank.points)
    grid = Grid.centered([round(e / spacing) for e in _SPINE_BANK_EXTENT[::-1]], spacing)
    return build(paint_spine, 3, split, patients, grid)


@dataclass(frozen=True)
class SpinePhantom:
    """Abdominal spine, CT and cone-beam CT, after experiment E1 of Liao et al. 2017.

    The fixed CT sees many vertebrae, the moving CBCT a few of them: a cylinder at a random level, with weak
    soft-tissue contrast, streaks, cupping and noise. A shift by one vertebra looks almost right; ribs, kidneys, the
    pelvis and the vertebrae's sizes tell the level. Fixed and moving world agree: the truth is the identity, and the
    environment displaces the start.

    In 2D the images are near-midsagittal slices: world x is the patient's y (posterior), world y its z (superior).

    Args:
        ndim: 2 or 3.
        moving_extent_mm: edge-to-edge size of the moving grid in 3D world axes (x, y, z); its spacing is the fixed
            grid's smallest, at least 2 mm.
        truncated: whether the CBCT is cut to a cylinder narrower than its grid. Turn it off for regions of interest.
        placement_mm: the patient lies up to this far from the world's origin along z. Large values (80) let a small
            grid see every level; much larger ones also show it the pelvis, where there is no vertebra to measure on.
        lateral_mm: and this far along x and y. Attention does not find the middle of the spine exactly: a fine agent
            should be trained with about 30.
        split: "train" or "test"; no patient is in both.
        patients: size of the bank.
        bank_spacing: resolution at which patients are painted, mm; about half the grid's spacing suffices.
    """

    ndim: int = 3
    moving_extent_mm: tuple[float, float, float] = (176.0, 176.0, 176.0)
    truncated: bool = True
    placement_mm: float = 12.0
    lateral_mm: float = 8.0
    split: str = "train"
    patients: int = 64
    bank_spacing: float = 4.0

    def __post_init__(self) -> None:
        check("SpinePhantom", self.ndim, self.split, self.patients, self.bank_spacing)
        if len(self.moving_extent_mm) != 3 or not all(math.isfinite(e) and e > 0 for e in self.moving_extent_mm):
            raise ValueError(f"SpinePhantom: moving_extent_mm is {self.moving_extent_mm}; "
                             "give three positive lengths in mm (x, y, z).")

    def moving_grid(self, grid: Grid) -> Grid:
        """The moving grid before it is placed at a level: same centre as the fixed grid."""
        spacing = max(min(grid.spacing), _MIN_MOVING_SPACING)
        extent = self.moving_extent_mm[3 - self.ndim:]
        return Grid.centered([max(2, round(e / spacing)) for e in extent[::-1]], spacing, grid.center.tolist(),
                             grid.direction)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`. The moving grid's place varies by lane, its shape does not."""
        check_grid("SpinePhantom", self.ndim, grid)
        device, n, lanes, hard = torch.device(device), self.ndim, len(rngs), float(difficulty)
        bank = spine_bank(self.split, self.patients, float(self.bank_spacing), str(device))
        u = np.stack([rng.random(40) for rng in rngs])
        patients = (u[:, 0] * self.patients).astype(int)

        # the patient's place and size in the world
        scale = 1 + 0.06 * (2 * u[:, 1:4] - 1)
        shift = (2 * u[:, 4:7] - 1) * np.array([self.lateral_mm, self.lateral_mm, self.placement_mm])
        world_to_patient = np.tile(np.eye(4), (lanes, 1, 1))
        world_to_patient[:, range(3), range(3)] = 1 / scale
        world_to_patient[:, :3, 3] = -shift / scale
        if n == 2:  # the slice follows the spine, give or take
            world_to_patient[:, 0, 3] = between(u[:, 7], -3, 3)

        # the moving grid, placed along z where the fixed grid covers it
        moving_grid = self.moving_grid(grid)
        room = np.maximum(0, np.array(grid.extent) - np.array(moving_grid.extent)) / 2
        offset = (2 * u[:, 8:8 + n] - 1) * np.append(np.minimum(room[:-1], 6.0), room[-1])
        moving_to_world = np.tile(moving_grid.voxel_to_world, (lanes, 1, 1))
        moving_to_world[:, :n, n] += offset
        world_to_moving = np.tile(moving_grid.world_to_voxel, (lanes, 1, 1))
        world_to_moving[:, :n, n] -= (world_to_moving[:, :n, :n] * offset[:, None, :]).sum(-1)

        def look(to_world: np.ndarray, shape: tuple[int, ...], mix: np.ndarray) -> Tensor:
            lifted = matmul(torch.from_numpy(world_to_patient), torch.from_numpy(_sagittal(to_world))).numpy()
            images = resample(bank, patients, lifted, shape if n == 3 else (*shape, 1), mix)
            return images.view(lanes, mix.shape[1], *shape)

        def vary(column: int, low: float, high: float, plain: float) -> np.ndarray:
            """A lane's value, (B,): ``plain`` at difficulty 0, up to the whole range at 1."""
            return plain + hard * (between(u[:, column], low, high) - plain)

        def number(column: int, low: float, high: float, plain: float) -> Tensor:
            return per_lane(vary(column, low, high, plain), n, device)

        mix = np.stack([vary(12, 0.48, 0.62, 0.55), vary(13, 0.42, 0.6, 0.5)], axis=1)[:, None]
        fixed = look(np.tile(grid.voxel_to_world, (lanes, 1, 1)), grid.shape, mix)
        fixed += number(14, 0.005, 0.03, 0.005) * noise_at(u[:, 15], grid.shape, device)

        shape = moving_grid.shape
        soft, bone = look(moving_to_world, shape, np.tile(np.eye(2), (lanes, 1, 1))).split(1, dim=1)
        tissue = 0.47 * (soft * 4).clamp(max=1)
        weak = tissue + number(16, 0.2, 0.6, 1.0) * (soft - tissue)
        moving = number(17, 0.35, 0.7, 0.55) * weak + number(18, 0.25, 0.55, 0.5) * bone
        half = [e / 2 for e in moving_grid.extent]
        axes = [ramp(shape[-1 - a], device).view(*(-1 if b == a else 1 for b in reversed(range(n))))
                * (half[a] - moving_grid.spacing[a] / 2) for a in range(n)]
        # in 2D the slice is the cylinder's middle: only its depth and its height remain
        square = sum((a * a for a in axes[:-1]), torch.zeros((), device=device))
        across = half[0]
        moving = moving * (1 - number(19, 0.0, 0.35, 0.0) * (1 - square / across**2).clamp(min=0))        # cupping
        streaks = torch.from_numpy(np.stack([_streaks(lane, shape, moving_grid.spacing) for lane in u[:, 24:36]]))
        moving = moving + number(20, 0.01, 0.09, 0.0) * streaks.to(device).unsqueeze(1)
        moving = moving + number(21, 0.0, 0.12, 0.0) \
            + number(22, 0.01, 0.07, 0.01) * noise_at(u[:, 23], shape, device)
        if self.truncated:
            radius = between(u[:, 36], 0.88, 1.0) * across
            tall = between(u[:, 37], 0.86, 1.0) * half[-1]
            seen = (square <= per_lane(radius**2, n, device)) & (axes[-1].abs() <= per_lane(tall, n, device))
            moving = moving * seen
        else:
            radius, tall = np.full(lanes, np.inf), np.full(lanes, half[-1])

        landmarks = []
        middle = grid.center + offset
        for lane, patient in enumerate(patients):
            points = bank.points[patient].reshape(-1, 2, 8, 3)[:, 3 - n].reshape(-1, 3) * scale[lane] + shift[lane]
            landmarks.append(_nearest(points[:, 3 - n:], middle[lane], half, radius[lane], tall[lane]))
        eye = torch.eye(n + 1, dtype=torch.float64).repeat(lanes, 1, 1)
        return PairBatch(
            fixed=fixed.clamp(0, 1), moving=moving.clamp(0, 1),
            fixed_to_world=torch.from_numpy(np.tile(grid.voxel_to_world, (lanes, 1, 1))).to(device),
            world_to_moving=torch.from_numpy(world_to_moving).to(device),
            truth=eye.to(device), known=torch.ones(lanes, dtype=torch.bool, device=device),
            center=torch.from_numpy(np.tile(grid.center, (lanes, 1))).to(device),
            landmarks=torch.from_numpy(np.stack(landmarks)).to(device))


def _sagittal(to_world: np.ndarray) -> np.ndarray:
    """Lifts (B, 3, 3) voxel-to-world maps of slices into 3D, (B, 4, 4); 3D maps pass unchanged.

    A slice (H, W) becomes a volume (H, W, 1) in the plane x = 0, its axes y and z.
    """
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((len(to_world), 4, 4))
    lifted[:, 1:3, :2] = to_world[:, :2, :2]
    lifted[:, 1:3, 3] = to_world[:, :2, 2]
    lifted[:, 0, 2] = lifted[:, 3, 3] = 1
    return lifted


def _streaks(u: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Streaks of one lane, about unit amplitude, float32 of ``shape``: rays from a dense spot in each axial slice.

    Args: u: (12,) numbers in [0, 1).
    """
    axes = [(np.arange(m) - (m - 1) / 2) * s for m, s in zip(shape[::-1], spacing, strict=True)]
    x, y = (axes[0][None, :], axes[1][:, None]) if len(shape) == 3 else (np.full((1, 1), 9.0), axes[0][:, None])
    x, y = x - 30 * (2 * u[0] - 1), y - 30 * (2 * u[1] - 1)
    angle, radius = np.arctan2(y, x), np.sqrt(x * x + y * y)
    rays = sum(np.cos(np.floor(3 + 14 * f) * angle + 2 * np.pi * p) for f, p in u[2:10].reshape(4, 2)) / 2
    plane = rays * np.minimum(radius / 25, 1)
    along = np.cos(2 * np.pi * (axes[-1] / between(u[10], 35, 90) + u[11]))
    height = (0.5 + 0.5 * along).reshape(-1, *(1,) * (len(shape) - 1))
    if len(shape) == 2:
        plane = plane.T
    return (plane * height).astype(np.float32)


def _nearest(points: np.ndarray, middle: np.ndarray, half: Sequence[float], radius: float, tall: float,
             count: int = 32) -> np.ndarray:
    """The ``count`` points nearest to ``middle`` that the CBCT sees, repeated where there are fewer; (count, D)."""
    away = points - middle
    seen = (np.abs(away) <= np.array(half)).all(1) & (np.abs(away[:, -1]) <= tall)
    seen &= (away[:, :-1] ** 2).sum(1) <= radius**2
    order = np.argsort((away**2).sum(1) + np.where(seen, 0.0, 1e9), kind="stable")
    return points[order[np.arange(count) % max(1, min(count, int(seen.sum())))]]
