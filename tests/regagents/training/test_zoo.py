"""Tuned settings of every algorithm, and the agents they make."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

from regagents.common.extractors import CompactCNN, DictCNN
from regagents.common.sb3_policies import PairPolicy
from regagents.training import zoo
from regenv.registry import CATALOGUE

GIB = 2**30
SPACES = {env_id: gym.make(env_id).action_space for env_id in CATALOGUE if "3D" not in env_id} | {
    env_id: gym.make(env_id, **({} if "SDM" in env_id else {"size": 16, "spacing": 12.0})).action_space
    for env_id in CATALOGUE if "3D" in env_id}
DISCRETE = {env_id for env_id, space in SPACES.items() if isinstance(space, gym.spaces.Discrete)}
TAKES = {"ppo": set(CATALOGUE), "a2c": set(CATALOGUE), "recurrent_ppo": set(CATALOGUE),
         "dqn": DISCRETE, "maskable_ppo": DISCRETE, **dict.fromkeys(("sac", "td3", "tqc"), set(CATALOGUE) - DISCRETE)}
CASES = [(algo, env_id) for algo in zoo.algorithms() for env_id in yaml.safe_load(zoo.hyperparams(algo).read_text())]


@pytest.mark.parametrize("algo", TAKES)
def test_off_the_shelf_algorithms_have_settings_for_every_id_they_can_play(algo):
    assert {env_id for name, env_id in CASES if name == algo} == TAKES[algo]


@pytest.mark.parametrize(("algo", "env_id"), CASES)
def test_settings_make_an_agent_whose_memory_fits(algo, env_id):
    tuned = zoo.settings(algo, env_id)
    agent = zoo.create(algo, env_id, seed=3)
    assert agent.seed == 3 and tuned.n_timesteps >= 10_000
    assert agent.get_env().observation_space == agent.observation_space
    if "buffer_size" in tuned.arguments or algo in ("dqn", "sac", "td3", "tqc"):
        space = agent.observation_space
        seen = math.prod(space.shape) * space.dtype.itemsize
        done = 8 if isinstance(agent.action_space, gym.spaces.Discrete) else 4 * math.prod(agent.action_space.shape)
        assert tuned.arguments["buffer_size"] * (2 * seen + done) <= 16 * GIB
    agent.get_env().close()


def test_algorithms_play_an_id_on_the_same_grid():
    """They could not be compared otherwise."""
    for env_id in CATALOGUE:
        games = [zoo.settings(algo, name).env_kwargs for algo, name in CASES if name == env_id]
        grids = {(str(game.get("size")), game.get("spacing")) for game in games}
        assert len(grids) == 1, (env_id, grids)


def test_td3_explores_with_noise_of_the_actions_shape():
    agent = zoo.create("td3", "RegDenseDigits-v0")
    noise = agent.action_noise()
    assert noise.shape == agent.action_space.shape and 0.1 < noise.std() < 0.3


def test_a_dict_is_seen_as_channels_and_numbers_go_past():
    space = gym.spaces.Dict({"fixed": gym.spaces.Box(0, 255, (1, 20, 24), np.uint8),
                             "displacement": gym.spaces.Box(-8.0, 8.0, (2, 20, 24), np.float32),
                             "step": gym.spaces.Box(0.0, 1.0, (3,), np.float32)})
    look = DictCNN(space, features_dim=32)
    seen = {name: torch.from_numpy(np.stack([part.sample() for _ in range(2)])) for name, part in space.items()}
    features = look(seen)
    assert features.shape == (2, 35) and look.features_dim == 35
    torch.testing.assert_close(features[:, 32:], seen["step"])
    channels = [part for name, part in seen.items() if name != "step"]  # in the order of the space
    bounds = {1: 255.0, 2: 8.0}
    torch.testing.assert_close(features[:, :32], look.cnn(torch.cat([c / bounds[c.shape[1]] for c in channels], 1)))
    with pytest.raises(ValueError, match="images of one shape"):
        DictCNN(gym.spaces.Dict({"step": space["step"]}))


def test_policies_choose_their_network_by_the_observations():
    for observation, extractor in (("pair", CompactCNN), ("dict", DictCNN)):
        space = gym.make("RegDense2D-v0", size=16, spacing=12.0, control_grid=(4, 4), observation=observation)
        policy = PairPolicy(space.observation_space, space.action_space, lambda _: 1e-3)
        assert isinstance(policy.features_extractor, extractor) and not policy.normalize_images


@pytest.mark.parametrize(("algo", "env_id", "told"), [
    ("ppoo", "RegRigid2D-v0", "algo is 'ppoo'"), ("sac", "RegRigid2D-v0", "sac has no settings for 'RegRigid2D-v0'")])
def test_what_there_are_no_settings_for_is_named(algo, env_id, told):
    with pytest.raises(ValueError, match=told):
        zoo.settings(algo, env_id)


def test_an_unknown_command_is_named(capsys):
    assert zoo.main(["trian"]) == 2 and zoo.main([]) == 2
    assert "'trian'" in capsys.readouterr().err
