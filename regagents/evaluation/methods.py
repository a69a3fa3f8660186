"""What can be evaluated: classical methods, pipelines and agents that play, all behind one call.

A method takes a chunk of held-out pairs and says what it found for each of them: a pose or a displacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor

from regagents.a3c import A3C, Lookahead, register_until_value
from regagents.agents import load
from regagents.classical import Elastix, Refinement, SiftSimilarity, multi_start, random_starts, refine_pose
from regagents.classical.common import FieldMethod, PoseMethod
from regagents.classical.convexadam import Solver
from regagents.classical.syn import SyN
from regagents.common.player import played, player_of
from regagents.dsl import DSL
from regagents.evaluation.dense import searched, solved
from regagents.evaluation.pairs import Case, Chunk
from regagents.evaluation.tuned import motion_of, tuned_fields, tuned_mi, tuned_refinement
from regagents.registration.candidates import best_end
from regagents.registration.deformation import LABELLED, OPTIMISERS
from regagents.registration.pipeline import AGENTS, Pipeline, pipeline, run, stages
from regagents.registration.score import Score
from regenv.core import RegistrationCore
from regenv.data.io.images import Image
from regenv.data.io.resampling import to_sitk
from regenv.parts.termination import Never
from regenv.state import EpisodeState
from regenv.task import Task

MULTI = "mi-multistart"
LOOKAHEAD = "+mc"  # ends the name of an A3C agent with look-ahead
FINE = "+fine"      # ends the name of an agent whose poses are refined


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found for the K pairs of a chunk.

    Attributes: pull_backs: (K, D+1, D+1) poses; displacements: (K, D, *shape) float32, voxels of the fixed grid, which
    come before the poses; None where nothing is displaced.
    """

    pull_backs: NDArray[np.float64]
    displacements: Tensor | None = None

    @classmethod
    def of(cls, state: EpisodeState) -> Found:
        """Where episodes are."""
        return cls(state.pull_back.cpu().numpy(), None if state.displacement is None else state.displacement.cpu())

    @classmethod
    def displaced(cls, chunk: Chunk, displacements: Tensor) -> Found:
        """The poses of the start, with displacements."""
        return cls(chunk.state.pull_back.cpu().numpy(), displacements)


class Method(Protocol):
    """Something that registers held-out pairs."""

    learned: ClassVar[bool]
    """Whether it is an agent; agents may be refined, and "mi-multistart" is given their time."""

    @property
    def name(self) -> str:
        """Of its row."""

    def __call__(self, chunk: Chunk) -> Found:
        """What it finds for the pairs of a chunk, from their start."""


@dataclass(frozen=True)
class Initial:
    """The starts as they are."""

    name: str = "initial"
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found.of(chunk.state)


@dataclass(frozen=True)
class ClassicalPose:
    """A classical method that finds poses, pair by pair."""

    name: str
    method: PoseMethod
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found(np.stack([self.method.register(to_sitk(case.fixed), to_sitk(case.moving), case.start,
                                                    case.center).pull_back for case in chunk.cases]))


@dataclass(frozen=True)
class MultiStart:
    """Mutual information from one random start after another, while time is left. Args: seconds: for each pair."""

    seconds: float
    name: str = MULTI
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found(np.stack([self._one(case) for case in chunk.cases]))

    def _one(self, case: Case) -> NDArray[np.float64]:
        starts = random_starts(case.start, case.center, np.random.default_rng(case.seed))
        return multi_start(to_sitk(case.fixed), to_sitk(case.moving), starts, case.center, self.seconds).pull_back


@dataclass(frozen=True)
class ClassicalField:
    """A classical method that finds displacements, pair by pair."""

    name: str
    method: FieldMethod
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found.displaced(chunk, searched(self.method, chunk.state, chunk.core.task.grid))


@dataclass(frozen=True)
class Optimiser:
    """An optimiser on feature tensors, pair by pair. Args: masked: whether it is given the organs as masks."""

    name: str
    solver: Solver
    masked: bool = False
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        return Found.displaced(chunk, solved(self.solver, chunk.state, self.masked))


@dataclass(frozen=True)
class Chain:
    """The agents of a pipeline alone, as ``register`` without refinement runs them, pair by pair, without their rivals.

    Args: agents: its stages, loaded.
    """

    name: str
    chain: Pipeline
    agents: Sequence[Any]
    learned: ClassVar[bool] = True

    def __call__(self, chunk: Chunk) -> Found:
        return Found(np.stack([self._end(case) for case in chunk.cases]))

    def _end(self, case: Case) -> NDArray[np.float64]:
        ended = run(self.chain, case.fixed, case.moving, case.start, agents=self.agents)
        return best_end(ended, case.start, Score.of(case.fixed, case.moving))


@dataclass(frozen=True)
class Policy:
    """An agent that plays to the time limit, on the observations of its own task.

    Args:
        model: one of this project's agents, or anything with SB3's ``predict``: PPO, DQN, RecurrentPPO, ...
        task: the one it was trained on, default the evaluated one. Its grid and transform must be those of the pairs.
        steps: how many it takes, default as many as both tasks allow.
    """

    name: str
    model: Any
    task: Task | None = None
    steps: int | None = None
    learned: ClassVar[bool] = True

    def __call__(self, chunk: Chunk) -> Found:
        return Found.of(self.played(chunk))

    def played(self, chunk: Chunk) -> EpisodeState:
        """The chunk's episodes at the time limit."""
        core, state = own_episodes(self.name, self.task, chunk)
        return played(player_of(self.model), core, state, self.steps)


@dataclass(frozen=True)
class ValueStop:
    """An A3C agent that stops by its value, with or without Monte Carlo look-ahead (Sun et al. 2018, section 3.6)."""

    name: str
    agent: A3C
    lookahead: Lookahead | None = None
    learned: ClassVar[bool] = True

    def __call__(self, chunk: Chunk) -> Found:
        core, state = own_episodes(self.name, self.agent.task(), chunk)
        stop = self.agent.stop_values[self.lookahead is not None]
        ended, _ = register_until_value(self.agent.policy, core, state, stop, core.task.max_episode_steps,
                                        self.lookahead)
        return Found.of(ended)


@dataclass(frozen=True)
class Random:
    """Random actions to the time limit, the same ones for the same pairs."""

    name: str = "random"
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        core, state = chunk.core, chunk.state
        spaces = [core.task.actions.space() for _ in range(state.lanes)]
        for lane, space in enumerate(spaces):
            space.seed(chunk.seed + lane)
        for _ in range(core.task.max_episode_steps):
            actions = torch.from_numpy(np.stack([space.sample() for space in spaces])).to(core.device)
            state = core.step(state, actions)[0]
        return Found.of(state)


@dataclass(frozen=True)
class ByExpert:
    """The best action by the true pose, step by step, and of all the poses on the way the one that is nearest.

    It tells how far unit steps reach in the time that an episode has.
    """

    name: str = "expert"
    learned: ClassVar[bool] = False

    def __call__(self, chunk: Chunk) -> Found:
        core, state = chunk.core, chunk.state
        expert, measure = core.task.expert, core.measure(state.pair)
        assert expert is not None
        nearest, found = state.tre.clone(), state.pull_back.clone()
        for _ in range(core.task.max_episode_steps):
            state = core.step(state, expert(core.task.transform, measure, state.pose, core.deltas).argmax(1))[0]
            better = state.tre < nearest
            nearest, found = torch.where(better, state.tre, nearest), torch.where(better[:, None, None],
                                                                                  state.pull_back, found)
        return Found(found.cpu().numpy())


@dataclass(frozen=True)
class Fine:
    """A method's poses after a local refinement by mutual information; or those of a rival, refined likewise, where
    the images agree better there.

    Agreement is the refinement's own metric at its last level. On 48 training slices it chose right each time, where
    the normalised information of :class:`~regagents.registration.score.Score` took the wrong pose once or twice.
    """

    name: str
    method: Method
    rival: Method
    refinement: Refinement
    learned: ClassVar[bool] = True

    def __call__(self, chunk: Chunk) -> Found:
        ends = [method(chunk).pull_backs for method in (self.method, self.rival)]
        return Found(np.stack([self._best(case, poses) for case, *poses in zip(chunk.cases, *ends, strict=True)]))

    def _best(self, case: Case, poses: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        fixed, moving = to_sitk(case.fixed), to_sitk(case.moving)
        return min((self.refinement.register(fixed, moving, pose) for pose in poses),
                   key=lambda result: result.metric).pull_back


def refined(chunk: Chunk, found: Found) -> Found:
    """Poses after the local refinement by mutual information."""
    return Found(np.stack([refine_pose(to_sitk(case.fixed), to_sitk(case.moving), pose, case.center).pull_back
                           for case, pose in zip(chunk.cases, found.pull_backs, strict=True)]))


def own_episodes(name: str, task: Task | None, chunk: Chunk) -> tuple[RegistrationCore, EpisodeState]:
    """The episodes of a chunk as an agent's own task shows them, with the starts that the pairs are drawn with. Only
    the time limit ends them, the shorter one of the agent's task and the pairs'.

    Raises ValueError where the grids or the transforms differ.
    """
    pairs = chunk.core.task
    task = pairs if task is None else task
    check_fits(name, task, pairs)
    steps = min(task.max_episode_steps, pairs.max_episode_steps)
    core = RegistrationCore(replace(task, start=pairs.start, termination=Never(), max_episode_steps=steps),
                            chunk.core.device)
    state = chunk.state
    return core, core.begin(state.pair, state.pose, state.anchor, state.guard_seed)


def check_fits(name: str, task: Task, pairs: Task) -> None:
    """Raise ValueError where an agent's task and that of the pairs differ in the grid or the transform."""
    if task.grid.shape != pairs.grid.shape or not np.allclose(task.grid.spacing, pairs.grid.spacing):
        raise ValueError(f"{name}: it sees {task.grid.shape} voxels of {task.grid.spacing} mm, but the pairs have "
                         f"{pairs.grid.shape} of {pairs.grid.spacing} mm; set size and spacing.")
    if type(task.transform) is not type(pairs.transform):
        raise ValueError(f"{name}: it moves a {type(task.transform).__name__}, but the pairs need a "
                         f"{type(pairs.transform).__name__}.")


# ------------------------------------------------------------------------------------------------------ methods by name

def _mi(task: Task) -> Method:
    return ClassicalPose("mi", tuned_mi(motion_of(task), task.grid.ndim))


def _sift(task: Task) -> Method:
    if task.grid.ndim != 2:
        raise ValueError("evaluate: baseline is 'sift'; SIFT needs 2D images.")
    return ClassicalPose("sift", SiftSimilarity())


def _elastix(task: Task) -> Method:
    if not Elastix.available():
        raise ValueError("evaluate: baseline is 'elastix'; install it with `pip install itk-elastix`.")
    return ClassicalPose("elastix", Elastix(motion_of(task)))


def _syn(task: Task) -> Method:
    if not SyN.available():
        raise ValueError("evaluate: baseline is 'syn'; install it with `pip install antspyx`.")
    return ClassicalField("syn", tuned_fields(task).syn)


def _expert(task: Task) -> Method:
    if task.expert is None or not isinstance(task.actions.space(), Discrete):
        raise ValueError("evaluate: baseline is 'expert'; it needs an id with discrete actions and a true pose.")
    return ByExpert()


PLAIN: dict[str, Callable[[Task], Method]] = {"initial": lambda task: Initial(), "random": lambda task: Random()}
POSES: dict[str, Callable[[Task], Method]] = {**PLAIN, "expert": _expert, "mi": _mi, "sift": _sift,
                                              "elastix": _elastix}
FIELDS: dict[str, Callable[[Task], Method]] = {
    **PLAIN,
    "demons": lambda task: ClassicalField("demons", tuned_fields(task).demons),
    "bspline": lambda task: ClassicalField("bspline", tuned_fields(task).bspline),
    "adam": lambda task: Optimiser("adam", tuned_fields(task).adam, tuned_fields(task).masked),
    "convexadam": lambda task: Optimiser("convexadam", tuned_fields(task).convexadam, tuned_fields(task).masked),
    "greedy": lambda task: Optimiser("greedy", tuned_fields(task).greedy, tuned_fields(task).masked),
    "syn": _syn,
}


def name_of(method: str | Pipeline | Method) -> str:
    """Of the method's row; a pipeline is named by its stages."""
    if isinstance(method, Pipeline):
        return " + ".join(method.stages)
    return method if isinstance(method, str) else method.name


def baselines_of(task: Task) -> tuple[str, ...]:
    """Names of the classical rows for the pairs of a task."""
    return (*POSES, MULTI) if task.transform.linear else tuple(FIELDS)


def default_baselines(task: Task) -> tuple[str, ...]:
    """The classical rows that are measured unless told otherwise."""
    if task.transform.linear:
        return "initial", "mi"
    return tuple(name for name in FIELDS if name != "random" and (name != "syn" or SyN.available()))


def yardsticks(task: Task) -> tuple[str, ...]:
    """Rows that tell what an agent's number is worth: random actions and, where there is one, the expert's."""
    expert = task.expert is not None and isinstance(task.actions.space(), Discrete)
    return ("random", "expert") if expert else ("random",)


def method_named(name: str | Pipeline, task: Task) -> Method:
    """A classical method, a pipeline, or the agent of a checkpoint, for the pairs of a task.

    "NAME+mc" is an A3C agent with look-ahead, "NAME+fine" any agent that finds poses with :class:`Fine` after it, and
    tuned mutual information as the rival. "mi-multistart" is not among them: it needs the time of the agents.
    Raises CheckpointError for bad weights, ValueError for an agent or a baseline that does not suit the pairs.
    """
    if isinstance(name, Pipeline) or name in AGENTS:
        return _chain(name, task)
    makers = POSES if task.transform.linear else FIELDS
    if name in makers:
        return makers[name](task)
    if name in OPTIMISERS and name != LABELLED and not task.transform.linear:       # with its settings' name
        return Optimiser(name, OPTIMISERS[name].solver, tuned_fields(task).masked)
    if name in (*POSES, *FIELDS, MULTI):
        raise ValueError(f"evaluate: baseline is {name!r}; for these pairs it must be one of "
                         f"{', '.join(baselines_of(task))}.")
    if name.endswith(FINE):
        return _fine(name, task)
    path, ahead = name.removesuffix(LOOKAHEAD), name.endswith(LOOKAHEAD)
    agent = load(path)
    return BY_ALGORITHM.get(type(agent), _policy)(name, agent, ahead, task)


def _fine(name: str, task: Task) -> Method:
    if not task.transform.linear:
        raise ValueError(f"{name}: {FINE} refines poses, but the pairs need displacements; leave it out.")
    agent = method_named(name.removesuffix(FINE), task)
    if not agent.learned:
        raise ValueError(f"{name}: {FINE} is for agents, and {agent.name!r} is none; leave it out.")
    return Fine(name, agent, _mi(task), tuned_refinement(motion_of(task), task.grid.ndim))


def _chain(name: str | Pipeline, task: Task) -> Method:
    chain = pipeline(name, task.grid.ndim)
    if not task.transform.linear:
        raise ValueError(f"{name_of(name)}: it finds a pose, but the pairs need a "
                         f"{type(task.transform).__name__}.")
    blank = Image(np.zeros(task.grid.shape, np.float32), task.grid, "the pairs")
    return Chain(name_of(name), chain, stages(chain, blank))


def _policy(name: str, agent: Any, ahead: bool, task: Task) -> Method:
    if ahead:
        raise ValueError(f"{name}: only agents of A3C have a look-ahead; leave {LOOKAHEAD} out.")
    check_fits(name, agent.task(), task)
    return Policy(name, agent, agent.task(), agent.steps_played)


def _by_value(name: str, agent: Any, ahead: bool, task: Task) -> Method:
    check_fits(name, agent.task(), task)
    return ValueStop(name, agent, agent.lookahead() if ahead else None)


def _by_pipeline(name: str, agent: Any, ahead: bool, task: Task) -> Method:
    linear = agent.task().transform.linear and task.transform.linear and not ahead
    return _chain(name, task) if linear else _policy(name, agent, ahead, task)


BY_ALGORITHM: dict[type[Any], Callable[[str, Any, bool, Task], Method]] = {A3C: _by_value, DSL: _by_pipeline}
"""How agents register that do not simply play to the time limit: ``(name, agent, look-ahead, task of the pairs)``."""
