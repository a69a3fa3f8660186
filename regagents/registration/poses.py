"""Arithmetic of linear poses: means of them, and how an agent's own poses hold one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv.core import pose_of
from regenv.ops.affine import about, matmul
from regenv.task import LinearTransform

HELD_MM = 1e-6      # a pose differs by less from the start that it stands for


def mean_pose(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of poses (N, ..., D+1, D+1) over the first axis.

    The mean stretch (of polar decompositions), then the rotation nearest to the mean of the rotations: rigid poses have
    a rigid mean, similarities a similarity.
    """
    mean: NDArray[np.float64] = poses.mean(0)
    u, stretches, vt = np.linalg.svd(poses[..., :-1, :-1])
    stretch = ((np.swapaxes(vt, -1, -2) * stretches[..., None, :]) @ vt).mean(0)
    u, _, vt = np.linalg.svd((u @ vt).mean(0))
    mean[..., :-1, :-1] = u @ vt @ stretch
    return mean


def anchored(transform: LinearTransform, starts: Tensor, center: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors (K, D+1, D+1) and an agent's poses (K, P) about them that together are the starts (K, D+1, D+1).

    An anchor takes ``center`` to ``target`` without turning. It holds the stretch of a start that the agent's poses
    have none for, such as the scale that a rigid agent begins with. Where parameters are not to be had, as at a right
    angle of Euler's second angle, the anchor is the start itself.

    Args: center (K, D), of the fixed world; target (D,), of the moving world.
    """
    anchor = torch.eye(starts.shape[-1], dtype=starts.dtype, device=starts.device).repeat(len(starts), 1, 1)
    anchor[:, :-1, -1] = target - center
    pose, lost = _held(transform, anchor, center, starts)
    if lost.any():
        u, stretches, _ = torch.linalg.svd(starts[lost, :-1, :-1])
        stretch = (u * stretches[:, None]) @ u.mT
        anchor[lost, :-1, :-1] = stretch
        anchor[lost, :-1, -1] = target - (stretch @ center[lost, :, None])[..., 0]
        pose, lost = _held(transform, anchor, center, starts)
    anchor = torch.where(lost[:, None, None], starts, anchor)
    nothing = transform.parameters(torch.eye(starts.shape[-1], dtype=starts.dtype, device=starts.device))
    return anchor, torch.where(lost[:, None], nothing, pose)


def _held(transform: LinearTransform, anchor: Tensor, center: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Poses (K, P) about the anchors, and which of them (K,) are not the starts."""
    pose = pose_of(transform, anchor, center, starts)
    missed = (matmul(anchor, about(center, transform.matrix(pose))) - starts).abs().amax((1, 2))
    return pose, ~(missed <= HELD_MM)
