"""Every engine gives the results of a plain loop; an interrupted run continues from its ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regagents.common.jobs import ENGINES, JobError, Ledger, ray_started, run

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


HOLDER = """
import sys, time
from regagents.common.jobs import Ledger
ledger = Ledger(sys.argv[1], {"env": "toy", "numbers": [1, 2]})
ledger.add("job 0", 0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_ledger_belongs_to_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            before = path.read_bytes()
            with pytest.raises(ValueError, match=r"ledger\.jsonl: another run keeps its results there"):
                Ledger(path, ABOUT)
            assert path.read_bytes() == before
        finally:
            holder.kill()
    assert Ledger(path, ABOUT).results == {"job 0": 0}


@pytest.mark.parametrize("line", ["[" * 100_000, '{"key": 1, "result": 1}', '{"key": "a"}', "[]", "1" * 5000,
                                  '{"key": "a", "key": "b", "result": 1}', "\x00", "null"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_ledger_is_named_and_kept(line: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    text = line + "\n" if number == 1 else f"{json.dumps(ABOUT)}\n{line}\n"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"ledger\.jsonl: (line {number} is damaged|\w+ is .* there and)"):
        Ledger(path, ABOUT)
    assert path.read_text() == text


def test_results_that_are_no_numbers_come_back(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl", ABOUT).add("a", [float("nan"), None])
    found = Ledger(tmp_path / "ledger.jsonl", ABOUT).results["a"]
    assert found[0] != found[0] and found[1] is None


def test_a_ledger_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/dev/full: a ledger must be a file"):
        Ledger("/dev/full", ABOUT)
    with pytest.raises(ValueError, match="a ledger must be a file"):
        Ledger(tmp_path, ABOUT)


def dying(n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="a process ended abruptly"):
        list(run(dying, JOBS, "processes", 1))


SLEEPERS = """
import os, sys, time
from pathlib import Path
from regagents.common.jobs import run
def sleeping(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
if __name__ == "__main__":
    list(run(sleeping, {"a": (sys.argv[1],), "b": (sys.argv[1],)}, "processes", 2))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(sent: signal.Signals, tmp_path: Path) -> None:
    script, folder = tmp_path / "sleepers.py", tmp_path / "workers"
    script.write_text(SLEEPERS)
    folder.mkdir()
    with subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.DEVNULL) as main:
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        main.send_signal(sent)
        main.wait(20)
    workers = [int(path.name) for path in folder.iterdir()]
    deadline = time.monotonic() + 10
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and not any(map(_runs, workers))


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("address", [None, "", "10.0.0.1:6379"])
def test_ray_that_is_started_here_listens_to_this_machine_alone(address: str | None,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    stub = SimpleNamespace(is_initialized=lambda: False, init=lambda **given: asked.append(given))
    monkeypatch.setitem(sys.modules, "ray", stub)
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_started() is stub
    own = {"_node_ip_address": "127.0.0.1", "dashboard_host": "127.0.0.1", "include_dashboard": False}
    assert asked == [{"log_to_driver": False, **({} if address else own)}]


def test_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no cluster")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse))
    with pytest.raises(ValueError, match=r'engine is "ray": it does not start \(no cluster\)'):
        ray_started()
