"""Similarity poses: translation, rotation and scale (Sun et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regenv.ops.affine import homogeneous, invert_affine, matmul
from regenv.transforms.rigid import Rigid
from regenv.transforms.rotations import product, quaternion_of, quaternion_of_matrix, rotation_matrix, rotation_vector

SCALES = (0.2, 5.0)


@dataclass(frozen=True)
class Similarity:
    """Sun et al. 2018, eq. 3: U = (s R, t), the push-forward of the remaining misalignment, ``x -> s R x + t``.

    Poses are (tx, ty, alpha, s) in 2D, (tx, ty, tz, rotation vector, s) in 3D: mm, degrees, and s = 1 at alignment. An
    action is composed from the left, ``U <- a o U``: it shifts the warped image, or turns or scales it about the
    image's centre. Its step in scale is additive, ``s <- s + ds``; s stays within 0.2 to 5.

    Args: ndim: 2 or 3; unit: mm that count as one in the distance (a pixel); scale_unit: change of s that counts as
    one.
    """

    ndim: int
    unit: float = 1.0
    scale_unit: float = 0.05
    linear: ClassVar[bool] = True
    kernel: ClassVar[tuple[str, ...]] = ("similarity", "unit", "scale_unit")

    @property
    def names(self) -> tuple[str, ...]:
        return ("tx", "ty", "alpha", "s") if self.ndim == 2 else ("tx", "ty", "tz", "rx", "ry", "rz", "s")

    def matrix(self, pose: Tensor) -> Tensor:
        """Residual pull-back V = U^-1 (..., D+1, D+1) float64 about the origin, of poses (..., P)."""
        pose = pose.to(torch.float64)
        linear = self._rotation(pose) * pose[..., -1, None, None]
        return invert_affine(homogeneous(linear, pose[..., : self.ndim]))

    def displacement(self, pose: Tensor) -> None:
        """None: a similarity is a matrix and nothing else."""

    def parameters(self, matrix: Tensor) -> Tensor:
        """Poses (..., P) float64 of residual pull-backs (..., D+1, D+1)."""
        n = self.ndim
        pushed = invert_affine(matrix)
        scale = torch.linalg.det(pushed[..., :n, :n]).pow(1 / n)[..., None]
        rotation = pushed[..., :n, :n] / scale[..., None]
        if n == 2:
            turns = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])[..., None]
        else:
            turns = rotation_vector(quaternion_of_matrix(rotation))
        return torch.cat([pushed[..., :n, n], torch.rad2deg(turns), scale], dim=-1)

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        """Poses after actions: scaled and turned about the centre, then shifted, by ``delta`` (..., P)."""
        scale = (pose + delta)[..., -1:].clamp(*SCALES)
        turn = quaternion_of(torch.deg2rad(self._vector(delta)))
        rotated = matmul(rotation_matrix(turn)[..., : self.ndim, : self.ndim], pose[..., : self.ndim, None]).squeeze(-1)
        shift = rotated * (scale / pose[..., -1:]) + delta[..., : self.ndim]
        vector = torch.rad2deg(rotation_vector(product(turn, quaternion_of(torch.deg2rad(self._vector(pose))))))
        return torch.cat([shift, vector[..., 2:] if self.ndim == 2 else vector, scale], dim=-1)

    def distance(self, pose: Tensor) -> Tensor:
        """Norm (...,) of (t / s in units, angles in degrees, s - 1 in units of scale).

        t itself would shrink with the image: an agent could lower it by scaling everything to nothing. And s - 1
        without a unit would hardly count beside pixels and degrees.
        """
        n, scale = self.ndim, pose[..., -1:]
        parts = [pose[..., :n] / (scale * self.unit), pose[..., n:-1], (scale - 1) / self.scale_unit]
        return torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1)

    def from_draws(self, draws: Tensor) -> Tensor:
        """Poses of translations (mm), Rx Ry Rz angles (degrees) and scales less 1, (..., P)."""
        if self.ndim == 2:
            turns = draws[..., 2:3]
        else:
            turned = Rigid(3).matrix(draws[..., :-1])[..., :3, :3]
            turns = torch.rad2deg(rotation_vector(quaternion_of_matrix(turned)))
        return torch.cat([draws[..., : self.ndim], turns, draws[..., -1:] + 1], dim=-1)

    def rebase(self, anchor: Tensor, residual: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor and pose unchanged: an action means the same with and without a known truth."""
        return anchor, pose

    def _rotation(self, pose: Tensor) -> Tensor:
        return rotation_matrix(quaternion_of(torch.deg2rad(self._vector(pose))))[..., : self.ndim, : self.ndim]

    def _vector(self, pose: Tensor) -> Tensor:
        """Rotation vectors (..., 3) in degrees; in 2D about the third axis."""
        turns = pose[..., self.ndim:-1]
        return F.pad(turns, (2, 0)) if self.ndim == 2 else turns
