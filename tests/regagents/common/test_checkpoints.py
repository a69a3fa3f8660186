"""Checkpoints: what is saved comes back, what does not fit is named, and an interrupted training goes on as if not."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regagents.common import checkpoints
from regagents.common.checkpoints import CheckpointError
from regagents.training import presets
from tests.regagents.toys import checkpoint, stubborn, toy_config

training = importlib.import_module("regagents.training.train")  # the package exports the function of that name
BATCH, REPOSE = 48, 4


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T, "b": torch.arange(5)}
    checkpoints.save(tmp_path / "deep" / "x.safetensors", tensors, {"name": "x", "samples": 7})
    back, card = checkpoints.load(tmp_path / "deep" / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert card == {"card_version": checkpoints.CARD_VERSION, "name": "x", "samples": 7}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"x.safetensors", "x.json"}


def test_an_agent_comes_back(tmp_path: Path) -> None:
    agent = training.load(checkpoint(tmp_path / "toy.safetensors", 2))
    wanted = stubborn(2).q_net.state_dict()
    for net in (agent.q_net, agent.q_net_target):
        assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())
    assert not agent.policy.training


def test_a_misfit_changes_nothing(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    wanted = {k: v + 1 for k, v in before.items()}
    for tensors, message in (({k: v for k, v in wanted.items() if k != "1.bias"}, "1.bias is missing"),
                             (wanted | {"1.bias": torch.zeros(3)}, r"1.bias has shape \(3,\)"),
                             (wanted | {"2.bias": torch.zeros(2)}, "2.bias is not in the network")):
        with pytest.raises(CheckpointError, match=f"x.safetensors: tensor {message}"):
            checkpoints.fit(module, tensors, "x.safetensors")
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    checkpoints.fit(module, wanted, "x.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(module.parameters(), 0.1)
        for _ in range(3):
            step(module, optimizer)
        return module, optimizer

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    module, optimizer = trained()
    other = torch.nn.Linear(3, 1)
    other.load_state_dict(module.state_dict())
    restored = torch.optim.AdamW(other.parameters(), 0.1)
    checkpoints.save(tmp_path / "state.safetensors", checkpoints.flatten_optimizer(optimizer), {})
    checkpoints.fit_optimizer(restored, checkpoints.load(tmp_path / "state.safetensors")[0])
    step(module, optimizer)
    step(other, restored)
    assert torch.equal(module.weight, other.weight)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "toy.safetensors", 2)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoints, "save_file", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(path, {"a": torch.zeros(1)}, {})
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of a few steps, with everything that a long one has."""
    source = {"name": "phantoms", "patients": 2, "bank_spacing": 8.0}
    monkeypatch.setitem(presets.PRESETS, "tiny", toy_config(2, step=1.0, size=8, source=source) | {
        "algorithm": {"sampler_kwargs": {"near": 0.3}},
        "curriculum": {"start": 0.1, "end": 0.8, "difficulty": [0.0, 1.0], "reach": [0.5, 1.0]},
        "steps": 12 * BATCH})
    return "tiny"


def test_resumed_training_equals_uninterrupted(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: weights, optimizer and samples, though the break fell between two states and new images."""
    straight = training.train(tiny, tmp_path / "straight", seed=5)
    on_step = training._Keeper._on_step

    def stop(keeper: Any) -> bool:
        on_step(keeper)
        if keeper.model.updates == REPOSE + 2:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "_on_step", stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(tiny, tmp_path / "broken", seed=5, keep_every=-1.0)
    assert json.loads((tmp_path / "broken" / "state.json").read_text())["updates"] == REPOSE
    resumed = training.train(tiny, tmp_path / "broken", seed=5, resume=True)
    for one, other in ((straight, resumed), (straight.with_name("state.safetensors"),
                                             resumed.with_name("state.safetensors"))):
        a, b = load_file(one), load_file(other)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (straight, resumed)]
    assert cards[0]["samples"] == cards[1]["samples"] == 12 * BATCH
    untrained = training.create(presets.PRESETS[tiny], seed=5).q_net.state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in load_file(straight).items())


def test_another_seed_is_another_training(tiny: str, tmp_path: Path) -> None:
    first, second = (load_file(training.train(tiny, tmp_path / str(seed), steps=BATCH, seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_resume_refuses_another_config(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training.train(tiny, tmp_path / "out", steps=BATCH)
    monkeypatch.setitem(presets.PRESETS, tiny, presets.PRESETS[tiny] | {"steps": 1})
    with pytest.raises(CheckpointError, match="config differs"):
        training.train(tiny, tmp_path / "out", resume=True)


def test_init_takes_what_fits(tiny: str, tmp_path: Path) -> None:
    """The convolutions of an agent with other actions; its head stays as it was drawn."""
    first = training.train(tiny, tmp_path / "first", steps=BATCH, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.DSL, "learn", lambda agent, total, callback, **_: callback.init_callback(agent))
        patch.setitem(presets.PRESETS, "other", presets.PRESETS[tiny] | {
            "env_kwargs": {**presets.PRESETS[tiny]["env_kwargs"], "step_sizes": [1.0, 4.0]}, "init": str(first)})
        second = training.train("other", tmp_path / "second", steps=BATCH, seed=1)
    a, b = load_file(first), load_file(second)
    for name in a:
        taken = a[name].shape == b[name].shape and torch.equal(a[name], b[name])
        assert taken == name.startswith("features_extractor."), name


def test_init_refuses_what_does_not_fit_at_all(tiny: str, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "foreign.safetensors", {"weight": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match=r"foreign.safetensors: none of its tensors is in the network"):
        training.train(tiny, tmp_path / "out", steps=BATCH, init=str(tmp_path / "foreign.safetensors"))
