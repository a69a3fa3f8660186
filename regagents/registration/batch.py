"""Many pairs of files registered: resumable, each into its own folder, with one summary of all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from regagents.agents import load_as, resolve
from regagents.common import jobs
from regagents.common.algorithm import Algorithm
from regagents.common.checkpoints import CheckpointError
from regagents.registration.batch_page import Line, written
from regagents.registration.batch_pairs import PLACES, Couple, Pair, Pairs, checked, read_pairs
from regagents.registration.choice import AUTO as CHOSEN
from regagents.registration.choice import table
from regagents.registration.deformation import MEMORY, OPTIMISERS, optimiser
from regagents.registration.finish import TRANSFORMS
from regagents.registration.pipeline import AUTO, pipeline
from regagents.registration.register import LARGEST, register
from regagents.registration.result import Result
from regenv.atomic import check_folder
from regenv.data.io.images import Image, ImageError, read_image, read_labels, read_mask
from regenv.data.io.transforms import read_transform
from regenv.shell import KNOWN

LEDGER = "batch.jsonl"
WHOLE = "metrics.json"      # of a pair's folder: written last
LONGEST = 1000              # characters of an error that are told


@dataclass(frozen=True)
class Options:
    """What holds for every pair of a batch: as the arguments of :func:`regagents.registration.register.register` and
    of :func:`regenv.data.io.images.read_image` of these names. ``initial`` is for pairs that have none themselves;
    ``time`` is for images that have several volumes."""

    agent: str = "auto"
    refine: bool = True
    initial: str | None = None
    deform: str | None = None
    fill: float | None = None
    transform: str = "rigid"
    spacing: float | None = None
    time: int | None = None
    memory: int = MEMORY

    def check(self) -> None:
        """Raise ValueError for a value that no pair could be registered with, as far as that does not depend on it."""
        if self.transform not in TRANSFORMS:
            raise ValueError(f"batch: transform is {self.transform!r}; take one of {', '.join(TRANSFORMS)}.")
        if self.fill is not None and not abs(self.fill) <= LARGEST:
            raise ValueError(f"batch: fill is {self.fill}; it must be a finite number of 32 bits.")
        if self.spacing is not None and not 0 < self.spacing < np.inf:
            raise ValueError(f"batch: spacing is {self.spacing}; it must be a positive number, mm.")
        if self.time is not None and self.time < 0:
            raise ValueError(f"batch: time is {self.time}; volumes are counted from 0.")
        if self.initial is not None and self.initial not in PLACES:
            read_transform(self.initial)
        for stage in () if self.agent == "auto" else pipeline(self.agent, 2).stages:
            load_as(Algorithm, stage)
        if self.memory <= 0:
            raise ValueError(f"batch: memory is {self.memory} bytes; it must be positive.")
        if self.deform is not None and self.deform != CHOSEN:
            _check_optimiser(self.deform)

    def depends(self) -> dict[str, Any]:
        """What results depend on, as JSON: the values, and what the files that they name hold."""
        stages = [stage for chain in AUTO.values() for stage in chain.stages] if self.agent == "auto" else (
            pipeline(self.agent, 2).stages)
        learned = [] if self.deform is None or self.deform.partition(":")[0] in (*OPTIMISERS, CHOSEN) else [self.deform]
        start = [] if self.initial is None or self.initial in PLACES else [Path(self.initial)]
        held = [*(resolve(name) for name in (*stages, *learned)), *start]
        return {**asdict(self), "files": [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in held],
                **({"choice": table()} if self.deform == CHOSEN else {})}


def _check_optimiser(name: str) -> None:
    """Raise ValueError for an optimiser that neither 3D nor 2D images can be deformed with."""
    try:
        optimiser(name, 3)
    except CheckpointError:
        raise
    except ValueError:
        optimiser(name, 2)


@dataclass(frozen=True)
class Batch:
    """A batch's outcome.

    Attributes: out: folder. lines: of the summary, a pair each, in their order. left_out: see
    :class:`~regagents.registration.batch_pairs.Pairs`.
    """

    out: Path
    lines: tuple[Line, ...]
    left_out: tuple[str, ...] = ()

    def of(self, *states: str) -> list[Line]:
        """The lines of these states: "aligned", "doubtful", "failed", "error"."""
        return [line for line in self.lines if line.state in states]


def batch(source: str | Path | Sequence[Pair], out: str | Path, *, agent: str | Path = "auto", refine: bool = True,
          initial: str | Path | None = None, deform: str | None = None, fill: float | None = None,
          transform: str = "rigid", spacing: float | None = None, time: int | None = None,
          memory: int = MEMORY, fixed: str | Path | None = None,
          progress: Callable[[str, float], None] | None = None, engine: str = "serial",
          workers: int | None = None) -> Batch:
    """Register many pairs. A pair that fails does not stop the others; its line says what was wrong.

    Each pair's results go to ``out/NAME``, as :meth:`~regagents.registration.result.Result.save` writes them; the
    summary of all to ``out/summary.csv``, ``summary.md`` and ``index.html``, also after an interrupt. ``batch.jsonl``
    is a ledger: run again, pairs that are done are not registered anew unless their files have changed; pairs that
    failed are.

    Args:
        source: a table, or a folder in the layout of BIDS, see
            :func:`~regagents.registration.batch_pairs.read_pairs`; or pairs.
        agent, refine, initial, deform, fill, transform, memory: see :func:`~regagents.registration.register.register`;
            a pair's own init comes before ``initial``.
        spacing: of images whose file has none, mm. time: which volume of images that have several.
        fixed: what every subject's T1w image of a BIDS folder is registered to.
        progress: called with the name of a pair that has ended and the share of pairs done.
        engine, workers: where it runs, see :func:`regagents.common.jobs.run`.
    Raises, before anything is registered: ValueError: a bad table, missing files, unknown options, or a ledger of
        other options. CheckpointError: bad weights. OSError: ``out`` cannot be written.
    """
    options = Options(str(agent), refine, None if initial is None else str(initial), deform, fill, transform, spacing,
                      time, memory)
    found = _pairs(source, fixed)
    options.check()
    list(jobs.run(registered, {}, engine, workers))     # nothing, but an engine that is not there says so
    check_folder(out)
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    ledger = jobs.Ledger(out / LEDGER, options.depends())
    try:
        return _run(found, out, options, ledger, progress or (lambda name, share: None), engine, workers)
    finally:
        ledger.close()


def _pairs(source: str | Path | Sequence[Pair], fixed: str | Path | None) -> Pairs:
    if isinstance(source, str | Path):
        return read_pairs(source, fixed)
    if not source or fixed is not None:
        raise ValueError(f"batch: source has {len(source)} pairs and fixed is {fixed}; give at least one pair, and "
                         "fixed with a BIDS folder only.")
    checked(source, "batch")
    return Pairs(tuple(source))


def _run(found: Pairs, out: Path, options: Options, ledger: jobs.Ledger, tell: Callable[[str, float], None],
         engine: str, workers: int | None) -> Batch:
    """Register what is not in the ledger, and write the summary however it ends."""
    keys = {_key(pair): pair for pair in found.pairs}
    for key, pair in keys.items():
        if key in ledger.results and not _is_done(ledger.results[key], out / pair.name):
            del ledger.results[key]
    ended: dict[str, Mapping[str, Any]] = {}
    try:
        tell("", 0.0)
        work = {key: (pair, options, str(out)) for key, pair in keys.items()}
        for key, result in jobs.run(registered, work, engine, workers, ledger):
            ended[key] = result
            tell(keys[key].name, len(ended) / len(keys))
    finally:
        lines = tuple(Line(pair, ended.get(key, {})) for key, pair in keys.items())
        written(out, lines, found.left_out)
    return Batch(out, lines, found.left_out)


def _key(pair: Pair) -> str:
    """A pair's name, and what its files are at this moment: path, size and time of change."""
    digest = hashlib.sha256(repr((pair.volume, pair.init)).encode())
    for path in pair.files:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            state = file.stat()
            digest.update(f"{file!r} {state.st_size} {state.st_mtime_ns}".encode())
    return f"{pair.name} {digest.hexdigest()[:16]}"


def _is_done(result: Any, folder: Path) -> bool:
    """Whether a pair's entry tells of a success whose files are there."""
    return isinstance(result, dict) and "error" not in result and (folder / WHOLE).is_file()


# ------------------------------------------------------------------------------------------------------------ one pair

def registered(pair: Pair, options: Options, out: str) -> dict[str, Any]:
    """Register a pair and save its results. Returns what the summary says of it, as JSON; of a failure "error"."""
    begun = perf_counter()
    try:
        result = _register(pair, options)
        result.save(Path(out) / pair.name)
        found = _told(result)
    except Exception as error:      # whatever it is, the other pairs go on
        told = str(error) if isinstance(error, KNOWN) and str(error) else f"unexpected {type(error).__name__}: {error}"
        found = {"error": " ".join(told.encode(errors="backslashreplace").decode().split())[:LONGEST]}
    return {**found, "seconds": perf_counter() - begun}


def _register(pair: Pair, options: Options) -> Result:
    volume = pair.volume if options.time is None else options.time
    fixed, moving = (_image(path, options.spacing, volume) for path in (pair.fixed, pair.moving))
    masks, labels = (_couple(read, couple, options.spacing) for read, couple in (
        (read_mask, pair.masks), (read_labels, pair.labels)))
    return register(fixed, moving, options.agent, options.refine, pair.init or options.initial,
                    landmarks=pair.landmarks, labels=labels, deform=options.deform, masks=masks, fill=options.fill,
                    transform=options.transform, memory=options.memory)


def _image(path: Path, spacing: float | None, volume: int | None) -> Image:
    """An image; of several volumes the one that is asked for, of a single one that one."""
    try:
        return read_image(path, spacing, time=volume)
    except ImageError:
        if volume is None:
            raise
        try:
            return read_image(path, spacing)
        except ImageError:
            pass
        raise


def _couple(read: Callable[..., Image], paths: Couple | None, spacing: float | None) -> tuple[Image, Image] | None:
    return None if paths is None else (read(paths[0], spacing), read(paths[1], spacing))


def _told(result: Result) -> dict[str, Any]:
    """What the summary says of a registration, as JSON."""
    metrics = result.metrics
    found = {"verdict": metrics["verdict"]["state"], "probability": float(metrics["verdict"]["probability"]),
             "reasons": list(metrics["verdict"]["reasons"]), "score": float(result.trace[-1]["score"])}
    for name, mean in (("tre_mm", float), ("dice", _mean)):
        if name in metrics:
            found |= {f"{name}_{when}": mean(metrics[name][when]) for when in ("before", "after")}
    return found


def _mean(scores: Mapping[str, float | None]) -> float | None:
    present = [score for score in scores.values() if score is not None]
    return float(np.mean(present)) if present else None
