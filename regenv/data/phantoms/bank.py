"""Banks of synthetic patients: painted once, then sampled on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import SPLITS
from regenv.grid import Grid
from regenv.ops.affine import matmul
from regenv.ops.kernels import bank_cpu, cpu, operators
from regenv.ops.sampling import affine_coordinates, sample

Painter = Callable[[Grid, np.random.Generator], tuple[list[np.ndarray], np.ndarray]]
"""Paints one patient on a 3D grid: channels (*shape) float32 and points (N, 3), mm."""


@dataclass(frozen=True)
class PhantomBank:
    """Patients, painted once.

    Attributes:
        volumes: (P, C, *shape) float32.
        grid: of each volume, 3D; the world's origin is the patient's centre.
        points: per patient (N, 3) points on anatomical edges, mm.
    """

    volumes: Tensor
    grid: Grid
    points: tuple[np.ndarray, ...]

    def to(self, device: torch.device | str) -> PhantomBank:
        return PhantomBank(self.volumes.to(device), self.grid, self.points)


def paint_bank(paint: Painter, salt: int, split: str, patients: int, grid: Grid) -> PhantomBank:
    """The patients of a split on ``grid``; ``salt`` parts the random numbers of one kind of phantom from another's."""
    volumes, points = [], []
    for patient in range(patients):
        rng = np.random.default_rng([salt, SPLITS.index(split), patient])
        channels, edges = paint(grid, rng)
        volumes.append(torch.from_numpy(np.stack(channels)))
        points.append(edges)
    return PhantomBank(torch.stack(volumes), grid, tuple(points))


def sample_bank(bank: PhantomBank, patients: np.ndarray, grid_to_patient: np.ndarray, shape: tuple[int, ...],
                mix: np.ndarray) -> Tensor:
    """Weighted sums of patients' channels on grids.

    Lanes are sampled one at a time: this reads the bank in place instead of copying a volume per lane, and stays in the
    processor's cache.

    Args:
        patients: (B,) indices into the bank.
        grid_to_patient: (B, 4, 4), voxel points of a 3D grid to mm in the patient.
        shape: 3D shape of the grid.
        mix: (B, K, C) weights of the C channels in each of K images.
    Returns: (B, K, *shape) float32.
    """
    to_bank = matmul(torch.from_numpy(bank.grid.world_to_voxel), torch.from_numpy(grid_to_patient))
    linear = to_bank[:, :3, :3]
    aligned = bool((linear * (1 - torch.eye(3, dtype=linear.dtype)) == 0).all())
    device = bank.volumes.device
    out = torch.empty(len(patients), mix.shape[1], *shape, device=device)
    if aligned and operators.backend(device) is cpu:
        lines = [_between(bank.volumes.shape[a + 2], to_bank[:, a, a], to_bank[:, a, 3], shape[a]) for a in range(3)]
        bank_cpu.resampled(bank.volumes.numpy(), np.asarray(patients, np.int64), lines, mix.astype(np.float32),
                           out.numpy())
        return out
    for lane, patient in enumerate(patients):
        if aligned:  # channels are mixed after the first axis: that leaves less to interpolate
            axes = [(a + 1, to_bank[lane, a, a], to_bank[lane, a, 3], shape[a]) for a in range(3)]
            images = _mixed(_resample_axis(bank.volumes[patient], *axes[0]), mix[lane])
            out[lane] = _resample_axis(_resample_axis(images, *axes[1]), *axes[2])
        else:
            points = affine_coordinates(to_bank[lane:lane + 1], shape).to(device)
            out[lane] = _mixed(sample(bank.volumes[patient:patient + 1], points, padding="border")[0], mix[lane])
    return out


def _mixed(channels: Tensor, mix: np.ndarray) -> Tensor:
    """Weighted sums (K, *shape) of channels (C, *shape), weights (K, C)."""
    images = []
    for weights in mix.tolist():
        image = channels[0] * weights[0]
        for channel, weight in zip(channels[1:], weights[1:], strict=True):
            image += channel * weight
        images.append(image)
    return torch.stack(images)


def _resample_axis(channels: Tensor, axis: int, stride: Tensor, start: Tensor, count: int) -> Tensor:
    """Linear interpolation along one axis at ``start + stride * (0 .. count - 1)`` voxels, constant beyond.

    It is ten times faster than ``grid_sample`` where the grids' axes agree.
    """
    below, above, share = _between(channels.shape[axis], stride, start, count)
    index, next_, part = (torch.from_numpy(each).to(channels.device) for each in (below, above, share))
    low = channels.index_select(axis, index)
    high = channels.index_select(axis, next_)
    return high.sub_(low).mul_(part.view(-1, *(1,) * (channels.ndim - 1 - axis))).add_(low)


def _between(voxels: int, stride: Tensor, start: Tensor, count: int) -> bank_cpu.Axis:
    """Of each of ``count`` places (..., count) the voxel below, the one above, and the share of the latter.

    Args: stride, start (...), voxels.
    """
    starts, strides = (each.cpu().numpy()[..., None] for each in (start, stride))
    places = np.clip(starts + strides * np.arange(count), 0, voxels - 1)
    below = np.minimum(np.floor(places), max(0, voxels - 2))
    above = np.minimum(below + 1, voxels - 1)
    return below.astype(np.int64), above.astype(np.int64), (places - below).astype(np.float32)
