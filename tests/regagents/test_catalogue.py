"""A new algorithm is a module and one row of the catalogue; then every command takes it."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regagents import agents
from regagents.agents import Row, load
from regagents.evaluation.compare import compare
from regagents.evaluation.evaluate import evaluate
from regagents.training import presets
from regagents.training.recording import record
from regagents.training.train import train

ID = "RegRigid2D-v0"
KWARGS: dict[str, Any] = {"size": 16, "spacing": 12.0, "observation": "pair", "max_episode_steps": 3,
                          "source": {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}}
PRESET = {"agent": "Toy", "env": ID, "env_kwargs": KWARGS, "algorithm": {"lanes": 4}, "steps": 24}
MODULE = '''
    import torch
    import torch.nn.functional as F
    from gymnasium.spaces import Discrete
    from stable_baselines3.common.policies import BasePolicy

    from regagents.common.algorithm import Algorithm


    class ToyPolicy(BasePolicy):
        def __init__(self, observation_space, action_space, lr_schedule=None):
            super().__init__(observation_space, action_space)
            self.layer = torch.nn.LazyLinear(int(action_space.n))
            self(torch.zeros(1, *observation_space.shape))

        def forward(self, observation):
            return self.layer(observation.flatten(1).float() / 255)

        def _predict(self, observation, deterministic=True):
            return self(observation).argmax(1)

        def play(self, observation, allowed, memory):
            return self._predict(observation), None


    class Toy(Algorithm):
        """Imitates the expert's best action."""

        policy_aliases = {"LinearPolicy": ToyPolicy}
        action_spaces = (Discrete,)
        amp_argument = False

        def __init__(self, policy="LinearPolicy", env=None, learning_rate=1e-2, lanes=2, curriculum=None, **sb3):
            self.lanes, self.curriculum = lanes, curriculum
            super().__init__(policy, env, learning_rate, **sb3)

        def make_optimizer(self):
            return torch.optim.Adam(self.network.parameters(), self.learning_rate)

        def train_until(self, total, callbacks, log_interval):
            env, going = self.batch(self.lanes, privileged=True), True
            while going and self.num_timesteps < total:
                observation, info = env.reset(seed=self.updates)
                self.optimizer.zero_grad()
                F.cross_entropy(self.policy(observation), info["q_star"].argmax(1)).backward()
                self.optimizer.step()
                self.updates, self.num_timesteps = self.updates + 1, self.num_timesteps + self.lanes
                going = callbacks.on_step()
'''
SETTINGS = f'''
    {ID}:
      policy: LinearPolicy
      n_timesteps: 1000
      lanes: 2
      env_kwargs: {{size: 16, spacing: 12.0, observation: pair, max_episode_steps: 3}}
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With the toy's module and settings. Its row is in the catalogue, its preset among the presets."""
    (tmp_path / "toy_agent.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "toy.yml").write_text(textwrap.dedent(SETTINGS))
    monkeypatch.syspath_prepend(str(tmp_path))
    toy = importlib.import_module("toy_agent")
    monkeypatch.setitem(agents.ALGORITHMS, "Toy", Row(toy.Toy, "LinearPolicy", "pose", "truth", tmp_path / "toy.yml"))
    monkeypatch.setitem(presets.PRESETS, "toy", PRESET)
    yield tmp_path
    del sys.modules["toy_agent"]


@pytest.fixture
def trained(folder: Path) -> str:
    return str(train("toy", folder / "run"))


def test_it_is_trained_saved_and_loaded(trained: str) -> None:
    agent = load(trained)
    assert type(agent).__name__ == "Toy" and (agent.card["algorithm"], agent.card["samples"]) == ("Toy", 24)


def test_it_is_evaluated(trained: str) -> None:
    report = evaluate(ID, [trained, "initial"], 2, env_kwargs=KWARGS)
    assert [row.method for row in report.rows] == [trained, "initial"]


def test_it_is_compared(folder: Path) -> None:
    found = compare(ID, ["toy"], budget=8, pairs=2, seeds=1, env_kwargs={"source": KWARGS["source"]},
                    baselines=["initial"], out=folder / "compared")
    assert [entry.method for entry in found.entries] == ["initial", "toy"]
    assert found.entries[1].scores.shape == (1, 2)


def test_it_is_recorded(trained: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
    assert record("toy/toy-v0", agent=trained, episodes=2).total_episodes == 2
