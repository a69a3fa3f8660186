"""Training from presets: an interrupted run ends as an uninterrupted one, and what does not fit is named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regagents.agents import create
from regagents.common import checkpoints
from regagents.common.checkpoints import CheckpointError
from regagents.dsl import DSL
from regagents.training import presets
from regagents.training.train import CheckpointCallback, train
from tests.regagents.toys import toy_config

BATCH, POSES_PER_IMAGE = 48, 4


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
    straight = train(tiny, tmp_path / "straight", seed=5)
    on_step = CheckpointCallback._on_step

    def stop(callback: CheckpointCallback) -> bool:
        on_step(callback)
        if callback.model.updates == POSES_PER_IMAGE + 2:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_on_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "broken", seed=5, keep_every=-1.0)
    assert json.loads((tmp_path / "broken" / "state.json").read_text())["updates"] == POSES_PER_IMAGE
    resumed = train(tiny, tmp_path / "broken", seed=5, resume=True)
    for one, other in ((straight, resumed), (straight.with_name("state.safetensors"),
                                             resumed.with_name("state.safetensors"))):
        a, b = load_file(one), load_file(other)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (straight, resumed)]
    assert cards[0]["samples"] == cards[1]["samples"] == 12 * BATCH
    untrained = create(presets.PRESETS[tiny], seed=5).q_net.state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in load_file(straight).items())


def test_another_seed_is_another_training(tiny: str, tmp_path: Path) -> None:
    first, second = (load_file(train(tiny, tmp_path / str(seed), steps=BATCH, seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_resume_refuses_another_config(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny, tmp_path / "out", steps=BATCH)
    monkeypatch.setitem(presets.PRESETS, tiny, presets.PRESETS[tiny] | {"steps": 1})
    with pytest.raises(CheckpointError, match="config differs"):
        train(tiny, tmp_path / "out", resume=True)


def test_init_takes_what_fits(tiny: str, tmp_path: Path) -> None:
    """The convolutions of an agent with other actions; its head stays as it was drawn."""
    first = train(tiny, tmp_path / "first", steps=BATCH, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DSL, "learn", lambda agent, total, callback, **_: callback.init_callback(agent))
        patch.setitem(presets.PRESETS, "other", presets.PRESETS[tiny] | {
            "env_kwargs": {**presets.PRESETS[tiny]["env_kwargs"], "step_sizes": [1.0, 4.0]}, "init": str(first)})
        second = train("other", tmp_path / "second", steps=BATCH, seed=1)
    a, b = load_file(first), load_file(second)
    for name in a:
        taken = a[name].shape == b[name].shape and torch.equal(a[name], b[name])
        assert taken == name.startswith("features_extractor."), name


def test_init_refuses_what_does_not_fit_at_all(tiny: str, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "foreign.safetensors", {"weight": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match=r"foreign.safetensors: none of its tensors is in the network"):
        train(tiny, tmp_path / "out", steps=BATCH, init=str(tmp_path / "foreign.safetensors"))


def steps_of(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]


def interrupted(tiny: str, out: Path) -> None:
    """A run that wrote its state after one line of the log, and ended two updates after the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DSL, "log_every", 2)
        patch.setattr(CheckpointCallback, "_on_step", lambda callback: (
            callback.write({}) if callback.model.updates == POSES_PER_IMAGE else None,
            callback.model.updates < POSES_PER_IMAGE + 3)[1])
        patch.setattr(CheckpointCallback, "write", lambda callback, found, write=CheckpointCallback.write: (
            write(callback, found) if callback.model.updates == POSES_PER_IMAGE else None))
        train(tiny, out)


def test_a_resumed_run_continues_its_log(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tiny, tmp_path)
    assert steps_of(tmp_path / "progress.csv") == [2 * BATCH, 4 * BATCH, 6 * BATCH]
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("1,2")  # a line that was cut short
    monkeypatch.setattr(DSL, "log_every", 2)
    train(tiny, tmp_path, resume=True)
    assert steps_of(tmp_path / "progress.csv") == [n * BATCH for n in (2, 4, 6, 8, 10, 12)]
    train(tiny, tmp_path)
    assert steps_of(tmp_path / "progress.csv") == [n * BATCH for n in (2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "time/total_timesteps,x\n48\n", "time/total_timesteps\nx\n",
                                  "\xff\n"])
def test_a_damaged_log_is_named(text: str, tiny: str, tmp_path: Path) -> None:
    train(tiny, tmp_path, steps=BATCH)
    (tmp_path / "progress.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"progress\.csv: .*the log cannot be continued"):
        train(tiny, tmp_path, resume=True)
    assert (tmp_path / "progress.csv").read_text(encoding="latin-1") == text


@pytest.mark.parametrize(("field", "value"), [("samples", float("nan")), ("samples", -1), ("samples", None),
                                              ("updates", 1.5), ("seconds", "long"), ("samples", 10**30)])
def test_resume_refuses_a_card_of_impossible_numbers(field: str, value: object, tiny: str, tmp_path: Path) -> None:
    train(tiny, tmp_path, steps=BATCH)
    card = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(card | {field: value}))
    with pytest.raises(CheckpointError, match=r"state\.json: .*(NaN|samples|updates|seconds)"):
        train(tiny, tmp_path, resume=True)


def test_resume_refuses_a_state_without_its_optimizer(tiny: str, tmp_path: Path) -> None:
    """As where played weights were copied over the state."""
    train(tiny, tmp_path, steps=BATCH)
    tensors = {name: value for name, value in load_file(tmp_path / "state.safetensors").items()
               if not name.startswith("optimizer.")}
    save_file(tensors, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.safetensors: tensor optimizer\.0\.\w+ is missing"):
        train(tiny, tmp_path, resume=True)


HOLDER = """
import sys, time
from pathlib import Path
from regagents.training.train import _alone
with _alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_trainings_do_not_share_a_folder(tiny: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match="another training writes there"):
                train(tiny, tmp_path, steps=BATCH)
            assert not list(tmp_path.iterdir())
        finally:
            holder.kill()
    train(tiny, tmp_path, steps=BATCH)
