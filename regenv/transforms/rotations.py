"""Rotations as matrices, quaternions and rotation vectors; batched, radians."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def axis_rotation(radians: Tensor, axis: int) -> Tensor:
    """Rotation matrices (..., 3, 3) about a coordinate axis, right-handed."""
    c, s = torch.cos(radians), torch.sin(radians)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = {0: (one, zero, zero, zero, c, -s, zero, s, c),
            1: (c, zero, s, zero, one, zero, -s, zero, c),
            2: (c, -s, zero, s, c, zero, zero, zero, one)}[axis]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternion_of(vector: Tensor) -> Tensor:
    """Unit quaternions (..., 4), scalar first, of rotation vectors (..., 3) in radians."""
    half = torch.linalg.vector_norm(vector, dim=-1, keepdim=True) / 2
    return torch.cat([torch.cos(half), vector / 2 * torch.sinc(half / math.pi)], dim=-1)


def rotation_vector(quaternion: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians, angle at most pi."""
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = torch.linalg.vector_norm(quaternion[..., 1:], dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * torch.where(sine > 1e-9, angle / sine.clamp(min=1e-9), 2.0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of quaternions (..., 4): first b, then a."""
    a0, a1, a2, a3 = a.unbind(-1)
    b0, b1, b2, b3 = b.unbind(-1)
    return torch.stack([a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3, a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
                        a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1, a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0], dim=-1)


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    w, x, y, z = quaternion.unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1).unflatten(-1, (3, 3))


def quaternion_of_matrix(rotation: Tensor) -> Tensor:
    """Unit quaternions (..., 4) of rotation matrices (..., 3, 3): the best conditioned of the four square roots."""
    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    diagonal = [1 + trace] + [1 + 2 * m[..., i, i] - trace for i in range(3)]
    rows = torch.stack([torch.stack([diagonal[0], wx, wy, wz], -1), torch.stack([wx, diagonal[1], xy, xz], -1),
                        torch.stack([wy, xy, diagonal[2], yz], -1), torch.stack([wz, xz, yz, diagonal[3]], -1)], -2)
    best = torch.stack(diagonal, -1).argmax(-1)
    row = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
