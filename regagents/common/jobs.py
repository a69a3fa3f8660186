"""Parts of a long job, run in this process, in several, or on a Ray cluster. Finished parts are not run again.

Start a cluster with Ray's own commands (``ray start --head`` on one machine, ``ray start --address=HEAD:6379`` on the
others) and name it in ``RAY_ADDRESS``; without that variable Ray starts on this machine alone. Ray's token
authentication is left as it is set.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regagents.common.threads import single_threaded
from regenv.atomic import atomic

ENGINES = ("serial", "processes", "ray")


class Ledger:
    """Finished results in a file, one JSON line each. The first line states what they depend on.

    A last line that was cut short is dropped.

    Args: path: of the file; about: what the results depend on, as JSON.
    Raises: ValueError: the file's results depend on something else, or a line before the last is damaged.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.results: dict[str, Any] = {}
        stated = json.loads(json.dumps(about, default=str))
        lines = self.path.read_text().split("\n") if self.path.is_file() else []
        whole = lines[:-1]  # a line without its end was cut short
        for number, line in enumerate(whole):
            try:
                entry = json.loads(line)
                if number:
                    self.results[entry["key"]] = entry["result"]
                elif entry != stated:
                    differing = sorted(key for key in {*stated, *entry} if stated.get(key) != entry.get(key))
                    raise ValueError(f"{self.path}: {differing[0]} is {entry.get(differing[0])!r} there and "
                                     f"{stated.get(differing[0])!r} here; use another folder or delete it.")
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}: line {number + 1} is damaged; delete the file, or that line.") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in (whole or [json.dumps(stated)])))

    def add(self, key: str, result: Any) -> None:
        """Keep a result. It is on disk when this returns."""
        self.results[key] = result
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]], engine: str = "serial",
        workers: int | None = None, ledger: Ledger | None = None) -> Iterator[tuple[str, Any]]:
    """``(key, function(*arguments))`` of every job: those in the ledger first, the others as they finish.

    An error in a job ends the run; the ledger keeps the results until then.

    Args:
        function: defined at the top of a module. Its arguments and results can be pickled; with a ledger, results are
            JSON.
        engine: "serial", "processes" (spawned, one thread each) or "ray" (needs the extra ``ray``).
        workers: how many jobs run at once; default one a core, here or in the cluster.
    Raises: ValueError: an unknown engine, no workers, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    known = {} if ledger is None else ledger.results
    yield from [(key, known[key]) for key in jobs if key in known]
    left = {key: arguments for key, arguments in jobs.items() if key not in known}
    for key, result in _ENGINES[engine](function, left, workers):
        if ledger is not None:
            ledger.add(key, result)
        yield key, result


def _serial(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]],
            workers: int | None) -> Iterator[tuple[str, Any]]:
    for key, arguments in jobs.items():
        yield key, function(*arguments)


def _processes(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]],
               workers: int | None) -> Iterator[tuple[str, Any]]:
    with single_threaded(), ProcessPoolExecutor(workers or os.cpu_count(), multiprocessing.get_context("spawn"),
                                                partial(torch.set_num_threads, 1)) as pool:
        futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ray(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]],
         workers: int | None) -> Iterator[tuple[str, Any]]:
    ray = ray_started()
    remote = ray.remote(num_cpus=1)(function)
    waiting = list(jobs.items())
    running: dict[Any, str] = {}
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                key, arguments = waiting.pop(0)
                running[remote.remote(*arguments)] = key
            for done in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(done), ray.get(done)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


_ENGINES = {"serial": _serial, "processes": _processes, "ray": _ray}


def ray_started() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS or started here. Raises ValueError where it is not installed."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f'engine is "ray": {error}; pip install "regenv[ray]".') from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False if "RAY_ADDRESS" not in os.environ else None)
    return ray
