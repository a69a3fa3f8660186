"""Where the parts of a long job run: here, in processes, or on a Ray cluster. What is finished is not done again.

A cluster is started as Ray says (``ray start --head`` on one machine, ``ray start --address=HEAD:6379`` on others) and
found by ``RAY_ADDRESS``; without it Ray starts on this machine alone. Ray's token authentication stays as it is set.
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
    """Finished results, one JSON line each, in a file that begins with what they are of.

    Args: path: of the file; about: whatever the results depend on, as JSON. A last line that was cut short is dropped.
    Raises ValueError where the file is of something else, or damaged before its last line.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.results: dict[str, Any] = {}
        told = json.loads(json.dumps(about, default=str))
        lines = self.path.read_text().split("\n") if self.path.is_file() else []
        whole = lines[:-1]  # what follows the last line's end was being written
        for number, line in enumerate(whole):
            try:
                entry = json.loads(line)
                if number:
                    self.results[entry["key"]] = entry["result"]
                elif entry != told:
                    differing = sorted(key for key in {*told, *entry} if told.get(key) != entry.get(key))
                    raise ValueError(f"{self.path}: {differing[0]} is {entry.get(differing[0])!r} there and "
                                     f"{told.get(differing[0])!r} here; use another folder or delete it.")
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}: line {number + 1} is damaged; delete the file, or that line.") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in (whole or [json.dumps(told)])))

    def add(self, key: str, result: Any) -> None:
        """Keep a result, on disk before this returns."""
        self.results[key] = result
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]], engine: str = "serial",
        workers: int | None = None, ledger: Ledger | None = None) -> Iterator[tuple[str, Any]]:
    """``(key, function(*arguments))`` of every job: those in the ledger first, others as they are finished.

    Args:
        function: of a module, of arguments and with results that can be pickled, and be JSON where there is a ledger.
        engine: "serial", "processes" (spawned, a thread each) or "ray" (needs the extra ``ray``).
        workers: how many at once; default a process a core, or what the cluster has.
    Raises ValueError for an unknown engine or number, and without Ray. What a job raises ends the run; the
    ledger keeps what was finished.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    known = {} if ledger is None else ledger.results
    yield from [(key, known[key]) for key in jobs if key in known]
    left = {key: arguments for key, arguments in jobs.items() if key not in known}
    for key, result in {"serial": _serial, "processes": _processes, "ray": _ray}[engine](function, left, workers):
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
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while waiting or running:
            while waiting and len(running) < most:
                key, arguments = waiting.pop(0)
                running[remote.remote(*arguments)] = key
            for done in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(done), ray.get(done)
    finally:
        for left in running:
            ray.cancel(left)


def ray_started() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS or started here. Raises ValueError without it."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f'engine is "ray": {error}; pip install "regenv[ray]".') from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False if "RAY_ADDRESS" not in os.environ else None)
    return ray
