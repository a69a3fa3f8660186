"""Deformation-model poses: amplitudes of the modes of a statistical deformation model (Krebs et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from regenv.transforms.deformation_model import DeformationModel


@dataclass(frozen=True, eq=False)
class SDM:
    """Poses are amplitudes theta (B, K) of a deformation model, mm; actions add to them (Krebs et al. 2017)."""

    model: DeformationModel
    linear: ClassVar[bool] = False
    kernel: ClassVar[tuple[str, ...]] = ("amplitudes",)

    @property
    def ndim(self) -> int:
        return len(self.model.shape)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"mode {number}" for number in range(self.model.count))

    def matrix(self, pose: Tensor) -> Tensor:
        """No linear part: identities (..., D+1, D+1) float64."""
        return torch.eye(self.ndim + 1, dtype=torch.float64, device=pose.device).expand(*pose.shape[:-1], -1, -1)

    def displacement(self, pose: Tensor) -> Tensor:
        """Fields (B, D, *shape) float32, voxels, of poses (B, K)."""
        model = self._on(pose.device)
        return model.displacement(pose.to(model.mean.dtype)).to(torch.float32)

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions that change the amplitudes by ``delta`` (..., K)."""
        return pose + delta

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses of drawn amplitudes: themselves."""
        return draws

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose unchanged: an action means the same with and without a known truth."""
        return anchor, pose

    def _on(self, device: torch.device) -> DeformationModel:
        if device not in self._copies:
            self._copies[device] = self.model.to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, DeformationModel]:
        return {self.model.mean.device: self.model}
