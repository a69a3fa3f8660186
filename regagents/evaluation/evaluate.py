"""Agents and classical registration on the same held-out pairs, from the same starts: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import regenv  # noqa: F401  registers the ids
from regagents.agents import resolve
from regagents.classical import multi_start, random_starts, refine_pose
from regagents.common import jobs as engines
from regagents.evaluation.methods import BASELINES, Policy, method_named
from regagents.evaluation.pairs import CHUNK, HELD_OUT, _chunk, _env
from regagents.evaluation.report import Report, Row
from regagents.registration.pipeline import AGENTS, Pipeline
from regenv.data.io.resampling import to_sitk

MULTI = "mi-multistart"


def evaluate(env_id: str, methods: Sequence[str | Pipeline | Policy], pairs: int, seed: int = 0,
             env_kwargs: Mapping[str, Any] | None = None, refine: bool = False, budget_seconds: float | None = None,
             progress: Callable[[str, float], None] | None = None, engine: str = "serial",
             workers: int | None = None, ledger: str | Path | None = None) -> Report:
    """Run methods on the same pairs from the same starts; the truth serves only to measure.

    Pair i is what ``env_id`` gives for seed ``seed + i``, with episodes that no agent is told to end. Agents and
    baselines see the two images and the starting pose.

    Args:
        env_id: an id of regenv, or a name in HELD_OUT: "whole-head" (two people never trained on, seen whole; the
            moving image with a random contrast that may invert, a bias field and noise), "spine" (patients never
            trained on).
        methods: "initial" (the start), "mi" (the tuned MattesMI from the start), "mi-multistart" (the same from one
            random start after another, +-30 mm and degrees about the given one, while time is left), "sift" (2D),
            "elastix" (where itk-elastix is installed), a pipeline's or a checkpoint's name ("NAME+mc": an A3C agent
            with look-ahead), a Pipeline, or a Policy.
        pairs: how many.
        seed: of the first pair.
        env_kwargs: arguments of the environment; they go before those of HELD_OUT.
        refine: give every agent a second row, with the local refinement after it.
        budget_seconds: a pair's time for "mi-multistart"; default: what the slowest agent of this run took on average.
        progress: called with a method's name and the share of work done.
        engine, workers: where it runs, see :func:`regagents.common.jobs.run`; a part is a method on some pairs. Where
            parts run beside each other, so are they timed.
        ledger: a file of finished parts, one JSON line each; a run that was interrupted goes on from it.
            Methods are names then; other weights or arguments are refused.
    Raises: ValueError: unknown id, argument or method. CheckpointError: bad weights. DatasetError: no such images.
    """
    tell = progress or (lambda name, share: None)
    if pairs < 1:
        raise ValueError(f"evaluate: pairs is {pairs}; it must be at least 1.")
    if not methods:
        raise ValueError(f"evaluate: no method was given; give an agent or one of {', '.join(BASELINES)}.")
    env_id, known = HELD_OUT.get(env_id, (env_id, {}))
    arguments = {**known, **(env_kwargs or {})}
    names = [_name(method) for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"evaluate: methods are {', '.join(names)}; each may stand there once.")
    task = _env(env_id, 1, arguments).unwrapped.core.task  # type: ignore[attr-defined]
    ready = {name: isinstance(method, Policy) or method_named(method, task)[1]  # whether it is an agent
             for name, method in zip(names, methods, strict=True) if name != MULTI}
    agents = [name for name, learned in ready.items() if learned]
    if ledger is not None and not all(isinstance(method, str) for method in methods):
        raise ValueError("evaluate: ledger is given, and a method that is no name; only files can be told apart again.")
    kept = None if ledger is None else engines.Ledger(ledger, {
        "env": env_id, "env_kwargs": arguments, "pairs": pairs, "seed": seed, "refine": refine, "chunk": CHUNK,
        "budget_seconds": budget_seconds, "weights": {name: _digest(name) for name in agents}})

    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    work, done = pairs * len(names), 0

    def gather(jobs: Mapping[str, tuple[Any, ...]]) -> None:
        nonlocal done
        for key, found in engines.run(_measured, jobs, engine, workers, kept):
            name, first, count = jobs[key][2:5]
            done += count
            for label, measured in found.items():
                rows.setdefault(label, {})[first] = measured
            tell(_name(name), done / work)

    firsts = range(0, pairs, CHUNK)
    gather({f"{name} {first}": (env_id, arguments, method, first, min(CHUNK, pairs - first), seed, refine, None)
            for first in firsts for name, method in zip(names, methods, strict=True) if name != MULTI})
    if MULTI in names:
        budget = _budget(rows, agents, refine) if budget_seconds is None else budget_seconds
        gather({f"{MULTI} {first}": (env_id, arguments, MULTI, first, min(CHUNK, pairs - first), seed, refine, budget)
                for first in firsts})
    order = [label for name in names for label in (name, _refined(name)) if label in rows]
    return Report(env_id, arguments, pairs, seed, torch.get_num_threads(), task.success_mm, tuple(
        Row(label, tuple(error for error, _ in whole), float(np.mean([s for _, s in whole])), task.success_mm)
        for label in order for whole in [[pair for first in firsts for pair in rows[label][first]]]))


def _measured(env_id: str, arguments: Mapping[str, Any], method: str | Pipeline | Policy, first: int, count: int,
              seed: int, refine: bool, budget: float | None) -> dict[str, list[tuple[float, float]]]:
    """Errors, mm, and seconds of a chunk's pairs, by row: a part of :func:`evaluate`."""
    chunk, name = _chunk(env_id, arguments, first, count, seed), _name(method)
    found: dict[str, list[tuple[float, float]]] = {name: []}
    if method == MULTI:
        assert budget is not None
        for case in chunk.cases:
            begun = perf_counter()
            starts = random_starts(case.start, case.center, np.random.default_rng(case.seed))
            best = multi_start(to_sitk(case.fixed), to_sitk(case.moving), starts, case.center, budget)
            found[name].append((case.error(best.pull_back), perf_counter() - begun))
        return found
    play, learned = (method, True) if isinstance(method, Policy) else method_named(method, chunk.core.task)
    begun = perf_counter()
    poses = play(chunk)
    seconds = (perf_counter() - begun) / count
    found[name] += [(case.error(pose), seconds) for case, pose in zip(chunk.cases, poses, strict=True)]
    if refine and learned:
        found[_refined(name)] = []
        for case, pose in zip(chunk.cases, poses, strict=True):
            begun = perf_counter()
            polished = refine_pose(to_sitk(case.fixed), to_sitk(case.moving), pose, case.center).pull_back
            found[_refined(name)].append((case.error(polished), seconds + perf_counter() - begun))
    return found


def _name(method: str | Pipeline | Policy) -> str:
    if isinstance(method, Policy):
        return method.name
    return " + ".join(method.stages) if isinstance(method, Pipeline) else str(method)


def _digest(name: str) -> str:
    """Of an agent's weights, all stages: other weights of the same name are another agent."""
    chain = AGENTS[name].stages if name in AGENTS else (name.removesuffix("+mc"),)
    return sha256(b"".join(resolve(stage).read_bytes() for stage in chain)).hexdigest()[:8]


def _refined(name: str) -> str:
    return f"{name}, refined"


def _budget(rows: Mapping[str, Mapping[int, list[tuple[float, float]]]], agents: Sequence[str], refine: bool) -> float:
    if not agents:
        raise ValueError("evaluate: mi-multistart takes the agent's time, and no agent was given; "
                         "give one, or budget_seconds=...")
    return max(float(np.mean([seconds for part in rows[_refined(name) if refine else name].values()
                              for _, seconds in part])) for name in agents)
