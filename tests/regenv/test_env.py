"""Every id is a strictly standard Gymnasium environment, and other people's tools take it as it stands."""

from __future__ import annotations

import pickle
import pydoc
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

import regenv
from regenv.env import RegistrationEnv
from regenv.registry import CATALOGUE
from tests.regenv.families import info_keys, ndim, small, usual

SEED = 11


every_id = pytest.mark.parametrize("name", CATALOGUE)


@every_id
@pytest.mark.filterwarnings("error")
def test_gymnasium_check_env_has_no_complaint(name: str) -> None:
    check_env(gym.make(name, **usual(name)).unwrapped)


@every_id
@pytest.mark.parametrize("arguments", [{"observation": "pair"}, {"obs_dtype": "float32"}, {"obs_dtype": "uint8"},
                                       {"reward": "ncc"}, {"privileged": True}], ids=str)
@pytest.mark.filterwarnings("error")
def test_gymnasium_check_env_passes_with_other_arguments(name: str, arguments: dict[str, Any]) -> None:
    check_env(gym.make(name, **small(name), **arguments).unwrapped)


@every_id
def test_sb3_check_env_passes_and_is_silent_in_2d(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_of_sb3(gym.make(name, **usual(name)), warn=True)
    known = ["symmetric and normalized"] if name.startswith(("RegDense", "RegKeypoint")) else []  # they have a unit
    known += ["minimal resolution"] if "Digits" in name else []
    unconventional = [str(w.message) for w in caught if not any(words in str(w.message) for words in known)]
    if ndim(name) == 2:
        assert not unconventional
    else:  # SB3 knows no volumes; that must be its only complaint
        assert all("unconventional shape" in message for message in unconventional)


@every_id
@pytest.mark.filterwarnings("error")
def test_the_passive_checker_is_silent_over_whole_episodes(name: str) -> None:
    env = gym.make(name, max_episode_steps=5, **small(name))
    env.action_space.seed(SEED)
    env.reset(seed=SEED)
    lengths, steps = [], 0
    for _ in range(15):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated or truncated:
            env.reset()
            lengths.append(steps)
            steps = 0
    assert lengths
    assert max(lengths) <= 5


@every_id
def test_same_seed_same_episode(name: str) -> None:
    check_environments_match(gym.make(name, **small(name)), gym.make(name, **small(name)), num_steps=30, seed=SEED)


@every_id
@pytest.mark.parametrize("privileged", [False, True])
def test_info_has_the_same_numeric_keys_at_reset_and_at_step(name: str, privileged: bool) -> None:
    env = gym.make(name, privileged=privileged, **small(name))
    env.action_space.seed(SEED)
    _, at_reset = env.reset(seed=SEED)
    *_, at_step = env.step(env.action_space.sample())
    assert at_reset.keys() == at_step.keys()
    assert set(at_step) == info_keys(name, privileged)
    if "tre" in at_step:
        assert type(at_step["tre"]) is float
        assert type(at_step["is_success"]) is bool


@every_id
@pytest.mark.parametrize("moment", ["before", "mid-life"])
def test_a_pickled_env_goes_on_as_its_original(name: str, moment: str) -> None:
    env = gym.make(name, **small(name))
    if moment == "mid-life":
        env.reset(seed=SEED)
        env.action_space.seed(SEED)
        env.step(env.action_space.sample())
        twin = pickle.loads(pickle.dumps(env))
        action = env.action_space.sample()
        a, b = env.step(action), twin.step(action)
        assert np.array_equal(a[0], b[0])
        assert a[1:4] == b[1:4]
        assert all(np.array_equal(value, b[4][key], equal_nan=True) for key, value in a[4].items())
    else:
        twin = pickle.loads(pickle.dumps(env))
        assert np.array_equal(env.reset(seed=SEED)[0], twin.reset(seed=SEED)[0])
    assert np.array_equal(env.reset()[0], twin.reset()[0])


@every_id
def test_a_pickled_vector_env_goes_on_as_its_original(name: str) -> None:
    env = gym.make_vec(name, num_envs=2, **small(name))
    env.reset(seed=SEED)
    env.action_space.seed(SEED)
    twin = pickle.loads(pickle.dumps(env))
    for _ in range(2):
        action = env.action_space.sample()
        assert torch.equal(env.step(action)[0], twin.step(action)[0])
    assert torch.equal(env.reset()[0], twin.reset()[0])


@every_id
def test_spec_round_trips_through_json(name: str) -> None:
    source = {"name": "codeformed", "source": {"name": "phantoms"}, "affine": 0.1}
    env = gym.make(name, source=source, reward="ncc", max_episode_steps=7, **small(name))
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    assert np.array_equal(env.reset(seed=SEED)[0], again.reset(seed=SEED)[0])


@every_id
def test_make_vec_rebuilds_from_the_spec(name: str) -> None:
    env = gym.make_vec(name, num_envs=3, max_episode_steps=9, output="numpy", autoreset_mode="SameStep", **small(name))
    assert env.spec is not None
    for spec in (env.spec, EnvSpec.from_json(env.spec.to_json())):
        again: Any = gym.make_vec(spec)
        assert (again.num_envs, again.core.task.max_episode_steps, again.output) == (3, 9, "numpy")
        assert again.autoreset_mode == env.metadata["autoreset_mode"]
        assert np.array_equal(env.reset(seed=SEED)[0], again.reset(seed=SEED)[0])


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.filterwarnings("error")
def test_make_vec_in_other_modes_gives_the_same_images(mode: str, lanes: int) -> None:
    native = gym.make_vec("RegRigid2D-v0", num_envs=3, size=36)
    other = gym.make_vec("RegRigid2D-v0", num_envs=lanes, vectorization_mode=mode, size=36)
    assert np.array_equal(np.asarray(other.reset(seed=SEED)[0]), native.reset(seed=SEED)[0][:lanes].numpy())


def test_module_prefix_imports_and_registers_in_a_fresh_process() -> None:
    """Spawned workers know nothing but the id."""
    code = "import gymnasium as gym; print(gym.make('regenv:RegRigid2D-v0', size=36).reset(seed=0)[0].shape)"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "(1, 36, 36)"


def test_registering_twice_is_harmless() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regenv.register()
    assert set(CATALOGUE) <= set(gym.registry)


@every_id
def test_render_gives_frames_in_every_mode_it_names(name: str) -> None:
    env = gym.make(name, render_mode="rgb_array", **small(name))
    env.reset(seed=SEED)
    frames = [env.render(), (env.step(env.action_space.sample()), env.render())[1]]
    assert frames[0].shape == frames[1].shape and not np.array_equal(*frames)
    assert all((frame.dtype, frame.ndim, frame.shape[-1]) == (np.uint8, 3, 3) for frame in frames)
    env.close()
    env.close()


def test_somebody_can_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    seen = {}
    for mode in ("human", "rgb_array"):
        env = gym.make("RegRigid2D-v0", size=32, render_mode=mode)
        env.reset(seed=SEED)
        env.step(1)
        seen[mode] = (pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1) if mode == "human"
                      else env.render())
        assert mode != "human" or env.render() is None
        env.close()
    np.testing.assert_array_equal(seen["human"], seen["rgb_array"])


@every_id
def test_help_shows_the_page_of_the_id(name: str) -> None:
    env = gym.make(name, **small(name)).unwrapped
    page = pydoc.plain(pydoc.render_doc(env))
    for told in (name, "Action Space", "Rewards", "Starting State", "Episode End", "Arguments",
                 str(env.observation_space.shape)):
        assert told in page


def test_the_expert_solves_the_papers_task_within_its_200_steps() -> None:
    env = gym.make("RegRigid3D-v0", size=12, privileged=True)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        start, total, terminated, truncated = info["distance"], 0.0, False, False
        while not (terminated or truncated):
            _, reward, terminated, truncated, info = env.step(int(info["q_star"].argmax()))
            total += float(reward)
        assert terminated
        assert info["is_success"]
        assert total == pytest.approx(start - info["distance"] + 10, abs=1e-6)


def test_only_the_limit_that_was_asked_for_cuts_an_episode() -> None:
    """``gym.make`` limits by its TimeLimit, which may be longer than the catalogue's; the bare env has none."""
    name, arguments = "RegRigid2D-v0", {"size": 36, "stop": "never"}
    envs = {300: gym.make(name, max_episode_steps=300, **arguments),
            3: RegistrationEnv(name, max_episode_steps=3, **arguments),
            250: gym.make(name, max_episode_steps=250, **arguments).unwrapped}
    for steps, env in envs.items():
        env.reset(seed=SEED)
        cuts = [env.step(i % 2)[3] for i in range(steps)]
        assert not any(cuts[:-1])
        assert cuts[-1] == (steps != 250)


def test_options_scale_the_start_and_keep_the_pair() -> None:
    env = RegistrationEnv("RegRigid2D-v0", size=36)
    env.reset(seed=SEED, options={"reach": 0.01})
    assert env.state.pose.abs().max() <= 0.3
    fixed, pose = env.state.pair.fixed, env.state.pose
    env.reset(options={"same_pairs": True})
    assert torch.equal(env.state.pair.fixed, fixed)
    assert not torch.equal(env.state.pose, pose)


def test_wrong_use_is_named() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        RegistrationEnv("RegRigid2D-v0").step(0)
    with pytest.raises(ValueError, match="render_mode is 'film'"):
        RegistrationEnv("RegRigid2D-v0", render_mode="film")
    with pytest.raises(TypeError, match="colour"):
        gym.make("RegRigid2D-v0", colour="red")
    with pytest.raises(ValueError, match="source is 'cats'"):
        gym.make("RegRigid2D-v0", source="cats")
    env = gym.make("RegRigid2D-v0", size=16).unwrapped
    with pytest.raises(ValueError, match="'colour'; known are difficulty, reach, same_pairs"):
        env.reset(options={"colour": "red"})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[-1\]; each must lie in 0 to 5"):
        env.step(-1)


def test_ppo_learns_on_pixels_as_it_stands() -> None:
    model = PPO("CnnPolicy", "RegRigid2D-v0", device="cpu", n_steps=256, n_epochs=1).learn(256)
    assert model.num_timesteps == 256


@pytest.mark.slow
def test_ppo_learns_2048_steps_without_any_setting() -> None:
    assert PPO("CnnPolicy", "RegRigid2D-v0", device="cpu").learn(2048).num_timesteps == 2048


def test_sac_learns_on_the_continuous_twin_as_it_stands() -> None:
    model = SAC("CnnPolicy", "RegRigid2DContinuous-v0", buffer_size=300, device="cpu").learn(104)
    assert model.num_timesteps == 104


@pytest.mark.slow
def test_sac_learns_some_hundred_steps_on_the_continuous_twin() -> None:
    model = SAC("CnnPolicy", "RegRigid2DContinuous-v0", buffer_size=1000, device="cpu").learn(300)
    assert model.num_timesteps == 300


def test_render_styles_differ_and_bad_ones_are_named():
    frames = {}
    for style in ("overlay", "checkerboard", "difference"):
        env = gym.make("RegRigid2D-v0", size=40, spacing=6.0, render_mode="rgb_array", render_style=style)
        env.reset(seed=2)
        frames[style] = env.render()
    assert len({frame.tobytes() for frame in frames.values()}) == 3
    with pytest.raises(ValueError, match="render_style is 'xray'"):
        gym.make("RegRigid2D-v0", render_style="xray")
