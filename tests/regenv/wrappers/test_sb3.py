"""The native batch for Stable-Baselines3, against its own DummyVecEnv of single environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import regenv  # noqa: F401
from regenv.wrappers.sb3 import SB3VecEnv

LANES = 3
IDS: dict[str, dict[str, Any]] = {
    "RegRigid2D-v0": {"size": 40, "spacing": 6.0}, "RegRigid3D-v0": {"size": 16, "spacing": 12.0},
    "RegSimilarity2DContinuous-v0": {"size": 48, "spacing": 5.0}, "RegDense2D-v0": {"size": 24, "spacing": 8.0},
    "RegKeypoint2D-v0": {"size": 32, "observation": "dict"}, "RegSDM2D-v0": {}}


def native(env_id: str = "RegRigid2D-v0", lanes: int = LANES, **arguments: Any) -> SB3VecEnv:
    return SB3VecEnv(gym.make_vec(env_id, num_envs=lanes, **{
        "autoreset_mode": "SameStep", "max_episode_steps": 4, **IDS[env_id], **arguments}))


def alike(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            alike(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("env_id", IDS)
def test_it_is_what_sb3_makes_of_single_environments(env_id: str, output: str) -> None:
    def monitored() -> gym.Env:
        return Monitor(gym.make(env_id, max_episode_steps=4, **IDS[env_id]))

    theirs, ours = make_vec_env(monitored, LANES, seed=7), native(env_id, output=output)
    ours.seed(7)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    alike(ours.reset(), theirs.reset())
    theirs.action_space.seed(0)
    for step in range(10):
        actions = np.stack([theirs.action_space.sample() for _ in range(LANES)])
        (seen, rewards, ended, infos), expected = ours.step(actions), theirs.step(actions)
        alike(seen, expected[0])
        np.testing.assert_allclose(rewards, expected[1], rtol=1e-6)
        np.testing.assert_array_equal(ended, expected[2])
        assert ended.all() == (step % 4 == 3)
        for lane in range(LANES):
            if not ended[lane]:
                assert infos[lane] == {}
                continue
            wanted = expected[3][lane]
            assert infos[lane].keys() == wanted.keys()
            alike(infos[lane]["terminal_observation"], wanted["terminal_observation"])
            assert infos[lane]["TimeLimit.truncated"] is wanted["TimeLimit.truncated"]
            assert infos[lane]["episode"]["l"] == wanted["episode"]["l"]
            assert infos[lane]["episode"]["r"] == pytest.approx(wanted["episode"]["r"], abs=1e-5)
            for key in wanted.keys() - {"terminal_observation", "TimeLimit.truncated", "episode"}:
                np.testing.assert_array_equal(infos[lane][key], wanted[key])
                assert type(infos[lane][key]) is type(wanted[key]), key
            assert ours.reset_infos[lane].keys() == theirs.reset_infos[lane].keys()


def test_what_is_given_out_does_not_change_later() -> None:
    env = native()
    given = [env.reset()]
    kept = [given[0].copy()]
    for _ in range(4):
        seen, _, _, infos = env.step(np.ones(LANES, dtype=np.int64))
        given.append(seen)
        kept.append(seen.copy())
    last = [info["terminal_observation"] for info in infos]
    last_kept = [each.copy() for each in last]
    assert all(not np.array_equal(each, fresh) for each, fresh in zip(last, seen, strict=True))
    for _ in range(9):
        env.step(np.zeros(LANES, dtype=np.int64))
    for one, other in zip([*given, *last], [*kept, *last_kept], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any(np.shares_memory(each, other) for each in last for other in given)


def test_termination_is_no_truncation() -> None:
    env = native(max_episode_steps=400, ranges=[1, 0, 0])
    env.seed(0)
    env.reset()
    found: list[dict[str, Any]] = []
    for step in range(60):
        infos = env.step(np.full(LANES, step % 2))[3]
        found += [info for info in infos if info]
    assert found and not any(info["TimeLimit.truncated"] for info in found)
    assert all(info["is_success"] for info in found)


def test_gymnasiums_own_vector_environments_work_too() -> None:
    lone = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync",
                        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})
    ours, theirs = SB3VecEnv(lone), make_vec_env("CartPole-v1", 2, seed=3)
    ours.seed(3)
    alike(ours.reset(), theirs.reset())
    for _ in range(60):
        (seen, rewards, ended, infos), expected = ours.step(np.array([0, 1])), theirs.step(np.array([0, 1]))
        alike(seen, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(ended, expected[2])
        for lane in np.flatnonzero(ended):
            alike(infos[lane]["terminal_observation"], expected[3][lane]["terminal_observation"])


def test_attributes_methods_pictures_and_wrappers() -> None:
    env = native("RegSDM2D-v0", render_mode="rgb_array")
    env.reset()
    assert env.get_attr("num_envs") == [LANES] * LANES and env.get_attr("num_envs", 1) == [LANES]
    env.set_attr("render_style", "difference")
    assert env.env.render_style == "difference"
    with pytest.raises(ValueError, match="render_style"):
        env.set_attr("render_style", "overlay", indices=1)
    frames = env.get_images()
    assert len(frames) == LANES and all(frame.dtype == np.uint8 and frame.shape[-1] == 3 for frame in frames)
    assert env.render().ndim == 3
    assert env.env_is_wrapped(Monitor) == [True] * LANES and env.env_is_wrapped(gym.Wrapper) == [False] * LANES
    assert is_masking_supported(env)
    masks = get_action_masks(env)
    assert masks.shape == (LANES, 30) and masks.dtype == bool
    np.testing.assert_array_equal(masks, env.env.core.action_mask(env.env.state).numpy())
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    env.close()


def test_options_and_seeds_hold_for_one_reset() -> None:
    env = native()
    env.set_options({"reach": 0.1})
    env.seed(5)
    near = env.reset()
    infos = env.reset_infos
    assert max(info["distance"] for info in infos) < 20
    env.seed(5)
    far = env.reset()
    assert not np.array_equal(near, far)
    env.set_options([{"reach": 0.1}, {}, {}])
    with pytest.raises(ValueError, match="reach"):
        env.reset()


def test_other_ways_to_reset_are_refused() -> None:
    with pytest.raises(ValueError, match="NEXT_STEP"):
        native(autoreset_mode="NextStep")


@pytest.mark.slow
def test_learning_curves_of_a_seed_are_the_same() -> None:
    def curve() -> list[float]:
        env = native(lanes=8, max_episode_steps=25)
        model = PPO("CnnPolicy", env, n_steps=64, batch_size=128, n_epochs=2, seed=3, device="cpu")
        model.learn(5_000)
        weights = [parameter.detach().sum().item() for parameter in model.policy.parameters()]
        return [episode["r"] for episode in model.ep_info_buffer] + weights

    assert curve() == curve()


def test_an_agent_learns_and_is_evaluated() -> None:
    env = native(max_episode_steps=8)
    model = PPO("CnnPolicy", env, n_steps=16, batch_size=24, n_epochs=1, seed=0, device="cpu").learn(96)
    assert len(model.ep_info_buffer) == 96 // 8
    mean, _ = evaluate_policy(model, env, n_eval_episodes=4, warn=True)
    assert np.isfinite(mean)
