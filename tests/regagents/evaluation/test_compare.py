"""Comparisons: the statistics, the same pairs for all, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats

from regagents.evaluation import compare as module
from regagents.evaluation.compare import Comparison, compare, interval, iqm
from regagents.evaluation.evaluate import evaluate

SMALL: dict[str, Any] = {"size": 32, "spacing": 7.0, "max_episode_steps": 4, "ranges": [10, 10, 10],
                         "source": {"name": "phantoms", "patients": 2, "bank_spacing": 3.0}}


def small(out: Path, **arguments: Any) -> Comparison:
    return compare("RegRigid2D-v0", **{"agents": ["ppo", "dsl"], "budget": 96, "pairs": 3, "seeds": 2, "seed": 50,
                                       "env_kwargs": SMALL, "out": out, **arguments})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return small(tmp_path_factory.mktemp("compared") / "table")


def test_the_interquartile_mean_is_scipys() -> None:
    for shape in ((3, 7), (1, 4), (5, 1), (1, 1)):
        scores = np.random.default_rng(1).exponential(size=shape)
        assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))


@pytest.mark.clients
def test_the_interval_is_rliables() -> None:
    from rliable import library, metrics

    scores = np.random.default_rng(0).normal(size=(6, 20)) + np.arange(6)[:, None] * 0.2
    point, theirs = library.get_interval_estimates(
        {"a": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=20_000)
    assert iqm(scores) == pytest.approx(point["a"][0])
    assert interval(scores, draws=20_000) == pytest.approx(tuple(theirs["a"][:, 0]), abs=0.02)


def test_one_run_has_no_interval_and_equal_runs_a_narrow_one() -> None:
    assert interval(np.tile(np.arange(8.0), (3, 1))) == (iqm(np.arange(8.0)),) * 2


def test_all_are_measured_on_the_same_pairs(found: Comparison) -> None:
    initial = found.entries[0]
    env = gym.make("RegRigid2D-v0", stop="never", **SMALL)
    assert initial.method == "initial"
    assert initial.scores[0] == pytest.approx([env.reset(seed=50 + i)[1]["tre"] for i in range(3)])
    mi = evaluate("RegRigid2D-v0", ["mi"], 3, 50, SMALL).rows[0]
    assert found.entries[1].scores[0] == pytest.approx(mi.errors_mm)
    assert [entry.method for entry in found.entries[2:4]] == ["random", "expert"]
    assert (found.entries[3].scores < initial.scores).all()


def test_agents_have_runs_and_curves(found: Comparison) -> None:
    for entry in found.entries[4:]:
        assert entry.clock.shape == (module.POINTS,) and (np.diff(entry.clock) >= 0).all()
        assert 0 < entry.clock[-1] <= entry.seconds + 1e-6
        assert entry.scores.shape == (2, 3) and np.isfinite(entry.scores).all()
        assert entry.curves.shape == (2, module.POINTS) and entry.steps[-1] == 96
        assert entry.curves[:, -1] == pytest.approx(entry.scores.mean(1))
    ppo, dsl = found.entries[4:]
    assert (ppo.method, ppo.learns_from, dsl.learns_from) == ("ppo", "reward", "truth")
    assert not np.array_equal(ppo.scores[0], ppo.scores[1])


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Comparison) -> None:
    trained, done = module._trained, []

    def until_killed(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[3:5])
        return trained(*arguments)

    monkeypatch.setattr(module, "_trained", until_killed)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "table")
    rest = []
    monkeypatch.setattr(module, "_trained", lambda *arguments: rest.append(arguments[3:5]) or trained(*arguments))
    again = small(tmp_path / "table")
    assert sorted(done + rest) == [("dsl", 0), ("dsl", 1), ("ppo", 0), ("ppo", 1)]
    for entry, other in zip(again.entries, found.entries, strict=True):
        np.testing.assert_allclose(entry.scores, other.scores)
    with pytest.raises(ValueError, match="budget is 96 there and 128 here"):
        small(tmp_path / "table", budget=128)
    assert small(tmp_path / "table", seeds=1).entries[4].scores.shape == (1, 3)


def test_what_is_written(tmp_path: Path, found: Comparison) -> None:
    found.save(tmp_path / "table", "regagents compare")
    told = (tmp_path / "table.md").read_text()
    assert "Made by `regagents compare`" in told and "| dsl | truth |" in told and "one run" in told
    assert len(json.loads((tmp_path / "table.json").read_text())["entries"]) == 6
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_deforming_ids_are_measured_by_their_labels(tmp_path: Path) -> None:
    digits = compare("RegDenseDigits-v0", ["ppo"], 32, 2, 1, 7, {"max_episode_steps": 2}, out=tmp_path / "digits",
                     held_out={"source": {"name": "digits", "split": "test"}})
    assert digits.measure == "Dice" and [entry.method for entry in digits.entries if entry.method != "syn"] == [
        "initial", "demons", "bspline", "adam", "convexadam", "greedy", "random", "ppo"]
    assert all((entry.scores >= 0).all() and (entry.scores <= 1).all() for entry in digits.entries)
    tuned = evaluate("RegDenseDigits-v0", ["demons"], 2, 7, {"source": {"name": "digits", "split": "test"}}).rows[0]
    assert digits.entries[1].scores[0].tolist() == tuned.values("dice").tolist()
    assert digits.entries[1].scores.mean() > digits.entries[0].scores.mean()


def test_key_points_are_measured_by_their_error() -> None:
    assert module.first_measure("RegKeypoint3D-v0", {}) == module.first_measure("RegRigid2D-v0", {}) == "tre_mm"
    assert module.first_measure("RegDense2D-v0", {}) == module.first_measure("RegSDM3D-v0", {}) == "dice"
    chunk = next(module.chunks("RegKeypoint2D-v0", 2, 3, {"size": 32}))
    assert module.scored(chunk, module.Found.of(chunk.state), "tre_mm") == pytest.approx(chunk.state.tre.tolist())
    with pytest.raises(ValueError, match="RegDenseDigits-v0 has no TRE, mm here"):
        digits = next(module.chunks("RegDenseDigits-v0", 1, 3, {}))
        module.scored(digits, module.Found.of(digits.state), "tre_mm")


@pytest.mark.parametrize(("arguments", "told"), [
    ({"agents": []}, "agents are none"), ({"agents": ["ppo", "ppo"]}, "name each once"),
    ({"agents": ["sac"]}, "sac has no settings"), ({"budget": 0}, "budget is 0"), ({"pairs": 0}, "pairs is 0"),
    ({"baselines": ["demons"]}, "baselines are demons; for RegRigid2D-v0 they are initial, random, expert, mi")])
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(tmp_path / "table", **arguments)
    assert not list(tmp_path.iterdir())
