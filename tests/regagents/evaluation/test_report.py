"""Reports: one schema for poses and displacements, whole files, rows of the same pairs joined."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regagents.evaluation import report as module
from regagents.evaluation.report import Report, Row
from regenv.data.io.images import ImageError
from regenv.ops.landmarks import wilson

ENV, PAIRS, SEED = "RegRigid2D-v0", 4, 11
POSES = Report(ENV, {"source": {"name": "phantoms"}}, PAIRS, SEED, 1, 10.0, (
    Row("good", {"tre_mm": (1.0, 2.0, 3.0, 4.0)}, 0.5),
    Row("half as good", {"tre_mm": (5.0, 5.0, 50.0, 50.0)}, 12.0)))
FIELDS = Report("RegDenseDigits-v0", {}, 3, SEED, 1, 10.0, (
    Row("initial", {"dice": (0.5, 0.3, None), "hd95_mm": (4.0, 6.0, None), "folding": (0.0, 0.0, 0.0),
                    "sd_log_jacobian": (0.0, 0.0, 0.0)}, 0.0),
    Row("demons", {"dice": (0.9, 0.6, None), "hd95_mm": (1.0, 2.0, None), "folding": (0.1, 0.0, 0.02),
                   "sd_log_jacobian": (0.5, 0.1, 0.3)}, 0.25)), "field")
REPORTS = pytest.mark.parametrize("report", [POSES, FIELDS], ids=["poses", "displacements"])


def test_the_table_of_poses_shows_known_numbers() -> None:
    lines = POSES.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["method", "TRE", "mean", "p10", "p50", "p90", "<=", "10", "mm", "95", "%", "interval",
                                "s/pair"]
    assert lines[1].split() == ["good", "2.50", "1.30", "2.50", "3.70", "100.0", "%", "51.0-100.0", "%", "0.50"]
    assert "50.0 %" in lines[2] and "15.0-85.0 %" in lines[2]


def test_the_table_of_displacements_shows_every_measure_and_leaves_out_what_is_not_defined() -> None:
    lines = FIELDS.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["method", "Dice", "median", "HD95,", "mm", "folded", "SDlogJ", "s/pair"]
    assert lines[2].split() == ["demons", "0.750", "0.750", "1.50", "4.000", "%", "0.300", "0.25"]
    none = replace(FIELDS, rows=(Row("initial", {"dice": (None, None), "folding": (0.0, 0.0)}, 0.0),))
    assert none.table().splitlines()[1].split() == ["initial", "none", "none", "0.000", "%", "0.00"]


@REPORTS
def test_json_and_csv_hold_the_table(report: Report, tmp_path: Path) -> None:
    report.save_json(tmp_path / "r.json")
    report.save_csv(tmp_path / "r.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.csv"}
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["schema"] == 2
    assert (data["env"], data["pairs"], data["seed"]) == (report.env, report.pairs, SEED)
    lines = list(csv.DictReader((tmp_path / "r.csv").open()))
    for row, method, line in zip(report.rows, data["methods"], lines, strict=True):
        assert method["method"] == line["method"] == row.method
        assert method["measures"] == {name: list(values) for name, values in row.measures.items()}
        assert all(float(line[name]) == method[name] for name in line if name != "method")


def test_numbers_of_poses_are_percentiles_and_the_share_of_successes() -> None:
    for row, numbers in zip(POSES.rows, POSES.numbers(), strict=True):
        assert numbers["tre_p50_mm"] == np.percentile(row.errors_mm, 50)
        assert (numbers["success_low"], numbers["success_high"]) == wilson(
            sum(error <= POSES.success_mm for error in row.errors_mm), PAIRS)


@REPORTS
def test_a_report_comes_back_from_its_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    with pytest.raises(ValueError, match="schema is 1; this release reads 2"):
        Report.from_dict({**report.to_dict(), "schema": 1})


def test_reports_of_the_same_pairs_are_joined() -> None:
    newer = replace(POSES, rows=(Row("good", {"tre_mm": (1.0,) * PAIRS}, 0.5),
                                 Row("new", {"tre_mm": (2.0,) * PAIRS}, 0.1)))
    joined = POSES.joined(newer)
    assert [row.method for row in joined.rows] == [*(row.method for row in POSES.rows), "new"]
    assert joined.row("good").errors_mm == (1.0,) * PAIRS and joined.rows[1:-1] == POSES.rows[1:]
    with pytest.raises(ValueError, match=f"seed is {SEED} in one and 0 in the other"):
        POSES.joined(replace(newer, seed=0))


def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.json").write_text("old")
    monkeypatch.setattr(module.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        POSES.save_json(tmp_path / "r.json")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises((ImageError, FileNotFoundError), match="does not exist"):
        POSES.save_csv(tmp_path / "nowhere" / "r.csv")
