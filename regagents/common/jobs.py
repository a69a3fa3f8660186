"""Parts of a long job, run in this process, in several, or on a Ray cluster. Finished parts are not run again.

Start a cluster with Ray's own commands (``ray start --head`` on one machine, ``ray start --address=HEAD:6379`` on the
others) and name it in ``RAY_ADDRESS``; without that variable Ray starts on this machine alone, on its loopback address.
Ray's token authentication is left as it is set.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from regagents.common.threads import single_threaded
from regenv.shell import PlainError
from regenv.stored import StoredError, parse_json

ENGINES = ("serial", "processes", "ray")
LOOPBACK = "127.0.0.1"
LINE_BYTES = 1 << 26  # of a line of a ledger


class JobError(PlainError):
    """A part's process ended before the part did, and did not say why."""


class Ledger:
    """Finished results in a file, one JSON line each. The first line states what they depend on.

    A last line that was cut short is dropped. The file belongs to this process until :meth:`close` or the process's
    end, however it ends: two runs would do each other's work again.

    Args: path: of the file; about: what the results depend on, as JSON.
    Raises: ValueError: another process has the file, its results depend on something else, or a line before the last
        is damaged.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.results: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path}: a ledger must be a file. Choose another name.")
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._read(json.loads(json.dumps(about, default=str)))
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """A lock of POSIX: it ends with the process. File systems without locks give none."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"{self.path}: another run keeps its results there at this moment. Wait until it has "
                                 "ended, or choose another file.") from None

    def _read(self, stated: Any) -> None:
        """Take over the whole lines of the file, and cut the rest off."""
        self._file.seek(0)
        reader = io.BufferedReader(self._file)  # type: ignore[type-var]
        end, number = 0, 0
        for line in iter(lambda: reader.readline(LINE_BYTES + 1), b""):
            if not line.endswith(b"\n"):
                if len(line) > LINE_BYTES:
                    raise ValueError(f"{self.path}: line {number + 1} has more than {LINE_BYTES:,} bytes; it is no "
                                     "ledger. Choose another file.")
                break
            self._take(line, number, stated)
            end, number = end + len(line), number + 1
        reader.detach()
        if end < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(end)
        if not number:
            self._append(stated)

    def _take(self, line: bytes, number: int, stated: Any) -> None:
        try:
            entry = parse_json(line, "entry", LINE_BYTES, finite=False)
        except StoredError:
            entry = None
        if not isinstance(entry, dict) or (number and not (isinstance(entry.get("key"), str) and "result" in entry)):
            raise ValueError(f"{self.path}: line {number + 1} is damaged; delete the file, or that line.")
        if number:
            self.results[entry["key"]] = entry["result"]
        elif entry != stated:
            differing = min(key for key in {*stated, *entry} if stated.get(key) != entry.get(key))
            raise ValueError(f"{self.path}: {differing} is {entry.get(differing)!r:.200} there and "
                             f"{stated.get(differing)!r:.200} here; use another folder or delete it.")

    def _append(self, entry: Any) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) or 0:]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(f"{self.path}: the ledger cannot be written ({error.strerror}). What it holds stays."
                          ) from None

    def add(self, key: str, result: Any) -> None:
        """Keep a result. It is on disk when this returns."""
        self.results[key] = result
        self._append({"key": key, "result": result})

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()


def run(function: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]], engine: str = "serial",
        workers: int | None = None, ledger: Ledger | None = None) -> Iterator[tuple[str, Any]]:
    """``(key, function(*arguments))`` of every job: those in the ledger first, the others as they finish.

    An error in a job ends the run; the ledger keeps the results until then.

    Args:
        function: defined at the top of a module. Its arguments and results can be pickled; with a ledger, results are
            JSON.
        engine: "serial", "processes" (spawned, one thread each) or "ray" (needs the extra ``ray``).
        workers: how many jobs run at once; default one a core, here or in the cluster.
    Raises: ValueError: an unknown engine, no workers, or Ray is not installed. JobError: a process was killed.
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
                                                _begin_worker) as pool:
        futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise JobError("engine processes: a process ended abruptly, perhaps for want of memory. Use fewer "
                           "workers.") from None
        except Exception:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:  # Ctrl-C, or the caller has stopped: do not wait for parts that nobody wants
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _begin_worker() -> None:
    """One thread each. Ctrl-C is the main process's matter, and a worker ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


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
                yield running.pop(done), _outcome(ray, done)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


def _outcome(ray: Any, done: Any) -> Any:
    """A finished part's result. Raises its own error, without Ray's account of where it ran."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else JobError(str(error))) from None
    except ray.exceptions.RayError as error:
        raise JobError(f"engine ray: {error}") from None


_ENGINES = {"serial": _serial, "processes": _processes, "ray": _ray}


def ray_started() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS or started here, where it listens to this machine alone.

    Raises ValueError where it is not installed or does not answer.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f'engine is "ray": {error}; pip install "regenv[ray]".') from None
    if not ray.is_initialized():
        own = {} if os.environ.get("RAY_ADDRESS") else {"_node_ip_address": LOOPBACK, "include_dashboard": False,
                                                        "dashboard_host": LOOPBACK}
        try:
            ray.init(log_to_driver=False, **own)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'engine is "ray": it does not start ({error}); see RAY_ADDRESS.') from None
    return ray
