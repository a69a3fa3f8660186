"""Pipelines of agents: from two images and a starting pose to the poses where the agents end, each in its own
environment.

Images of any spacing, origin and direction are reduced to the grid that the agent was trained on. The truth is unknown
there; poses are relative to the current estimate. All starts of an agent run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.agents import load_as
from regagents.classical.common import shift
from regagents.common.algorithm import Algorithm
from regagents.common.player import Player, player_of, selected
from regagents.common.threads import one_thread
from regagents.dsl.dsl import DSL
from regagents.registration.poses import anchored, mean_pose
from regenv.core import RegistrationCore
from regenv.data.io.images import Image
from regenv.data.io.resampling import foreground_center
from regenv.data.sources.files import image_pair
from regenv.grid import Grid
from regenv.ops.affine import transform_points
from regenv.parts.action import DiscreteSteps
from regenv.parts.termination import Never
from regenv.state import EpisodeState
from regenv.task import is_linear

WINDOW, STILL_MM, PROBE_MM = 10, 1.5, 60.0  # a lane stands still if it moves by less than this over so many steps
MEET_MM, MEET_EVERY = 5.0, 5                # lanes as near as this go on as one; looked at every so many steps
AGREE_MM = 10.0                             # between ends that belong to one group
GROUPS = 4                                  # of ends that go on
CIRCLE = 12                                 # starts over the whole circle in 2D


@dataclass(frozen=True)
class Visited:
    """Where a lane was: a stage, its step, the action that led there ("" at the start), and the pull-back there."""

    stage: str
    step: int
    action: str
    pull_back: NDArray[np.float64]


@dataclass(frozen=True)
class Pipeline:
    """A named way to register: agents in turn, each from the last one's pose.

    Args:
        stages: checkpoints, or names of shipped weights.
        turned: begin from the 24 rotations of the cube about the start (in 2D from 12 over the circle), as one batch;
            else from the start alone.
        rivals: other ways to a pose whose ends compete with the agents', names in
            :data:`regagents.registration.candidates.RIVALS`.
        view: middle of the first agent's view, "foreground" or "grid" (of the fixed image).
        attention: later stages look at the region that the stage before found salient (Liao et al. 2017).
        steps: at most this many of each stage (default: the limit of the agent's environment).
    """

    stages: tuple[str, ...]
    turned: bool = False
    rivals: tuple[str, ...] = ("header", "center", "information", "phase", "sift")
    view: str = "foreground"
    attention: bool = False
    steps: tuple[int, ...] = ()


AGENTS: dict[str, Pipeline] = {
    "head": Pipeline(("head-geometric", "head-unit"), turned=True),
    "spine": Pipeline(("spine-coarse", "spine-fine"), view="grid", attention=True, steps=(320, 100)),
    "rigid2d": Pipeline(("rigid2d",), turned=True),
    "none": Pipeline((), rivals=()),
}
AUTO = {2: Pipeline(("rigid2d",), turned=True), 3: Pipeline(("head-geometric",), turned=True)}
"""What "auto" means in each dimension: an agent of that dimension and every other way, so no anatomy is assumed."""


def pipeline(agent: str | Path | Pipeline, ndim: int) -> Pipeline:
    """A pipeline by name, or of one checkpoint."""
    if isinstance(agent, Pipeline):
        return agent
    return AUTO[ndim] if str(agent) == "auto" else AGENTS.get(str(agent), Pipeline((str(agent),)))


def stages(chain: Pipeline, fixed: Image) -> list[Algorithm]:
    """The agents of a pipeline: of any algorithm, as long as they end in a pose.

    Raises CheckpointError for bad weights, ValueError for agents of another dimension, for agents that deform, and
    where attention needs the saliency of an agent that has none.
    """
    agents = [load_as(Algorithm, name) for name in chain.stages]
    for place, (name, agent) in enumerate(zip(chain.stages, agents, strict=True)):
        task = agent.task()
        ndim, moves = task.grid.ndim, type(task.transform).__name__
        if not task.transform.linear:
            raise ValueError(f"{name}: agent deforms (its poses are those of {moves}); a pipeline needs agents of "
                             "rigid or similarity ids. `regagents evaluate` measures agents that deform.")
        if chain.attention and place + 1 < len(agents) and not isinstance(agent, DSL):
            raise ValueError(f"{name}: algorithm is {type(agent).__name__}; attention needs the saliency of a DSL "
                             "agent at every stage but the last. Choose one, or leave attention out.")
        if ndim != fixed.grid.ndim:
            raise ValueError(f"{fixed.path}: image is {fixed.grid.ndim}D, but agent {name} registers {ndim}D images. "
                             f"Choose an agent for {fixed.grid.ndim}D.")
    return agents


@dataclass(frozen=True, eq=False)
class Ended:
    """Where a group of lanes ended. Attributes: pull_back (D+1, D+1); path of one of them; share of all lanes."""

    pull_back: NDArray[np.float64]
    path: list[Visited]
    share: float


def run(chain: Pipeline, fixed: Image, moving: Image, start: NDArray[np.float64],
        tell: Callable[[str, float], None] = lambda name, share: None,
        agents: Sequence[Algorithm] | None = None) -> list[Ended]:
    """Where a pipeline's lanes end, the largest group first; empty for a pipeline without agents.

    Args:
        start: (D+1, D+1), mm.
        tell: called with a stage's name and the share of work done.
        agents: those of the pipeline if they are loaded already (see :func:`stages`).
    """
    center = foreground_center(fixed) if chain.view == "foreground" else fixed.grid.center
    starts = turned(start, center) if chain.turned else start[None]
    ended: list[Ended] = []
    for number, agent in enumerate(stages(chain, fixed) if agents is None else agents):
        name = str(chain.stages[number])
        tell(name, 0.05 + 0.5 * number / len(chain.stages))
        aligned = align(agent, fixed, moving, starts, chain.steps[number] if chain.steps else None, center)
        before = ended or [Ended(pose, [], 1 / len(starts)) for pose in starts]
        ended = [Ended(pose, [*before[lane].path, *aligned.visited(name, lane)],
                       sum(before[member].share for member in members))
                 for members, lane, pose in groups(aligned)][:GROUPS]
        starts = np.stack([group.pull_back for group in ended])
        if chain.attention and number + 1 < len(chain.stages):
            assert isinstance(agent, DSL)   # as stages() sees to
            center = fine_center(agent, fixed, moving, aligned.center, starts[0])
    return ended


@dataclass(frozen=True)
class Aligned:
    """Where an agent went from K starts.

    Attributes:
        pull_backs: (K, D+1, D+1), final poses: fixed world to moving world, mm.
        path: (T+1, K, D+1, D+1), the pose after every step.
        steps: (K,) steps until a lane stood still.
        met: (K,) the lane that each one went on as, itself or one that it met.
        actions: names of the actions, (T, K); "" where a lane took none.
        center: (D,) the point of the fixed world that rotations turn about, mm.
    """

    pull_backs: NDArray[np.float64]
    path: NDArray[np.float64]
    steps: NDArray[np.int64]
    met: NDArray[np.int64]
    actions: list[list[str]]
    center: NDArray[np.float64]

    def visited(self, stage: str, lane: int) -> list[Visited]:
        """The way of a lane."""
        return [Visited(stage, step, self.actions[step - 1][lane] if step else "", self.path[step, lane])
                for step in range(self.steps[lane] + 1)]

    def probes(self) -> NDArray[np.float64]:
        """Corners of a cube about the centre under each pose, (K, 2^D, D), moving world mm: poses are compared by
        them."""
        n = len(self.center)
        points = self.center + PROBE_MM * _corners(n).numpy()
        return np.einsum("kij,pj->kpi", self.pull_backs[:, :n, :n], points) + self.pull_backs[:, None, :n, n]


def align(agent: Algorithm, fixed: Image, moving: Image, starts: NDArray[np.float64], steps: int | None = None,
          center: NDArray[np.float64] | None = None) -> Aligned:
    """Run an agent greedily from each start.

    Args:
        fixed, moving: images of the agent's dimension.
        starts: (K, D+1, D+1) pull-backs, mm.
        steps: at most this many (default: as many as the agent plays, or the environment's limit). A lane ends early
            once it has not moved by more than 1.5 mm net over the last 10 steps; its pose is then the mean over those
            steps. Lanes that come within 5 mm of each other go on as one, since an agent without memory does the same
            from the same pose.
        center: middle of the agent's view in the fixed world, mm (default: the foreground's centroid).
    Raises: ValueError: the images have another dimension.
    """
    task = agent.task()
    if fixed.grid.ndim != task.grid.ndim:
        raise ValueError(f"{fixed.path}: image is {fixed.grid.ndim}D; the agent registers {task.grid.ndim}D images.")
    middle = foreground_center(fixed) if center is None else np.asarray(center, dtype=np.float64)
    core = _core_about(agent, middle)
    pair = image_pair(fixed, moving, core.task.grid, len(starts)).to(agent.device)
    begin, target = (torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(agent.device)
                     for values in (starts, foreground_center(moving)))
    assert is_linear(task.transform)
    anchor, pose = anchored(task.transform, begin, pair.center, target)
    state = core.begin(pair, pose, anchor)
    rolled = _Rollout(player_of(agent), core, state, steps or agent.steps_played or task.max_episode_steps).play()
    path = rolled.poses()
    return Aligned(_settled(path, rolled.taken, rolled.still)[rolled.met], path.cpu().numpy(),
                   rolled.taken.cpu().numpy(), rolled.met, rolled.actions, middle)


def _core_about(agent: Algorithm, center: NDArray[np.float64]) -> RegistrationCore:
    """The agent's own environment with its view about a point of the fixed world; it never says that an episode ends.
    """
    task = agent.task()
    grid = Grid.centered(task.grid.shape, task.grid.spacing, center.tolist())
    return RegistrationCore(replace(task, grid=grid, termination=Never()), agent.device)


class _Rollout:
    """Every lane played until it stands still or meets another one."""

    def __init__(self, player: Player, core: RegistrationCore, state: EpisodeState, steps: int) -> None:
        self.player, self.core, self.state, self.steps = player, core, state, steps
        self.path = [state.pull_back]
        self.probes = state.pair.center[:, None] + PROBE_MM * _corners(state.pair.ndim).to(state.pair.center)
        self.seen = [transform_points(state.pull_back, self.probes)]
        self.taken = torch.full((state.lanes,), steps, device=state.pose.device)
        self.still = torch.zeros_like(self.taken, dtype=torch.bool)
        self.lanes = torch.arange(state.lanes, device=self.taken.device)
        self.met = np.arange(state.lanes)
        self.actions: list[list[str]] = []
        self.names = action_names(core)

    def poses(self) -> Tensor:
        """(T+1, K, D+1, D+1)."""
        return torch.stack(self.path)

    @one_thread()
    @torch.inference_mode()
    def play(self) -> _Rollout:
        memory: Any = None
        for step in range(1, self.steps + 1):
            action, memory = self.player.play(self.core.observe(self.state), None, memory)
            self.state = self.core.step(self.state, action)[0]
            self._note(action)
            ends = torch.zeros(len(self.lanes), dtype=torch.bool, device=self.lanes.device)
            if step >= WINDOW:
                moved = torch.linalg.vector_norm(self.seen[step] - self.seen[step - WINDOW], dim=-1).mean(-1)
                ends = (moved < STILL_MM)[self.lanes]
                self.still[self.lanes[ends]] = True
            if step % MEET_EVERY == 0 and memory is None:   # a memory is not in the pose
                ends = ends | self._meet(~ends)
            self.taken[self.lanes[ends]] = step
            if ends.any():
                going = ~ends
                self.state, memory, self.lanes = self.state.select(going), selected(memory, going), self.lanes[going]
            if not len(self.lanes):
                break
        self.taken = self.taken.clamp(max=len(self.path) - 1)
        return self

    def _note(self, action: Tensor) -> None:
        self.path.append(self.path[-1].index_copy(0, self.lanes, self.state.pull_back))
        self.seen.append(transform_points(self.path[-1], self.probes))
        row = [""] * len(self.met)
        if self.names:
            for lane, taken in zip(self.lanes.tolist(), action.tolist(), strict=True):
                row[lane] = self.names[taken]
        self.actions.append(row)

    def _meet(self, running: Tensor) -> Tensor:
        """Which lanes (B,) are near an earlier one that runs, and so end here."""
        here = self.seen[-1][self.lanes]
        near = torch.linalg.vector_norm(here[:, None] - here[None], dim=-1).mean(-1) < MEET_MM
        ends = torch.zeros_like(running)
        for lane in running.nonzero()[:, 0].tolist():
            if not ends[lane]:
                joining = near[lane] & running & ~ends
                joining[:lane + 1] = False
                ends |= joining
                for other in self.lanes[joining].tolist():
                    self.met[self.met == other] = int(self.lanes[lane])
        return ends


def action_names(core: RegistrationCore) -> list[str]:
    """What each discrete action does, such as "tx +4" (mm) or "rz -1" (degrees); empty for continuous actions."""
    actions = core.task.actions
    if not isinstance(actions, DiscreteSteps):
        return []
    names = core.task.transform.names
    return [f"{names[int(np.abs(delta).argmax())]} {delta[np.abs(delta).argmax()]:+g}" for delta in actions.deltas]


def _settled(path: Tensor, taken: Tensor, still: Tensor) -> NDArray[np.float64]:
    """Mean pose over the last steps of each lane that stands still: the middle of what the agent swings about."""
    back = torch.arange(min(WINDOW, path.shape[0]), device=path.device)[:, None] * still
    index = (taken[None] - back).clamp(min=0)
    return mean_pose(path[index, torch.arange(path.shape[1], device=path.device)].cpu().numpy())


def _corners(ndim: int) -> Tensor:
    """Corners of a cube of half-width 1 about the origin, (2^D, D)."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * ndim)


def saliency_center(agent: DSL, observation: Tensor, grid: Grid,
                    percentile: float = 95.0) -> NDArray[np.float64]:
    """Where an agent looks: world centre of the voxels above a percentile of the saliency, (D,) mm.

    One backward pass of the sum of all outputs (Simonyan et al. 2013; Liao et al. 2017, hierarchical registration)
    gives the saliency: the absolute value of gradient times input in the last channel, the warped image. Voxels above
    the percentile are averaged with it as weight. The gradient alone is largest where the images show nothing, outside
    a cropped field of view; its centre lay up to 40 mm beside the spine.

    Args: observation (1, C, *shape); grid: that of the observation.
    """
    image = observation.detach().clone().float().requires_grad_()
    agent.q_net(image).sum().backward()
    saliency = (image.grad * image).abs()[0, -1].detach().cpu().numpy()  # type: ignore[operator]
    chosen = saliency >= np.percentile(saliency, percentile)
    points = grid.to_world(np.argwhere(chosen))
    return np.average(points, axis=0, weights=saliency[chosen])


def fine_center(agent: DSL, fixed: Image, moving: Image, center: NDArray[np.float64],
                pull_back: NDArray[np.float64]) -> NDArray[np.float64]:
    """Middle of a fine agent's view, (D,) mm, by the saliency of a coarse agent that sees a pose about ``center``."""
    core = _core_about(agent, center)
    pair = image_pair(fixed, moving, core.task.grid).to(agent.device)
    anchor = torch.from_numpy(pull_back[None]).to(agent.device)
    pose = torch.zeros(1, len(core.task.transform.names), dtype=torch.float64, device=agent.device)
    observation = core.observe(core.begin(pair, pose, anchor))
    assert isinstance(observation, Tensor)
    return saliency_center(agent, observation, core.task.grid)


def groups(aligned: Aligned) -> list[tuple[list[int], int, NDArray[np.float64]]]:
    """Lanes that ended within 10 mm of each other, the largest group first: its lanes, one in its middle that was not
    given up on the way, and its mean pose (D+1, D+1), which varies less than a single lane's."""
    probes = aligned.probes()
    near = np.linalg.norm(probes[:, None] - probes[None], axis=-1).mean(-1) <= AGREE_MM
    free, found = np.ones(len(near), dtype=bool), []
    while free.any():
        lead = int(((near & free).sum(1) * free).argmax())
        members = np.flatnonzero(near[lead] & free)
        found.append((members.tolist(), int(aligned.met[lead]), mean_pose(aligned.pull_backs[members])))
        free[members] = False
    return sorted(found, key=lambda group: -len(group[0]))


def turns(ndim: int) -> NDArray[np.float64]:
    """Rotations (K, D, D) over all directions, the identity first: the 24 of the cube in 3D, 12 over the circle in
    2D."""
    if ndim == 2:
        angles = 2 * np.pi * np.arange(CIRCLE) / CIRCLE
        return np.stack([[[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] for angle in angles])
    signed = [np.diag(signs) @ np.eye(ndim)[list(order)] for order in permutations(range(ndim))
              for signs in product((1.0, -1.0), repeat=ndim)]
    found = [matrix for matrix in signed if np.linalg.det(matrix) > 0]
    return np.stack(sorted(found, key=lambda matrix: -np.trace(matrix)))


def turned(start: NDArray[np.float64], center: NDArray[np.float64],
           rotations: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Poses (K, D+1, D+1): rotations (default :func:`turns`) about a point of the fixed world, then the start."""
    rotations = turns(len(center)) if rotations is None else rotations
    poses = np.repeat(np.eye(len(center) + 1)[None], len(rotations), axis=0)
    poses[:, :-1, :-1] = rotations
    return start @ shift(center) @ poses @ shift(-center)


def centered(fixed: Image, moving: Image) -> NDArray[np.float64]:
    """The pull-back that puts the two foregrounds' centroids on each other."""
    pull_back = np.eye(fixed.grid.ndim + 1)
    pull_back[:-1, -1] = foreground_center(moving) - foreground_center(fixed)
    return pull_back
