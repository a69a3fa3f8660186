"""The closed-form targets against a roll-out that plays the episode step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regenv.parts.action import DiscreteSteps
from regenv.parts.expert import DistanceDrop, GreedyQ
from regenv.transforms.rigid import Rigid, RigidMotion

GAMMA, BONUS, TOLERANCE = 0.9, 10.0, 0.5
UNITS = {n: DiscreteSteps((1.0,) * len(Rigid(n).names)).deltas for n in (2, 3)}
AGREEMENT = 1e-9


def drawn(rng: np.random.Generator) -> np.ndarray:
    """1,000 poses in 3D: fractional, whole, half, tiny, and with z as wide as a spine's."""
    box = np.full(6, 30.0)
    spine = np.array([30, 30, 150, 30, 30, 30.0])
    return np.concatenate([
        rng.uniform(-box, box, (400, 6)),
        np.round(rng.uniform(-box, box, (200, 6))),
        rng.uniform(-spine, spine, (100, 6)),
        np.round(rng.uniform(-spine, spine, (50, 6))),
        rng.uniform(-1.5, 1.5, (200, 6)),
        np.round(rng.uniform(-8, 8, (49, 6))) + 0.5,
        np.zeros((1, 6)),
    ])


def all_moves(poses: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """D after every action, (N, A)."""
    return np.linalg.norm(poses[:, None] + deltas, axis=2)


def has_arrived(poses: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(poses, axis=1)
    return (distance <= TOLERANCE) | (all_moves(poses, deltas).min(1) >= distance)


def played(poses: np.ndarray, deltas: np.ndarray, gamma: float = GAMMA) -> np.ndarray:
    """Return of every first action, then the greedy path: tries all actions, takes the best, until arrival, (N, A)."""
    count, actions = len(poses), len(deltas)
    at = (poses[:, None] + deltas).reshape(-1, poses.shape[1])
    earned = np.repeat(np.linalg.norm(poses, axis=1), actions) - np.linalg.norm(at, axis=1)
    there = has_arrived(at, deltas)
    earned[there] += BONUS
    alive, discount = np.flatnonzero(~there), 1.0
    at = at[alive]
    while len(alive):
        discount *= gamma
        best = all_moves(at, deltas).argmin(1)
        after = at + deltas[best]
        there = has_arrived(after, deltas)
        earned[alive] += discount * (np.linalg.norm(at, axis=1) - np.linalg.norm(after, axis=1) + BONUS * there)
        alive, at = alive[~there], after[~there]
    return earned.reshape(count, actions)


def test_q_equals_the_roll_out_of_the_greedy_path_on_1000_poses(rng: np.random.Generator) -> None:
    poses = drawn(rng)
    assert len(poses) == 1000
    q = GreedyQ(GAMMA, BONUS, TOLERANCE)(Rigid(3), Rigid(3).distance, torch.from_numpy(poses),
                                         torch.from_numpy(UNITS[3]))
    assert q.dtype == torch.float64
    np.testing.assert_allclose(q.numpy(), played(poses, UNITS[3]), rtol=0, atol=AGREEMENT)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_q_equals_the_roll_out_in_2d_for_other_discounts(gamma: float, rng: np.random.Generator) -> None:
    poses = rng.uniform(-15, 15, (100, 3))
    q = GreedyQ(gamma)(Rigid(2), Rigid(2).distance, torch.from_numpy(poses), torch.from_numpy(UNITS[2]))
    np.testing.assert_allclose(q.numpy(), played(poses, UNITS[2], gamma), rtol=0, atol=AGREEMENT)


def test_best_action_lowers_the_largest_parameter(rng: np.random.Generator) -> None:
    poses = torch.from_numpy(rng.uniform(-30, 30, (300, 6)))
    best = GreedyQ()(Rigid(3), Rigid(3).distance, poses, torch.from_numpy(UNITS[3])).argmax(1)
    largest = poses.abs().argmax(1)
    lower = (poses.gather(1, largest[:, None])[:, 0] > 0).long()  # 2i raises, 2i + 1 lowers
    assert torch.equal(best, 2 * largest + lower)


def test_q_of_an_arriving_action_is_the_drop_and_the_bonus() -> None:
    pose = torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    q = GreedyQ()(Rigid(3), Rigid(3).distance, pose, torch.from_numpy(UNITS[3]))
    assert q[0, 1].item() == pytest.approx(1 + BONUS, abs=1e-12)
    assert q[0, 0].item() == pytest.approx(-1 + GAMMA * (1 + GAMMA * (1 + BONUS)), abs=1e-12)


@pytest.mark.parametrize("transform", [Rigid(3), RigidMotion(3), RigidMotion(2)], ids=repr)
def test_drop_is_the_decrease_of_the_distance(transform: Rigid, rng: np.random.Generator) -> None:
    deltas = torch.from_numpy(DiscreteSteps((1.0,) * len(transform.names), (1.0, 4.0, 16.0)).deltas)
    pose = transform.from_draws(torch.from_numpy(rng.uniform(-40, 40, (50, len(transform.names)))))
    drop, per_unit = (expert(transform, transform.distance, pose, deltas)
                      for expert in (DistanceDrop(per_unit=False), DistanceDrop()))
    for action, delta in enumerate(deltas):
        expected = transform.distance(pose) - transform.distance(transform.apply(pose, delta))
        torch.testing.assert_close(drop[:, action], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(per_unit[:, action], expected / delta.abs().sum(), rtol=0, atol=1e-12)
    assert per_unit.abs().max() <= 1 + 1e-9


def test_weights_turn_targets_into_values_of_actions(rng: np.random.Generator) -> None:
    deltas = DiscreteSteps((1.0,) * 6, (1.0, 4.0)).deltas
    pose = torch.from_numpy(rng.uniform(-40, 40, (20, 6)))
    weights = torch.from_numpy(DistanceDrop().weights(deltas))
    weighted = weights * DistanceDrop()(Rigid(3), Rigid(3).distance, pose, torch.from_numpy(deltas))
    drop = DistanceDrop(per_unit=False)(Rigid(3), Rigid(3).distance, pose, torch.from_numpy(deltas))
    torch.testing.assert_close(weighted, drop, rtol=0, atol=1e-12)
    assert (GreedyQ().weights(deltas) == 1).all()
