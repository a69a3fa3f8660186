"""Frozen suites, and the leaderboard of what was measured on them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regagents.cli import main
from regagents.evaluation import suites as module
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.suites import (
    Standing,
    Suite,
    benchmark,
    frozen,
    interval,
    joined,
    page,
    ranked,
    read_board,
    save_board,
    suite_named,
    suites,
)
from regenv.stored import StoredError

ROOT = Path(__file__).parents[3]
SMALL = Suite("Small.", "RegRigid2D-v0", {"size": 24, "spacing": 8.0}, 3, 7, "tre_mm")
ENTRY = Standing("digits", suites()["digits"].hash, "demons", False, "dice", 0.7, 0.6, 0.8, 0.71, None, 0.01, 0.2, 128,
                 "0.2.0", "2026-11-30")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Suite:
    known = {"small": frozen(SMALL)}
    monkeypatch.setattr(module, "suites", lambda: known)
    return known["small"]


def test_every_suite_is_frozen_and_its_hash_is_of_its_pairs() -> None:
    assert len({suite.hash for suite in suites().values()}) == len(suites()) >= 12
    for suite in suites().values():
        assert len(suite.starts) == suite.pairs and suite.measure in module.BETTER
        assert replace(suite, about="").hash == suite.hash
        for change in ({"seed": 1}, {"pairs": 5}, {"env_kwargs": {}, "env": "x"}, {"starts": suite.starts[1:]}):
            assert replace(suite, **change).hash != suite.hash


@pytest.mark.parametrize("name", ["rigid2d", "digits"])
def test_the_pairs_of_today_are_the_frozen_ones(name: str) -> None:
    suite = replace(suite_named(name), pairs=8)
    found = evaluate(suite.env, ["initial"], 8, suite.seed, suite.env_kwargs).row("initial")
    replace(suite, starts=suite.starts[:8]).check(found)


def test_a_benchmark_measures_what_evaluate_measures(small: Suite) -> None:
    report, found = benchmark("small", baselines=["mi"])
    assert [each.method for each in found] == ["initial", "mi"] and not any(each.learned for each in found)
    for each in found:
        values = evaluate(small.env, [each.method], 3, 7, small.env_kwargs).row(each.method).values("tre_mm")
        assert each.mean == pytest.approx(values.mean(), abs=1e-3) and each.median == pytest.approx(np.median(values),
                                                                                                   abs=1e-3)
        assert each.low <= each.mean <= each.high and each.hash == small.hash and each.folding is None
        assert each.success == pytest.approx((values <= 3.0).mean())
    assert report.row("initial").values("tre_mm") == pytest.approx(small.starts, abs=1e-3)


def test_other_pairs_are_refused(small: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(small, starts=(small.starts[0], small.starts[1] + 0.01, small.starts[2]))
    monkeypatch.setattr(module, "suites", lambda: {"small": other})
    with pytest.raises(ValueError, match="benchmark: small: pair 1 starts at tre_mm"):
        benchmark("small", baselines=[])


def test_the_interval_counts_a_pair_that_is_drawn_twice_once() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    once = interval(values, np.arange(40))
    means = rng.choice(values, (20_000, 40)).mean(1)
    assert once == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03)
    assert interval(np.repeat(values, 4), np.repeat(np.arange(40), 4)) == pytest.approx(once, abs=1e-12)


def test_a_board_is_read_as_it_was_saved_best_first(tmp_path: Path) -> None:
    better = replace(ENTRY, method="greedy", mean=0.9, learned=True)
    path = tmp_path / "board.json"
    save_board(path, [ENTRY, better])
    assert read_board(path) == [better, ENTRY] == ranked([ENTRY, better])
    renewed = replace(ENTRY, mean=0.95)
    assert ranked(joined([ENTRY, better], [renewed])) == [renewed, better]
    told = page([ENTRY, better])
    assert told.index("**greedy**") < told.index("| demons") and "0.600 to 0.800" in told and "1.000%" in told


@pytest.mark.parametrize(("change", "told"), [
    ({"hash": "0" * 16}, "hash is '0000000000000000'"), ({"suite": "none"}, "suite is 'none'"),
    ({"mean": "good"}, "mean is 'good'"), ({"pairs": True}, "pairs is True"), ({"more": 1}, "must have exactly"),
    ({"success": []}, "success is")])
def test_a_bad_board_is_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps([asdict(ENTRY), asdict(ENTRY) | change]))
    with pytest.raises(StoredError, match="entry 1: ") as caught:
        read_board(path)
    assert told in str(caught.value)
    path.write_text("{}")
    with pytest.raises(StoredError, match="a leaderboard is a list"):
        read_board(path)


def test_the_shipped_leaderboard_is_whole() -> None:
    board = read_board(ROOT / "benchmarks" / "results" / "leaderboard.json")
    assert {each.suite for each in board} >= {"rigid2d", "digits"} and len(board) > 20
    for each in board:
        assert each.pairs == suites()[each.suite].pairs and each.low <= each.mean <= each.high
        if each.method == "initial":
            assert each.mean == pytest.approx(np.mean(suites()[each.suite].starts), abs=2e-3)


def test_the_command_lists_measures_and_keeps(small: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 0 and "small" in capsys.readouterr().out
    board = tmp_path / "board.json"
    assert main(["benchmark", "small", "--baselines", "mi", "--leaderboard", str(board)]) == 0
    assert small.hash in capsys.readouterr().out
    assert [each.method for each in read_board(board)].count("mi") == 1
    assert main(["benchmark", "none"]) == 2 and "suite is 'none'" in capsys.readouterr().err
    assert main(["benchmark", "small", "--leaderboard", str(tmp_path / "no" / "board.json")]) == 2
