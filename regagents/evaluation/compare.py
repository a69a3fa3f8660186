"""Agents trained on the same budget and measured on the same held-out pairs, beside classical methods: one table."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from regagents.common import jobs
from regagents.common.threads import one_thread
from regagents.evaluation.evaluate import evaluate, measured
from regagents.evaluation.methods import (
    MULTI,
    Found,
    Policy,
    baselines_of,
    default_baselines,
    method_named,
    yardsticks,
)
from regagents.evaluation.pairs import Chunk, chunks, of_pairs, task_of
from regagents.training import zoo
from regenv.atomic import atomic
from regenv.registry import CATALOGUE, build
from regenv.task import SUCCESS_MM, Task
from regenv.tasks.keypoint import keypoint

SCHEMA = 2              # of what the ledger keeps of a run
POINTS = 10             # of a learning curve
DRAWS, CONFIDENCE = 2000, 95
TRE, DICE = "TRE, mm", "Dice"
TITLES = {"tre_mm": TRE, "dice": DICE}


@dataclass(frozen=True)
class Entry:
    """A method's outcome.

    Attributes: scores: (runs, pairs) on the held-out pairs at the end; curves: (runs, POINTS) their means on the way;
    steps: (POINTS,) environment steps of these; seconds: training of a run, mean; seconds_per_pair: of playing.
    """

    method: str
    scores: NDArray[np.float64]
    seconds_per_pair: float
    steps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    curves: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    seconds: float = 0.0
    clock: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    learns_from: str = ""


@dataclass(frozen=True)
class Comparison:
    """Entries, and what they are of. ``measure``: "TRE, mm" (less is better) or "Dice" (more is better)."""

    env: str
    env_kwargs: Mapping[str, Any]
    budget: int
    pairs: int
    seeds: int
    measure: str
    entries: tuple[Entry, ...]

    def table(self) -> str:
        """Markdown: interquartile mean over runs and pairs with its interval, mean, median, and times."""
        lines = [f"| method | learns from | {self.measure}: IQM | {CONFIDENCE} % interval | mean | median | "
                 f"{f'within {SUCCESS_MM:g} mm | ' if self.measure == TRE else ''}training, s | s/pair |",
                 f"| --- | --- | ---: | ---: | ---: | ---: | {'---: | ' if self.measure == TRE else ''}---: | ---: |"]
        for entry in self.entries:
            low, high = interval(entry.scores)
            near = f"{(entry.scores <= SUCCESS_MM).mean():.0%} | " if self.measure == TRE else ""
            shown = f"{low:.3g} to {high:.3g}" if len(entry.scores) > 1 else "one run"
            lines.append(f"| {entry.method} | {entry.learns_from} | {iqm(entry.scores):.3g} | {shown} | "
                         f"{entry.scores.mean():.3g} | {np.median(entry.scores):.3g} | {near}{entry.seconds:.0f} | "
                         f"{entry.seconds_per_pair:.3f} |")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names."""
        rows = [{"method": e.method, "scores": e.scores.tolist(), "seconds_per_pair": e.seconds_per_pair,
                 "steps": e.steps.tolist(), "curves": e.curves.tolist(), "seconds": e.seconds,
                 "clock": e.clock.tolist(), "learns_from": e.learns_from} for e in self.entries]
        return {"env": self.env, "env_kwargs": dict(self.env_kwargs), "budget": self.budget, "pairs": self.pairs,
                "seeds": self.seeds, "measure": self.measure, "entries": rows}

    def save(self, path: str | Path, command: str = "") -> None:
        """Write PATH.md, PATH.json and PATH.png (learning curves; needs the extra ``viz``)."""
        path = Path(path)
        told = f"Made by `{command}`. " if command else ""
        with atomic(path.with_name(f"{path.name}.md")) as temporary:
            temporary.write_text(
                f"# {self.env}: agents on a budget of {self.budget:,} steps\n\n{told}{self.seeds} seeds of every "
                f"agent, {self.pairs} held-out pairs, env_kwargs {json.dumps(dict(self.env_kwargs))}. IQM: mean of the "
                "middle half of all runs' scores on all pairs; its interval is a bootstrap over the runs, pair by pair "
                f"(Agarwal et al. 2021).\n\n{self.table()}")
        with atomic(path.with_name(f"{path.name}.json")) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n")
        self.draw(path.with_name(f"{path.name}.png"))

    def draw(self, path: Path) -> None:
        """Learning curves over steps and over time: mean of the runs and their range; grey, what does not learn."""
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
        labels = {"steps": "environment steps", "clock": "seconds of training"}
        for axis, (along, label) in zip(axes, labels.items(), strict=True):
            styles = itertools.cycle((":", "--", "-."))
            for entry in self.entries:
                if len(entry.steps):
                    at = getattr(entry, along)
                    [line] = axis.plot(at, entry.curves.mean(0), label=entry.method, marker=".")
                    axis.fill_between(at, entry.curves.min(0), entry.curves.max(0), alpha=0.15, lw=0,
                                      color=line.get_color())
                else:
                    axis.axhline(entry.scores.mean(), label=entry.method, linestyle=next(styles), lw=1, color="0.3")
            axis.set(xlabel=label, title=self.env)
            axis.grid(alpha=0.3)
        axes[0].set(ylabel=f"{self.measure}, mean of held-out pairs")
        axes[1].legend(fontsize=8)
        figure.tight_layout()
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        plt.close(figure)



def iqm(scores: NDArray[np.float64]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter, as rliable has it."""
    ordered = np.sort(scores, axis=None)
    cut = int(0.25 * ordered.size)
    return float(ordered[cut: ordered.size - cut].mean())


def interval(scores: NDArray[np.float64], draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the interquartile mean of (runs, pairs): for each pair runs are drawn anew,
    with replacement (stratified, as in Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice")."""
    rng = np.random.default_rng(seed)
    runs, pairs = scores.shape
    found = [iqm(scores[rng.integers(runs, size=(runs, pairs)), np.arange(pairs)]) for _ in range(draws)]
    low, high = np.percentile(found, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
    return float(low), float(high)


def compare(env_id: str, agents: Sequence[str], budget: int, pairs: int = 64, seeds: int = 3, seed: int = 900_000,
            env_kwargs: Mapping[str, Any] | None = None, held_out: Mapping[str, Any] | None = None,
            baselines: Sequence[str] | None = None, out: str | Path = "compare", engine: str = "serial",
            workers: int | None = None, progress: Callable[[str, float], None] | None = None) -> Comparison:
    """Train agents with the zoo's settings for ``budget`` environment steps each, and measure all on the same pairs.

    Agents play to the time limit. Poses and key-point ids are measured by the landmark error, other displacements by
    Dice. Finished runs are kept in ``OUT.jsonl``; a comparison that was interrupted goes on from it.

    Args:
        env_id: an id of regenv; agents: of ``regagents.training.zoo.ALGORITHMS``, with settings for it.
        pairs, seed: held-out pair i is what the id gives for seed ``seed + i``; seeds: runs of each agent, 0, 1, ...
        env_kwargs: of training and measuring; they replace those of the settings. held_out: those of measuring that
            differ, such as ``{"source": {"name": "digits", "split": "test"}}``.
        baselines: names of :func:`regagents.evaluation.evaluate.evaluate`'s classical methods; default "initial" and
            "mi" for poses, all that are installed for displacements; and always, unless given, "random" and, where the
            id has one, "expert".
        engine, workers: see :func:`regagents.common.jobs.run`.
        progress: called with what was finished and the share of all.
    Raises: ValueError: an unknown name, a number out of range, or a ledger of another comparison.
    """
    for name, value in (("budget", budget), ("pairs", pairs), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"compare: {name} is {value}; it must be at least 1.")
    trained_on = _environments(env_id, agents, env_kwargs or {})
    measured_on = {**of_pairs(trained_on[agents[0]]), **(env_kwargs or {}), **(held_out or {})}
    measure, names = first_measure(env_id, measured_on), _classical_names(env_id, measured_on, baselines)
    out = Path(out)
    ledger = jobs.Ledger(out.with_name(f"{out.name}.jsonl"), {
        "schema": SCHEMA, "env": env_id, "env_kwargs": dict(env_kwargs or {}), "held_out": dict(held_out or {}),
        "budget": budget, "pairs": pairs, "seed": seed})
    keys = {name: f"{name} {_digest(method_named(name, task_of(env_id, measured_on)), measured_on)}" for name in names}
    runs = {agent: [f"{agent} {run} {_digest(zoo.settings(agent, env_id), trained_on[agent], measured_on)}"
                    for run in range(seeds)] for agent in agents}
    searching: dict[str, tuple[Any, ...]] = {
        keys[name]: (env_id, measured_on, name, pairs, seed, measure) for name in names}
    training: dict[str, tuple[Any, ...]] = {
        runs[agent][run]: (env_id, trained_on[agent], measured_on, agent, run, budget, pairs, seed, measure)
        for run in range(seeds) for agent in agents}
    results: dict[str, Any] = {}
    for function, parts in ((_classical, searching), (_trained, training)):
        for key, result in jobs.run(function, parts, engine, workers, ledger):
            results[key] = result
            if progress is not None:
                progress(key, len(results) / (len(searching) + len(training)))
    entries = [Entry(name, np.array([results[keys[name]]["scores"]]), results[keys[name]]["seconds_per_pair"])
               for name in names]
    entries += [_entry(agent, [results[key] for key in runs[agent]]) for agent in agents]
    return Comparison(env_id, measured_on, budget, pairs, seeds, TITLES[measure], tuple(entries))


def first_measure(env_id: str, env_kwargs: Mapping[str, Any]) -> str:
    """The measure that says most of an id: "tre_mm" where it asks for poses or has key-points, else "dice"."""
    task = task_of(env_id, env_kwargs)
    return "tre_mm" if task.transform.linear or CATALOGUE[env_id].builder is keypoint else "dice"


def scored(chunk: Chunk, found: Found, measure: str) -> list[float]:
    """The measure of those pairs of a chunk for which it is defined. Raises ValueError where it is so for none."""
    values = [value for value in measured(chunk, found, (measure,)).get(measure, []) if value is not None]
    if not values:
        raise ValueError(f"compare: {chunk.env} has no {TITLES[measure]} here: its pairs have no labels or landmarks.")
    return values


def _environments(env_id: str, agents: Sequence[str], env_kwargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of each agent's environment. Raises ValueError for agents that cannot see the same pairs."""
    if not agents or len(set(agents)) < len(agents):
        raise ValueError(f"compare: agents are {', '.join(agents) or 'none'}; name each once.")
    found = {agent: {**zoo.settings(agent, env_id).env_kwargs, **env_kwargs} for agent in agents}
    grids = {agent: build(env_id, **arguments).grid for agent, arguments in found.items()}
    for agent, grid in grids.items():
        if grid != grids[agents[0]]:
            raise ValueError(f"compare: {agent} plays on {grid.shape} voxels of {grid.spacing} mm, {agents[0]} on "
                             f"{grids[agents[0]].shape} of {grids[agents[0]].spacing} mm; set size and spacing.")
    return found


def _classical_names(env_id: str, env_kwargs: Mapping[str, Any], given: Sequence[str] | None) -> tuple[str, ...]:
    """The classical methods to be measured. Raises ValueError for those that the id's pairs do not have."""
    task = task_of(env_id, env_kwargs)
    names = (*default_baselines(task), *yardsticks(task)) if given is None else tuple(given)
    known = [name for name in baselines_of(task) if name != MULTI]
    if not set(names) <= set(known):
        raise ValueError(f"compare: baselines are {', '.join(names)}; for {env_id} they are {', '.join(known)}.")
    return names


def _digest(*what: Any) -> str:
    """Of all that a run depends on beside the comparison itself: other settings are another run."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


@one_thread()
def _classical(env_id: str, env_kwargs: Mapping[str, Any], name: str, pairs: int, seed: int,
               measure: str) -> dict[str, Any]:
    """Scores of a classical method, and its seconds a pair."""
    row = evaluate(env_id, [name], pairs, seed, env_kwargs, measures=(measure,)).rows[0]
    return {"scores": row.values(measure).tolist(), "seconds_per_pair": row.seconds}


def _trained(env_id: str, trained_on: Mapping[str, Any], measured_on: Mapping[str, Any], algo: str, run: int,
             budget: int, pairs: int, seed: int, measure: str) -> dict[str, Any]:
    """A training run of an agent: its learning curve, and its scores at the end."""
    torch.set_num_threads(1)
    agent = zoo.create(algo, env_id, run, env_kwargs=trained_on)
    task: Task = build(env_id, **{**trained_on, **{key: value for key, value in measured_on.items()
                                                   if key != "source"}})
    callback = EvalCallback(Policy(algo, agent, task), list(chunks(env_id, pairs, seed, measured_on)), budget, measure)
    begun = perf_counter()
    agent.learn(budget, callback=callback)
    callback.measure_now(POINTS)
    seconds = perf_counter() - begun - callback.seconds
    agent.get_env().close()
    return {"steps": callback.steps, "clock": callback.clock, "curve": callback.means, "scores": callback.scores,
            "seconds": seconds,
            "seconds_per_pair": callback.seconds / callback.times / pairs}


def _entry(agent: str, runs: Sequence[Mapping[str, Any]]) -> Entry:
    """Of an agent's runs."""
    seconds, per_pair = (float(np.mean([run[name] for run in runs])) for name in ("seconds", "seconds_per_pair"))
    return Entry(agent, np.array([run["scores"] for run in runs]), per_pair, np.array(runs[0]["steps"]),
                 np.array([run["curve"] for run in runs]), seconds, np.mean([run["clock"] for run in runs], 0),
                 zoo.learns_from(agent))


class EvalCallback(BaseCallback):
    """Scores on the held-out pairs at POINTS places of the training.

    Args: policy: of the model in training; chunks: the pairs; budget: steps of the training; measure: the score.
    """

    def __init__(self, policy: Policy, chunks: Sequence[Chunk], budget: int, measure: str) -> None:
        super().__init__()
        self.player, self.chunks, self.budget, self.measure = policy, chunks, budget, measure
        self.steps: list[int] = []
        self.means: list[float] = []
        self.scores: list[float] = []
        self.clock: list[float] = []
        self.seconds, self.times = 0.0, 0
        self.begun = perf_counter()

    def _on_step(self) -> bool:
        due = min(self.num_timesteps * POINTS // self.budget, POINTS - 1)
        if due > len(self.steps):
            self.measure_now(due)
        return True

    @torch.no_grad()
    def measure_now(self, points: int) -> None:
        """Play all pairs, and take their mean for the curve's points up to that number: many steps may pass between two
        calls."""
        begun, training = perf_counter(), self.player.model.policy.training
        self.scores = [score for chunk in self.chunks for score in scored(chunk, self.player(chunk), self.measure)]
        self.player.model.policy.set_training_mode(training)
        while len(self.steps) < points:
            self.steps.append(round((len(self.steps) + 1) * self.budget / POINTS))
            self.means.append(float(np.mean(self.scores)))
            self.clock.append(begun - self.begun - self.seconds)
        self.seconds += perf_counter() - begun
        self.times += 1
