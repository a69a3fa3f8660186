"""Pipelines of agents: from two images and a starting pose to a final pose, by each agent's own environment.

Images of any spacing, origin and direction are reduced to the grid that the agent was trained on. The truth is unknown
there; poses are relative to the current estimate. All starts of an agent run as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.agents import load_as
from regagents.classical import normalized_information, refine_pose
from regagents.common.player import Player, player_of, selected
from regagents.common.threads import one_thread
from regagents.dsl.dsl import DSL
from regenv.core import RegistrationCore, pose_of
from regenv.data.io.images import Image
from regenv.data.io.resampling import foreground_center, to_sitk
from regenv.data.sources.files import image_pair
from regenv.grid import Grid
from regenv.ops.affine import about, transform_points
from regenv.parts.termination import Never
from regenv.state import EpisodeState
from regenv.task import is_linear
from regenv.transforms.rigid import Rigid

WINDOW, STILL_MM, PROBE_MM = 10, 1.5, 60.0  # a lane stands still if it moves by less than this over so many steps
SCATTER_MM, SCATTER_DEGREES = 15.0, 20.0    # of starts about the given one, an axis
AGREE_MM = 10.0                             # between ends that belong to one group
CANDIDATES, CLEARLY = 3, 1.02               # groups that are compared; factor by which a smaller one must be better
Visited = tuple[str, int, NDArray[np.float64]]
"""A stage, its step, and the pull-back (D+1, D+1) after it."""


@dataclass(frozen=True)
class Pipeline:
    """A named way to register: agents in turn, each from the last one's pose.

    Args:
        stages: checkpoints, or names of shipped weights.
        starts: poses scattered about the start, run as one batch; what they agree on goes on, see :func:`choose`.
        view: middle of the first agent's view, "foreground" or "grid" (of the fixed image).
        attention: later stages look at the region that the stage before found salient (Liao et al. 2017).
        steps: at most this many of each stage (default: the limit of the agent's environment).
    """

    stages: tuple[str, ...]
    starts: int = 1
    view: str = "foreground"
    attention: bool = False
    steps: tuple[int, ...] = ()


AGENTS: dict[str, Pipeline] = {
    "head": Pipeline(("head-geometric", "head-unit"), starts=16),
    "spine": Pipeline(("spine-coarse", "spine-fine"), view="grid", attention=True, steps=(320, 100)),
    "rigid2d": Pipeline(("rigid2d",), starts=4),
    "none": Pipeline(()),
}
DEFAULT = {2: "rigid2d", 3: "head"}


def pipeline(agent: str | Path | Pipeline) -> Pipeline:
    """A pipeline by name, or of one checkpoint."""
    return agent if isinstance(agent, Pipeline) else AGENTS.get(str(agent), Pipeline((str(agent),)))


def stages(chain: Pipeline, fixed: Image) -> list[DSL]:
    """The agents of a pipeline. Raises CheckpointError for bad weights, ValueError for agents of another dimension and
    for agents that deform."""
    agents = [load_as(DSL, name) for name in chain.stages]
    for name, agent in zip(chain.stages, agents, strict=True):
        task = agent.task()
        ndim, moves = task.grid.ndim, type(task.transform).__name__
        if not task.transform.linear:
            raise ValueError(f"{name}: agent deforms (its poses are those of {moves}); a pipeline needs agents of "
                             "rigid ids. `regagents evaluate` measures agents that deform.")
        if ndim != fixed.grid.ndim:
            raise ValueError(f"{fixed.path}: image is {fixed.grid.ndim}D, but agent {name} registers {ndim}D images. "
                             f"Choose an agent for {fixed.grid.ndim}D.")
    return agents


def run(chain: Pipeline, fixed: Image, moving: Image, start: NDArray[np.float64], seed: int = 0,
        tell: Callable[[str, float], None] = lambda name, share: None,
        agents: Sequence[DSL] | None = None) -> tuple[NDArray[np.float64], list[Visited]]:
    """A pipeline from one start: the final pull-back, and the poses of the chosen lane on the way.

    Args:
        start: (D+1, D+1), mm. seed: of the scattered starts.
        tell: called with a stage's name and the share of work done.
        agents: those of the pipeline if they are loaded already (see :func:`stages`).
    """
    center = foreground_center(fixed) if chain.view == "foreground" else fixed.grid.center
    starts = scattered(start, center, chain.starts, seed)
    path: list[Visited] = []
    for number, agent in enumerate(stages(chain, fixed) if agents is None else agents):
        name = str(chain.stages[number])
        tell(name, 0.05 + 0.8 * number / len(chain.stages))
        limit = chain.steps[number] if chain.steps else None
        aligned = align(agent, fixed, moving, starts, limit, center)
        best, pull_back = choose(fixed, moving, aligned)
        path += [(name, step, aligned.path[step, best]) for step in range(aligned.steps[best] + 1)]
        starts = pull_back[None]
        if chain.attention and number + 1 < len(chain.stages):
            center = fine_center(agent, fixed, moving, aligned.center, pull_back)
    return starts[0], path


@dataclass(frozen=True)
class Aligned:
    """Where an agent went from K starts.

    Attributes:
        pull_backs: (K, D+1, D+1), final poses: fixed world to moving world, mm.
        path: (T+1, K, D+1, D+1), the pose after every step.
        steps: (K,) steps until a lane stood still.
        center: (D,) the point of the fixed world that rotations turn about, mm.
    """

    pull_backs: NDArray[np.float64]
    path: NDArray[np.float64]
    steps: NDArray[np.int64]
    center: NDArray[np.float64]

    def probes(self) -> NDArray[np.float64]:
        """Corners of a cube about the centre under each pose, (K, 2^D, D), moving world mm: poses are compared by
        them."""
        n = len(self.center)
        points = self.center + PROBE_MM * _corners(n).numpy()
        return np.einsum("kij,pj->kpi", self.pull_backs[:, :n, :n], points) + self.pull_backs[:, None, :n, n]


def align(agent: DSL, fixed: Image, moving: Image, starts: NDArray[np.float64], steps: int | None = None,
          center: NDArray[np.float64] | None = None) -> Aligned:
    """Run an agent greedily from each start.

    Args:
        fixed, moving: images of the agent's dimension.
        starts: (K, D+1, D+1) pull-backs, mm.
        steps: at most this many (default: the environment's limit). A lane ends early once it has not moved by more
            than 1.5 mm net over the last 10 steps; its pose is then the mean over those steps.
        center: middle of the agent's view in the fixed world, mm (default: the foreground's centroid).
    Raises: ValueError: the images have another dimension.
    """
    task = agent.task()
    if fixed.grid.ndim != task.grid.ndim:
        raise ValueError(f"{fixed.path}: image is {fixed.grid.ndim}D; the agent registers {task.grid.ndim}D images.")
    middle = foreground_center(fixed) if center is None else np.asarray(center, dtype=np.float64)
    core = _core_about(agent, middle)
    pair = image_pair(fixed, moving, core.task.grid, len(starts)).to(agent.device)
    anchor = torch.eye(task.grid.ndim + 1, dtype=torch.float64).repeat(len(starts), 1, 1)
    anchor[:, :-1, -1] = torch.from_numpy(foreground_center(moving) - middle)
    begin = torch.from_numpy(np.ascontiguousarray(starts, dtype=np.float64))
    anchor, begin = anchor.to(agent.device), begin.to(agent.device)
    assert is_linear(task.transform)
    state = core.begin(pair, pose_of(task.transform, anchor, pair.center, begin), anchor)
    path, taken, still = _rollout(player_of(agent), core, state, steps or task.max_episode_steps)
    return Aligned(_settled(path, taken, still), path.cpu().numpy(), taken.cpu().numpy(), middle)


def _core_about(agent: DSL, center: NDArray[np.float64]) -> RegistrationCore:
    """The agent's own environment with its view about a point of the fixed world; it never says that an episode ends.
    """
    task = agent.task()
    grid = Grid.centered(task.grid.shape, task.grid.spacing, center.tolist())
    return RegistrationCore(replace(task, grid=grid, termination=Never()), agent.device)


@one_thread()
@torch.inference_mode()
def _rollout(player: Player, core: RegistrationCore, state: EpisodeState,
             steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Play every lane until it stands still: poses after every step (T+1, K, D+1, D+1), steps taken (K,), and whether
    a lane stood still at the end (K,)."""
    memory: Any = None
    path = [state.pull_back]
    probes = state.pair.center[:, None] + PROBE_MM * _corners(state.pair.ndim).to(state.pair.center)
    seen = [transform_points(state.pull_back, probes)]
    taken = torch.full((state.lanes,), steps, device=state.pose.device)
    running = torch.ones_like(taken, dtype=torch.bool)
    lanes = torch.arange(state.lanes, device=taken.device)
    for step in range(1, steps + 1):
        action, memory = player.play(core.observe(state), None, memory)
        state = core.step(state, action)[0]
        path.append(path[-1].index_copy(0, lanes, state.pull_back))
        seen.append(transform_points(path[-1], probes))
        if step >= WINDOW:
            distance = torch.linalg.vector_norm(seen[step] - seen[step - WINDOW], dim=-1).mean(-1)
            still = running & (distance < STILL_MM)
            taken[still] = step
            running = running & ~still
            if not running.any():
                break
            if still.any():
                going = running[lanes]
                state, memory, lanes = state.select(going), selected(memory, going), lanes[going]
    return torch.stack(path), taken.clamp(max=len(path) - 1), ~running


def _settled(path: Tensor, taken: Tensor, still: Tensor) -> NDArray[np.float64]:
    """Mean pose over the last steps of each lane that stands still: the middle of what the agent swings about."""
    back = torch.arange(min(WINDOW, path.shape[0]), device=path.device)[:, None] * still
    index = (taken[None] - back).clamp(min=0)
    return mean_pose(path[index, torch.arange(path.shape[1], device=path.device)].cpu().numpy())


def mean_pose(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of rigid poses (N, ..., D+1, D+1) over the first axis: the rotation nearest to the mean matrix."""
    mean: NDArray[np.float64] = poses.mean(0)
    u, _, vt = np.linalg.svd(mean[..., :-1, :-1])
    mean[..., :-1, :-1] = u @ vt
    return mean


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


def choose(fixed: Image, moving: Image, aligned: Aligned) -> tuple[int, NDArray[np.float64]]:
    """A lane near the pose that most lanes agree on, and that pose (D+1, D+1).

    Lanes that end within 10 mm of each other form a group. Its mean pose varies less than a single lane's. If there are
    several groups, the three largest are refined (the agent's own ends may lie 10 mm from the optimum) and compared by
    normalised mutual information, which does not reward a small overlap. A group wins over a larger one only if it is
    better by 2 %, because between two different heads a wrong pose may be 0.5 % better.
    """
    probes = aligned.probes()
    near = np.linalg.norm(probes[:, None] - probes[None], axis=-1).mean(-1) <= AGREE_MM
    free, groups = np.ones(len(near), dtype=bool), []
    while free.any():
        votes = (near & free).sum(1) * free
        lead = int(votes.argmax())
        members = near[lead] & free
        groups.append((int(members.sum()), lead, mean_pose(aligned.pull_backs[members])))
        free &= ~members
    best = sorted(groups, key=lambda group: -group[0])[:CANDIDATES]
    if len(best) == 1:
        return best[0][1:]
    images = to_sitk(fixed), to_sitk(moving)
    shared = [normalized_information(*images, refine_pose(*images, pose).pull_back) for _, _, pose in best]
    won = 0
    for number in range(1, len(best)):
        if shared[number] > shared[won] * (CLEARLY if best[number][0] < best[won][0] else 1.0):
            won = number
    return best[won][1:]


def scattered(start: NDArray[np.float64], center: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """The start and ``count - 1`` poses around it, (count, D+1, D+1)."""
    n = len(center)
    width = np.array([SCATTER_MM] * n + [SCATTER_DEGREES] * (1 if n == 2 else 3))
    moves = np.random.default_rng(seed).uniform(-width, width, (count, len(width)))
    moves[0] = 0
    return moved_poses(start, center, moves)


def moved_poses(start: NDArray[np.float64], center: NDArray[np.float64],
                moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poses (K, D+1, D+1) ``start @ motion``, of rigid motions about ``center``, (K, P): mm, then degrees."""
    motions: NDArray[np.float64] = about(center, Rigid(len(center)).matrix(torch.from_numpy(moves))).numpy()
    return start @ motions


def centered(fixed: Image, moving: Image) -> NDArray[np.float64]:
    """The pull-back that puts the two foregrounds' centroids on each other."""
    pull_back = np.eye(fixed.grid.ndim + 1)
    pull_back[:-1, -1] = foreground_center(moving) - foreground_center(fixed)
    return pull_back
