"""Off-the-shelf agents of other libraries train on the ids unchanged. Run by ``make test-clients``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO

import regenv  # noqa: F401

pytestmark = pytest.mark.clients
STEPS = 512


@pytest.mark.parametrize(("algorithm", "policy", "arguments"), [
    (PPO, "CnnPolicy", {"n_steps": 256}), (A2C, "CnnPolicy", {}),
    (DQN, "CnnPolicy", {"buffer_size": 1000, "learning_starts": 100}),
    (RecurrentPPO, "CnnLstmPolicy", {"n_steps": 128}),
], ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("env_id", ["RegSimilarity2D-v0", "RegSimilarity2DNormalized-v0"])
def test_agents_for_discrete_actions_train_on_similarity(env_id: str, algorithm: Any, policy: str,
                                                         arguments: dict[str, Any]) -> None:
    model = algorithm(policy, env_id, device="cpu", seed=0, **arguments)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(STEPS)
    assert model.num_timesteps >= STEPS
    assert any(not np.array_equal(a.numpy(), b.detach().numpy())
               for a, b in zip(before, model.policy.parameters(), strict=True))
