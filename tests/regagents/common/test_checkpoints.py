"""Checkpoints: what is saved comes back, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regagents.common import checkpoints
from regagents.common.checkpoints import CheckpointError
from tests.regagents.toys import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T, "b": torch.arange(5)}
    checkpoints.save(tmp_path / "deep" / "x.safetensors", tensors, {"name": "x", "samples": 7})
    back, card = checkpoints.load(tmp_path / "deep" / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert card == {"card_version": checkpoints.CARD_VERSION, "name": "x", "samples": 7}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"x.safetensors", "x.json"}


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
