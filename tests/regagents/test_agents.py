"""The catalogue: weights on disk become the agent that their card names, for callers of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regagents.agents import ALGORITHMS, WEIGHTS, load, load_as, shipped
from regagents.common.algorithm import Algorithm
from regagents.common.checkpoints import CheckpointError
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.training.presets import PRESETS
from tests.regagents.toys import checkpoint, stubborn


def test_an_agent_comes_back_with_its_card(tmp_path: Path) -> None:
    agent = load(checkpoint(tmp_path / "toy.safetensors", 2))
    wanted = stubborn(2).q_net.state_dict()
    for net in (agent.q_net, agent.q_net_target):
        assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())
    assert not agent.policy.training
    assert (agent.card["name"], agent.card["algorithm"], stubborn(2).card) == ("toy", "DSL", {})


def test_a_caller_that_needs_one_algorithm_refuses_the_others(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "toy.safetensors", 2)
    assert isinstance(load_as(DSL, path), DSL)
    with pytest.raises(CheckpointError, match=r"toy\.safetensors: algorithm is 'DSL'; L2O is needed"):
        load_as(L2O, path)


def test_a_card_of_an_algorithm_without_a_row_is_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "toy.safetensors", 2, algorithm="PPO")
    with pytest.raises(CheckpointError, match=r"toy\.safetensors: algorithm is 'PPO'; it must be one of DSL, OneShot"):
        load(path)


def test_arguments_of_the_environment_replace_the_cards(tmp_path: Path) -> None:
    agent = load(checkpoint(tmp_path / "toy.safetensors", 2), max_episode_steps=7)
    assert agent.task().max_episode_steps == 7


def test_rows_are_whole() -> None:
    """A name is its class's, the policy is one of the class's aliases, and the settings are there."""
    for name, row in ALGORITHMS.items():
        assert issubclass(row.algorithm, Algorithm) and row.algorithm.__name__ == name
        assert row.policy in row.algorithm.policy_aliases and row.moves in ("pose", "field")
        assert row.hyperparams is None or row.hyperparams.is_file()


def test_every_shipped_agent_and_every_preset_is_of_a_row() -> None:
    assert len(shipped()) == len(list(WEIGHTS.glob("*.json"))) > 0
    assert {card["algorithm"] for _, card in shipped()} <= set(ALGORITHMS)
    assert {preset.get("agent", "DSL") for preset in PRESETS.values()} <= set(ALGORITHMS)
