"""What tests of pair sources share: seeded generators, a pair's tensors, and sources of painted patients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.brain_phantoms import BrainPhantom
from regenv.data.sources.spine_phantoms import SpinePhantom
from regenv.grid import Grid
from regenv.ops.affine import matmul
from regenv.ops.warp import warp_affine

CPU = torch.device("cpu")
PATIENTS = 3
PAINTED: dict[str, tuple[PairSource, Grid]] = {
    "spine3d": (SpinePhantom(patients=PATIENTS, bank_spacing=6.0), Grid.centered((48, 24, 24), 8.0)),
    "spine2d": (SpinePhantom(ndim=2, patients=PATIENTS, bank_spacing=6.0), Grid.centered((96, 48), 4.0)),
    "spine-roi": (SpinePhantom(moving_extent_mm=(80.0, 80.0, 80.0), truncated=False, placement_mm=120.0,
                               patients=PATIENTS, bank_spacing=6.0),
                  Grid.centered((20, 21, 19), 4.0, center=(3.0, 10.0, -30.0))),
    "brain3d": (BrainPhantom(patients=PATIENTS, bank_spacing=6.0), Grid.centered((32, 31, 33), 6.5)),
    "brain2d": (BrainPhantom(ndim=2, patients=PATIENTS), Grid.centered((127, 128), 2.0)),
}


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    """Generators of the seeds ``seed``, ``seed + 1`` and so on."""
    return [np.random.default_rng(seed + i) for i in range(count)]


def tensors(pair: PairBatch) -> dict[str, Tensor]:
    return {key: value for key, value in vars(pair).items() if value is not None}


def voxels_at_truth(pair: PairBatch, offset_mm: float = 0.0, axis: int = 0) -> Tensor:
    """Maps (B, D+1, D+1) of fixed to moving voxel points, at the truth or ``offset_mm`` beside it along an axis."""
    pull_back = pair.truth.clone()
    pull_back[:, axis, -1] += offset_mm
    return matmul(pair.world_to_moving, matmul(pull_back, pair.fixed_to_world))


def warped_at_truth(pair: PairBatch, offset_mm: float = 0.0) -> Tensor:
    """The moving image on the fixed grid at the truth, or ``offset_mm`` beside it along the first world axis."""
    return warp_affine(pair.moving, voxels_at_truth(pair, offset_mm), tuple(pair.fixed.shape[2:]))


def similarity(pair: PairBatch, shift_mm: float) -> np.ndarray:
    """Normalized cross-correlation within the moving image's field of view, shifted along the last world axis, (B,)."""
    matrix, shape = voxels_at_truth(pair, shift_mm, pair.ndim - 1), tuple(pair.fixed.shape[2:])
    warped = warp_affine(pair.moving, matrix, shape)
    seen = warp_affine((pair.moving > 0).float(), matrix, shape) > 0.99
    return np.array([np.corrcoef(f[s].numpy(), w[s].numpy())[0, 1]
                     for f, w, s in zip(pair.fixed, warped, seen, strict=True)])
