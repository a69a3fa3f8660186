"""Pairs of the synthetic pelvises: of different subjects, or deformed so that the true deformation is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.banks import ground_truth
from regenv.data.banks.ground_truth import SURFACE_POINTS, GroundTruth
from regenv.data.banks.pelvises import ORGAN, Population, population, surface_points
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import check_ndim, check_split, pair_on_grid
from regenv.grid import Grid
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.sampling import affine_coordinates, identity
from regenv.ops.warp import compose, invert, unwarped_points, warp_dense, warp_points, warp_through
from regenv.transforms.rigid import Rigid

KINDS = ("synthetic", "real")
COMPOSITIONS = ("opposite", "dense")
INVERSIONS = 5  # iterations: 0.03 voxel rms, 1 % of an amplitude's deviation


@dataclass(frozen=True)
class OrganPairs:
    """Subjects of the synthetic population (Krebs et al. 2017, section 2.3), 2D slices or 3D volumes.

    Pairs of kind "synthetic" are made as they are drawn: ``I_m o T_b`` is the moving and ``I_n o T_c`` the fixed image,
    with random deformations b and c of the model; the deformation between subjects m and n is known. The amplitudes
    that align them, ``T_b^-1 o T_mn o T_c``, are ``-theta_b + theta_mn + theta_c`` to first order (as in the paper), or
    the projection of the dense composition on the modes. The landmarks follow that deformation itself: surface points
    p of subject n's organ lie at ``T_c^-1(p)`` in the fixed and at ``T_b^-1(T_mn(p))`` in the moving image. Pairs of
    kind "real" are the subjects' images themselves. Their truth is unknown; they are measured by their organs' labels
    and corresponding surface points. Images are never resampled between warps of an episode.

    Args:
        ndim: 2 or 3.
        split: "train" (33 subjects) or "test" (8).
        kind: "synthetic" or "real"; default synthetic for training, real for test.
        intra: share of the synthetic pairs whose images show one subject.
        spread: factor of the synthetic deformations' standard deviations, times the difficulty.
        composition: "opposite" (first order) or "dense".
        turn: standard deviation, degrees, of rotations about every axis by which both images of a synthetic pair are
            turned together, as perfect rigid alignment turns real ones; needs the dense composition.
        alignment: "translation", from the intensities, or "labels", perfect rigid alignment (the paper's 3-D*).
    """

    ndim: int
    split: str = "train"
    kind: str | None = None
    intra: float = 0.5
    spread: float = 1.0
    composition: str = "opposite"
    turn: float = 0.0
    alignment: str = "translation"

    def __post_init__(self) -> None:
        check_ndim("organs", self.ndim)
        check_split("organs", self.split)
        for name, value, choices in (("kind", self.kind or "real", KINDS),
                                     ("composition", self.composition, COMPOSITIONS)):
            if value not in choices:
                raise ValueError(f"organs: {name} is {value!r}; it must be one of {', '.join(choices)}.")
        if not 0 <= self.intra <= 1 or not self.spread >= 0:
            raise ValueError(f"organs: intra is {self.intra} and spread {self.spread}; intra must lie in [0, 1], "
                             "spread must not be negative.")
        if not self.turn >= 0 or (self.turn and self.composition != "dense"):
            raise ValueError(f"organs: turn is {self.turn} with composition {self.composition!r}; it must not be "
                             "negative, and turned pairs need composition='dense'.")
        if self.split == "test" and self.kind == "synthetic":
            raise ValueError("organs: kind is 'synthetic'; deformations between test subjects are not known, "
                             "use kind='real'.")

    @property
    def truth(self) -> GroundTruth:
        """The deformation model and the training pairs' deformations."""
        return _truth(self.ndim)

    def subjects(self) -> tuple[int, ...]:
        """Indices of the split's subjects."""
        subjects = population(self.ndim, self.alignment)
        return subjects.train if self.split == "train" else subjects.test

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """As PairSource; ``grid`` must be the population's."""
        subjects = population(self.ndim, self.alignment)
        if grid.shape != subjects.grid.shape or not np.allclose(grid.spacing, subjects.grid.spacing):
            raise ValueError(f"organs: the grid has {grid.shape} voxels of {grid.spacing} mm; the subjects' has "
                             f"{subjects.grid.shape} of {subjects.grid.spacing}.")
        if self.kind == "real" or (self.kind is None and self.split == "test"):
            chosen = np.stack([rng.choice(self.subjects(), 2, replace=False) for rng in rngs])
            return self.real(chosen).to(device)
        return self._synthetic(subjects, rngs, device, difficulty)

    def real(self, pairs: np.ndarray) -> PairBatch:
        """Pairs (N, 2) of subjects, fixed and moving, as they are."""
        subjects = population(self.ndim, self.alignment)
        fixed, moving = np.asarray(pairs).T
        organs = (subjects.labels == ORGAN).to(torch.int16)
        points = _surfaces(self.ndim, self.alignment)
        return _pairs(subjects.grid, subjects.images[fixed], subjects.images[moving], organs[fixed], organs[moving],
                      points[fixed], points[moving], None)

    def _synthetic(self, subjects: Population, rngs: Sequence[np.random.Generator], device: torch.device,
                   difficulty: float) -> PairBatch:
        model, truth = self.truth.model, self.truth
        own = np.array([rng.random() < self.intra for rng in rngs])
        rows = np.array([rng.integers(len(truth.pairs)) for rng in rngs])
        deformed = self.spread * difficulty
        theta_b, theta_c = (model.sample(rngs) * deformed for _ in range(2))
        fixed = truth.pairs[rows, 0].numpy()
        moving = np.where(own, fixed, truth.pairs[rows, 1].numpy())
        theta_mn = torch.where(torch.from_numpy(own)[:, None], 0.0, truth.amplitudes[rows])
        u_b, u_c = model.displacement(theta_b), model.displacement(theta_c)
        between = torch.where(torch.from_numpy(own).view(-1, *(1,) * (self.ndim + 1)), 0.0,
                              model.displacement(theta_mn))
        if self.composition == "opposite":
            target = theta_mn + theta_c - theta_b
        else:
            u_t = compose(invert(u_b, INVERSIONS), compose(between, u_c))
            if self.turn:
                u_b, u_c, u_t = turned(rngs, self.turn * difficulty, subjects.grid, u_b, u_c, u_t)
            target = model.project(u_t)
        organs = (subjects.labels == ORGAN).to(torch.int16)
        matrix = torch.eye(self.ndim + 1, dtype=torch.float64).expand(len(rngs), -1, -1)
        fixed_labels, moving_labels = (warp_through(organs[which], matrix, field, subjects.grid.shape, "nearest")
                                       for which, field in ((fixed, u_c), (moving, u_b)))
        surface = _surfaces(self.ndim, self.alignment)[fixed]
        points, targets = unwarped_points(surface, u_c), unwarped_points(warp_points(surface, between), u_b)
        return _pairs(subjects.grid, warp_dense(subjects.images[fixed], u_c, "border"),
                      warp_dense(subjects.images[moving], u_b, "border"), fixed_labels, moving_labels, points,
                      targets, target).to(device)


def _pairs(grid: Grid, fixed: Tensor, moving: Tensor, fixed_labels: Tensor, moving_labels: Tensor, points: Tensor,
           targets: Tensor, target_pose: Tensor | None) -> PairBatch:
    """Pairs with landmarks and targets (B, N, D) in voxels; known where there is a target pose (B, K)."""
    def to_world(points_vox: Tensor) -> Tensor:
        return torch.from_numpy(grid.to_world(points_vox.double().numpy()))

    pair = pair_on_grid(grid, fixed, moving, fixed_labels, moving_labels, to_world(points),
                        to_world(targets), known=target_pose is not None)
    return replace(pair, target_pose=None if target_pose is None else target_pose.to(torch.float64))


def turned(rngs: Sequence[np.random.Generator], degrees: float, grid: Grid, u_b: Tensor, u_c: Tensor,
           u_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fields of ``T_b o R``, ``T_c o R`` and ``R^-1 o T o R`` for random rotations R about the grid's centre.

    If ``I_m o T_b o T = I_n o T_c``, then the last aligns the moving image of the first with the fixed image of the
    second.

    Args: degrees: standard deviation about every axis; fields (B, D, *shape), voxels.
    """
    motion = Rigid(grid.ndim)
    angles = np.stack([rng.normal(0.0, degrees, len(motion.names) - grid.ndim) for rng in rngs])
    pose = np.concatenate([np.zeros((len(rngs), grid.ndim)), angles], 1)
    through = matmul(matmul(torch.from_numpy(grid.world_to_voxel), about(grid.center, motion.matrix(
        torch.from_numpy(pose)))), torch.from_numpy(grid.voxel_to_world))
    still = identity(grid.shape)
    turn = affine_coordinates(through, grid.shape).movedim(-1, 1) - still
    u_b, u_c, u_t = (compose(u, turn) for u in (u_b, u_c, u_t))
    moved = (still + u_t).flatten(2).transpose(1, 2)
    back = transform_points(invert_affine(through).to(moved.dtype), moved)
    return u_b, u_c, back.transpose(1, 2).unflatten(2, grid.shape) - still


@lru_cache(maxsize=2)
def _truth(ndim: int) -> GroundTruth:
    return ground_truth.shipped(ndim)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _surfaces(ndim: int, alignment: str) -> Tensor:
    """Corresponding points (S, N, D) of all subjects' organs, voxels. Do not write to the tensor: it is shared."""
    subjects = population(ndim, alignment)
    return surface_points(subjects.labels, SURFACE_POINTS[ndim], subjects.grid.spacing)


def composition_error(source: OrganPairs, rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Error of the opposite-parameter composition against the dense one, on synthetic pairs of two subjects.

    Returns: root mean squared distance (B,) between the two fields, mm; and 1 - Dice (B,) between the moving organs
    warped by the two.
    """
    subjects, model, truth = population(source.ndim, source.alignment), source.truth.model, source.truth
    rows = np.array([rng.integers(len(truth.pairs)) for rng in rngs])
    theta_b, theta_c = (model.sample(rngs) * source.spread for _ in range(2))
    theta_mn = truth.amplitudes[rows]
    opposite = model.displacement(theta_mn + theta_c - theta_b)
    dense = compose(invert(model.displacement(theta_b)),
                    compose(model.displacement(theta_mn), model.displacement(theta_c)))
    steps = torch.tensor(subjects.grid.spacing[::-1]).view(-1, *(1,) * source.ndim)
    apart = ((opposite - dense) * steps).square().sum(1).flatten(1).mean(1).sqrt()
    organs = warp_dense((subjects.labels[truth.pairs[rows, 1]] == ORGAN).float(), model.displacement(theta_b), "border")
    seen = [warp_dense(organs, field) > 0.5 for field in (opposite, dense)]
    both = (seen[0] & seen[1]).flatten(1).sum(1)
    return apart, 1 - 2 * both / sum(each.flatten(1).sum(1) for each in seen)
