"""Watching: every kind of player leaves a page with its thoughts, or one clear error."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO, SAC

import regenv  # noqa: F401
from regagents.agents import load
from regagents.cli import main
from regagents.common.checkpoints import CheckpointError
from regagents.training.watching import load_sb3, watch
from tests.regenv.wrappers.test_episode import data_of

SMALL = {"size": 48, "max_episode_steps": 4}


@pytest.mark.parametrize(("agent", "title"), [("random", ""), ("expert", "Target of each action, from the true pose")])
def test_anybody_leaves_a_page(agent: str, title: str, tmp_path: Path) -> None:
    told = watch("RegRigid2D-v0", agent, tmp_path / "page.html", 3, SMALL)
    data = data_of((tmp_path / "page.html").read_text())
    assert data["title"] == f"RegRigid2D-v0: {agent}" and data["film"]["choices"] == title
    assert told["return"] == pytest.approx(data["film"]["steps"][-1]["numbers"]["return"])
    if agent == "expert":
        for step in data["film"]["steps"][:-1]:
            best = max(step["choices"], key=lambda choice: choice["value"])
            assert best["taken"]


def test_shipped_weights_show_their_values(tmp_path: Path) -> None:
    watch("RegRigid2D-v0", "rigid2d", tmp_path / "page.html", env_kwargs={"max_episode_steps": 2})
    steps = data_of((tmp_path / "page.html").read_text())["film"]["steps"]
    agent = load("rigid2d")
    env = gym.make("RegRigid2D-v0", **agent.card["config"]["env_kwargs"])
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    assert [choice["taken"] for choice in steps[0]["choices"]].index(True) == int(action)
    assert len(steps[0]["choices"]) == env.action_space.n


@pytest.mark.parametrize("kind", [PPO, A2C, DQN, SAC])
def test_models_of_sb3_are_known_by_what_they_saved(kind: type, tmp_path: Path) -> None:
    name = "RegRigid2DContinuous-v0" if kind is SAC else "RegRigid2D-v0"
    more = {"buffer_size": 10} if kind in (SAC, DQN) else {}
    model = kind("CnnPolicy", gym.make(name, size=48), device="cpu", **more)
    model.save(tmp_path / "model.zip")
    assert type(load_sb3(tmp_path / "model.zip")) is kind
    watch(name, str(tmp_path / "model.zip"), tmp_path / "page.html", env_kwargs=SMALL)
    step = data_of((tmp_path / "page.html").read_text())["film"]["steps"][0]
    if kind is PPO:
        assert np.isclose(sum(choice["value"] for choice in step["choices"]), 1) and "value" in step["numbers"]
    assert bool(step["choices"]) == (kind is not SAC)


def test_wrong_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.zip").write_text("no model")
    with pytest.raises(CheckpointError, match=r"no\.zip: it is no saved model"):
        load_sb3(tmp_path / "no.zip")
    for arguments, told in ((["RegDense2D-v0", "--agent", "expert"], "RegDense2D-v0 has no expert"),
                            (["RegDense2D-v0", "--agent", "rigid2d"], "rigid2d plays RegRigid2D-v0"),
                            (["Pong-v0"], "env is 'Pong-v0'")):
        assert main(["watch", *arguments, "-o", str(tmp_path / "page.html")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
