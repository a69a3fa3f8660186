"""What is true of rewards: the gain of a score, and the bonus on arrival."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from regenv.parts.reward import SIMILARITIES, DistanceDecrease
from tests.regenv.families import begun, core_of


def test_reward_is_the_decrease_of_d_and_ten_on_arrival() -> None:
    """Liao et al. 2017, eq. 3 and 4."""
    core = core_of("RegRigid3D-v0")
    apart, last = [3.0, 0, 0, 4, 0, 0], [1.0, 0, 0, 0, 0, 0]
    state = begun(core, [apart, apart, last, [0.6, 0.5, 0.5, 0.5, 0.5, 0.5]])
    after, reward, terminated, _ = core.step(state, torch.tensor([7, 6, 1, 1]))
    leftover = math.hypot(0.6, math.sqrt(5 * 0.25)) - math.hypot(0.4, math.sqrt(5 * 0.25))
    expected = [5 - math.sqrt(18), 5 - math.sqrt(34), 1 + 10, leftover + 10]
    np.testing.assert_allclose(reward.numpy(), expected, rtol=0, atol=1e-12)
    assert terminated.tolist() == [False, False, True, True]
    torch.testing.assert_close(after.distance, torch.linalg.vector_norm(after.pose, dim=1), rtol=0, atol=1e-12)


def test_rewards_of_an_episode_add_up_to_the_way_and_the_bonus() -> None:
    core = core_of("RegRigid2D-v0")
    state = begun(core, [[2.0, -3.0, 1.0]])
    total = 0.0
    for action in (1, 1, 2, 2, 2, 5):
        assert not bool(state.arrived)
        state, reward, *_ = core.step(state, torch.tensor([action]))
        total += float(reward)
    assert bool(state.arrived)
    assert total == pytest.approx(math.sqrt(14) + 10, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarity_reward_is_its_gain_and_needs_no_truth(name: str) -> None:
    core = core_of("RegRigid3D-v0", reward=name)
    state = begun(core, [[4.0, 0, 0, 0, 0, 0]])
    unknown = replace(state, pair=replace(state.pair, known=torch.zeros(1, dtype=torch.bool)))
    after, reward, *_ = core.step(state, torch.tensor([1]))
    _, blind, *_ = core.step(unknown, torch.tensor([1]))
    metric = SIMILARITIES[name]
    gain = metric(after.pair.fixed, after.warped) - metric(state.pair.fixed, state.warped)
    torch.testing.assert_close(reward, 10 * gain.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(blind, reward, rtol=0, atol=1e-5)


def test_similarity_is_best_at_the_truth() -> None:
    """Image and pose agree: what the pose calls aligned, looks aligned."""
    core = core_of("RegRigid3D-v0", size=24, reward="mi")
    at, off = begun(core, [[0.0] * 6] * 3), begun(core, [[12.0, 0, 0, 0, 15, 0]] * 3)
    assert (at.score > off.score).all()


def test_reward_of_an_unknown_truth_is_zero() -> None:
    core = core_of("RegRigid3D-v0")
    state = begun(core, [[3.0] * 6])
    blind = core.begin(replace(state.pair, known=torch.zeros(1, dtype=torch.bool)), state.pose)
    _, reward, *_ = core.step(blind, torch.tensor([1]))
    assert isinstance(core.task.reward, DistanceDecrease)
    assert reward.tolist() == [0.0]
