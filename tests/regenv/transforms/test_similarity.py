"""What is true of similarity poses: SimpleITK's transforms, and the composition of actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.transforms.similarity import SCALES, Similarity


def test_a_2d_pose_is_itks_similarity(rng: np.random.Generator) -> None:
    """Eq. 3 is SimpleITK's Similarity2DTransform; ours pulls back, so it is its inverse."""
    for _ in range(50):
        tx, ty, alpha, s = rng.uniform([-30, -30, -170, 0.5], [30, 30, 170, 2])
        itk = sitk.Similarity2DTransform(s, math.radians(alpha), (tx, ty))
        pull_back = Similarity(2).matrix(torch.tensor([tx, ty, alpha, s])).numpy()
        for point in rng.uniform(-80, 80, (3, 2)):
            expected = itk.GetInverse().TransformPoint(point.tolist())
            np.testing.assert_allclose(pull_back[:2, :2] @ point + pull_back[:2, 2], expected, atol=1e-4)


def test_a_3d_pose_is_itks_similarity(rng: np.random.Generator) -> None:
    for _ in range(50):
        t, axis, angle, s = rng.uniform(-30, 30, 3), rng.normal(size=3), rng.uniform(5, 170), rng.uniform(0.5, 2)
        axis /= np.linalg.norm(axis)
        itk = sitk.Similarity3DTransform(s, axis.tolist(), math.radians(angle), t.tolist())
        pose = torch.from_numpy(np.concatenate([t, axis * angle, [s]]))
        pull_back = Similarity(3).matrix(pose).numpy()
        for point in rng.uniform(-80, 80, (3, 3)):
            expected = itk.GetInverse().TransformPoint(point.tolist())
            np.testing.assert_allclose(pull_back[:3, :3] @ point + pull_back[:3, 3], expected, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_parameters_invert_matrix(ndim: int, rng: np.random.Generator) -> None:
    moves = Similarity(ndim)
    low = [-30.0] * ndim + [-90.0] * (len(moves.names) - ndim - 1) + [0.5]
    pose = torch.from_numpy(rng.uniform(low, [-v if v < 0 else 2.0 for v in low], (200, len(low))))
    torch.testing.assert_close(moves.parameters(moves.matrix(pose)), pose, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_action_is_composed_from_the_left(ndim: int, rng: np.random.Generator) -> None:
    """U' = a o U with a built by SimpleITK: scaled by (s + ds) / s and turned about the origin, then shifted."""
    moves = Similarity(ndim)
    turns = len(moves.names) - ndim - 1
    for _ in range(50):
        pose = rng.uniform([-30.0] * ndim + [-60.0] * turns + [0.6], [30.0] * ndim + [60.0] * turns + [1.6])
        delta = rng.uniform([-4.0] * ndim + [-9.0] * turns + [-0.1], [4.0] * ndim + [9.0] * turns + [0.1])
        angle = np.linalg.norm(delta[ndim:-1])
        factor, shift = (pose[-1] + delta[-1]) / pose[-1], delta[:ndim].tolist()
        if ndim == 2:
            action = sitk.Similarity2DTransform(factor, math.radians(delta[2]), shift)
        else:
            action = sitk.Similarity3DTransform(factor, (delta[3:6] / angle).tolist(), math.radians(angle), shift)
        before, after = (moves.matrix(torch.from_numpy(p)).inverse().numpy()
                         for p in (pose, moves.apply(torch.from_numpy(pose), torch.from_numpy(delta)).numpy()))
        for point in rng.uniform(-80, 80, (2, ndim)):
            moved = before[:ndim, :ndim] @ point + before[:ndim, ndim]
            np.testing.assert_allclose(after[:ndim, :ndim] @ point + after[:ndim, ndim],
                                       action.TransformPoint(moved.tolist()), atol=1e-5)


def test_scale_steps_are_additive_and_bounded() -> None:
    moves, pose = Similarity(2), torch.tensor([0.0, 0, 0, 1.0], dtype=torch.float64)
    for _ in range(200):
        pose = moves.apply(pose, torch.tensor([0.0, 0, 0, -0.05], dtype=torch.float64))
    assert pose[-1] == SCALES[0]
    assert float(moves.apply(pose, torch.tensor([0.0, 0, 0, 0.05], dtype=torch.float64))[-1]) == pytest.approx(0.25)
