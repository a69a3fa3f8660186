"""The runs of capture_range.py: every method from every start of a case, and the record that lets them go on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from capture_cases import NEAR_MM, Case, common_points, gaps, measure, moved

from regagents.agents import resolve
from regagents.classical import MattesMI, Refinement, evaluate_metric
from regagents.registration import pipeline, register
from regagents.registration.pipeline import Aligned, Pipeline, align, choose, run, scattered
from regenv.atomic import atomic

LANES = 128              # of one batch of the agent
LONE_STARTS = 3          # full runs of one start each, for the time a registration takes

METHODS = {"agent": "agent, one start", "pipeline": "agent, pipeline", "refined": "pipeline + refinement",
           "mi": "tuned MI, one start", "mi refined": "tuned MI + refinement",
           "multi": "tuned MI, multi-start in the same time + refinement"}
RUNS = ("agent", "agent, alone", "pipeline", "pipeline, alone", "refined", "mi", "mi refined")  # that are recorded


def agent_poses(case: Case, chain: Pipeline, agents: Sequence[Any], starts: np.ndarray) -> np.ndarray:
    """Where :func:`~regagents.registration.pipeline.run` ends from every start (K, 4, 4), start i with seed i, in as
    few batches as possible."""
    if chain.attention:
        return np.stack([run(chain, case.fixed, case.moving, start, seed, agents=agents)[0]
                         for seed, start in enumerate(starts)])
    center = case.center if chain.view == "foreground" else case.fixed.grid.center
    groups = [scattered(start, center, chain.starts, seed) for seed, start in enumerate(starts)]
    for agent, steps in zip(agents, chain.steps or [None] * len(agents), strict=True):
        ends = in_batches(agent, case, np.concatenate(groups), steps, center)
        size = len(groups[0])
        groups = [best_of(case, ends, slice(first, first + size)) for first in range(0, len(ends.pull_backs), size)]
    return np.concatenate(groups)


def in_batches(agent: Any, case: Case, starts: np.ndarray, steps: int | None, center: np.ndarray) -> Aligned:
    parts = [align(agent, case.fixed, case.moving, starts[first:first + LANES], steps, center)
             for first in range(0, len(starts), LANES)]
    return Aligned(np.concatenate([part.pull_backs for part in parts]), np.empty((0,)),
                   np.concatenate([part.steps for part in parts]), center)


def best_of(case: Case, ends: Aligned, lanes: slice) -> np.ndarray:
    group = replace(ends, pull_backs=ends.pull_backs[lanes], steps=ends.steps[lanes])
    return choose(*case.for_choice, group)[1][None]


def multi_start(metrics: np.ndarray, count: int, seed: int) -> np.ndarray:
    """For each run the index (K,) of the best by mutual information (K,) among itself and ``count - 1`` others.

    The other runs began near the right pose, not near this start; that is better than a user could do.
    """
    rng, lanes = np.random.default_rng(seed), np.arange(len(metrics))
    picked = [np.append(lane, rng.permutation(np.delete(lanes, lane))[:count - 1]) for lane in lanes]
    return np.array([tried[np.argmin(metrics[tried])] for tried in picked])


class Record:
    """The runs done: one JSON line per (case, range, method, start), each with a key of the settings that made it.

    Args: keys: the valid ones of each case. Lines of these cases with other keys are stale and are removed; lines of
    other cases stay.
    """

    def __init__(self, path: Path, header: dict[str, Any], keys: dict[str, set[str]]) -> None:
        self.path = path
        self.lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for text in path.read_text().splitlines()[1:] if path.is_file() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the run before was cut off while writing
                continue
            if line["key"] in keys.get(line["case"], {line["key"]}):
                self.lines[self._index(**line)] = line
        with atomic(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (header, *self.lines.values())))

    def add(self, **line: Any) -> None:
        self.lines[self._index(**line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, key: str, reach: Sequence[float], method: str, start: int) -> bool:
        return (key, *reach, method, start) in self.lines

    def of(self, key: str, reach: Sequence[float], method: str, count: int) -> list[dict[str, Any]]:
        return [self.lines[(key, *reach, method, i)] for i in range(count) if self.has(key, reach, method, i)]

    @staticmethod
    def _index(key: str, reach: Sequence[float], method: str, start: int, **_: Any) -> tuple[Any, ...]:
        return (key, *reach, method, start)


def poses(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([line["pull_back"] for line in lines])


class Keys:
    """Hashes of what a result depends on: the two images, the seed, and either the classical settings, or the weights,
    the pipeline and its code."""

    def __init__(self, chain: Pipeline, seed: int) -> None:
        self.weights = {name: hashlib.sha256(resolve(name).read_bytes()).hexdigest() for name in chain.stages}
        code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (register, pipeline)))
        self.learned = repr((list(self.weights.values()), replace(chain, stages=()), code.hexdigest(), Refinement(),
                             seed))
        self.classical = repr((MattesMI(), Refinement(), seed))

    def __call__(self, case: Case, method: str) -> str:
        what = self.classical if method.startswith("mi") else self.learned
        return hashlib.sha256((case.digest + what).encode()).hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------------- runs

@dataclass(frozen=True)
class Runs:
    """What is run of a case from the starts of one range.

    Args:
        reach: mm and degrees of the range. count: of the random starts. classical: how many of them, the first ones,
            the classical search is run from.
        tell: called with what is being done.
    """

    case: Case
    chain: Pipeline
    agents: Sequence[Any]
    reach: tuple[float, float]
    count: int
    classical: int
    seed: int
    keys: Keys
    record: Record
    tell: Callable[[str], None]

    def finish(self) -> dict[str, dict[str, Any]]:
        """Run what the record lacks; the table's rows by method."""
        starts = self.case.starts(*self.reach, self.count, self.seed)
        self._agents(starts)
        _ = self.case.for_search, self.case.for_refinement  # prepared before anything is timed
        self._refinements()
        self._searches(starts)
        self.tell("measures")
        return self._rows(starts)

    def _missing(self, method: str, most: int) -> list[int]:
        """Those of the first ``most`` starts that the record lacks."""
        return [i for i in range(most) if not self.record.has(self.keys(self.case, method), self.reach, method, i)]

    def _add(self, method: str, start: int, pull_back: np.ndarray, seconds: float | None, **more: Any) -> None:
        self.record.add(key=self.keys(self.case, method), case=self.case.name, reach=self.reach, method=method,
                        start=start, pull_back=pull_back.tolist(), seconds=seconds, **more)

    def _lines(self, method: str) -> list[dict[str, Any]]:
        count = self.classical if method.startswith("mi") else self.count
        return self.record.of(self.keys(self.case, method), self.reach, method, count)

    def _agents(self, starts: np.ndarray) -> None:
        """The agent from one start and as a pipeline: from some starts alone, for the time, and from all in batches."""
        for method, form in (("agent", replace(self.chain, starts=1)), ("pipeline", self.chain)):
            lone = f"{method}, alone"
            for i in self._missing(lone, min(self.count, LONE_STARTS)):
                self.tell(lone)
                began = process_time()
                pose = run(form, self.case.fixed, self.case.moving, starts[i], seed=i, agents=self.agents)[0]
                self._add(lone, i, pose, process_time() - began)
            if self._missing(method, self.count):
                self.tell(method)
                for i, pose in enumerate(agent_poses(self.case, form, self.agents, starts)):
                    self._add(method, i, pose, None)

    def _refinements(self) -> None:
        """The local refinement after the pipeline."""
        for i in self._missing("refined", self.count):
            self.tell(f"refinement {i + 1}/{self.count}")
            rough = self._lines("pipeline")[i]["pull_back"]
            began = process_time()
            self._add("refined", i, Refinement().register(*self.case.for_refinement, np.array(rough)).pull_back,
                      process_time() - began)

    def _searches(self, starts: np.ndarray) -> None:
        """The classical search and its refinement."""
        for i in self._missing("mi refined", self.classical):
            self.tell(f"mutual information {i + 1}/{self.classical}")
            began = process_time()
            found = MattesMI(seed=i).register(*self.case.for_search, starts[i], self.case.center).pull_back
            self._add("mi", i, found, process_time() - began, metric=evaluate_metric(*self.case.for_search, found))
            began = process_time()
            self._add("mi refined", i, Refinement().register(*self.case.for_refinement, found).pull_back,
                      process_time() - began)

    def _rows(self, starts: np.ndarray) -> dict[str, dict[str, Any]]:
        """The table's rows by method, and under "_" what the figure shows."""
        lines = {method: self._lines(method) for method in RUNS}
        took = {method: float(np.median([line["seconds"] for line in those]))
                for method, those in lines.items() if those[0]["seconds"] is not None}
        tries = min(self.classical, math.ceil(took["pipeline, alone"] / took["mi"]))
        seconds = {"agent": took["agent, alone"], "pipeline": took["pipeline, alone"],
                   "refined": took["pipeline, alone"] + took["refined"], "mi": took["mi"],
                   "mi refined": took["mi"] + took["mi refined"], "multi": tries * took["mi"] + took["mi refined"]}
        ends = {method: poses(lines[method]) for method in METHODS if method != "multi"}
        metrics = np.array([line["metric"] for line in lines["mi"]])
        ends["multi"] = ends["mi refined"][multi_start(metrics, tries, self.seed)]
        rows: dict[str, dict[str, Any]] = {m: measure(self.case, ends[m], seconds[m]) for m in METHODS}
        rows["multi"]["runs"] = tries
        landmarks = self.case.landmarks
        singly = moved(poses(lines["pipeline, alone"]), landmarks)
        batched = moved(ends["pipeline"][:len(singly)], landmarks)
        rows["pipeline"]["lone_run_differs_mm"] = float(np.max(gaps(singly, batched)))
        near: dict[str, list[bool]] = {}
        for method, pull_backs in ends.items():
            points = moved(pull_backs, landmarks)
            near[method] = (gaps(points, common_points(points)) <= NEAR_MM).tolist()
        reference = moved(self.case.reference[None], landmarks)[0]
        return rows | {"_": {"start_mm": gaps(moved(starts, landmarks), reference).tolist(), "found": near}}
