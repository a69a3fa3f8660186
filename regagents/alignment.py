"""Agents on images: from two images and starting poses to final poses, by the agent's own environment.

Images of any spacing, origin and direction are reduced to the grid that the agent was trained on; the truth is unknown
there, so the environment's core moves each lane about its current estimate. All starts run as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regagents.common.threads import one_thread
from regagents.dsl.dsl import DSL
from regenv.core import RegistrationCore, pose_of
from regenv.data.files import foreground_center, image_pair
from regenv.data.io import Image
from regenv.grid import Grid
from regenv.ops.warp import transform_points
from regenv.state import EpisodeState
from regenv.tasks.termination import Never

WINDOW, STILL_MM, PROBE_MM = 10, 1.5, 60.0


@dataclass(frozen=True)
class Aligned:
    """What an agent made of K starts.

    Attributes:
        pull_backs: (K, D+1, D+1) float64, final poses: fixed world to moving world.
        path: (T+1, K, D+1, D+1) float64, the pose after every step.
        steps: (K,) steps until a lane stood still.
        center: (D,) the point of the fixed world that rotations kept.
    """

    pull_backs: np.ndarray
    path: np.ndarray
    steps: np.ndarray
    center: np.ndarray

    def probes(self) -> np.ndarray:
        """(K, 2^D, D) where the corners of a cube about the centre end up, moving world mm: poses compare by them."""
        n = len(self.center)
        points = self.center + PROBE_MM * _corners(n).numpy()
        return np.einsum("kij,pj->kpi", self.pull_backs[:, :n, :n], points) + self.pull_backs[:, None, :n, n]


def align(agent: DSL, fixed: Image, moving: Image, starts: np.ndarray, steps: int | None = None,
          center: np.ndarray | None = None) -> Aligned:
    """Run an agent greedily from each start.

    Args:
        fixed, moving: images of the agent's dimension.
        starts: (K, D+1, D+1) pull-backs, mm.
        steps: at most this many (default: the environment's limit). A lane ends early once it has not moved by more
            than 1.5 mm net over the last 10 steps; its pose is then the mean over those steps.
        center: middle of the agent's view in the fixed world, mm (default: the foreground's centroid).
    """
    task = replace(agent.task(), termination=Never())
    if fixed.grid.ndim != task.grid.ndim:
        raise ValueError(f"{fixed.path}: image is {fixed.grid.ndim}D; the agent registers {task.grid.ndim}D images.")
    middle = foreground_center(fixed) if center is None else np.asarray(center, dtype=np.float64)
    grid = Grid.centered(task.grid.shape, task.grid.spacing, middle.tolist())
    core = RegistrationCore(replace(task, grid=grid), agent.device)
    pair = image_pair(fixed, moving, grid, len(starts)).to(agent.device)
    anchor = torch.eye(grid.ndim + 1, dtype=torch.float64).repeat(len(starts), 1, 1)
    anchor[:, :-1, -1] = torch.from_numpy(foreground_center(moving) - middle)
    begin = torch.from_numpy(np.ascontiguousarray(starts, dtype=np.float64))
    anchor, begin = anchor.to(agent.device), begin.to(agent.device)
    state = core.begin(pair, pose_of(task.transform, anchor, pair.center, begin), anchor)
    path, walked, still = _walk(agent, core, state, steps or task.max_episode_steps)
    return Aligned(_settled(path, walked, still), path.cpu().numpy(), walked.cpu().numpy(), middle)


@one_thread()
@torch.inference_mode()
def _walk(agent: DSL, core: RegistrationCore, state: EpisodeState, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Poses after every step (T+1, K, D+1, D+1); steps walked (K,); whether a lane stood still at the end (K,)."""
    path = [state.pull_back]
    probes = state.pair.center[:, None] + PROBE_MM * _corners(state.pair.ndim).to(state.pair.center)
    seen = [transform_points(state.pull_back, probes)]
    walked = torch.full((state.lanes,), steps, device=state.pose.device)
    running = torch.ones_like(walked, dtype=torch.bool)
    lanes = torch.arange(state.lanes, device=walked.device)
    for step in range(1, steps + 1):
        action = agent.policy._predict(core.observe(state), deterministic=True)  # type: ignore[operator]
        state = core.step(state, action)[0]
        path.append(path[-1].index_copy(0, lanes, state.pull_back))
        seen.append(transform_points(path[-1], probes))
        if step >= WINDOW:
            moved = torch.linalg.vector_norm(seen[step] - seen[step - WINDOW], dim=-1).mean(-1)
            still = running & (moved < STILL_MM)
            walked[still] = step
            running = running & ~still
            if not running.any():
                break
            if still.any():
                state, lanes = state.select(running[lanes]), torch.nonzero(running).flatten()
    return torch.stack(path), walked.clamp(max=len(path) - 1), ~running


def _settled(path: Tensor, walked: Tensor, still: Tensor) -> np.ndarray:
    """Mean pose over the last steps of each lane that stands still: the middle of what the agent swings about."""
    back = torch.arange(min(WINDOW, path.shape[0]), device=path.device)[:, None] * still
    index = (walked[None] - back).clamp(min=0)
    return mean_pose(path[index, torch.arange(path.shape[1], device=path.device)].cpu().numpy())


def mean_pose(poses: np.ndarray) -> np.ndarray:
    """Mean of rigid poses (N, ..., D+1, D+1) over the first axis: the rotation nearest to the mean matrix."""
    mean = poses.mean(0)
    u, _, vt = np.linalg.svd(mean[..., :-1, :-1])
    mean[..., :-1, :-1] = u @ vt
    return mean


def _corners(ndim: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * ndim)


def saliency_center(agent: DSL, observation: Tensor, grid: Grid, percentile: float = 95.0) -> np.ndarray:
    """Where an agent looks: world centre of the voxels above a percentile of the saliency, (D,) mm.

    One backward pass of the sum of all outputs (Simonyan et al. 2013; Liao et al. 2017, hierarchical registration);
    voxels above the percentile weigh by their saliency. The saliency is gradient times input, absolute, of the last
    channel (the warped image): the bare gradient is largest where the images show nothing, outside a cropped field
    of view, and its centre lay up to 40 mm beside the spine.

    Args: observation (1, C, *shape); grid: that of the observation.
    """
    image = observation.detach().clone().float().requires_grad_()
    agent.q_net(image).sum().backward()
    saliency = (image.grad * image).abs()[0, -1].detach().cpu().numpy()  # type: ignore[operator]
    chosen = saliency >= np.percentile(saliency, percentile)
    points = grid.to_world(np.argwhere(chosen))
    return np.average(points, axis=0, weights=saliency[chosen])


def fine_center(agent: DSL, fixed: Image, moving: Image, center: np.ndarray, pull_back: np.ndarray) -> np.ndarray:
    """Middle of a fine agent's view, (D,) mm, by the saliency of a coarse agent that sees a pose about ``center``."""
    task = replace(agent.task(), termination=Never())
    grid = Grid.centered(task.grid.shape, task.grid.spacing, center.tolist())
    core = RegistrationCore(replace(task, grid=grid), agent.device)
    pair = image_pair(fixed, moving, grid).to(agent.device)
    anchor = torch.from_numpy(pull_back[None]).to(agent.device)
    pose = torch.zeros(1, len(task.start.ranges), dtype=torch.float64, device=agent.device)
    return saliency_center(agent, core.observe(core.begin(pair, pose, anchor)), grid)
