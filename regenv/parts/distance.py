"""How far a pose is from alignment: the D on which rewards, stopping rules and targets are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.ops.affine import invert_affine, matmul
from regenv.task import Transform, is_linear


@dataclass(frozen=True)
class ParameterNorm:
    """D is the norm of the transform's own parameters (Liao et al. 2017; "matrix" in Sun et al. 2018)."""

    kernel: ClassVar[tuple[str, ...]] = ("parameters",)

    def __call__(self, transform: Transform, pair: PairBatch, pose: Tensor) -> Tensor:
        """(B, ...) of poses (B, ..., P)."""
        assert is_linear(transform)
        return transform.distance(pose)


@dataclass(frozen=True)
class LandmarkError:
    """D is the mean landmark error in the fixed image (Sun et al. 2018, eq. 4).

    The moving image's landmarks, mapped to the fixed image by the current estimate, are compared with the fixed
    landmarks: ``mean |U p - p|``, where U is the push-forward of the remaining misalignment.

    Args: unit: millimetres that count as one (a pixel).
    """

    unit: float = 1.0
    kernel: ClassVar[tuple[str, ...]] = ("landmarks", "unit")

    def __call__(self, transform: Transform, pair: PairBatch, pose: Tensor) -> Tensor:
        """(B, ...) of poses (B, ..., P)."""
        assert pair.landmarks is not None
        n = pair.ndim
        lanes = (-1, *(1,) * (pose.ndim - 2), n)
        residual = invert_affine(transform.matrix(pose))
        offsets = (pair.landmarks - pair.center[:, None]).transpose(1, 2)
        linear = residual[..., :n, :n] - torch.eye(n, dtype=residual.dtype, device=residual.device)
        moved = matmul(linear, offsets.reshape(*lanes, offsets.shape[-1])) + residual[..., :n, n:]
        return moved.square().sum(-2).sqrt().mean(-1) / self.unit


@dataclass(frozen=True)
class TargetNorm:
    """D is the norm of the parameters' difference from those at alignment (Krebs et al. 2017, eq. 1), mm."""

    kernel: ClassVar[tuple[str, ...]] = ("target",)

    def __call__(self, transform: Transform, pair: PairBatch, pose: Tensor) -> Tensor:
        """(B, ...) of poses (B, ..., P); NaN where no target is known."""
        if pair.target_pose is None:
            return torch.full(pose.shape[:-1], torch.nan, dtype=pose.dtype, device=pose.device)
        target = pair.target_pose.view(len(pair.target_pose), *(1,) * (pose.ndim - 2), -1)
        return torch.linalg.vector_norm(pose - target, dim=-1)
