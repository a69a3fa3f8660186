"""Agents and classical registration on the same held-out pairs, from the same starts: one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import regenv  # noqa: F401  registers the ids
from regagents import engines
from regagents.classical import multi_start, random_starts
from regagents.classical import refine as polish
from regagents.methods import BASELINES, Case, Chunk, Policy, method_named
from regagents.registration import AGENTS, Pipeline
from regagents.train import resolve
from regenv.core import SUCCESS_MM
from regenv.data.files import to_sitk
from regenv.data.io import Image, atomic
from regenv.grid import Grid
from regenv.ops.landmarks import success_rate
from regenv.ops.warp import transform_points
from regenv.registry import CATALOGUE, build
from regenv.state import EpisodeState

CHUNK = 16          # pairs drawn at once; results do not depend on it
SCHEMA = 1
MULTI = "mi-multistart"
PERCENTILES = (10, 50, 90)

HELD_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "whole-head": ("RegRigid3D-v0", {"size": 64, "spacing": 3.25,
                                     "source": {"name": "heads", "subjects": ["colin27", "csi3"], "person": 0.0,
                                                "appearance": {"flat": 0, "skull": 0, "strip": 0, "crop": 0,
                                                               "plain_fixed": True, "bias": 0.15, "noise": 0.02}}}),
    "spine": ("RegRigid3D-v0", {"size": [96, 48, 48], "spacing": 4.0, "source": {"name": "spine", "split": "test"}}),
}


@dataclass(frozen=True)
class Row:
    """A method's outcome: errors of all pairs (mm, in the order of their seeds) and mean seconds a pair."""

    method: str
    errors_mm: tuple[float, ...]
    seconds: float
    success_mm: float = SUCCESS_MM

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors_mm))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """10th, 50th and 90th, mm."""
        return tuple(float(p) for p in np.percentile(self.errors_mm, PERCENTILES))

    @property
    def success(self) -> tuple[float, float, float]:
        """Share of errors at or below ``success_mm``, and its 95 % Wilson interval."""
        return success_rate(np.asarray(self.errors_mm), self.success_mm)

    def numbers(self) -> dict[str, Any]:
        """The row of the table."""
        rate, low, high = self.success
        return {"method": self.method, "tre_mean_mm": self.mean,
                **{f"tre_p{p}_mm": value for p, value in zip(PERCENTILES, self.percentiles, strict=True)},
                "success_rate": rate, "success_low": low, "success_high": high, "seconds_per_pair": self.seconds}


@dataclass(frozen=True)
class Report:
    """What was run and how every method fared."""

    env: str
    env_kwargs: Mapping[str, Any]
    pairs: int
    seed: int
    threads: int
    success_mm: float
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names: {schema, env, env_kwargs, pairs, seed, threads, success_mm, methods: [{method,
        tre_mean_mm, tre_p10_mm, tre_p50_mm, tre_p90_mm, success_rate, success_low, success_high, seconds_per_pair,
        errors_mm: [...]}]}."""
        plain = {key: value for key, value in asdict(self).items() if key != "rows"}
        return {"schema": SCHEMA, **plain,
                "methods": [{**row.numbers(), "errors_mm": list(row.errors_mm)} for row in self.rows]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """What :meth:`to_dict` gave. Raises ValueError for another schema."""
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"Report: schema is {plain.get('schema')!r}; this release reads {SCHEMA}.")
        rows = tuple(Row(row["method"], tuple(row["errors_mm"]), row["seconds_per_pair"], plain["success_mm"])
                     for row in plain["methods"])
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name != "rows"}, rows=rows)

    def joined(self, newer: Report) -> Report:
        """This report with a newer one's rows, which replace those of the same methods.

        Raises ValueError where the two are not of the same pairs.
        """
        for name in ("env", "env_kwargs", "pairs", "seed"):
            mine, theirs = getattr(self, name), getattr(newer, name)
            if mine != theirs:
                raise ValueError(f"Report: {name} is {mine!r} in one and {theirs!r} in the other; rows are joined only "
                                 "where they are of the same pairs.")
        return replace(self, rows=tuple({row.method: row for row in (*self.rows, *newer.rows)}.values()))

    def table(self) -> str:
        """The table as plain text."""
        head = ("method", "TRE mean", *(f"p{p}" for p in PERCENTILES), f"<= {self.success_mm:g} mm", "95 % interval",
                "s/pair")
        lines = [head]
        for row in self.rows:
            rate, low, high = (100 * value for value in row.success)
            lines.append((row.method, f"{row.mean:.2f}", *(f"{p:.2f}" for p in row.percentiles), f"{rate:.1f} %",
                          f"{low:.1f}-{high:.1f} %", f"{row.seconds:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join((cells[0].ljust(widths[0]),
                                    *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))))
                         for cells in lines)

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict`, whole or not at all."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, default=str, allow_nan=False) + "\n")

    def save_csv(self, path: str | Path) -> None:
        """Write the table, whole or not at all."""
        rows = [row.numbers() for row in self.rows]
        with atomic(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


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
        engine, workers: where it runs, see :func:`regagents.engines.run`; a part is a method on some pairs. Where
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
            polished = polish(to_sitk(case.fixed), to_sitk(case.moving), pose, case.center).pull_back
            found[_refined(name)].append((case.error(polished), seconds + perf_counter() - begun))
    return found


_LAST: list[tuple[Any, Chunk]] = []  # the chunk that this process drew last


def _chunk(env_id: str, arguments: Mapping[str, Any], first: int, count: int, seed: int) -> Chunk:
    """Pairs ``first`` and on of an evaluation; those of the last call are not drawn again."""
    wanted = (env_id, arguments, first, count, seed)
    if not _LAST or _LAST[0][0] != wanted:
        env = _env(env_id, count, arguments)
        env.reset(seed=seed + first)
        core, state = env.unwrapped.core, env.unwrapped.state  # type: ignore[attr-defined]
        if state.tre.isnan().any():
            raise ValueError(f"evaluate: {env_id} gives pairs of unknown truth; they need a truth or landmarks.")
        _LAST[:] = [(wanted, Chunk(core, state, tuple(
            _case(state, lane, f"{env_id} seed {seed + first + lane}", seed + first + lane) for lane in range(count))))]
    return _LAST[0][1]


def chunks(env_id: str, pairs: int, seed: int, env_kwargs: Mapping[str, Any]) -> Iterator[Chunk]:
    """The pairs of an evaluation, some at a time."""
    for first in range(0, pairs, CHUNK):
        yield _chunk(env_id, env_kwargs, first, min(CHUNK, pairs - first), seed)


def _case(state: EpisodeState, lane: int, name: str, seed: int) -> Case:
    one = state.pair.select(slice(lane, lane + 1))
    to_moving_world = np.linalg.inv(one.world_to_moving[0].cpu().numpy())
    assert one.landmarks is not None  # as in every pair whose error is known
    targets = transform_points(one.truth, one.landmarks) if one.targets is None else one.targets
    return Case(fixed=_image(one.fixed, one.fixed_to_world[0].cpu().numpy(), f"{name} (fixed)"),
                moving=_image(one.moving, to_moving_world, f"{name} (moving)"),
                start=state.pull_back[lane].cpu().numpy(), landmarks=one.landmarks[0].cpu().numpy(),
                targets=targets[0].cpu().numpy(), center=one.center[0].cpu().numpy(), seed=seed)


def _env(env_id: str, lanes: int, env_kwargs: Mapping[str, Any]) -> gym.vector.VectorEnv:
    if env_id in CATALOGUE and not hasattr(build(env_id).transform, "parameters"):  # of a matrix
        raise ValueError(f"evaluate: env is {env_id!r}, which deforms; linear maps are measured here. Run "
                         "benchmarks/organs.py, dense.py or keypoints.py.")
    try:
        return gym.make_vec(env_id, num_envs=lanes, **{**env_kwargs, "stop": "never"})
    except gym.error.Error as error:
        raise ValueError(f"evaluate: env is {env_id!r}; it must be an id of regenv or one of {', '.join(HELD_OUT)} "
                         f"({error}).") from None
    except TypeError as error:
        raise ValueError(f"evaluate: {env_id} does not take these env_kwargs ({error}).") from None


def _image(tensor: Tensor, voxel_to_world: np.ndarray, name: str) -> Image:
    array = tensor[0, 0].cpu().numpy()
    return Image(np.ascontiguousarray(array), grid_of(voxel_to_world, array.shape), name)


def grid_of(voxel_to_world: np.ndarray, shape: Sequence[int]) -> Grid:
    """The grid of a matrix (D+1, D+1) from voxel points, array-axis order, to world mm; inverse of
    ``Grid.voxel_to_world``. The direction of a sheared one is sheared."""
    n = len(shape)
    steps = voxel_to_world[:n, :n][:, ::-1]
    spacing = np.linalg.norm(steps, axis=0)
    return Grid(tuple(shape), tuple(spacing.tolist()), tuple(voxel_to_world[:n, n].tolist()),
                tuple((steps / spacing).ravel().tolist()))


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
