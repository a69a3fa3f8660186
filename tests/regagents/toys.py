"""Small images with a known answer, and agents whose every step is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from regagents.agents import create
from regagents.common import checkpoints
from regagents.dsl.dsl import DSL
from regenv.data.io.writing import write_image
from regenv.grid import Grid
from regenv.ops.affine import about
from regenv.transforms.rigid import Rigid

SHAPES = {2: (60, 64), 3: (22, 26, 24)}
SPACINGS = {2: (3.0, 2.5), 3: (4.0, 3.5, 5.0)}


def rigid(parameters: list[float], center: np.ndarray) -> np.ndarray:
    """A rigid map about a point: mm, then degrees."""
    matrix = Rigid(len(center)).matrix(torch.tensor([parameters], dtype=torch.float64))
    return about(center, matrix)[0].numpy()


def blobs(grid: Grid, pull_back: np.ndarray | None = None) -> np.ndarray:
    """Gaussians at fixed world points, seen on a grid through a map of its world: float32 (*grid.shape)."""
    n = grid.ndim
    matrix = np.eye(n + 1) if pull_back is None else pull_back
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    points = points @ matrix[:n, :n].T + matrix[:n, n]
    rng = np.random.default_rng(3)
    values = np.zeros(grid.shape)
    for _ in range(10):
        middle, width = rng.uniform(-30, 30, 3)[:n], rng.uniform(7, 14)
        values += rng.uniform(0.3, 1) * np.exp(-((points - middle) ** 2).sum(-1) / (2 * width**2))
    return values.astype(np.float32)


def grids(ndim: int) -> tuple[Grid, Grid]:
    """Anisotropic; the moving one is turned and lies elsewhere."""
    angle = np.radians(20)
    direction = np.eye(ndim)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moving = Grid.centered([n + 4 for n in SHAPES[ndim]], SPACINGS[ndim], [40.0, -20.0, 15.0][:ndim], direction.ravel())
    return Grid.centered(SHAPES[ndim], SPACINGS[ndim]), moving


def image_pair(folder: Path, ndim: int) -> tuple[Path, Path, np.ndarray]:
    """Fixed and moving on disk, and the pull-back between them."""
    fixed, moving = grids(ndim)
    truth = rigid([*[40.0, -20.0, 15.0][:ndim], *([6.0] if ndim == 2 else [4.0, -5.0, 6.0])], np.zeros(ndim))
    paths = folder / f"fixed{ndim}d.nii.gz", folder / f"moving{ndim}d.nii.gz"
    write_image(paths[0], blobs(fixed), fixed)
    write_image(paths[1], blobs(moving, np.linalg.inv(truth)) * 800, moving)
    return *paths, truth


def toy_config(ndim: int, step: float = 0.1, size: int = 16, **env_kwargs: Any) -> dict[str, Any]:
    """A card's config of a network with a handful of weights."""
    return {"env": f"RegRigid{ndim}D-v0",
            "env_kwargs": {"size": size, "spacing": 8.0, "observation": "pair", "targets": "drop", "step_sizes": [step],
                           **env_kwargs},
            "policy_kwargs": {"features_extractor_kwargs": {"widths": [2], "strides": [4], "features_dim": 4}}}


def stubborn(ndim: int, action: int = 0, step: float = 0.1, **env_kwargs: Any) -> DSL:
    """An agent that takes one action, whatever it sees."""
    agent = create(toy_config(ndim, step, **env_kwargs))
    with torch.no_grad():
        for parameter in agent.q_net.parameters():
            parameter.zero_()
        agent.q_net.q_net[-1].bias[action] = 1.0
    agent.policy.set_training_mode(False)
    return agent


def checkpoint(path: Path, ndim: int, **changes: Any) -> Path:
    """The stubborn agent's checkpoint on disk; ``changes`` of its card."""
    card = {"name": path.stem, "algorithm": "DSL", "env": f"RegRigid{ndim}D-v0", "config": toy_config(ndim),
            "samples": 48, "seconds": 1}
    checkpoints.save(path, stubborn(ndim).q_net.state_dict(), card | changes)
    return path
