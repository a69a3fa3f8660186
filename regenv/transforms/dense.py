"""Dense poses: a displacement of every voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regenv.ops.warp import compose


@dataclass(frozen=True)
class Dense:
    """Poses are accumulated displacement fields Omega (B, D, *shape), voxels of the fixed grid, array-axis order.

    An action a displaces the currently warped image: ``Omega_t(x) = a(x) + Omega_{t-1}(x + a(x))``, so that the
    original moving image, warped once by Omega_t, equals the previously warped image, warped by a (Luo et al. 2022,
    eq. 2; their eq. 3 composes in the other order, which does not have this property).

    Args: ndim: 2 or 3; update: "compose"; or "add", ``Omega_t = Omega_{t-1} + a``; or "replace", ``Omega_t = a``.
    """

    ndim: int
    update: str = "compose"
    linear: ClassVar[bool] = False
    kernel: ClassVar[tuple[str, ...]] = ("field",)

    @property
    def names(self) -> tuple[str, ...]:
        return ("displacement",)

    def matrix(self, pose: Tensor) -> Tensor:
        """No linear part: identities (B, D+1, D+1) float64."""
        return torch.eye(self.ndim + 1, dtype=torch.float64, device=pose.device).expand(len(pose), -1, -1)

    def displacement(self, pose: Tensor) -> Tensor:
        """The fields (B, D, *shape): the pose itself."""
        return pose

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions ``delta`` (B, D, *shape)."""
        return UPDATES[self.update](pose, delta)

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses of drawn fields: themselves."""
        return draws

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose unchanged: an action means the same with and without a known truth."""
        return anchor, pose


UPDATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "compose": compose, "add": torch.add, "replace": lambda pose, delta: delta}
