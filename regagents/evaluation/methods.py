"""What can be evaluated: classical methods, pipelines of agents, and agents that play, all behind one call.

A method takes a chunk of held-out pairs and gives a pull-back for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch

from regagents.a3c import A3C, Lookahead, play
from regagents.agents import load, resolve
from regagents.classical import Elastix, MattesMI, SiftSimilarity
from regagents.classical.common import Result
from regagents.common import checkpoints
from regagents.evaluation.pairs import Chunk
from regagents.registration.pipeline import AGENTS, Pipeline, pipeline, run, stages
from regenv.core import RegistrationCore
from regenv.data.io.images import Image
from regenv.data.io.resampling import to_sitk
from regenv.parts.termination import Never
from regenv.state import EpisodeState
from regenv.task import Task
from regenv.wrappers.sb3 import host

BASELINES = ("initial", "mi", "mi-multistart", "sift", "elastix")


Method = Callable[[Chunk], np.ndarray]
"""Pull-backs (K, D+1, D+1) of the K pairs of a chunk."""


def initial(chunk: Chunk) -> np.ndarray:
    """The starts as they are."""
    return np.stack([case.start for case in chunk.cases])


class Search(Protocol):
    """A classical method, such as MattesMI."""

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray, center: np.ndarray) -> Result: ...


@dataclass(frozen=True)
class Classical:
    """A classical search, pair by pair."""

    search: Search

    def __call__(self, chunk: Chunk) -> np.ndarray:
        return np.stack([self.search.register(to_sitk(case.fixed), to_sitk(case.moving), case.start,
                                              case.center).pull_back for case in chunk.cases])


@dataclass(frozen=True)
class Chain:
    """A pipeline of DSL agents, as ``register`` runs it, pair by pair."""

    chain: Pipeline
    agents: Sequence[Any]

    def __call__(self, chunk: Chunk) -> np.ndarray:
        return np.stack([run(self.chain, case.fixed, case.moving, case.start, case.seed, agents=self.agents)[0]
                         for case in chunk.cases])


class Predictor(Protocol):
    """Anything with SB3's ``predict``: PPO, DQN, RecurrentPPO, OneShot, ..."""

    def predict(self, observation: np.ndarray, state: Any = ..., episode_start: Any = ...,
                deterministic: bool = ...) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Policy:
    """An agent that plays to the time limit, on its own task's observations.

    Args: task: the environment it was trained for, default the evaluated one. Its grid and transform must be those of
    the pairs.
    """

    name: str
    model: Predictor
    task: Task | None = None

    def __call__(self, chunk: Chunk) -> np.ndarray:
        return self.played(chunk).pull_back.cpu().numpy()

    def played(self, chunk: Chunk) -> EpisodeState:
        """The chunk's episodes at the time limit."""
        core, state = own_episodes(self.name, self.task, chunk)
        memory, starts = None, np.ones(state.lanes, dtype=bool)
        for _ in range(core.task.max_episode_steps):
            actions, memory = self.model.predict(host(core.observe(state)), memory, starts, True)
            state = core.step(state, torch.as_tensor(actions).to(core.device))[0]
            starts = np.zeros_like(starts)
        return state


@dataclass(frozen=True)
class ValueStop:
    """An A3C agent that stops by its value, with or without Monte Carlo look-ahead (Sun et al. 2018, section 3.6)."""

    name: str
    agent: A3C
    lookahead: Lookahead | None = None

    def __call__(self, chunk: Chunk) -> np.ndarray:
        core, state = own_episodes(self.name, self.agent.task(), chunk)
        ended, _ = play(self.agent.policy, core, state, self.agent.stop_values[self.lookahead is not None],
                        core.task.max_episode_steps, self.lookahead)
        return ended.pull_back.cpu().numpy()


def own_episodes(name: str, task: Task | None, chunk: Chunk) -> tuple[RegistrationCore, EpisodeState]:
    """The chunk's episodes as an agent's own task shows them, which no one is told to end.

    Raises ValueError where the grids or the transforms differ.
    """
    pairs = chunk.core.task
    task = pairs if task is None else task
    if task.grid.shape != pairs.grid.shape or not np.allclose(task.grid.spacing, pairs.grid.spacing):
        raise ValueError(f"{name}: it sees {task.grid.shape} voxels of {task.grid.spacing} mm, but the pairs have "
                         f"{pairs.grid.shape} of {pairs.grid.spacing} mm; set size and spacing.")
    if type(task.transform) is not type(pairs.transform):
        raise ValueError(f"{name}: it moves a {type(task.transform).__name__}, but the pairs need a "
                         f"{type(pairs.transform).__name__}.")
    core = RegistrationCore(replace(task, termination=Never()), chunk.core.device)
    return core, core.begin(chunk.state.pair, chunk.state.pose, chunk.state.anchor)


def method_named(name: str | Pipeline, task: Task) -> tuple[Method, bool]:
    """A baseline, a pipeline, or the agent of a checkpoint, for the pairs of a task; and whether it is an agent.

    "NAME+mc" is an A3C agent with look-ahead. "mi-multistart" is not among them: it needs the agents' time.
    Raises CheckpointError for bad weights, ValueError for an agent of another dimension or a baseline of no use here.
    """
    motion = "similarity" if "s" in task.transform.names else "rigid"
    ndim = task.grid.ndim
    if name == "initial":
        return initial, False
    if name == "mi":
        return Classical(tuned_mi(motion, ndim)), False
    if name == "sift":
        if ndim != 2:
            raise ValueError("evaluate: baseline is 'sift'; SIFT needs 2D images.")
        return Classical(SiftSimilarity()), False
    if name == "elastix":
        if not Elastix.available():
            raise ValueError("evaluate: baseline is 'elastix'; install it with `pip install itk-elastix`.")
        return Classical(Elastix(motion)), False
    if isinstance(name, Pipeline) or name in AGENTS:
        return _chain(pipeline(name), task), True
    path, mc = (name[:-3], True) if name.endswith("+mc") else (name, False)
    algorithm = checkpoints.load(resolve(path))[1].get("algorithm")
    if algorithm == "A3C":
        return ValueStop(name, load(path, algorithm="A3C"), Lookahead() if mc else None), True
    if algorithm == "OneShot":
        agent = load(path, algorithm="OneShot")
        return Policy(name, agent, agent.task().limited(1)), True
    return _chain(pipeline(name), task), True


def tuned_mi(motion: str, ndim: int) -> MattesMI:
    """Mutual information as it does best on training pairs, by transform and dimension.

    On the 60 slices it was tuned on (E2), smoothing without shrinking brought the 90th percentile from 33 to 1.5
    pixels: a shrunken slice has too few samples for a histogram.
    """
    if motion == "similarity" and ndim == 2:
        return MattesMI(motion=motion, levels=(1, 1, 1), smoothing=(8.0, 4.0, 1.0), step=2.0, sampling=0.3)
    return MattesMI(motion=motion)


def _chain(chain: Pipeline, task: Task) -> Chain:
    blank = Image(np.zeros(task.grid.shape, np.float32), task.grid, "the pairs")
    return Chain(chain, stages(chain, blank))
