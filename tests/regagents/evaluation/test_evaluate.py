"""Evaluation: every method meets the same pairs and starts, in any family; the numbers are the environment's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import regagents.evaluation.evaluate as evaluation
from regagents.common import checkpoints
from regagents.evaluation import pairs
from regagents.evaluation.dense import STANDARD
from regagents.evaluation.evaluate import chosen_baselines, evaluate, row_of
from regagents.evaluation.methods import Initial, Policy
from regagents.evaluation.report import Report, Row
from regagents.registration.pipeline import Pipeline
from regenv.core import RegistrationCore
from tests.regagents.toys import checkpoint

PAIRS, SEED = 4, 11
ENV = "RegRigid2D-v0"
KWARGS: dict[str, Any] = {"size": 48, "spacing": 5.0, "ranges": [12, 12, 12],
                          "source": {"name": "phantoms", "patients": 2, "bank_spacing": 2.5}}
DIGITS = "RegDenseDigits-v0"
SAME_MM = 1e-6


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    toy = str(checkpoint(tmp_path_factory.mktemp("weights") / "toy.safetensors", 2))
    seen: list[float] = []
    found = evaluate(ENV, ["initial", "mi", Pipeline((toy,)), "mi-multistart"], PAIRS, SEED, KWARGS,
                     refine=True, progress=lambda _, share: seen.append(share))
    assert seen == sorted(seen) and seen[-1] == 1.0
    return found


def by_name(report: Report, part: str) -> Row:
    return next(row for row in report.rows if part in row.method)


def test_starts_are_the_environments_own(report: Report) -> None:
    env = gym.make(ENV, stop="never", **KWARGS)
    errors = [env.reset(seed=SEED + i)[1]["tre"] for i in range(PAIRS)]
    assert by_name(report, "initial").errors_mm == pytest.approx(errors, abs=SAME_MM)


def test_methods_and_their_order(report: Report) -> None:
    names = [row.method.rsplit("/", 1)[-1] for row in report.rows]
    assert names == ["initial", "mi", "toy.safetensors", "toy.safetensors, refined", "mi-multistart"]
    assert all(len(row.errors_mm) == PAIRS and np.isfinite(row.errors_mm).all() for row in report.rows)
    assert report.moves == "pose" and all(list(row.measures) == ["tre_mm"] for row in report.rows)


def test_mutual_information_improves_on_the_start(report: Report) -> None:
    start = by_name(report, "initial").mean
    assert by_name(report, "mi").percentiles[1] < 0.5 * start
    assert by_name(report, "refined").mean < start
    assert by_name(report, "initial").seconds < by_name(report, "mi").seconds


def test_multi_start_has_at_least_the_agents_time(report: Report) -> None:
    assert by_name(report, "mi-multistart").seconds >= by_name(report, "refined").seconds


def test_results_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(DIGITS, ["initial", "demons", "digits-spac"], 3, SEED)
    for module in (evaluation, pairs):
        monkeypatch.setattr(module, "CHUNK", 2)
    parts = evaluate(DIGITS, ["initial", "demons", "digits-spac"], 3, SEED)
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert list(one.measures) == list(other.measures) == ["dice", "hd95_mm", "folding", "sd_log_jacobian"]
        for name in one.measures:
            assert one.measures[name] == pytest.approx(other.measures[name], abs=0.02), (one.method, name)


def test_a_policy_plays_to_the_time_limit() -> None:
    """A policy's error is that of the single environment after as many steps of the same actions."""
    class Right:
        def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None,
                    deterministic: bool = False) -> tuple[np.ndarray, None]:
            assert deterministic and observation.shape == (PAIRS, 1, 48, 48) and observation.dtype == np.uint8
            return np.zeros(len(observation), dtype=np.int64), None

    steps = 5
    row = evaluate(ENV, [Policy("right", Right())], PAIRS, SEED, {**KWARGS, "max_episode_steps": steps}).rows[0]
    env = gym.make(ENV, stop="never", **KWARGS)
    for i, error in enumerate(row.errors_mm):
        env.reset(seed=SEED + i)
        for _ in range(steps):
            info = env.step(0)[-1]
        assert error == pytest.approx(info["tre"], abs=SAME_MM)


def test_displacements_are_measured_by_overlap_folds_and_surfaces() -> None:
    found = evaluate(DIGITS, ["digits-spac", "initial", "demons"], 3, SEED)
    assert found.moves == "field" and [row.method for row in found.rows] == ["digits-spac", "initial", "demons"]
    env = gym.make(DIGITS)
    assert found.row("initial").measures["dice"] == pytest.approx(
        [env.reset(seed=SEED + i)[1]["dice"] for i in range(3)])
    better, start = (found.row(name).values("dice").mean() for name in ("digits-spac", "initial"))
    assert better > start + 0.2
    assert found.row("digits-spac").values("hd95_mm").mean() < found.row("initial").values("hd95_mm").mean()
    assert "digits-spac" in found.table()


def test_key_points_with_known_targets_are_measured_by_their_error() -> None:
    arguments = {"size": 32}
    found = evaluate("RegKeypoint2D-v0", ["initial", "adam"], 2, SEED, arguments)
    assert list(found.rows[0].measures) == list(STANDARD)
    env = gym.make("RegKeypoint2D-v0", **arguments)
    assert found.row("initial").errors_mm == pytest.approx(
        [env.reset(seed=SEED + i)[1]["tre"] for i in range(2)], abs=SAME_MM)
    assert found.row("adam").mean < found.row("initial").mean


def test_the_measures_of_displacements_can_be_chosen() -> None:
    found = evaluate(DIGITS, ["initial"], 2, SEED, measures=("hausdorff_mm", "dice"))
    assert list(found.rows[0].measures) == ["hausdorff_mm", "dice"]


@pytest.mark.parametrize(("env_id", "arguments", "told"), [
    (DIGITS, {"refine": True}, "refine is for poses"),
    (DIGITS, {"methods": ["mi"]}, "baseline is 'mi'; for these pairs it must be one of initial, random, de"),
    (DIGITS, {"methods": ["mi-multistart"]}, "baseline is 'mi-multistart'"),
    (DIGITS, {"methods": ["rigid2d"]}, "rigid2d: it finds a pose, but the pairs need a Dense"),
    (DIGITS, {"methods": []}, "no method was given; give an agent or one of initial, random, demons"),
    (ENV, {"methods": ["demons"]}, "baseline is 'demons'; for these pairs it must be one of initial, random"),
    (ENV, {"methods": ["digits-spac"]}, r"digits-spac: it sees \(28, 28\) voxels"),
    (ENV, {"methods": ["initial", "initial"]}, "each may stand there once"),
    (ENV, {"methods": ["initial", "mi-multistart"]}, "no agent was given"),
    (ENV, {"pairs": 0}, "pairs is 0")])
def test_what_does_not_suit_the_pairs_is_named(env_id: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        evaluate(env_id, **{"methods": ["initial"], "pairs": 1, "env_kwargs": KWARGS if env_id == ENV else {},
                            **arguments})


def test_baselines_are_those_of_the_family() -> None:
    assert chosen_baselines("whole-head", {}, None) == chosen_baselines(ENV, KWARGS, None) == ("initial", "mi")
    assert chosen_baselines(DIGITS, {}, None)[:5] == ("initial", "demons", "bspline", "adam", "convexadam")
    assert chosen_baselines(ENV, {}, ["mi-multistart"]) == ("mi-multistart",)
    with pytest.raises(ValueError, match="baseline is 'mi'; it must be one of initial, random, demons"):
        chosen_baselines("RegSDM2D-v0", {}, ["mi"])


def test_given_pairs_are_timed_and_measured() -> None:
    drawn = list(pairs.chunks(DIGITS, 3, SEED, {}))
    row = row_of(Initial(), drawn, ("dice",))
    dice = [RegistrationCore(chunk.core.task).info(chunk.state)["dice"] for chunk in drawn]
    assert row.measures["dice"] == pytest.approx(np.concatenate(dice)) and row.seconds >= 0


def test_a_ledger_is_gone_on_from_but_not_with_other_weights(tmp_path: Path) -> None:
    toy = checkpoint(tmp_path / "toy.safetensors", 2)
    asked: dict[str, Any] = {"pairs": 2, "seed": SEED, "env_kwargs": KWARGS, "ledger": tmp_path / "parts.jsonl"}
    first = evaluate(ENV, [str(toy), "initial"], **asked)
    again = evaluate(ENV, [str(toy), "initial"], **asked)
    assert again == first  # seconds, too: nothing was done again
    tensors, card = checkpoints.load(toy)
    checkpoints.save(toy, {name: value + 1 for name, value in tensors.items()}, card)
    with pytest.raises(ValueError, match="weights is"):
        evaluate(ENV, [str(toy), "initial"], **asked)
    with pytest.raises(ValueError, match="no name"):
        evaluate(ENV, [Pipeline((str(toy),))], **asked)


def test_a_ledger_keeps_displacements_measures(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"pairs": 2, "seed": SEED, "ledger": tmp_path / "parts.jsonl"}
    assert evaluate(DIGITS, ["initial", "demons"], **asked) == evaluate(DIGITS, ["initial", "demons"], **asked)
    with pytest.raises(ValueError, match="measures is"):
        evaluate(DIGITS, ["initial"], measures=("dice",), **asked)
