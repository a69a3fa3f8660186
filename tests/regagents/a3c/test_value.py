"""The value that is fitted after training: what it is of, and that it reads it off the images."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from regagents.a3c import A3CPolicy
from regagents.a3c.value import ValueFit, _starts, closeness
from regenv.core import RegistrationCore
from regenv.parts.termination import Never
from tests.regagents.a3c.agents import ID, SMALL, agent


def test_closeness_is_zero_at_alignment_and_falls_slower_the_further_away() -> None:
    steps = closeness(torch.arange(6.0)).diff()
    assert closeness(torch.zeros(1)).item() == 0.0
    assert (steps < 0).all() and (steps.diff() > 0).all()


def test_a_fitted_value_ranks_poses_and_leaves_the_policy_alone() -> None:
    """A random network's features suffice to tell far from near on pairs that it was not fitted on."""
    task = agent().task()
    torch.manual_seed(0)
    policy = A3CPolicy(gym.make(ID, **SMALL).observation_space, gym.spaces.Discrete(8), value_hidden=64)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    ValueFit(pairs=96, rollouts=2, depth=4, epochs=20)(policy, task)
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"value_head.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    astray = _starts(task)[1]
    core = RegistrationCore(replace(task, termination=Never(), start=astray))
    far = core.reset([np.random.default_rng(i) for i in range(64)])
    home = core.begin(far.pair, torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double().expand(64, -1))
    with torch.no_grad():
        values = [policy(core.observe(state), policy.begin(64))[1] for state in (home, far)]
    assert (values[0] > values[1]).float().mean() > 0.7


@pytest.mark.parametrize("turned", [False, True])
def test_starts_are_near_or_turned_any_way(turned: bool) -> None:
    start = _starts(agent().task())[int(turned)]
    degrees = np.abs(start.draw([np.random.default_rng(i) for i in range(300)])[:, 2])
    assert degrees.max() > 150 if turned else degrees.max() <= 9


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_wider_value_head_sees_features_and_memory(recurrent: bool) -> None:
    policy = A3CPolicy(gym.make(ID, **SMALL).observation_space, gym.spaces.Discrete(8), recurrent=recurrent,
                       value_hidden=16)
    assert policy.value_head[0].in_features == 256 + policy.hidden  # type: ignore[index, union-attr]
    image = torch.randint(0, 255, (3, 2, 44, 44), dtype=torch.uint8)
    assert policy(image, policy.begin(3))[1].shape == (3,)
    assert policy._get_constructor_parameters()["value_hidden"] == 16
