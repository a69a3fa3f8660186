"""What is true of rigid poses: closed forms, group laws, and what an action does to the image that is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from regenv.ops.affine import homogeneous, invert_affine, matmul
from regenv.transforms.rigid import Rigid, RigidMotion, axis_rotation

EXACT = 1e-12
ROUND_TRIP = 1e-9  # mm and degrees
FAMILIES = [pytest.param(family(n), id=f"{family.__name__}-{n}d") for family in (Rigid, RigidMotion) for n in (2, 3)]


def poses(rng: np.random.Generator, transform: Rigid, count: int, mm: float = 100.0, degrees: float = 80.0) -> Tensor:
    n = transform.ndim
    width = np.array([mm] * n + [degrees] * (len(transform.names) - n))
    return torch.from_numpy(rng.uniform(-width, width, (count, len(width))))


def rotation_vectors(rng: np.random.Generator, count: int, degrees: float) -> Tensor:
    axes = rng.normal(size=(count, 3))
    return torch.from_numpy(axes / np.linalg.norm(axes, axis=1, keepdims=True) * degrees)


def near(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_3d_matrix_is_translation_times_rx_ry_rz(rng: np.random.Generator) -> None:
    pose = poses(rng, Rigid(3), 50, degrees=180.0)
    matrix = Rigid(3).matrix(pose)
    oracle = Rotation.from_euler("XYZ", pose[:, 3:].numpy(), degrees=True).as_matrix()  # intrinsic: Rx Ry Rz
    near(matrix[:, :3, :3], torch.from_numpy(oracle), EXACT)
    near(matrix[:, :3, 3], pose[:, :3], 0.0)
    near(matrix[:, 3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(50, 4), 0.0)


def test_2d_matrix_in_closed_form() -> None:
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    expected = torch.tensor([[c, -s, 5.0], [s, c, -7.0], [0, 0, 1]], dtype=torch.float64)
    near(Rigid(2).matrix(torch.tensor([5.0, -7.0, 30.0])), expected, 1e-7)  # a float32 pose becomes float64


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_rotation_is_right_handed(axis: int) -> None:
    quarter = axis_rotation(torch.tensor(math.pi / 2, dtype=torch.float64), axis)
    unit = torch.eye(3, dtype=torch.float64)
    near(quarter @ unit[(axis + 1) % 3], unit[(axis + 2) % 3], EXACT)


@pytest.mark.parametrize("transform", FAMILIES)
def test_360_steps_of_one_degree_are_the_identity(transform: Rigid) -> None:
    n, parameters = transform.ndim, len(transform.names)
    for turn in range(n, parameters):
        step = torch.zeros(parameters, dtype=torch.float64)
        step[turn] = 1.0
        pose = torch.zeros(parameters, dtype=torch.float64)
        for _ in range(360):
            pose = transform.apply(pose, step)
        near(transform.matrix(pose), torch.eye(n + 1, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("transform", FAMILIES)
def test_parameters_of_the_matrix_are_the_pose(transform: Rigid, rng: np.random.Generator) -> None:
    pose = poses(rng, transform, 200)
    near(transform.parameters(transform.matrix(pose)), pose, ROUND_TRIP)


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1e-5, 1.0, 90.0, 179.0, 179.999])
def test_rotation_vector_round_trips_at_any_angle(degrees: float, rng: np.random.Generator) -> None:
    pose = torch.cat([torch.from_numpy(rng.uniform(-50, 50, (100, 3))), rotation_vectors(rng, 100, degrees)], 1)
    near(RigidMotion(3).parameters(RigidMotion(3).matrix(pose)), pose, ROUND_TRIP)


def test_half_turn_has_one_matrix_and_two_vectors(rng: np.random.Generator) -> None:
    pose = torch.cat([torch.zeros(100, 3, dtype=torch.float64), rotation_vectors(rng, 100, 180.0)], 1)
    back = RigidMotion(3).parameters(RigidMotion(3).matrix(pose))
    near(RigidMotion(3).matrix(back), RigidMotion(3).matrix(pose), EXACT)
    near(torch.linalg.vector_norm(back, dim=1), torch.full((100,), 180.0, dtype=torch.float64), ROUND_TRIP)


@pytest.mark.parametrize("ndim", [2, 3])
def test_both_families_agree_on_a_start(ndim: int, rng: np.random.Generator) -> None:
    euler = poses(rng, Rigid(ndim), 100, degrees=89.0)
    near(RigidMotion(ndim).matrix(RigidMotion(ndim).from_draws(euler)),
         Rigid(ndim).matrix(Rigid(ndim).from_draws(euler)), 1e-11)


@pytest.mark.parametrize("ndim", [2, 3])
def test_action_shifts_the_seen_image_along_fixed_axes_or_turns_it_in_place(ndim: int,
                                                                           rng: np.random.Generator) -> None:
    """U = V^-1 carries the aligned image to where it is seen: an action puts a shift before U, or a turn inside it."""
    transform = RigidMotion(ndim)
    pose = poses(rng, transform, 20, degrees=50.0)
    seen = invert_affine(transform.matrix(pose))
    for i in range(len(transform.names)):
        delta = torch.zeros(len(transform.names), dtype=torch.float64)
        delta[i] = 7.0
        after = invert_affine(transform.matrix(transform.apply(pose, delta)))
        expected = seen.clone()
        if i < ndim:
            expected[:, i, ndim] += 7.0
        else:
            turn = axis_rotation(torch.tensor(math.radians(7.0), dtype=torch.float64), 2 if ndim == 2 else i - 3)
            expected[:, :ndim, :ndim] = matmul(turn[:ndim, :ndim].expand(20, -1, -1), seen[:, :ndim, :ndim])
        near(after, expected, 1e-11)


def test_distance_is_the_norm_of_translation_and_angle(rng: np.random.Generator) -> None:
    pose = poses(rng, RigidMotion(3), 50, degrees=60.0)
    angle = Rotation.from_matrix(RigidMotion(3).matrix(pose)[:, :3, :3].numpy()).magnitude()
    shift = np.linalg.norm(pose[:, :3].numpy(), axis=1)
    np.testing.assert_allclose(RigidMotion(3).distance(pose), np.hypot(shift, np.degrees(angle)), atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_adjugate_inverse_agrees_with_linalg(ndim: int, rng: np.random.Generator) -> None:
    linear = torch.from_numpy(np.eye(ndim) + rng.uniform(-0.4, 0.4, (100, ndim, ndim)))
    matrix = homogeneous(linear, torch.from_numpy(rng.uniform(-200, 200, (100, ndim))))
    near(invert_affine(matrix), torch.linalg.inv(matrix), 1e-9)
    near(matmul(invert_affine(matrix), matrix), torch.eye(ndim + 1, dtype=torch.float64).expand(100, -1, -1), 1e-9)


@pytest.mark.parametrize("transform", FAMILIES)
def test_a_lane_does_not_depend_on_the_others(transform: Rigid, rng: np.random.Generator) -> None:
    pose = poses(rng, transform, 9)
    matrix = transform.matrix(pose)
    for lane in range(9):
        one = transform.matrix(pose[lane:lane + 1])
        assert torch.equal(one[0], matrix[lane])
        assert torch.equal(invert_affine(one)[0], invert_affine(matrix)[lane])
        assert torch.equal(transform.parameters(one)[0], transform.parameters(matrix)[lane])
        assert torch.equal(transform.apply(pose[lane:lane + 1], pose[lane])[0], transform.apply(pose, pose[lane])[lane])
