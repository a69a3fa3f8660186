"""Every engine gives the results of a plain loop; an interrupted run continues from its ledger."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from regagents.common.jobs import ENGINES, Ledger, run

ABOUT = {"env": "toy", "numbers": [1, 2]}
JOBS = {f"job {n}": (n,) for n in range(6)}


def squared(n: int) -> dict[str, int]:
    time.sleep(0.02 * (6 - n))  # the first are the last to be finished
    return {"square": n * n, "process": os.getpid()}


def failing(n: int) -> dict[str, int]:
    if n == 3:
        raise ArithmeticError("three")
    return {"square": n * n}


def counted(n: int, folder: str) -> dict[str, int]:
    (Path(folder) / f"{n} {time.monotonic_ns()}").touch()
    return {"square": n * n}


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.clients if name == "ray" else ())
                                    for name in ENGINES])
def test_every_engine_gives_the_results_of_a_loop(engine: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", ABOUT)
    found = dict(run(squared, JOBS, engine, 2, ledger))
    assert {key: result["square"] for key, result in found.items()} == {f"job {n}": n * n for n in range(6)}
    others = {result["process"] for result in found.values()} - {os.getpid()}
    assert bool(others) == (engine != "serial") and Ledger(tmp_path / "ledger.jsonl", ABOUT).results == found


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_what_was_finished_before_a_failure_is_not_done_again(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ArithmeticError, match="three"):
        list(run(failing, JOBS, engine, 1, Ledger(path, ABOUT)))
    before = Ledger(path, ABOUT).results
    assert len(before) >= 2 and "job 3" not in before
    done = dict(run(counted, {key: (*job, str(tmp_path)) for key, job in JOBS.items()}, "serial", None,
                    Ledger(path, ABOUT)))
    again = {int(file.name.split()[0]) for file in tmp_path.iterdir() if " " in file.name}
    assert again == {n for n in range(6) if f"job {n}" not in before}
    assert {key: result["square"] for key, result in done.items()} == {f"job {n}": n * n for n in range(6)}


def test_a_ledger_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, ABOUT)
    for n in range(3):
        ledger.add(f"job {n}", {"square": n * n})
    whole = path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = Ledger(path, ABOUT)
        assert len(kept.results) == max(0, sum(end < size for end in ends) - 1)
        kept.add("next", 1)
        assert Ledger(path, ABOUT).results["next"] == 1


def test_a_ledger_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, ABOUT)
    with pytest.raises(ValueError, match=r"numbers is \[1, 2\] there and \[3\] here"):
        Ledger(path, {**ABOUT, "numbers": [3]})
    path.write_text(json.dumps(ABOUT) + "\n" + '{"key": "a"\n' + '{"key": "b", "result": 1}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        Ledger(path, ABOUT)


@pytest.mark.parametrize(("arguments", "told"), [({"engine": "dask"}, "engine is 'dask'"),
                                                 ({"workers": 0}, "workers is 0")])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(run(squared, JOBS, **arguments))
