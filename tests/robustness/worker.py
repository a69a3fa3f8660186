"""Reads damaged files in a process of its own, within a limit of time and memory."""

from __future__ import annotations

import multiprocessing as mp
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.damage import PLACE, SEED, VOXELS, Case, cases, write
from tests.robustness.sound import Sound

SECONDS = 10.0                  # for one file
MEMORY_BYTES = 160 << 20        # that reading may take besides what the process had: far less than a bomb's content
_START_SECONDS = 240.0          # for a process to import the readers, on a busy machine
SAME, REFUSED, CHANGED = "same", "refused", "changed"


@dataclass(frozen=True)
class Outcome:
    """What came of reading a damaged file: same, refused, changed, or what went wrong."""

    name: str
    result: str
    message: str = ""

    @property
    def is_right(self) -> bool:
        return self.result in (SAME, REFUSED)


def outcomes(indices: Iterable[int], seed: int = SEED) -> Iterator[Outcome]:
    """The outcomes of the cases of these indices. A process that ends or hangs is followed by another one."""
    context = mp.get_context("spawn")       # each truth is read, and all readers imported, before memory is limited
    left = list(indices)
    while left:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, left, seed), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(_START_SECONDS):
                raise TimeoutError("the reading process does not start")
            ours.recv()
            while left:
                if not ours.poll(SECONDS):
                    yield Outcome(cases(seed)[left.pop(0)].name, f"hangs for more than {SECONDS:g} s")
                    break
                try:
                    outcome = ours.recv()
                except EOFError:
                    process.join()
                    yield Outcome(cases(seed)[left.pop(0)].name, f"ends the process ({process.exitcode})")
                    break
                left.pop(0)
                yield outcome
        finally:
            process.kill()
            process.join()


def _work(connection: Connection, indices: list[int], seed: int) -> None:
    found = cases(seed)
    truths: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index in indices:
            case = found[index]
            if case.sound.name not in truths:
                place = Path(folder) / f"sound-{len(truths)}"
                place.mkdir()
                truths[case.sound.name] = _read(case.sound, write(case.sound, place))
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        connection.send("ready")
        for index in indices:
            place = Path(folder) / str(index)
            place.mkdir()
            connection.send(_outcome(found[index], place, truths[found[index].sound.name]))


def _outcome(case: Case, folder: Path, truth: Any) -> Outcome:
    from regenv.data.io.errors import ImageError
    path = case.make(folder)
    began = time.perf_counter()
    try:
        found = _read(case.sound, path)
    except ImageError as error:
        message = str(error)
        wrong = "MemoryError" in message or "bad alloc" in message or len(message.splitlines()) != 1 \
            or str(folder) not in message
        return Outcome(case.name, "unclear error" if wrong else REFUSED, message.replace(str(folder), ""))
    except Exception as error:      # any other is what is looked for
        return Outcome(case.name, f"raises {type(error).__name__}", str(error)[:300])
    spent = time.perf_counter() - began
    if spent > SECONDS:
        return Outcome(case.name, f"takes {spent:.0f} s")
    return Outcome(case.name, _compared(case, found, truth))


def _read(sound: Sound, path: Path) -> Any:
    from regenv.data.io.images import read_image
    from regenv.data.io.landmarks import read_landmarks
    from regenv.data.io.transforms import read_transform
    if sound.read == "image":
        image = read_image(path, time=sound.time)
        return image.array, image.grid.voxel_to_world
    return (read_landmarks if sound.read == "landmarks" else read_transform)(path), np.eye(4)


def _compared(case: Case, found: Any, truth: Any) -> str:
    """Whether what was read is the truth, as far as the damage may not change it, and is finite at all."""
    if not all(np.isfinite(array).all() for array in found):
        return "gives numbers that are not finite"
    (voxels, place), (true_voxels, true_place) = found, truth
    if case.may_change == VOXELS:
        return SAME
    if voxels.shape != true_voxels.shape or not np.array_equal(voxels, true_voxels):
        return CHANGED
    if case.may_change != PLACE and not np.allclose(place, true_place, rtol=0, atol=1e-9):
        return "changed place"
    return SAME
