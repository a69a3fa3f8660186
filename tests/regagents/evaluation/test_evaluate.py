"""Evaluation: every method meets the same pairs and starts; the numbers are the environment's own."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import regagents.evaluation.evaluate as evaluation
from regagents.evaluation.evaluate import Pipeline, Policy, evaluate
from regagents.evaluation.pairs import HELD_OUT, chunks, grid_of
from regagents.evaluation.report import Report, Row
from regenv.data.io.images import ImageError
from regenv.grid import Grid
from regenv.ops.landmarks import wilson
from tests.regagents.toys import SHAPES, SPACINGS, checkpoint

PAIRS, SEED = 4, 11
ENV = "RegRigid2D-v0"
KWARGS: dict[str, Any] = {"size": 48, "spacing": 5.0, "ranges": [12, 12, 12],
                          "source": {"name": "phantoms", "patients": 2, "bank_spacing": 2.5}}
SAME_MM = 1e-6


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    toy = str(checkpoint(tmp_path_factory.mktemp("weights") / "toy.safetensors", 2))
    seen: list[float] = []
    found = evaluate(ENV, ["initial", "mi", Pipeline((toy,), starts=2), "mi-multistart"], PAIRS, SEED, KWARGS,
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


def test_mutual_information_improves_on_the_start(report: Report) -> None:
    start = by_name(report, "initial").mean
    assert by_name(report, "mi").percentiles[1] < 0.5 * start
    assert by_name(report, "refined").mean < start
    assert by_name(report, "initial").seconds < by_name(report, "mi").seconds


def test_multi_start_has_at_least_the_agents_time(report: Report) -> None:
    assert by_name(report, "mi-multistart").seconds >= by_name(report, "refined").seconds


def test_pairs_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def starts() -> list[np.ndarray]:
        return [np.concatenate([case.fixed.array.ravel(), case.start.ravel()])
                for chunk in chunks(ENV, 3, SEED, KWARGS) for case in chunk.cases]

    whole = starts()
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, starts(), strict=True))


def test_a_case_measures_what_the_environment_measures() -> None:
    case = next(chunks(ENV, 1, SEED, KWARGS)).cases[0]
    linear, shift = case.start[:2, :2], case.start[:2, 2]
    assert case.error(case.start) == pytest.approx(
        np.linalg.norm(case.landmarks @ linear.T + shift - case.targets, axis=1).mean(), abs=SAME_MM)
    assert case.seed == SEED and case.fixed.array.shape == (48, 48)


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


def test_json_and_csv_hold_the_table(report: Report, tmp_path: Path) -> None:
    report.save_json(tmp_path / "r.json")
    report.save_csv(tmp_path / "r.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.csv"}
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["schema"] == 1 and (data["env"], data["pairs"], data["seed"]) == (ENV, PAIRS, SEED)
    assert data["env_kwargs"]["source"]["name"] == "phantoms"
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    for row, method, line in zip(report.rows, data["methods"], rows, strict=True):
        assert method["method"] == line["method"] == row.method
        assert method["errors_mm"] == list(row.errors_mm)
        assert method["tre_p50_mm"] == float(line["tre_p50_mm"]) == np.percentile(row.errors_mm, 50)
        assert (method["success_low"], method["success_high"]) == wilson(
            sum(error <= report.success_mm for error in row.errors_mm), PAIRS)


def test_reports_of_the_same_pairs_are_joined(report: Report) -> None:
    newer = replace(report, rows=(replace(by_name(report, "initial"), errors_mm=(1.0,) * PAIRS),
                                  Row("new", (2.0,) * PAIRS, 0.1)))
    joined = Report.from_dict(json.loads(json.dumps(report.to_dict()))).joined(newer)
    assert [row.method for row in joined.rows] == [*(row.method for row in report.rows), "new"]
    assert joined.rows[0].errors_mm == (1.0,) * PAIRS and joined.rows[1:-1] == report.rows[1:]
    with pytest.raises(ValueError, match=f"seed is {SEED} in one and 0 in the other"):
        report.joined(replace(newer, seed=0))
    with pytest.raises(ValueError, match="schema is 7"):
        Report.from_dict({**report.to_dict(), "schema": 7})


def test_failed_write_keeps_the_old_report(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.json").write_text("old")
    monkeypatch.setattr(evaluation.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save_json(tmp_path / "r.json")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(ImageError, match="does not exist"):
        report.save_csv(tmp_path / "nowhere" / "r.csv")


def test_table_shows_known_numbers() -> None:
    rows = (Row("good", (1.0, 2.0, 3.0, 4.0), 0.5), Row("half as good", (5.0, 5.0, 50.0, 50.0), 12.0))
    lines = Report(ENV, {}, 4, 0, 1, 10.0, rows).table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["good", "2.50", "1.30", "2.50", "3.70", "100.0", "%", "51.0-100.0", "%", "0.50"]
    assert "50.0 %" in lines[2] and "15.0-85.0 %" in lines[2]


@pytest.mark.parametrize("ndim", [2, 3])
def test_grids_come_back_from_their_matrices(ndim: int) -> None:
    direction = np.linalg.qr(np.random.default_rng(ndim).normal(size=(ndim, ndim)))[0]
    grid = Grid.centered(SHAPES[ndim], SPACINGS[ndim], [7.0, 8.0, 9.0][:ndim], direction.ravel())
    assert np.allclose(grid_of(grid.voxel_to_world, grid.shape).voxel_to_world, grid.voxel_to_world, atol=1e-12)
    assert grid_of(grid.voxel_to_world, grid.shape).spacing == pytest.approx(grid.spacing)


def test_held_out_arguments_are_known_to_the_environment() -> None:
    for env_id, arguments in HELD_OUT.values():
        gym.make_vec(env_id, num_envs=1, **arguments)  # sources load nothing before the first pair is drawn


def test_unknown_truth_is_refused(tmp_path: Path) -> None:
    from tests.regagents.toys import image_pair

    fixed, moving, _ = image_pair(tmp_path, 2)
    source = {"name": "files", "pairs": [{"fixed": str(fixed), "moving": str(moving)}]}
    with pytest.raises(ValueError, match="unknown truth"):
        evaluate(ENV, ["initial"], 1, env_kwargs={**KWARGS, "source": source})


@pytest.mark.parametrize("name", ["RegSDM2D-v0", "RegDense2D-v0", "RegKeypoint3D-v0"])
def test_deformable_ids_are_sent_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}', which deforms"):
        evaluate(name, ["initial"], 1)


def test_a_ledger_is_gone_on_from_but_not_with_other_weights(tmp_path: Path) -> None:
    toy = checkpoint(tmp_path / "toy.safetensors", 2)
    asked: dict[str, Any] = {"pairs": 2, "seed": SEED, "env_kwargs": KWARGS, "ledger": tmp_path / "parts.jsonl"}
    first = evaluate(ENV, [str(toy), "initial"], **asked)
    again = evaluate(ENV, [str(toy), "initial"], **asked)
    assert again == first  # seconds, too: nothing was done again
    toy.write_bytes(toy.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="weights is"):
        evaluate(ENV, [str(toy), "initial"], **asked)
    with pytest.raises(ValueError, match="no name"):
        evaluate(ENV, [Pipeline((str(toy),))], **asked)
