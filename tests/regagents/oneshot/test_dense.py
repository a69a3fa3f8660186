"""The dense one-shot agent: its field, its loss, and that it learns."""

from __future__ import annotations

import math

import gymnasium as gym
import pytest
import torch

import regenv  # noqa: F401  registers the ids
from regagents.oneshot import DenseOneShot
from regagents.oneshot.dense import soft_dice
from regagents.oneshot.dense_policies import integrated
from regenv.ops.regularity import jacobian
from regenv.ops.warp import compose

KWARGS = {"size": 32, "spacing": 6.0, "max_episode_steps": 2, "reward": "lncc", "source": {
    "name": "deformed", "source": {"name": "phantoms", "patients": 2, "bank_spacing": 6.0}}}


def agent(ndim: int = 2, **algorithm: object) -> DenseOneShot:
    env = gym.make(f"RegDense{ndim}D-v0", **KWARGS)
    return DenseOneShot("CnnPolicy", env, seed=0, policy_kwargs={"widths": [8, 16, 16]}, **algorithm)


def test_a_flow_and_the_flow_back_cancel_and_do_not_fold() -> None:
    ticks = torch.linspace(0, math.pi, 64)
    bump = (torch.sin(ticks)[:, None] * torch.sin(ticks)).pow(2)
    velocity = torch.stack([5 * bump, -4 * bump])[None]
    there, back = integrated(velocity), integrated(-velocity)
    assert there.abs().max() > 2
    assert compose(there, back).abs().max() < 0.15
    assert jacobian(there).min() > 0


def test_a_constant_velocity_is_a_translation() -> None:
    velocity = torch.full((1, 3, 6, 7, 8), 1.5)
    torch.testing.assert_close(integrated(velocity), velocity)


def test_soft_dice_of_hard_labels_is_dice() -> None:
    a, b = torch.zeros(2, 1, 1, 4, 5)
    a[..., :2, :], b[..., 1:3, :] = 1, 1
    assert soft_dice(a, b).item() == pytest.approx(2 * 5 / 20, abs=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (25, 33), (9, 14)])
def test_images_of_any_shape_have_fields(shape: tuple[int, ...]) -> None:
    field = agent().policy.act(torch.rand(1, 2, *shape))
    assert field.shape == (1, 2, *shape) and field.abs().max() < 0.1     # untrained, it hardly moves anything


def test_it_learns_to_bring_images_together() -> None:
    learner = agent(lanes=4, learning_rate=3e-3)
    env = learner.batch(4)
    env.reset(seed=5)
    pair = env.unwrapped.state.pair
    first = learner._update(pair, 2)["lncc"]
    learner.learn(240)
    after = learner._update(pair, 2)["lncc"]
    assert learner.updates >= 60
    assert after > first + 0.02


def test_what_it_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match="smooth is -1"):
        agent(smooth=-1.0)
    with pytest.raises(ValueError, match="control_grid"):
        DenseOneShot("CnnPolicy", gym.make("RegDense2D-v0", **KWARGS, control_grid=(4, 4)))
