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
from stable_baselines3.common.callbacks import BaseCallback

from regagents.classical.deformable import Demons, FreeForm
from regagents.common import jobs as engines
from regagents.common.threads import one_thread
from regagents.evaluation.dense import Metrics, searched
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.methods import Policy
from regagents.evaluation.pairs import Chunk, _pairs_of, drawn
from regagents.training import zoo
from regenv.atomic import atomic
from regenv.registry import build
from regenv.state import EpisodeState
from regenv.task import SUCCESS_MM, Task

POINTS = 10             # of a learning curve
DRAWS, CONFIDENCE = 2000, 95
LINEAR = ("initial", "mi")
DEFORMING: dict[str, Callable[[], Any] | None] = {"initial": None, "demons": Demons, "free-form": FreeForm}


@dataclass(frozen=True)
class Entry:
    """A method's outcome.

    Attributes: scores: (runs, pairs) on the held-out pairs at the end; curves: (runs, POINTS) their means on the way;
    steps: (POINTS,) environment steps of these; seconds: training of a run, mean; seconds_per_pair: of playing.
    """

    method: str
    scores: np.ndarray
    seconds_per_pair: float
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    curves: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    seconds: float = 0.0


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
        lines = [f"| method | {self.measure}: IQM | {CONFIDENCE} % interval | mean | median | "
                 f"{f'within {SUCCESS_MM:g} mm | ' if self.measure == TRE else ''}training, s | s/pair |",
                 f"| --- | ---: | ---: | ---: | ---: | {'---: | ' if self.measure == TRE else ''}---: | ---: |"]
        for entry in self.entries:
            low, high = interval(entry.scores)
            near = f"{(entry.scores <= SUCCESS_MM).mean():.0%} | " if self.measure == TRE else ""
            shown = f"{low:.3g} to {high:.3g}" if len(entry.scores) > 1 else "one run"
            lines.append(f"| {entry.method} | {iqm(entry.scores):.3g} | {shown} | {entry.scores.mean():.3g} | "
                         f"{np.median(entry.scores):.3g} | {near}{entry.seconds:.0f} | {entry.seconds_per_pair:.3f} |")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names."""
        rows = [{"method": e.method, "scores": e.scores.tolist(), "seconds_per_pair": e.seconds_per_pair,
                 "steps": e.steps.tolist(), "curves": e.curves.tolist(), "seconds": e.seconds} for e in self.entries]
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
        """Learning curves: mean over the runs and their range; grey, what does not learn."""
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(7, 4.5))
        styles = itertools.cycle((":", "--", "-."))
        for entry in self.entries:
            if len(entry.steps):
                [line] = axis.plot(entry.steps, entry.curves.mean(0), label=entry.method, marker=".")
                axis.fill_between(entry.steps, entry.curves.min(0), entry.curves.max(0), alpha=0.15, lw=0,
                                  color=line.get_color())
            else:
                axis.axhline(entry.scores.mean(), label=entry.method, linestyle=next(styles), lw=1, color="0.3")
        axis.set(xlabel="environment steps", ylabel=f"{self.measure}, mean of held-out pairs", title=self.env)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        figure.tight_layout()
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
        plt.close(figure)


TRE, DICE = "TRE, mm", "Dice"


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter, as rliable has it."""
    ordered = np.sort(scores, axis=None)
    cut = int(0.25 * ordered.size)
    return float(ordered[cut: ordered.size - cut].mean())


def interval(scores: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
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

    Agents play to the time limit. Finished runs are kept in ``OUT.jsonl``; a run that was interrupted goes on from it.

    Args:
        env_id: an id of regenv; agents: of ``regagents.training.zoo.ALGORITHMS``, with settings for it.
        pairs, seed: held-out pair i is what the id gives for seed ``seed + i``; seeds: runs of each agent, 0, 1, ...
        env_kwargs: of training and measuring; they go before the settings'. held_out: those of measuring that differ,
            such as ``{"source": {"name": "digits", "split": "test"}}``.
        baselines: "initial" and "mi" of linear ids (also those of :func:`regagents.evaluation.evaluate.evaluate`), "initial",
            "demons" and "free-form" of deforming ones; default all.
        engine, workers: see :func:`regagents.common.jobs.run`.
        progress: called with what was finished and the share of all.
    Raises: ValueError: an unknown name, a number out of range, or a ledger of another comparison.
    """
    for name, value in (("budget", budget), ("pairs", pairs), ("seeds", seeds)):
        if value < 1:
            raise ValueError(f"compare: {name} is {value}; it must be at least 1.")
    if not agents or len(set(agents)) < len(agents):
        raise ValueError(f"compare: agents are {', '.join(agents) or 'none'}; name each once.")
    games = {agent: {**zoo.settings(agent, env_id).env_kwargs, **(env_kwargs or {})} for agent in agents}
    grids = {name: build(env_id, **games[name]).grid for name in agents}
    for name, grid in grids.items():
        if grid != grids[agents[0]]:
            raise ValueError(f"compare: {name} plays on {grid.shape} voxels of {grid.spacing} mm, {agents[0]} on "
                             f"{grids[agents[0]].shape} of {grids[agents[0]].spacing} mm; set size and spacing.")
    measured = {**_pairs_of(games[agents[0]]), **(env_kwargs or {}), **(held_out or {})}
    deforming = not build(env_id, **measured).transform.linear
    names = tuple(DEFORMING if deforming else LINEAR) if baselines is None else tuple(baselines)
    if deforming and not set(names) <= set(DEFORMING):
        raise ValueError(f"compare: baselines are {', '.join(names)}; of a deforming id they are "
                         f"{', '.join(DEFORMING)}.")
    out = Path(out)
    kept = engines.Ledger(out.with_name(f"{out.name}.jsonl"), {
        "env": env_id, "env_kwargs": dict(env_kwargs or {}), "held_out": dict(held_out or {}), "budget": budget,
        "pairs": pairs, "seed": seed})
    jobs: dict[str, tuple[Any, ...]] = {f"{name}": (env_id, measured, name, pairs, seed) for name in names}
    told, results = progress or (lambda name, share: None), {}
    runs_of = {agent: [f"{agent} {run} {_digest(zoo.settings(agent, env_id), games[agent], measured)}"
                       for run in range(seeds)] for agent in agents}
    training = {runs_of[agent][run]: (env_id, games[agent], measured, agent, run, budget, pairs, seed)
                for run in range(seeds) for agent in agents}
    for function, part in ((_classical, jobs), (_trained, training)):
        for key, result in engines.run(function, part, engine, workers, kept):
            results[key] = result
            told(key, len(results) / (len(jobs) + len(training)))
    entries = [Entry(name, np.array([results[name]["scores"]]), results[name]["seconds_per_pair"]) for name in names]
    for agent in agents:
        runs = [results[key] for key in runs_of[agent]]
        seconds, per_pair = (float(np.mean([run[name] for run in runs])) for name in ("seconds", "seconds_per_pair"))
        entries.append(Entry(agent, np.array([run["scores"] for run in runs]), per_pair, np.array(runs[0]["steps"]),
                             np.array([run["curve"] for run in runs]), seconds))
    return Comparison(env_id, measured, budget, pairs, seeds, DICE if deforming else TRE, tuple(entries))


def _digest(*what: Any) -> str:
    """Of all that a run depends on beside the comparison itself: other settings are another run."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


def scored(task: Task, state: EpisodeState) -> list[float]:
    """Of each pair the mean Dice where the task deforms, else the landmark error, mm."""
    if task.transform.linear:
        return state.tre.tolist()
    return Metrics.of(state, state.displacement, task.grid).dice.tolist()


@one_thread()
def _classical(env_id: str, arguments: Mapping[str, Any], name: str, pairs: int, seed: int) -> dict[str, Any]:
    """Scores of a classical method, and its seconds a pair."""
    if build(env_id, **arguments).transform.linear:
        row = evaluate(env_id, [name], pairs, seed, arguments).rows[0]
        return {"scores": list(row.errors_mm), "seconds_per_pair": row.seconds}
    make, scores, chunks = DEFORMING[name], [], drawn(env_id, arguments, pairs, seed)
    begun = perf_counter()
    for chunk in chunks:
        grid = chunk.core.task.grid
        field = None if make is None else searched(make(), chunk.state, grid)
        scores += Metrics.of(chunk.state, field, grid).dice.tolist()
    return {"scores": scores, "seconds_per_pair": (perf_counter() - begun) / pairs}


def _trained(env_id: str, game: Mapping[str, Any], measured: Mapping[str, Any], algo: str, run: int, budget: int,
             pairs: int, seed: int) -> dict[str, Any]:
    """An agent's run: its learning curve, and its scores at the end."""
    torch.set_num_threads(1)
    agent = zoo.create(algo, env_id, run, env_kwargs=game)
    task = build(env_id, **{**game, **{key: value for key, value in measured.items() if key != "source"}})
    exam = EvalCallback(Policy(algo, agent, task), drawn(env_id, measured, pairs, seed), budget)
    begun = perf_counter()
    agent.learn(budget, callback=exam)
    exam.take(POINTS)
    seconds = perf_counter() - begun - exam.seconds
    agent.get_env().close()
    return {"steps": exam.steps, "curve": exam.means, "scores": exam.scores, "seconds": seconds,
            "seconds_per_pair": exam.seconds / exam.taken / pairs}


class EvalCallback(BaseCallback):
    """Scores on the held-out pairs at POINTS places of the training."""

    def __init__(self, policy: Policy, chunks: Sequence[Chunk], budget: int) -> None:
        super().__init__()
        self.player, self.chunks, self.budget = policy, chunks, budget
        self.steps: list[int] = []
        self.means: list[float] = []
        self.scores: list[float] = []
        self.seconds, self.taken = 0.0, 0

    def _on_step(self) -> bool:
        due = min(self.num_timesteps * POINTS // self.budget, POINTS - 1)
        if due > len(self.steps):
            self.take(due)
        return True

    @torch.no_grad()
    def take(self, points: int) -> None:
        """Play all pairs now, for the curve up to its point of that number: many steps may pass between two calls."""
        begun, training = perf_counter(), self.player.model.policy.training  # type: ignore[attr-defined]
        self.scores = [score for chunk in self.chunks
                       for score in scored(chunk.core.task, self.player.played(chunk))]
        self.player.model.policy.set_training_mode(training)  # type: ignore[attr-defined]
        while len(self.steps) < points:
            self.steps.append(round((len(self.steps) + 1) * self.budget / POINTS))
            self.means.append(float(np.mean(self.scores)))
        self.seconds += perf_counter() - begun
        self.taken += 1
