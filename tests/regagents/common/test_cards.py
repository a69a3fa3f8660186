"""A card builds nothing but what this package knows, and every shipped card and preset passes."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from regagents.agents import ALGORITHMS, WEIGHTS, load
from regagents.common import cards
from regagents.common.checkpoints import CheckpointError
from regagents.training.presets import PRESETS
from tests.regagents.toys import checkpoint, toy_config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_describes_an_agent(name: str) -> None:
    config = json.loads(json.dumps(PRESETS[name]))
    row = ALGORITHMS[config.get("agent", "DSL")]
    cards.check_config(config, row.algorithm, row.policy, name)


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_card_describes_an_agent(path: Path) -> None:
    card = json.loads(path.read_text())
    cards.check(card, cards.Card, path.name)
    row = ALGORITHMS[card["algorithm"]]
    cards.check_config(card["config"], row.algorithm, row.policy, path.name)


KWARGS, POLICY, EXTRACTOR = ["config", "env_kwargs"], ["config", "policy_kwargs"], \
    ["config", "policy_kwargs", "features_extractor_kwargs"]
WRONG: list[tuple[list[str], Any, str]] = [
    (["config", "env"], "payload:X-v0", "config.env is 'payload:X-v0'"), (["config", "env"], "CartPole-v1", "CartPole"),
    (["env"], "payload:X-v0", "payload:X-v0"), (["config", "agent"], "OneShot", "agent is 'OneShot'"),
    (["config", "policy"], "os.system", "config.policy is 'os.system'"), (["config"], ["x"], r"config is \['x'\]"),
    (["algorithm"], ["DSL"], "algorithm is"), (["samples"], -1, "samples is -1"),
    (["samples"], True, "samples is True"),
    (["updates"], 1.5, "updates is 1.5"), (["seed"], "x", "seed is 'x'"), (["surprise"], 1, "'surprise'"),
    ([*KWARGS, "size"], 10**5, "size is 100000"), ([*KWARGS, "size"], True, "size is True"),
    ([*KWARGS, "size"], "16", "size is '16'"), ([*KWARGS, "size"], [1 << 20] * 3, "voxels"),
    ([*KWARGS, "ndim"], 3, "'ndim'"), ([*KWARGS, "render_mode"], "human", "'render_mode'"),
    ([*KWARGS, "spacing"], 1e300, "numbers there"), ([*KWARGS, "step_sizes"], ["a"], "step_sizes"),
    ([*KWARGS, "source"], {"name": "files", "pairs": [{"fixed": "/etc/passwd"}]}, "may not name files"),
    ([*KWARGS, "source"], {"name": "folder", "layout": "lits", "folder": "/"}, "may not name files"),
    ([*KWARGS, "source"], {"name": "codeformed", "source": {"name": "folder", "folder": "/"}}, "may not name files"),
    ([*KWARGS, "source"], {"name": "digits", "files": ["/a", "/b"]}, "may not name files"),
    ([*KWARGS, "source"], {"name": "phantoms", "patients": 10**9}, "patients is 1000000000"),
    ([*KWARGS, "source"], {"name": "phantoms", "patients": "2"}, "patients is '2'"),
    ([*KWARGS, "source"], {"name": ["phantoms"]}, "source is"), ([*KWARGS, "source"], "moon", "source is 'moon'"),
    ([*POLICY, "features_extractor_class"], "os.system", "'features_extractor_class'"),
    ([*POLICY, "optimizer_class"], "os.system", "'optimizer_class'"),
    ([*EXTRACTOR, "widths"], [10**9], "4096 is the largest"), ([*EXTRACTOR, "strides"], [0], "ZeroDivisionError"),
    ([*EXTRACTOR, "surprise"], 1, "'surprise'"), ([*EXTRACTOR, "features_dim"], "4", "features_dim is '4'"),
    (EXTRACTOR, {"widths": [4096] * 8, "strides": [1] * 8}, r"the network has [\d,]+ numbers"),
    (["config", "algorithm"], {"tensorboard_log": "/tmp"}, "'tensorboard_log'"),
    (["config", "algorithm"], {"replay_buffer_class": "x"}, "'replay_buffer_class'"),
    (["config", "algorithm"], {"batch_size": -1}, "batch_size is -1"),
    (["config", "algorithm"], {"sampler_kwargs": {"size": 10**5}}, "sampler_kwargs.env_kwargs.size"),
    (["config", "curriculum"], {"start": 0.1}, "curriculum has no"),
    (["config", "curriculum"], "x", "curriculum is 'x'")]


@pytest.mark.parametrize(("place", "value", "told"), WRONG)
def test_a_card_that_says_more_is_refused_in_one_line(place: list[str], value: Any, told: str, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "payload.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = checkpoint(tmp_path / "toy.safetensors", 2)
    card = json.loads(path.with_suffix(".json").read_text())
    part = card
    for key in place[:-1]:
        part = part.setdefault(key, {})
    part[place[-1]] = value
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=told) as caught:
        load(path)
    assert str(caught.value).startswith(str(path.with_suffix(""))) and "\n" not in str(caught.value)
    assert "payload" not in sys.modules


def test_what_the_caller_gives_is_trusted(tmp_path: Path) -> None:
    """The card's pairs are files; whoever loads the agent names another source."""
    pairs = {"name": "files", "pairs": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}]}
    config = deepcopy(toy_config(2))
    path = checkpoint(tmp_path / "toy.safetensors", 2, config=config | {
        "env_kwargs": config["env_kwargs"] | {"source": pairs}})
    with pytest.raises(CheckpointError, match=r"source=\.\.\."):
        load(path)
    assert load(path, source="phantoms").card["config"]["env_kwargs"]["source"] == pairs


@pytest.mark.parametrize(("value", "hint", "fits"), [
    (1, int, True), (True, int, False), (1.0, int, False), (1, float, True), (True, float, False), ("1", float, False),
    (None, int | None, True), ([1, 2], tuple[int, ...], True), ([1], tuple[int, int], False), ([1, "2"], list[int], 0),
    ({"a": 1}, dict[str, Any], True), ([1], dict[str, Any], False), ("x" * 10**5, str, False), (10**13, int, False),
    ([0] * 2000, list[int], False), ("os.system", type, False), ("f", cards.Callable[[], int], False)])
def test_a_value_is_of_its_annotations_type(value: Any, hint: Any, fits: bool) -> None:
    try:
        cards.check(value, hint, "field")
    except ValueError as error:
        assert not fits and "field is " in str(error)
    else:
        assert fits
