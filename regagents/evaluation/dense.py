"""Displacement fields: classical methods on the pairs of an environment, and what is measured of their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from regagents.classical.common import FieldMethod
from regagents.classical.convexadam import Solver
from regenv.core import landmark_error
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from regenv.ops import overlap, regularity
from regenv.ops.affine import matmul
from regenv.ops.warp import warp_through
from regenv.state import EpisodeState

SAME = 1e-9  # voxels: a map nearer to the identity counts as the identity


def searched(method: FieldMethod, state: EpisodeState, grid: Grid) -> Tensor:
    """Displacements (B, D, *shape), voxels, that a classical method finds for the images of the episodes."""
    fields = [method.register(framed(fixed[0].cpu(), grid, np.float32), framed(moving[0].cpu(), grid, np.float32))
              for fixed, moving in zip(state.pair.fixed, placed(state, state.pair.moving), strict=True)]
    return torch.from_numpy(np.stack(fields))


def solved(solver: Solver, state: EpisodeState, masked: bool = False) -> Tensor:
    """Displacements (B, D, *shape), voxels, that an optimiser on tensors finds, pair by pair.

    Args: masked: whether it is given the labelled organs as masks. Raises ValueError where there are no labels then.
    """
    pair = state.pair
    images = [pair.fixed, placed(state, pair.moving)]
    if masked:
        if pair.fixed_labels is None or pair.moving_labels is None:
            raise ValueError("evaluate: the optimiser needs masks, and the pairs have no labels.")
        images += [pair.fixed_labels > 0, placed(state, pair.moving_labels, "nearest") > 0]
    return torch.cat([solver.solve(*(image[lane: lane + 1] for image in images)) for lane in range(state.lanes)])


def placed(state: EpisodeState, image: Tensor, mode: str = "bilinear") -> Tensor:
    """A moving image (B, C, *moving shape) on the fixed grid, before any displacement; itself where the grids agree."""
    matrix, shape = _to_moving(state), tuple(state.pair.fixed.shape[2:])
    if image.shape[2:] == shape and torch.equal(matrix, torch.eye(len(shape) + 1).expand_as(matrix).double()):
        return image
    return warp_through(image, matrix, None, shape, mode)


@dataclass(frozen=True)
class Deformed:
    """Pairs seen through displacements.

    Attributes: state: episodes on the pairs; field: (B, D, *shape), voxels of the fixed grid; grid: the fixed one.
    """

    state: EpisodeState
    field: Tensor
    grid: Grid

    @cached_property
    def labels(self) -> Tensor:
        """The moving labels on the fixed grid (B, 1, *shape)."""
        return warp_through(self._given[1], _to_moving(self.state), self.field, tuple(self.grid.shape), mode="nearest")

    @cached_property
    def shared(self) -> Tensor:
        """Which of the classes both images of a pair have, (B, classes) bool."""
        fixed, moving = (torch.stack([(labels == label).flatten(1).any(1) for label in self.state.pair.classes], 1)
                         for labels in self._given)
        return fixed & moving

    @property
    def organs(self) -> Tensor:
        """Where the fixed image has labels, (B, 1, *shape) bool."""
        return self._given[0] > 0

    def dice(self) -> Tensor:
        """Mean Dice (B,) over the classes; 0 where the warp has lost them, NaN where the images share none."""
        pair = self.state.pair
        scores = overlap.mean_dice(self._given[0], self.labels, pair.classes).nan_to_num()
        return torch.where(self.shared.any(1), scores, torch.nan)

    def apart(self, statistic: Callable[..., Tensor]) -> Tensor:
        """Mean distance (B,) between surfaces over the classes that both images have, mm.

        A class that the warp has lost counts as far away as the diagonal of the field of view.
        Args: statistic: such as :func:`regenv.ops.overlap.hd95`.
        """
        pair, lost = self.state.pair, math.hypot(*self.grid.extent)
        distances = statistic(self._given[0], self.labels, pair.classes, self.grid.spacing).nan_to_num(lost)
        return torch.where(self.shared, distances, torch.nan).nanmean(-1)

    @property
    def _given(self) -> tuple[Tensor, Tensor]:
        pair = self.state.pair
        assert pair.fixed_labels is not None and pair.moving_labels is not None
        return pair.fixed_labels, pair.moving_labels


MEASURES: dict[str, Callable[[Deformed], Tensor]] = {
    "tre_mm": lambda seen: landmark_error(replace(seen.state, displacement=seen.field)),
    "dice": Deformed.dice,
    "hd95_mm": lambda seen: seen.apart(overlap.hd95),
    "hausdorff_mm": lambda seen: seen.apart(overlap.hausdorff),
    "folding": lambda seen: regularity.folding(seen.field),
    "sd_log_jacobian": lambda seen: regularity.sd_log_jacobian(seen.field),
    "ndv": lambda seen: regularity.non_diffeomorphic_volume(seen.field),
    "folding_organs": lambda seen: regularity.folding(seen.field, seen.organs),
    "sd_log_jacobian_organs": lambda seen: regularity.sd_log_jacobian(seen.field, seen.organs),
}
"""Of a displacement, by name, (B,) each. Millimetres, shares in [0, 1], and the deviation of log det J; "ndv": LUMIR's
share of folded volume; "organs": within the fixed labels."""
OF_LABELS = ("dice", "hd95_mm", "hausdorff_mm", "folding_organs", "sd_log_jacobian_organs")
STANDARD = ("tre_mm", "dice", "hd95_mm", "folding", "sd_log_jacobian")


def field_measures(state: EpisodeState, displacement: Tensor | None, grid: Grid,
                   names: Sequence[str] = STANDARD) -> dict[str, list[float | None]]:
    """Measures of displacements on the pairs of episodes, a value a pair; None where one is not defined.

    Measures that the source does not allow are left out: overlaps without labels of both images, the landmark error
    ("tre_mm") without corresponding landmarks in both.

    Args: displacement: (B, D, *shape), voxels, None for none; names: of :data:`MEASURES`.
    """
    pair = state.pair
    field = torch.zeros(pair.lanes, grid.ndim, *grid.shape) if displacement is None else displacement
    seen, labelled = Deformed(state, field, grid), pair.fixed_labels is not None and pair.moving_labels is not None
    found: dict[str, list[float | None]] = {}
    for name in names:
        if (name in OF_LABELS and not labelled) or (name == "tre_mm" and pair.targets is None):
            continue
        if name in OF_LABELS and not pair.classes:
            found[name] = [None] * pair.lanes
        else:
            values = MEASURES[name](seen).double().tolist()
            found[name] = [None if math.isnan(value) else value for value in values]
    return found


def _to_moving(state: EpisodeState) -> Tensor:
    """Voxel points of the fixed grid to those of the moving one, (B, D+1, D+1) float64, without the displacement."""
    matrix = matmul(matmul(state.pair.world_to_moving, state.pull_back), state.pair.fixed_to_world)
    same = torch.eye(matrix.shape[-1], dtype=matrix.dtype).expand_as(matrix)
    return same if torch.allclose(matrix, same, rtol=0.0, atol=SAME) else matrix
