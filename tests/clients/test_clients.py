"""Every id under every client: Gymnasium's own tools, Stable-Baselines3 and its zoo, TorchRL, Tianshou, Minari.

Run by ``make test-clients`` in an environment with the extra ``clients``; ``python tests/clients/matrix.py`` prints the
same as a table of ids and clients.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

import regenv  # noqa: F401
from regagents.common.extractors import CompactCNN
from regenv.registry import CATALOGUE
from regenv.wrappers.sb3 import SB3VecEnv

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
STEPS = 96
FLAT, SOLID = {"size": 40, "spacing": 6.0}, {"size": 16, "spacing": 12.0}
SMALL: dict[str, dict[str, Any]] = {  # quick, and in 2D not less than what SB3's CnnPolicy takes
    "RegRigid2D-v0": FLAT, "RegRigid2DContinuous-v0": FLAT,
    "RegRigid3D-v0": SOLID, "RegRigid3DContinuous-v0": SOLID, "RegRigid3DGeometric-v0": SOLID,
    "RegSimilarity2D-v0": FLAT, "RegSimilarity2DContinuous-v0": FLAT, "RegSimilarity2DNormalized-v0": FLAT,
    "RegSimilarity3D-v0": SOLID,
    "RegDense2D-v0": {**FLAT, "control_grid": (4, 4)}, "RegDenseDigits-v0": {"control_grid": (4, 4)},
    "RegDense3D-v0": {**SOLID, "control_grid": (4, 4, 4)},
    "RegKeypoint2D-v0": {"size": 40}, "RegKeypoint3D-v0": {"size": 16, "spacing": 20.0},
}
Check = Callable[[str, Path], None]
CLIENTS: dict[str, tuple[Check, str]] = {}  # a check, and the actions it is for: "discrete", "box" or "any"


def client(name: str, actions: str = "any") -> Callable[[Check], Check]:
    def known(check: Check) -> Check:
        CLIENTS[name] = (check, actions)
        return check

    return known


def make(env_id: str, **arguments: Any) -> gym.Env:
    return gym.make(env_id, **{**SMALL.get(env_id, {}), **arguments})


def batch(env_id: str, lanes: int = 3, **arguments: Any) -> Any:
    return gym.make_vec(env_id, num_envs=lanes, **{**SMALL.get(env_id, {}), **arguments})


def looking(env_id: str) -> dict[str, Any]:
    """Policy arguments: SB3's own network for images of 36 pixels and more, ours for volumes and digits."""
    shape = make(env_id).observation_space.shape
    if len(shape) == 3 and min(shape[1:]) >= 36:
        return {}
    return {"features_extractor_class": CompactCNN, "normalize_images": False}


# --- Gymnasium ------------------------------------------------------------------------------------------------------

@client("check_env")
def gymnasium_checker(env_id: str, folder: Path) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(make(env_id, render_mode="rgb_array").unwrapped)


@client("match")
def environments_match(env_id: str, folder: Path) -> None:
    from gymnasium.utils.env_match import check_environments_match

    check_environments_match(make(env_id), make(env_id), 12, seed=1)


@client("benchmark")
def gymnasium_benchmarks(env_id: str, folder: Path) -> None:
    from gymnasium.utils.performance import benchmark_step, benchmark_vector_step

    assert benchmark_step(make(env_id), 0.3, 0) > 1
    assert benchmark_vector_step(batch(env_id, output="numpy"), 0.3, 0) > 1


@client("RecordVideo")
def videos(env_id: str, folder: Path) -> None:
    from gymnasium.wrappers import RecordVideo
    from gymnasium.wrappers.vector import RecordVideo as RecordVideos

    for env in (RecordVideo(make(env_id, render_mode="rgb_array", max_episode_steps=3), str(folder / "one"),
                            episode_trigger=lambda n: True),
                RecordVideos(batch(env_id, render_mode="rgb_array", max_episode_steps=3), str(folder / "many"),
                             episode_trigger=lambda n: True)):
        env.reset(seed=0)
        for _ in range(5):
            env.step(env.action_space.sample())
        env.close()
    assert len(list(folder.glob("one/*.mp4"))) >= 1 and len(list(folder.glob("many/*.mp4"))) >= 1


@client("make_vec")
def vector_environments(env_id: str, folder: Path) -> None:
    seen = {}
    for mode, arguments in (("sync", {}), ("async", {"vector_kwargs": {"context": "spawn"}}),
                            ("vector_entry_point", {})):
        env = batch(env_id, 2, vectorization_mode=mode, **arguments)
        observations, _ = env.reset(seed=5)
        env.action_space.seed(0)
        for _ in range(2):
            observations = env.step(env.action_space.sample())[0]
        env.close()
        seen[mode] = np.asarray(observations)
    for observations in seen.values():
        np.testing.assert_array_equal(observations, seen["sync"])


# --- Stable-Baselines3 ----------------------------------------------------------------------------------------------

@client("SB3 check_env")
def sb3_checker(env_id: str, folder: Path) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(make(env_id), warn=False)


def learns(algorithm: Any, env_id: str, policy: str = "CnnPolicy", env: Any = None, **arguments: Any) -> Any:
    """Trains for a few steps; the weights change."""
    look = looking(env_id)
    if look and not issubclass(algorithm, _off_policy()):
        look = {**look, "ortho_init": False}
    model = algorithm(policy, env or make(env_id, max_episode_steps=10), seed=0, device="cpu", policy_kwargs=look,
                      **arguments)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(STEPS)
    assert model.num_timesteps >= STEPS
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    return model


def _off_policy() -> type:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    return OffPolicyAlgorithm


ON = {"n_steps": 32, "batch_size": 16, "n_epochs": 1}
OFF = {"buffer_size": 200, "learning_starts": 32, "batch_size": 8}


@client("PPO")
def ppo(env_id: str, folder: Path) -> None:
    from stable_baselines3 import PPO

    learns(PPO, env_id, **ON)


@client("PPO, SB3VecEnv")
def ppo_on_the_batch(env_id: str, folder: Path) -> None:
    from stable_baselines3 import PPO

    learns(PPO, env_id, env=SB3VecEnv(batch(env_id, 4, autoreset_mode="SameStep", max_episode_steps=10)), **ON)


@client("DQN", "discrete")
def dqn(env_id: str, folder: Path) -> None:
    from stable_baselines3 import DQN

    learns(DQN, env_id, **OFF)


@client("SAC", "box")
def sac(env_id: str, folder: Path) -> None:
    from stable_baselines3 import SAC

    learns(SAC, env_id, **OFF)


@client("TD3", "box")
def td3(env_id: str, folder: Path) -> None:
    from stable_baselines3 import TD3

    learns(TD3, env_id, **OFF)


@client("TQC", "box")
def tqc(env_id: str, folder: Path) -> None:
    from sb3_contrib import TQC

    learns(TQC, env_id, **OFF)


@client("RecurrentPPO")
def recurrent_ppo(env_id: str, folder: Path) -> None:
    from sb3_contrib import RecurrentPPO

    learns(RecurrentPPO, env_id, "CnnLstmPolicy", **ON)


@client("MaskablePPO", "discrete")
def maskable_ppo(env_id: str, folder: Path) -> None:
    from sb3_contrib import MaskablePPO

    learns(MaskablePPO, env_id, **ON)


@client("rl_zoo3")
def zoo(env_id: str, folder: Path) -> None:
    """Train and enjoy by the zoo's own commands."""
    arguments = {**SMALL.get(env_id, {}), "max_episode_steps": 10}
    settings = folder / "settings.yml"
    policy = "MlpPolicy" if looking(env_id) else "CnnPolicy"
    settings.write_text(f"{env_id}:\n  policy: {policy}\n  n_timesteps: !!float 64\n  n_steps: 32\n"
                        "  batch_size: 16\n  n_epochs: 1\n")
    shared = ["--algo", "ppo", "--env", env_id, "--gym-packages", "regenv", "-f", str(folder), "--env-kwargs",
              *(f"{name}:{value!r}" for name, value in arguments.items())]
    for command in (["rl_zoo3.train", *shared, "-conf", str(settings), "--eval-freq", "-1", "--seed", "0"],
                    ["rl_zoo3.enjoy", *shared, "--no-render", "-n", "12", "--exp-id", "1"]):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]


# --- other libraries ------------------------------------------------------------------------------------------------

@client("TorchRL")
def torchrl_single(env_id: str, folder: Path) -> None:
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    check_env_specs(GymEnv(env_id, **SMALL.get(env_id, {})))


@client("TorchRLEnv")
def torchrl_native(env_id: str, folder: Path) -> None:
    from torchrl.envs.utils import check_env_specs

    from regenv.wrappers.torchrl import TorchRLEnv

    env = TorchRLEnv(batch(env_id, autoreset_mode="Disabled", max_episode_steps=3))
    check_env_specs(env)
    played = env.rollout(7, break_when_any_done=False)
    assert played.batch_size == (3, 7) and played["next", "done"].sum() >= 6


@client("TorchRL GymWrapper")
def torchrl_wrapper(env_id: str, folder: Path) -> None:
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    for mode in ("SameStep", "Disabled"):
        check_env_specs(GymWrapper(batch(env_id, autoreset_mode=mode), device="cpu"))


class FlatAction(gym.ActionWrapper):
    """A Box of one axis for networks that know no other."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.utils.flatten_space(env.action_space)

    def action(self, action: np.ndarray) -> np.ndarray:
        return action.reshape(self.env.action_space.shape)


@client("Tianshou")
def tianshou(env_id: str, folder: Path) -> None:
    from tianshou.highlevel.config import OnPolicyTrainingConfig
    from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType
    from tianshou.highlevel.experiment import ExperimentConfig, PPOExperimentBuilder

    class Factory(EnvFactoryRegistered):
        def create_env(self, *given: Any, **named: Any) -> gym.Env:
            env = super().create_env(*given, **named)
            return env if isinstance(env.action_space, Discrete) else FlatAction(env)

    arguments = {**SMALL.get(env_id, {}), "max_episode_steps": 8}
    factory = Factory(task=env_id, venv_type=VectorEnvType.DUMMY, **arguments)
    training = OnPolicyTrainingConfig(max_epochs=1, epoch_num_steps=32, batch_size=16, num_training_envs=2,
                                      num_test_envs=1, collection_step_num_env_steps=32, buffer_size=100,
                                      update_step_num_repetitions=1, test_step_num_episodes=1)
    experiment = ExperimentConfig(persistence_enabled=False, watch=False)
    result = PPOExperimentBuilder(factory, experiment, training).build().run()
    assert result.trainer_result is not None


@client("Minari")
def minari(env_id: str, folder: Path) -> None:
    import minari

    env = minari.DataCollector(make(env_id, max_episode_steps=4), record_infos=True)
    for seed in range(2):
        env.reset(seed=seed)
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    data = env.create_dataset("regenv/test-v0", algorithm_name="random")
    try:
        again = data.recover_environment()
        assert data.total_episodes == 2 and again.observation_space == env.observation_space
        first = next(data.iterate_episodes())
        expected, _ = again.reset(seed=0)
        np.testing.assert_array_equal(first.observations[0], expected)
    finally:
        minari.delete_dataset("regenv/test-v0")


def cells() -> list[Any]:
    """Ids and clients that can play them."""
    found = []
    for env_id in CATALOGUE:
        kind = "discrete" if isinstance(gym.make(env_id, **SMALL.get(env_id, {})).action_space, Discrete) else "box"
        found += [pytest.param(env_id, name, id=f"{env_id} | {name}") for name, (_, actions) in CLIENTS.items()
                  if actions in ("any", kind)]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "env_id" in metafunc.fixturenames:
        metafunc.parametrize(("env_id", "name"), cells())


def test_client(env_id: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    CLIENTS[name][0](env_id, tmp_path)


# --- our zoo --------------------------------------------------------------------------------------------------------

def zoo_command(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "regagents.training.zoo", *words], capture_output=True,
                          text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_zoo_trains_enjoys_records_plots_and_benchmarks(tmp_path: Path) -> None:
    game = ["--algo", "ppo", "--env", "RegRigid2D-v0", "-f", "logs"]
    zoo_command(tmp_path, "train", *game, "--seed", "0", "-n", "2048", "--eval-freq", "1024", "--eval-episodes", "2")
    assert "Mean episode length: 50.00" in zoo_command(tmp_path, "enjoy", *game, "--no-render", "-n", "60")
    zoo_command(tmp_path, "record_video", *game, "-n", "10", "-o", "videos")
    zoo_command(tmp_path, "plot", *game, "-w", "3", "--output", "curves.png")
    zoo_command(tmp_path, "benchmark", "--log-dir", "logs", "--benchmark-dir", "table", "--test-mode", "-n", "60")
    assert list(tmp_path.glob("videos/*.mp4")) and (tmp_path / "curves.png").stat().st_size > 10_000
    assert "RegRigid2D-v0" in (tmp_path / "table" / "benchmark.md").read_text()


@pytest.mark.parametrize(("algo", "game_id"), [("dsl", "RegRigid2D-v0"), ("a3c", "RegSimilarity2D-v0"),
                                               ("spac", "RegDenseDigits-v0"), ("l2o", "RegKeypoint2D-v0")])
def test_the_zoo_knows_our_algorithms(tmp_path: Path, algo: str, game_id: str) -> None:
    game = ["--algo", algo, "--env", game_id, "-f", "logs"]
    zoo_command(tmp_path, "train", *game, "--seed", "0", "-n", "256", "--eval-freq", "128", "--eval-episodes", "1",
                *(["-params", "n_workers:1"] if algo == "a3c" else []))
    assert "Mean reward" in zoo_command(tmp_path, "enjoy", *game, "--no-render", "-n", "110")


def test_processes_share_a_sweep_by_its_journal(tmp_path: Path) -> None:
    import optuna

    game = ["train", "--algo", "dsl", "--env", "RegRigid2D-v0", "-f", "logs", "-n", "192", "-optimize",
            "--n-trials", "1", "--sampler", "random", "--pruner", "none", "--n-evaluations", "1",
            "--eval-episodes", "1", "--no-optim-plots", "--storage", "logs/sweep.log", "--study-name", "shared"]
    both = [subprocess.Popen([sys.executable, "-W", "ignore", "-m", "regagents.training.zoo", *game, "--seed", seed],
                             cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for seed in "12"]
    assert [process.wait() for process in both] == [0, 0]
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "logs" / "sweep.log"))
    trials = optuna.load_study(study_name="shared", storage=optuna.storages.JournalStorage(journal)).trials
    assert len(trials) == 2 and all(np.isfinite(trial.value) for trial in trials)


@pytest.mark.parametrize("words", [
    ["--env", "RegRigid2D-v0", "--env-kwargs", '{"size": 40, "spacing": 6.0, "ranges": [6, 6, 6]}'],
    ["--agent", "digits-spac"], ["--agent", "similarity-sl", "--env-kwargs", '{"max_episode_steps": 5}']])
def test_one_command_makes_a_minari_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    import minari

    from regagents.cli import main

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert main(["record", "regenv/test/made-v0", *words, "--episodes", "2", "--seed", "3"]) == 0
    data = minari.load_dataset("regenv/test/made-v0")
    spec = data.storage.metadata
    assert spec["ref_min_score"] < spec["ref_max_score"] and spec["author"] and spec["code_permalink"]
    assert {"score", "tre"} <= set(next(data.iterate_episodes()).infos)
    env = data.recover_environment()
    for number, episode in enumerate(data.iterate_episodes()):
        first, _ = env.reset(seed=3 + number)
        np.testing.assert_array_equal(episode.observations[0], first)
        rewards = [env.step(action)[1] for action in episode.actions]
        np.testing.assert_allclose(episode.rewards, rewards, rtol=1e-5)
        assert episode.rewards.sum() > 0 or "similarity-sl" in words  # its reward is the distance that is left
    assert main(["record", "regenv/test/made-v0", *words]) == 2
