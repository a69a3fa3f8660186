"""`deform="auto"`: kinds of pairs told apart by their images, and the choice by what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regagents.classical.syn import SyN
from regagents.registration import choice
from regagents.registration.batch import Options
from regagents.registration.choice import Traits, choose, table
from regagents.registration.deformation import LABELLED, OPTIMISERS
from regagents.registration.register import register
from regagents.registration.score import Score
from regenv.data.io.images import Image
from regenv.grid import Grid

KINDS = {"2D same", "2D different", "3D same", "3D different", "3D lung", "3D ct"}


def chest(lungs: float, seed: int = 0) -> Image:
    """A CT in Hounsfield units: air, a body, and lungs that are as large a share of all voxels."""
    draw = np.random.default_rng(seed)
    values = np.full((24, 24, 24), -1000.0)
    values[:, 3:21, 3:21] = 40
    values[: round(24 * lungs * (24 / 18) ** 2), 3:21, 3:21] = -780
    noisy = values + draw.normal(0, 15, values.shape)
    return Image(noisy.astype(np.float32), Grid.centered(values.shape, 4.0), "chest.nii")


def head(seed: int, contrast: str = "T1") -> Image:
    """A ball of layers that are bright or dark, noisy."""
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, 28)] * 3, indexing="ij"))
    radius = np.sqrt((places ** 2).sum(0))
    levels = {"T1": [0.9, 0.6, 0.3], "T2": [0.35, 0.55, 0.95]}[contrast]
    values = np.select([radius < 0.35, radius < 0.6, radius < 0.85], levels, 0.0)
    noisy = values + np.random.default_rng(seed).normal(0, 0.03, values.shape)
    return Image(noisy.astype(np.float32), Grid.centered(values.shape, 3.0), "head.nii")


def kind(fixed: Image, moving: Image) -> str:
    traits = Traits.of(fixed, moving, Score.of(fixed, moving), np.eye(4))
    return traits.kind(table()["limits"])


def test_kinds_of_pairs_are_told_apart_by_their_images() -> None:
    assert kind(chest(0.2), chest(0.15, 1)) == "3D lung"
    assert kind(chest(0.2), chest(0.01, 1)) == "3D ct"
    assert kind(head(0), head(1)) == "3D same"
    assert kind(head(0), head(1, "T2")) == kind(head(0, "T2"), head(1)) == "3D different"
    bright = replace(head(1), array=head(1).array * 4000 + 100)
    assert kind(head(0), bright) == "3D same"                   # another scale is no other modality
    assert kind(chest(0.2), head(1)) in ("3D same", "3D different")     # CT to another modality


def test_a_ct_is_known_by_air_and_soft_tissue_in_hounsfield_units() -> None:
    assert choice.lung_share(chest(0.2)) == pytest.approx(0.2, abs=0.02)
    assert choice.lung_share(head(0)) is None
    assert choice.lung_share(replace(chest(0.2), array=chest(0.2).array + 1024)) is None
    assert choice.lung_share(replace(head(0), array=np.full((9, 9, 9), -1000.0, np.float32))) is None


@pytest.mark.parametrize("contrast", [1.0, -1.0])
def test_correlation_is_numpys_on_the_fixed_foreground(contrast: float) -> None:
    fixed = head(0)
    moving = replace(fixed, array=contrast * fixed.array)
    assert choice.correlation(Score.of(fixed, moving), np.eye(4)) == pytest.approx(contrast, abs=1e-5)
    away = np.eye(4)
    away[:3, 3] = 1e4
    assert choice.correlation(Score.of(fixed, moving), away) == 0
    flat = replace(fixed, array=np.ones_like(fixed.array))
    assert choice.correlation(Score.of(fixed, flat), np.eye(4)) == 0


def test_the_table_names_what_there_is_and_puts_the_best_first() -> None:
    assert set(table()["kinds"]) == KINDS
    for found in table()["kinds"].values():
        rows = found["optimisers"]
        assert {row["name"] for row in rows} <= set(OPTIMISERS) - {LABELLED}
        assert found["pairs"] > 0 and found["made"].startswith("Made by `python benchmarks/choice.py")
        whole = [row["score"] for row in rows if row["folding"] <= 0.002]
        assert whole == sorted(whole, reverse=True) and rows[0]["folding"] <= 0.002
        assert whole[0] > found["start"]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_best_that_is_installed_is_chosen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traits = Traits(int(name[0]), {"3D lung": 0.3, "3D ct": 0.0}.get(name), {"same": 0.9}.get(name[3:], -0.5))
    rows = table()["kinds"][name]["optimisers"]
    monkeypatch.setattr(SyN, "available", staticmethod(lambda: False))
    chosen = choose(traits)
    assert chosen.kind == name and chosen.name == next(row["name"] for row in rows if row["name"] != "syn")
    monkeypatch.setattr(SyN, "available", staticmethod(lambda: True))
    assert choose(traits).name == rows[0]["name"]


def test_register_chooses_and_tells_why(tmp_path: Path) -> None:
    found = [register(head(0), moving, "none", initial="header", refine=False, deform="auto")
             for moving in (head(1), head(1, "T2"))]
    for result, kind in zip(found, ("3D same", "3D different"), strict=True):
        told = result.metrics["deformation"]
        assert told["choice"]["kind"] == kind
        chosen = choose(Traits(3, None, told["choice"]["correlation"]))
        assert told["by"] == told["choice"]["measured"]["name"] == chosen.name
    out = found[0].save(tmp_path / "out")
    kept = json.loads((out / "metrics.json").read_text())["deformation"]
    assert kept["by"] in OPTIMISERS and kept["choice"]["limits"] == table()["limits"]
    assert kept["choice"]["correlation"] > kept["choice"]["limits"]["correlation"]
    named = register(head(0), head(1), "none", initial="header", refine=False, deform=kept["by"])
    assert {**found[0].metrics["deformation"], "choice": None} == {**named.metrics["deformation"], "choice": None}


def test_batches_that_choose_depend_on_the_table() -> None:
    options = Options(agent="none", deform="auto")
    options.check()
    assert options.depends()["choice"] == table()
    assert "choice" not in Options(agent="none", deform="greedy").depends()
