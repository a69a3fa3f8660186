"""Checkpoints: what is saved comes back, and what does not fit is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize(("value", "told"), [(torch.full((2, 2), torch.nan), "not finite"),
                                             (torch.zeros(2, 2).double(), "float64"),
                                             (torch.zeros(2, 2, dtype=torch.int64), "int64")])
def test_weights_of_another_kind_are_refused(value: torch.Tensor, told: str, tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    checkpoints.save(tmp_path / "x.safetensors", {"weight": value}, {})
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: tensor weight .*{told}"):
        checkpoints.fit(module, checkpoints.load(tmp_path / "x.safetensors")[0], tmp_path / "x.safetensors")
    checkpoints.fit(module, {"weight": torch.ones(2, 2).half()}, "x")
    assert torch.equal(module.weight, torch.ones(2, 2))


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, {"weight": torch.arange(100.0)}, {"name": "x"})
    whole = path.read_bytes()
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    for place in range(begin, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: the tensors are not those that were saved"):
            checkpoints.load(path)


def test_tensors_and_card_of_two_saves_are_told_apart(tmp_path: Path) -> None:
    """A process that is killed between the two renames leaves a new card beside old tensors."""
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, {"weight": torch.zeros(3)}, {"samples": 1})
    old = path.read_bytes()
    checkpoints.save(path, {"weight": torch.ones(3)}, {"samples": 2})
    assert checkpoints.load(path)[1]["samples"] == 2
    path.write_bytes(old)
    tensors, card = checkpoints.load(path)
    assert torch.equal(tensors["weight"], torch.zeros(3)) and card["samples"] == 1


def test_a_disk_that_is_full_keeps_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "toy.safetensors", 2)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoints, "save_file", lambda *_, **__: (_ for _ in ()).throw(
        checkpoints.SafetensorError("No space left on device")))
    with pytest.raises(OSError, match=r"toy\.safetensors: the weights cannot be written \(No space"):
        checkpoints.save(path, {"a": torch.zeros(1)}, {})
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_an_optimizer_whose_state_is_not_whole_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    module = torch.nn.Linear(3, 1)
    optimizer = kind(module.parameters(), 0.1)  # type: ignore[call-arg]
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    whole = checkpoints.flatten_optimizer(optimizer)
    moment = next(name for name in whole if name.startswith("0.") and "sq" in name)
    part = {name: value for name, value in whole.items() if name != moment}
    for wrong, told in (({}, "is missing"), (part, f"{moment} is missing"),
                        (whole | {moment: whole[moment][:, :2]}, rf"{moment} is torch\.float32 \(1, 2\)"),
                        (whole | {moment: whole[moment].double()}, "float64"),
                        (whole | {"9.step": torch.ones(())}, "9.step"),
                        (whole | {moment: -torch.ones(1, 3)}, f"{moment} has negative")):
        with pytest.raises(CheckpointError, match=rf"state: tensor optimizer\..*{told}|state: .*{told}"):
            checkpoints.fit_optimizer(optimizer, wrong, "state")
    checkpoints.fit_optimizer(optimizer, whole, "state")


def test_weights_without_a_digest_are_read_by_the_card_beside_them(tmp_path: Path) -> None:
    """As those of the first release."""
    path = checkpoint(tmp_path / "toy.safetensors", 2)
    save_file(load_file(path), path)
    card = json.loads(path.with_suffix(".json").read_text())
    del card["sha256"]
    path.with_suffix(".json").write_text(json.dumps(card))
    assert checkpoints.load(path)[1] == card


def test_a_network_that_is_still_training_is_saved_as_it_was_at_one_moment(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = torch.zeros(1000)
    write = checkpoints.save_file

    def trained_meanwhile(*args: object, **kwargs: object) -> None:
        shared.add_(1.0)
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_file", trained_meanwhile)
    checkpoints.save(tmp_path / "x.safetensors", {"weight": shared}, {})
    assert torch.equal(checkpoints.load(tmp_path / "x.safetensors")[0]["weight"], torch.zeros(1000))
