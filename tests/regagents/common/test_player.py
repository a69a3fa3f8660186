"""One way to play: every policy and every model of Stable-Baselines3 by the same contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from torch import Tensor

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.common.extractors import CompactCNN
from regagents.common.player import SB3Player, played, player_of, rollout, selected
from regagents.common.sb3_policies import PairLstmPolicy, PairMaskablePolicy, PairPolicy
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.oneshot import OneShot
from regagents.spac import SPAC
from regenv.core import RegistrationCore
from regenv.registry import build
from regenv.state import EpisodeState
from regenv.wrappers.sb3 import SB3VecEnv, host

SOURCE = {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}
TINY = {"features_extractor_kwargs": {"widths": (4, 8), "strides": (2, 2), "features_dim": 8}}
GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "DSL": ("RegRigid2D-v0", {"size": 24, "spacing": 10.0, "observation": "pair", "source": SOURCE}),
    "A3C": ("RegSimilarity2D-v0", {"size": 44, "source": SOURCE}),
    "OneShot": ("RegSimilarity2DContinuous-v0", {"size": 44, "source": SOURCE}),
    "SPAC": ("RegDenseDigits-v0", {}),
    "L2O": ("RegKeypoint2D-v0", {"size": 32, "source": "deformed", "spacing": 6.0, "observation": "dict"}),
}


def agent(name: str) -> Any:
    env_id, arguments = GAMES[name]
    env = gym.make(env_id, **arguments)
    torch.manual_seed(0)
    made: Any = {"DSL": lambda: DSL(env=env, policy_kwargs=TINY, seed=0), "A3C": lambda: A3C(env=env, seed=0),
                 "OneShot": lambda: OneShot(env=env, seed=0), "SPAC": lambda: SPAC(env=env, seed=0),
                 "L2O": lambda: L2O(env=env, seed=0, policy_kwargs={"pools": 2})}[name]()
    with torch.no_grad():  # so that actions are not all the same
        for parameter in made.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def begun(name: str, lanes: int = 3) -> tuple[RegistrationCore, EpisodeState]:
    env_id, arguments = GAMES[name]
    core = RegistrationCore(build(env_id, **arguments))
    return core, core.reset([np.random.default_rng(seed) for seed in range(lanes)])


@pytest.mark.parametrize("name", GAMES)
@torch.inference_mode()
def test_a_policy_plays_what_it_predicts(name: str) -> None:
    """Bit for bit, over several steps: SB3's ``predict`` with its state, and ``play`` with its memory."""
    model, (core, state) = agent(name), begun(name)
    memory, starts, predicted = None, np.ones(3, dtype=bool), state
    ends = list(rollout(player_of(model), core, state, 3))
    for end in ends:
        action, memory = model.predict(host(core.observe(predicted)), memory, starts, deterministic=True)
        predicted = core.step(predicted, torch.as_tensor(action))[0]
        starts = np.zeros(3, dtype=bool)
        assert torch.equal(end.pose, predicted.pose)
    assert torch.equal(played(player_of(model), core, state, 3).pose, ends[-1].pose)


@pytest.mark.parametrize("name", ["A3C", "L2O"])
def test_the_memory_of_some_lanes_is_what_they_would_have_alone(name: str) -> None:
    model, (core, state) = agent(name), begun(name)
    player, lanes = player_of(model), torch.tensor([True, False, True])
    with torch.inference_mode():
        action, memory = player.play(core.observe(state), None, None)
        after = core.step(state, action)[0]
        together = player.play(core.observe(after), None, memory)[0]
        some = player.play(core.observe(after.select(lanes)), None, selected(memory, lanes))[0]
    torch.testing.assert_close(some, together[lanes])
    assert type(selected(memory, lanes)) is type(memory)


def test_selected_keeps_the_kind_of_a_memory() -> None:
    class Named(NamedTuple):
        first: Tensor
        second: Tensor

    lanes, parts = torch.tensor([2, 0]), (torch.arange(3), torch.eye(3))
    assert selected(None, lanes) is None
    assert selected(parts, lanes)[0].tolist() == [2, 0]
    assert selected(Named(*parts), lanes).second.tolist() == [[0, 0, 1], [1, 0, 0]]


def vectorized(env_id: str, **arguments: Any) -> SB3VecEnv:
    return SB3VecEnv(gym.make_vec(env_id, num_envs=2, autoreset_mode="SameStep", **arguments))


def test_a_model_of_sb3_plays_its_deterministic_actions() -> None:
    env_id, arguments = GAMES["DSL"]
    model = PPO(PairPolicy, vectorized(env_id, **arguments), policy_kwargs=TINY, seed=0)
    core, state = begun("DSL")
    action, memory = player_of(model).play(core.observe(state), None, None)
    assert action.tolist() == model.predict(host(core.observe(state)), deterministic=True)[0].tolist()
    assert memory is None


def test_a_recurrent_model_keeps_the_state_of_each_lane() -> None:
    env_id, arguments = GAMES["DSL"]
    model = RecurrentPPO(PairLstmPolicy, vectorized(env_id, **arguments), seed=0,
                         policy_kwargs={**TINY, "lstm_hidden_size": 8, "n_lstm_layers": 2})
    core, state = begun("DSL")
    player = player_of(model)
    _, memory = player.play(core.observe(state), None, None)
    assert [tuple(part.shape) for part in memory] == [(3, 2, 8)] * 2
    _, wanted = model.predict(host(core.observe(state)), None, np.ones(3, dtype=bool), True)
    _, wanted = model.predict(host(core.observe(state)), wanted, np.zeros(3, dtype=bool), True)
    lanes = torch.tensor([2, 0])
    _, later = player.play(core.observe(state)[lanes], None, selected(memory, lanes))
    for part, expected in zip(later, wanted, strict=True):
        np.testing.assert_allclose(part.numpy(), expected.swapaxes(0, 1)[[2, 0]], atol=1e-6)


def test_masks_go_to_models_that_take_them() -> None:
    env_id, arguments = GAMES["DSL"]
    env = vectorized(env_id, **arguments)
    core, state = begun("DSL")
    allowed = torch.zeros(3, len(core.deltas), dtype=torch.bool)
    allowed[:, 4] = True
    masked, plain = (kind(policy, env, policy_kwargs={"features_extractor_class": CompactCNN, **TINY}, seed=0)
                     for kind, policy in ((MaskablePPO, PairMaskablePolicy), (PPO, PairPolicy)))
    assert SB3Player(masked).play(core.observe(state), allowed, None)[0].tolist() == [4, 4, 4]
    assert SB3Player(masked).takes_masks and not SB3Player(plain).takes_masks
    free = SB3Player(plain).play(core.observe(state), None, None)[0]
    assert torch.equal(SB3Player(plain).play(core.observe(state), allowed, None)[0], free)
