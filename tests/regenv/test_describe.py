"""Pages of ids: each tells its own spaces and limits, and the command prints it."""

from __future__ import annotations

import gymnasium as gym
import pytest

from regenv.cli import main
from regenv.describe import page, sections
from regenv.registry import CATALOGUE

HEADINGS = ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
            "Version History")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_builder_has_every_section(name: str) -> None:
    parts = sections(name)
    assert set(HEADINGS) <= set(parts) and all(parts.values())


def test_twins_have_pages_of_their_own() -> None:
    pages = {name: page(name) for name in ("RegRigid2D-v0", "RegRigid2DContinuous-v0", "RegRigid3DGeometric-v0")}
    assert "Discrete(6)" in pages["RegRigid2D-v0"].split("## Description")[0]
    assert "Box(-1, 1, (3,), float32)" in pages["RegRigid2DContinuous-v0"].split("## Description")[0]
    assert "60 steps" in pages["RegRigid3DGeometric-v0"]


def test_the_command_prints_the_page_or_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "RegRigid2D-v0"]) == 0
    assert capsys.readouterr().out == page("RegRigid2D-v0")
    assert main(["describe"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)
    assert main(["describe", "CartPole-v1"]) == 2
    assert "has no environment 'CartPole-v1'" in capsys.readouterr().err


def test_thresholds_are_where_they_are_defined() -> None:
    for name, row in CATALOGUE.items():
        assert gym.spec(name).reward_threshold == row.threshold
    assert gym.spec("RegRigid2D-v0").reward_threshold is not None
    assert gym.spec("RegDense2D-v0").reward_threshold is None
