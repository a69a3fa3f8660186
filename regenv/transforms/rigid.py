"""Rigid poses. An agent changes the pose; its matrix is the remaining misalignment.

Both classes describe the residual pull-back V of an episode: the moving image is sampled at ``truth(V(x))``, so V is
the identity at perfect alignment. Poses are (..., P): translations in mm, then rotations in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regenv.ops.affine import homogeneous, invert_affine, matmul
from regenv.transforms.rotations import (
    axis_rotation,
    product,
    quaternion_of,
    quaternion_of_matrix,
    rotation_matrix,
    rotation_vector,
)


@dataclass(frozen=True)
class Rigid:
    """Liao et al. 2017, eq. 1: V = Trans(t) Rx Ry Rz (2D: Trans(t) R), v = (tx, ty[, tz], rx, ry, rz | theta).

    v are the parameters of Tg o T^-1: the remaining pull-back in the fixed image's frame. An action adds to v.
    The distance D is the L2 norm of v, millimetres and degrees mixed, as in the paper. ITK's Euler order differs:
    exchange matrices with SimpleITK, never parameters.
    """

    ndim: int
    linear: ClassVar[bool] = True
    kernel: ClassVar[tuple[str, ...]] = ("rigid",)

    @property
    def names(self) -> tuple[str, ...]:
        return ("tx", "ty", "theta") if self.ndim == 2 else ("tx", "ty", "tz", "rx", "ry", "rz")

    def matrix(self, pose: Tensor) -> Tensor:
        """Residual pull-back V (..., D+1, D+1) float64 about the origin, of poses (..., P)."""
        pose = pose.to(torch.float64)
        return homogeneous(self._rotation(pose[..., self.ndim:]), pose[..., : self.ndim])

    def displacement(self, pose: Tensor) -> None:
        """None: a rigid map is a matrix and nothing else."""

    def parameters(self, matrix: Tensor) -> Tensor:
        """Poses (..., P) float64 of rigid matrices (..., D+1, D+1); ry in [-90, 90]."""
        t = matrix[..., : self.ndim, self.ndim]
        if self.ndim == 2:
            angles = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0]).unsqueeze(-1)
        else:
            angles = torch.stack([torch.atan2(-matrix[..., 1, 2], matrix[..., 2, 2]),
                                  torch.asin(matrix[..., 0, 2].clamp(-1, 1)),
                                  torch.atan2(-matrix[..., 0, 1], matrix[..., 0, 0])], dim=-1)
        return torch.cat([t, torch.rad2deg(angles)], dim=-1)

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions that change the parameters by ``delta`` (..., P)."""
        return pose + delta

    def distance(self, pose: Tensor) -> Tensor:
        """D, the L2 norm of the parameters, (...,)."""
        return torch.linalg.vector_norm(pose, dim=-1)

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses of translations (mm) and Rx Ry Rz angles (degrees), (..., P)."""
        return draws

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose about the current estimate, T <- a o T: the next action composes with it."""
        return matmul(anchor, residual), torch.zeros_like(pose)

    def _rotation(self, degrees: Tensor) -> Tensor:
        radians = torch.deg2rad(degrees)
        if self.ndim == 2:
            return axis_rotation(radians[..., 0], 2)[..., :2, :2]
        rx, ry, rz = (axis_rotation(radians[..., i], i) for i in range(3))
        return matmul(matmul(rx, ry), rz)


@dataclass(frozen=True)
class RigidMotion(Rigid):
    """Motion of the warped image, with rotation disentangled from translation: U = V^-1, x -> R x + t.

    An action shifts the warped image along the fixed axes, or turns it about its own centre, by the named amount. So
    it means the same with and without a known truth, and distant poses stay reachable. Rotations are a rotation vector
    in degrees: the distance is sqrt(|t|^2 + angle^2).
    """

    kernel: ClassVar[tuple[str, ...]] = ("motion",)

    def matrix(self, pose: Tensor) -> Tensor:
        pose = pose.to(torch.float64)
        quaternion = quaternion_of(torch.deg2rad(self._vector(pose)))
        turned = rotation_matrix(quaternion)[..., : self.ndim, : self.ndim].transpose(-1, -2)
        return homogeneous(turned, -matmul(turned, pose[..., : self.ndim, None]).squeeze(-1))

    def parameters(self, matrix: Tensor) -> Tensor:
        n = self.ndim
        moved = invert_affine(matrix)
        rotation = moved[..., :n, :n]
        if n == 2:
            angles = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]).unsqueeze(-1)
        else:
            angles = rotation_vector(quaternion_of_matrix(rotation))
        return torch.cat([moved[..., :n, n], torch.rad2deg(angles)], dim=-1)

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        turn = quaternion_of(torch.deg2rad(self._vector(delta)))
        vector = rotation_vector(product(turn, quaternion_of(torch.deg2rad(self._vector(pose)))))
        angles = torch.rad2deg(vector)[..., 2:] if self.ndim == 2 else torch.rad2deg(vector)
        return torch.cat([(pose + delta)[..., : self.ndim], angles], dim=-1)

    def from_draws(self, draws: Tensor) -> Tensor:
        return self.parameters(super().matrix(draws))

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        return anchor, pose

    def _vector(self, pose: Tensor) -> Tensor:
        """Rotation vectors (..., 3); in 2D about the third axis."""
        turns = pose[..., self.ndim:]
        return torch.nn.functional.pad(turns, (2, 0)) if self.ndim == 2 else turns
