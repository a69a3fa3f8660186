"""Agents and classical methods on the same held-out pairs, from the same starts: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from regagents.agents import resolve
from regagents.common import jobs
from regagents.evaluation.dense import STANDARD, field_measures
from regagents.evaluation.methods import (
    FINE,
    LOOKAHEAD,
    MULTI,
    Found,
    Method,
    MultiStart,
    baselines_of,
    default_baselines,
    method_named,
    name_of,
    refined,
)
from regagents.evaluation.pairs import CHUNK, HELD_OUT, Chunk, drawn, task_of
from regagents.evaluation.report import Report, Row
from regagents.registration.pipeline import AGENTS, Pipeline
from regenv.task import Task

Given = str | Pipeline | Method
Measures = dict[str, list[float | None]]
Part = dict[str, tuple[Measures, float]]
"""Of some pairs, by the name of the row: the measures, and the seconds that all of the pairs took."""
_LAST: list[tuple[tuple[Any, ...], Chunk]] = []  # the chunk that this process drew last, and what it is of


def evaluate(env_id: str, methods: Sequence[Given], pairs: int, seed: int = 0,
             env_kwargs: Mapping[str, Any] | None = None, refine: bool = False, budget_seconds: float | None = None,
             progress: Callable[[str, float], None] | None = None, engine: str = "serial",
             workers: int | None = None, ledger: str | Path | None = None,
             measures: Sequence[str] = STANDARD) -> Report:
    """Run methods on the same pairs from the same starts; the truth serves only to measure.

    Pair i is what ``env_id`` gives for seed ``seed + i``, in episodes that only the time limit ends. Methods see the
    two images and the start. Poses are measured by the landmark error; displacements by overlap, distance of surfaces,
    landmark error, folds and the spread of log det J, as far as the pairs have labels and corresponding landmarks.

    Args:
        env_id: an id of regenv, or a name in HELD_OUT: "whole-head" (two subjects never trained on, seen whole; the
            moving image with a random contrast that may invert, a bias field and noise), "spine" (patients never
            trained on).
        methods: "initial" (the start), "random" (random actions), "expert" (the best action by the true pose; ids with
            discrete actions); a classical method, with the settings of :mod:`regagents.evaluation.tuned`. For poses:
            "mi" (MattesMI from the start), "mi-multistart" (the same from one random start after another, +-30 mm and
            degrees about the given one, while time is left), "sift" (2D), "elastix" (where itk-elastix is installed).
            For displacements: "demons", "bspline", "adam", "convexadam", "greedy", "syn" (where antspyx is installed).
            Or the name of a pipeline or a checkpoint ("NAME+mc": an A3C agent with look-ahead; "NAME+fine",
            "NAME+mc+fine": with fine levels of mutual information after it), a Pipeline, or any
            :class:`regagents.evaluation.methods.Method`, such as a Policy.
        pairs: how many.
        seed: of the first pair.
        env_kwargs: arguments of the environment; they replace those of HELD_OUT.
        refine: give every agent a second row, with the local refinement after it; for poses only.
        budget_seconds: a pair's time for "mi-multistart"; default: the mean time of the slowest agent of this run.
        progress: called with a method's name and the share of work done.
        engine, workers: where it runs, see :func:`regagents.common.jobs.run`; a part is a method on some pairs. Parts
            that run at the same time are also timed so.
        ledger: a file of finished parts, one JSON line each; a run that was interrupted goes on from it.
            Methods must be names then; other weights or arguments are refused.
        measures: of displacements, names of :data:`regagents.evaluation.dense.MEASURES`.
    Raises: ValueError: unknown id, argument or method. CheckpointError: bad weights. DatasetError: no such images.
    """
    env_id, known = HELD_OUT.get(env_id, (env_id, {}))
    arguments = {**known, **(env_kwargs or {})}
    if pairs < 1:
        raise ValueError(f"evaluate: pairs is {pairs}; it must be at least 1.")
    task = task_of(env_id, arguments)
    given, agents = _checked(methods, task, refine)
    if ledger is not None and not all(isinstance(method, str) for method in methods):
        raise ValueError("evaluate: ledger is given, and a method that is no name; only files can be told apart again.")
    kept = None if ledger is None else jobs.Ledger(ledger, {
        "env": env_id, "env_kwargs": arguments, "pairs": pairs, "seed": seed, "refine": refine, "chunk": CHUNK,
        "budget_seconds": budget_seconds, "measures": list(measures),
        "weights": {name: _digest(name) for name in agents}})
    run = _Run(env_id, arguments, pairs, seed, refine, tuple(measures), engine, workers, kept,
               progress or (lambda name, share: None), len(given))
    rows = run.gather({name: method for name, method in given.items() if method != MULTI})
    if MULTI in given:
        seconds = _slowest(rows, agents, refine) if budget_seconds is None else budget_seconds
        rows |= run.gather({MULTI: MultiStart(seconds)})
    order = [label for name in given for label in (name, f"{name}, refined") if label in rows]
    return Report(env_id, arguments, pairs, seed, torch.get_num_threads(), task.success_mm,
                  tuple(_row(label, *rows[label], pairs, task) for label in order),
                  "pose" if task.transform.linear else "field")


def chosen_baselines(env_id: str, env_kwargs: Mapping[str, Any], names: Sequence[str] | None) -> tuple[str, ...]:
    """Classical methods for the pairs of an id or of a name in HELD_OUT, by default those that are usual for it.

    Raises ValueError for one that the pairs do not have.
    """
    env_id, known = HELD_OUT.get(env_id, (env_id, {}))
    task = task_of(env_id, {**known, **env_kwargs})
    for name in names or ():
        if name not in baselines_of(task):
            raise ValueError(f"evaluate: baseline is {name!r}; it must be one of {', '.join(baselines_of(task))}.")
    return default_baselines(task) if names is None else tuple(names)


def measured(chunk: Chunk, found: Found, names: Sequence[str] = STANDARD) -> Measures:
    """What is measured of poses ("tre_mm") or displacements (``names``) on a chunk's pairs, a value a pair."""
    if chunk.core.task.transform.linear:
        return {"tre_mm": [case.error(pose) for case, pose in zip(chunk.cases, found.pull_backs, strict=True)]}
    return field_measures(chunk.state, found.displacements, chunk.core.task.grid, names)


def row_of(method: Method, chunks: Sequence[Chunk], names: Sequence[str] = STANDARD) -> Row:
    """A method timed and measured on given pairs."""
    parts: list[Part] = []
    for chunk in chunks:
        begun = perf_counter()
        found = method(chunk)
        seconds = perf_counter() - begun
        parts.append({method.name: (measured(chunk, found, names), seconds)})
    measures, seconds = _joined(parts)[method.name]
    return _row(method.name, measures, seconds, sum(chunk.state.lanes for chunk in chunks), chunks[0].core.task)


@dataclass(frozen=True)
class _Run:
    """An evaluation's work, some pairs of a method at a time. Its attributes are arguments of :func:`evaluate`;
    ``methods`` counts them."""

    env: str
    env_kwargs: dict[str, Any]
    pairs: int
    seed: int
    refine: bool
    measures: tuple[str, ...]
    engine: str
    workers: int | None
    ledger: jobs.Ledger | None
    progress: Callable[[str, float], None]
    methods: int

    def gather(self, given: Mapping[str, Given]) -> Part:
        """All rows of some methods; called a second time, it goes on telling the progress where the first ended."""
        firsts = range(0, self.pairs, CHUNK)
        parts = {f"{name} {first}": (self.env, self.env_kwargs, method, first, min(CHUNK, self.pairs - first),
                                     self.seed, self.refine, self.measures)
                 for first in firsts for name, method in given.items()}
        work, found = self.pairs * self.methods, {}
        done = 0 if MULTI not in given else work - self.pairs
        for key, part in jobs.run(_part, parts, self.engine, self.workers, self.ledger):
            found[key] = part
            done += parts[key][4]
            self.progress(name_of(parts[key][2]), done / work)
        return _joined([found[key] for key in parts])


def _part(env_id: str, arguments: Mapping[str, Any], given: Given, first: int, count: int, seed: int, refine: bool,
          measures: Sequence[str]) -> Part:
    """The rows of a method on a chunk of pairs: a part of :func:`evaluate`."""
    chunk = _drawn(env_id, arguments, first, count, seed)
    method = method_named(given, chunk.core.task) if isinstance(given, str | Pipeline) else given
    begun = perf_counter()
    found = method(chunk)
    seconds = perf_counter() - begun
    rows = {name_of(given): (measured(chunk, found, measures), seconds)}
    if refine and method.learned:
        begun = perf_counter()
        found = refined(chunk, found)
        rows[f"{name_of(given)}, refined"] = measured(chunk, found), seconds + perf_counter() - begun
    return rows


def _drawn(*wanted: Any) -> Chunk:
    """As :func:`regagents.evaluation.pairs.drawn`; the same pairs are not drawn again for the next method."""
    if not _LAST or _LAST[0][0] != wanted:
        _LAST[:] = [(wanted, drawn(*wanted))]
    return _LAST[0][1]


def _joined(parts: Sequence[Part]) -> Part:
    """Rows of all pairs, from those of chunks in order."""
    rows: Part = {}
    for part in parts:
        for label, (measures, seconds) in part.items():
            before, spent = rows.get(label, ({}, 0.0))
            rows[label] = {name: before.get(name, []) + list(values) for name, values in measures.items()}, (
                spent + seconds)
    return rows


def _row(label: str, measures: Measures, seconds: float, pairs: int, task: Task) -> Row:
    return Row(label, {name: tuple(values) for name, values in measures.items()}, seconds / pairs, task.success_mm)


def _checked(methods: Sequence[Given], task: Task, refine: bool) -> tuple[dict[str, Given], list[str]]:
    """The methods by name, and the names of the agents. Raises ValueError for those that do not suit the pairs."""
    if not methods:
        raise ValueError(f"evaluate: no method was given; give an agent or one of {', '.join(baselines_of(task))}.")
    names = [name_of(method) for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"evaluate: methods are {', '.join(names)}; each may stand there once.")
    if refine and not task.transform.linear:
        raise ValueError("evaluate: refine is for poses, and the pairs need displacements; leave it out.")
    agents = [name for name, method in zip(names, methods, strict=True)
              if not (method == MULTI and task.transform.linear)
              and (method_named(method, task) if isinstance(method, str | Pipeline) else method).learned]
    return dict(zip(names, methods, strict=True)), agents


def _digest(name: str) -> str:
    """Of an agent's weights, all stages: other weights of the same name are another agent."""
    stages = AGENTS[name].stages if name in AGENTS else (name.removesuffix(FINE).removesuffix(LOOKAHEAD),)
    return sha256(b"".join(resolve(stage).read_bytes() for stage in stages)).hexdigest()[:8]


def _slowest(rows: Part, agents: Sequence[str], refine: bool) -> float:
    """Seconds a pair of the slowest agent."""
    if not agents:
        raise ValueError("evaluate: mi-multistart takes the agent's time, and no agent was given; "
                         "give one, or budget_seconds=...")
    labels = [f"{name}, refined" if refine else name for name in agents]
    return max(rows[label][1] / len(rows[label][0]["tre_mm"]) for label in labels)
