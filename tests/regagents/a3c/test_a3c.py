"""The A3C agent: its network is the paper's, it predicts as SB3 does, trains, stops and resumes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from regagents.a3c import A3C, A3CPolicy, Lookahead
from regagents.a3c.a3c import ATTEMPTS
from regagents.a3c.lookahead import TEMPERATURES
from regagents.a3c.value import ValueFit
from regagents.agents import load, load_as
from regagents.dsl import DSL
from regagents.training import presets
from regagents.training.train import train
from tests.regagents.a3c.agents import ID, SMALL, agent, make


def test_network_is_the_papers() -> None:
    """Sun et al. 2018, table 1, on 168 x 168: 168 -> 41 -> 19 -> 8, so 2048 numbers go into FC256."""
    policy = A3CPolicy(gym.make(ID).observation_space, gym.spaces.Discrete(8))
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items() if "weight" in name}
    assert list(shapes.values()) == [(16, 2, 8, 8), (16, 16, 4, 4), (32, 16, 4, 4), (256, 2048), (1024, 256),
                                     (1024, 256), (8, 256), (1, 256)]
    assert sum(isinstance(layer, torch.nn.ELU) for layer in policy.modules()) == 4


def test_memory_matters_and_a_new_episode_forgets_it() -> None:
    policy, image = agent().policy, torch.randint(0, 255, (3, 2, 44, 44), dtype=torch.uint8)
    first, value, memory = policy(image, policy.begin(3))
    second, *_ = policy(image, memory)
    again, *_ = policy(image, memory, torch.tensor([True, False, True]))
    assert value.shape == (3,)
    assert not torch.allclose(first, second)
    assert torch.allclose(again[[0, 2]], first[[0, 2]])
    assert torch.allclose(again[1], second[1])


def test_the_variant_without_lstm_has_no_memory() -> None:
    policy = A3C("CnnPolicy", make()).policy
    assert not any(isinstance(layer, torch.nn.LSTMCell) for layer in policy.modules())
    assert policy.policy_head.in_features == 128


def test_too_small_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(40, 40\); every axis needs at least 44"):
        A3C("CnnLstmPolicy", gym.make(ID, size=40))


def test_predict_carries_its_state_as_sb3_does() -> None:
    model = agent()
    observation, _ = make().reset(seed=0)
    action, state = model.predict(observation, deterministic=True)
    assert model.action_space.contains(int(action))
    assert [part.shape for part in state] == [(1, 256), (1, 256)]
    _, later = model.predict(observation, state, np.array([False]), deterministic=True)
    assert not np.allclose(later[0], state[0])
    _, fresh = model.predict(observation, later, np.array([True]), deterministic=True)
    np.testing.assert_allclose(fresh[0], state[0], atol=1e-6)
    rewards, _ = evaluate_policy(model, gym.make(ID, size=44, max_episode_steps=5), n_eval_episodes=2)
    assert np.isfinite(rewards)


def test_it_trains_and_counts_every_step() -> None:
    class Count(BaseCallback):
        def _on_step(self) -> bool:
            return True

    model, callback = agent(), Count()
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(64, callback=callback)
    assert model.num_timesteps >= 64
    assert callback.n_calls * model.lanes == model.num_timesteps
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


def test_training_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"agent": "A3C", "env": ID, "env_kwargs": SMALL, "steps": 96,
              "algorithm": {"n_workers": 2, "lanes": 2, "n_steps": 8}}
    monkeypatch.setitem(presets.PRESETS, "tiny", config)
    calibrate = A3C.calibrate
    monkeypatch.setattr(A3C, "calibrate", lambda agent: calibrate(agent, pairs=4, steps=10))
    path = train("tiny", tmp_path, steps=48)
    first = load(path)
    train("tiny", tmp_path, steps=96, resume=True)
    second = load(path)
    assert not torch.equal(first.policy.value_head.weight, second.policy.value_head.weight)
    with pytest.raises(ValueError, match="algorithm is 'A3C'; DSL is needed"):
        load_as(DSL, path)


def test_training_writes_the_stop_values_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"agent": "A3C", "env": ID, "env_kwargs": SMALL, "steps": 32,
              "algorithm": {"n_workers": 1, "lanes": 2, "n_steps": 8}}
    monkeypatch.setitem(presets.PRESETS, "tiny", config)
    monkeypatch.setattr(A3C, "calibrate", lambda agent: (0.25, -1.5))
    path = train("tiny", tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["config"]["algorithm"]["stop_values"] == [0.25, -1.5]
    assert tuple(load(path).stop_values) == (0.25, -1.5)
    train("tiny", tmp_path, steps=64, resume=True)  # the same preset, whatever was found after it


def test_training_fits_the_value_where_it_is_told_to_and_keeps_the_temperature(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"agent": "A3C", "env": ID, "env_kwargs": SMALL, "steps": 32, "policy_kwargs": {"value_hidden": 16},
              "algorithm": {"n_workers": 1, "lanes": 2, "n_steps": 8, "value_first": 1.0, "value_pairs": 4}}
    monkeypatch.setitem(presets.PRESETS, "tiny", config)
    calibrate, fitted = A3C.calibrate, ValueFit.__call__
    monkeypatch.setattr(A3C, "calibrate", lambda agent: calibrate(agent, pairs=4, steps=10))
    monkeypatch.setattr(ValueFit, "__call__", lambda fit, policy, task: asked.append(fit.pairs) or fitted(
        fit, policy, task))
    asked: list[int] = []
    agent = load(train("tiny", tmp_path))
    assert asked == [4] and agent.temperature in (None, *TEMPERATURES)
    assert agent.lookahead() == Lookahead(temperature=agent.temperature, attempts=ATTEMPTS)
    assert load("similarity-rl").lookahead() == Lookahead()


KEEP_EVERY = 1.0  # seconds


def test_kill_9_then_resume_loses_at_most_one_checkpoint_interval(tmp_path: Path) -> None:
    """The trainer is killed in full flight; what it had counted KEEP_EVERY seconds before is in its last state."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import sys, time
        from regagents import train
        from regagents.training import presets
        from regagents.a3c import A3C
        presets.PRESETS["tiny"] = {{"agent": "A3C", "env": "{ID}", "env_kwargs": {{"size": 44}}, "steps": 10**9,
                                    "algorithm": {{"n_workers": 2, "lanes": 2, "n_steps": 8}}}}
        counted = A3C._counted
        def tell(agent, *arguments):
            going = counted(agent, *arguments)
            print(time.time(), agent.num_timesteps, flush=True)
            return going
        A3C._counted = tell
        if __name__ == "__main__":
            train("tiny", "{tmp_path}", steps=10**9, keep_every={KEEP_EVERY}, resume="resume" in sys.argv)
        """))
    seen: list[tuple[float, int]] = []

    def run_until(steps: int, *arguments: str) -> None:
        main = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
        try:
            assert main.stdout is not None
            for line in main.stdout:
                seen.append((float(line.split()[0]), int(line.split()[1])))
                if seen[-1][1] >= steps and seen[-1][0] > seen[0][0] + 2 * KEEP_EVERY:
                    break
        finally:
            main.kill()
            main.wait()

    def kept() -> int:
        return json.loads((tmp_path / "state.json").read_text())["samples"]

    run_until(64)
    killed_at, most = seen[-1]
    before = kept()
    due = max(steps for when, steps in seen if when <= killed_at - KEEP_EVERY - 0.5)
    assert due <= before <= most
    seen.clear()
    run_until(before + 64, "resume")
    assert seen[0][1] > before
    assert kept() >= before


@pytest.mark.parametrize(("arguments", "words"), [({"n_workers": 0}, "n_workers is 0"), ({"lanes": 0}, "lanes is 0"),
                                                  ({"device": "cuda"}, "device is 'cuda'")])
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agent(**arguments)
