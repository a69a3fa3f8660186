"""``regagents batch``: its exit status, what it prints, and that what register takes for a pair it takes for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regagents.cli import main, parser
from regagents.registration import batch as batches

STATES = {"good": "aligned", "so": "doubtful", "far": "failed"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tables, where a pair ends as its moving file is called."""
    def register(fixed: Any, moving: Any, *given: Any, **more: Any) -> Any:
        if moving.name not in STATES:
            raise ValueError(f"{moving}: it is broken.")
        verdict = {"state": STATES[moving.name], "probability": 0.5, "reasons": ["few starts ended there"]}
        return SimpleNamespace(metrics={"verdict": verdict}, trace=[{"score": 0.3}], save=lambda out: out.mkdir())

    monkeypatch.setattr(batches, "register", register)
    monkeypatch.setattr(batches, "_image", lambda path, spacing, volume: path)
    for name in ("f", "bad", *STATES):
        (tmp_path / name).write_text(name)
    return tmp_path


def run(folder: Path, moving: str, *options: str) -> int:
    lines = ["fixed,moving,name", *(f"f,{name},{name}" for name in moving.split())]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return main(["batch", str(folder / "t.csv"), "-o", str(folder / "out"), *options])


@pytest.mark.parametrize(("moving", "options", "status"), [
    ("good far", [], 0), ("good", ["--strict"], 0), ("good so", ["--strict"], 3), ("good far", ["--strict"], 3),
    ("good bad", [], 2), ("bad far", ["--strict"], 2)])
def test_the_exit_status_tells_the_worst_that_happened(moving: str, options: list[str], status: int,
                                                       source: Path) -> None:
    assert run(source, moving, *options) == status


def test_it_prints_what_needs_a_look_and_where_the_summary_is(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "good bad far") == 2
    told = capsys.readouterr()
    assert told.err == "" and told.out.splitlines() == [
        f"bad: error: {source}/bad: it is broken.", "far: failed: few starts ended there",
        "3 pairs: 1 error, 1 failed, 1 aligned", f"written: {source}/out", f"summary: {source}/out/index.html"]
    assert (source / "out" / "index.html").is_file()


def test_a_bad_table_is_one_line_and_nothing_is_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "good gone") == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and f"{source}/gone: no such file" in told.err
    assert not (source / "out").exists()


def test_options_of_register_are_options_of_batch() -> None:
    """All but those that name files of one pair, which are columns of the table."""
    single, many = (vars(parser().parse_args(words)) for words in (["register", "f", "m", "-o", "o"],
                                                                   ["batch", "t", "-o", "o"]))
    assert set(single) - set(many) == {"moving", "masks", "landmarks", "labels"}
    shared = set(single) & set(many) - {"command", "fixed"}
    assert {name: single[name] for name in shared} == {name: many[name] for name in shared}


def test_the_options_reach_every_pair(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    end = batches.register

    def register(fixed: Any, moving: Any, *given: Any, **more: Any) -> Any:
        seen.append((*given, more["deform"], more["fill"], more["transform"]))
        return end(fixed, moving)

    monkeypatch.setattr(batches, "register", register)
    assert run(source, "good so", "--agent", "none", "--no-refine", "--init", "header", "--transform", "affine",
               "--deform", "adam", "--fill", "-3") == 0
    assert seen == [("none", False, "header", "adam", -3.0, "affine")] * 2
