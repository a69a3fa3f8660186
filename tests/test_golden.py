"""Nothing that is seen, played or measured changes unnoticed: bit for bit on one machine, to 1e-6 on another."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import pytest

from regagents.agents import shipped
from regenv.registry import CATALOGUE
from tests import golden

ENVIRONMENTS = 1e-6     # relative, elsewhere than where the numbers were written
NETWORKS = 1e-2         # likewise: convolutions add up in another order on another processor
SEARCHES = 1e-2         # mm, likewise: an optimiser's path multiplies the last digits
ALIGNED = {"RegSDM3D-v0", "RegSDM3DContinuous-v0", "organ3d"}
"""Large matrix products, whose last bit depends on where in memory the operands lie: never bit for bit."""
HERE_ONLY = {"RegKeypoint2D-v0", "RegKeypoint3D-v0", "similarity-oneshot"}
"""Other pairs are drawn on another processor, where a last digit decides which voxels become key-points."""
CARDS = {path.stem: card for path, card in shipped()}


@lru_cache
def recorded() -> dict[str, Any]:
    return json.loads(golden.FILE.read_text())


@pytest.fixture
def here() -> bool:
    """Whether this is the machine, with the versions, that the numbers were written on."""
    return recorded()["machine"] == golden.machine()


def flat(value: Any) -> list[float | None]:
    """All numbers of a nested record, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    if isinstance(value, list):
        return [number for part in value for number in flat(part)]
    return [] if isinstance(value, str) else [value]


def check(found: dict[str, Any], wanted: dict[str, Any], exactly: bool, tolerance: float) -> None:
    if exactly:
        assert found == wanted
    mine, theirs = flat(found), flat(wanted)
    assert [each is None for each in mine] == [each is None for each in theirs]
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None]
    assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=tolerance, abs=tolerance)


def skip_elsewhere(name: str, here: bool) -> None:
    if name in HERE_ONLY and not here:
        pytest.skip("compared on the machine of the numbers only")


def test_every_id_and_every_shipped_agent_has_golden_numbers() -> None:
    assert set(recorded()["environments"]) == set(CATALOGUE)
    assert set(recorded()["agents"]) == set(CARDS)


@pytest.mark.parametrize("env_id", CATALOGUE)
def test_environments_show_what_they_showed(env_id: str, here: bool) -> None:
    skip_elsewhere(env_id, here)
    check(golden.environment(env_id), recorded()["environments"][env_id], here and env_id not in ALIGNED,
          ENVIRONMENTS)


@pytest.mark.parametrize("name", CARDS)
def test_shipped_agents_end_where_they_ended(name: str, here: bool) -> None:
    skip_elsewhere(name, here)
    check(golden.agent_pose(name, CARDS[name]), recorded()["agents"][name], here and name not in ALIGNED, NETWORKS)


@pytest.mark.parametrize("rows", [golden.pose_rows, golden.field_rows], ids=["poses", "fields"])
def test_the_evaluator_measures_what_it_measured(rows: Any, here: bool) -> None:
    if not here:
        pytest.skip("searches end elsewhere on another processor")
    wanted = {(row["env"], row["method"]): row for row in recorded()["rows"]}
    for row in rows():
        check(row, wanted[row["env"], row["method"]], False, SEARCHES)
