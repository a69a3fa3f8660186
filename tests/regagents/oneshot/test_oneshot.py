"""The one-shot agent: its loss is the environment's own D, a perfect action leaves none of it, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import regenv  # noqa: F401
from regagents.common.extractors import CompactCNN
from regagents.oneshot import OneShot
from regagents.oneshot.policies import scaled
from regenv.transforms.similarity import Similarity

ID = "RegSimilarity2DContinuous-v0"
BATCH = 32
TINY = {"features_extractor_class": CompactCNN,
        "features_extractor_kwargs": {"widths": (8, 16), "strides": (2, 2), "features_dim": 32}}


def make(**arguments: Any) -> gym.Env:
    return gym.make(ID, **{"size": 24, "step_sizes": (45.0,), **arguments})


def agent(**arguments: Any) -> OneShot:
    return OneShot("CnnPolicy", make(), **{"batch_size": BATCH, "seed": 3, "policy_kwargs": TINY,
                                           "learning_rate": 3e-3, **arguments})


def left(model: OneShot, batches: int = 4) -> float:
    """Mean D after one step of the environment, on pairs and poses that training did not draw."""
    env = gym.make_vec(ID, num_envs=BATCH, size=24, step_sizes=(45.0,), stop="never", output="numpy")
    errors = []
    for batch in range(batches):
        observations, _ = env.reset(seed=900_000 + BATCH * batch)
        infos = env.step(model.predict(observations)[0])[-1]
        errors.append(infos["distance"].mean())
    return float(np.mean(errors))


def correction(pose: torch.Tensor) -> torch.Tensor:
    """Closed form of the change of parameters that takes a similarity pose (B, 4) to alignment in one action."""
    angle = -torch.deg2rad(pose[:, 2])
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)
    shift = -(turn @ pose[:, :2, None]).squeeze(-1) / pose[:, 3:]
    return torch.cat([shift, -pose[:, 2:3], 1 - pose[:, 3:]], 1)


def test_learns_what_one_step_of_the_environment_does() -> None:
    model = agent()
    before = left(model)
    model.learn(BATCH * 400)
    assert left(model) < 0.7 * before


def test_the_loss_is_the_distance_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """No action leaves D as it was; the perfect one leaves nothing."""
    model = agent()
    env = model.sampler()
    observations, infos = env.reset(seed=1)
    assert model.loss(observations, infos).item() == pytest.approx(infos["distance"].mean().item(), rel=1e-6)
    perfect = correction(infos["target"]) / env.unwrapped.core.deltas.amax(0)
    assert perfect.abs().max() <= 1
    monkeypatch.setattr(model, "policy", lambda _: perfect)
    assert model.loss(observations, infos).item() < 1e-4
    *_, after = env.step(perfect)
    assert after["distance"].max() < 1e-4


def test_scaled_outputs_are_what_the_environment_makes_of_an_action() -> None:
    core = agent().sampler().unwrapped.core
    action = torch.rand(5, 4) * 2 - 1
    torch.testing.assert_close(scaled(action, core.deltas), core.task.actions.delta(action, core.deltas))
    assert isinstance(core.task.transform, Similarity)


def test_actions_stay_in_the_box_and_a_saved_agent_acts_alike(tmp_path: Path) -> None:
    model = agent().learn(BATCH * 3)
    with torch.no_grad():
        model.policy.head.bias[:] = torch.tensor([5.0, -5.0, 0.0, 0.0])
    observation, _ = make().reset(seed=5)
    action, _ = model.predict(observation)
    assert model.action_space.contains(action) and action[:2].tolist() == [1.0, -1.0]
    model.save(tmp_path / "agent.zip")
    np.testing.assert_array_equal(OneShot.load(tmp_path / "agent.zip", env=make()).predict(observation)[0], action)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(AssertionError, match="Box"):
        OneShot("CnnPolicy", gym.make("RegSimilarity2D-v0"))


@pytest.mark.parametrize(("arguments", "words"), [({"batch_size": 0}, "OneShot: batch_size is 0"),
                                                  ({"schedule": "none"}, "OneShot: schedule is 'none'")])
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agent(**arguments)
