"""Local refinement of a pose, such as an agent's, to the nearest optimum of mutual information."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.classical.common import (
    LEAST_OVERLAP,
    Result,
    blurred,
    checked,
    downsampled,
    is_flat,
    jittered_lattice,
    shift,
    turn_generators,
)
from regagents.common.descent import descend
from regagents.common.threads import one_thread
from regenv.data.io.images import normalize
from regenv.grid import Grid
from regenv.ops.sampling import sample
from regenv.ops.similarity import mi

MOTIONS = ("rigid", "similarity", "affine")
_RIDGE = 0.01            # keeps the preconditioner regular where the image does not show a motion (a disc, a slab)
TOLERANCE = 1e-5         # of mutual information; the descent ends where an iteration gains less
_LEAST_CONTRAST = 1e-12  # variance of the fixed samples, intensities in [0, 1]


@dataclass(frozen=True)
class Refinement:
    """Local refinement to the nearest optimum of mutual information, with its exact gradient.

    The metric is taken at a jittered lattice of points of the fixed image. The points are the same wherever the search
    begins, so the metric is one smooth function of the pose; they lie off the voxels, so interpolation favours no pose.
    L-BFGS descends in whitened coordinates, in which the Gauss-Newton matrix of the mean squared error, ``H = sum_x
    (J^T grad I)(J^T grad I)^T``, is the identity. A few dozen evaluations reach the optimum. Between two different
    heads the unsmoothed metric has many optima a millimetre apart; the coarse stages bring starts some millimetres
    apart to one pose before the last stage begins.

    Args:
        smoothing: Gaussian sigma of each stage, mm at a working spacing of 3 mm (scaled with the working spacing).
        samples: points of each stage, at most.
        iterations: of L-BFGS in each stage.
        bins: of the joint histogram.
        seed: of the jitter.
        voxels: an image with more of them is first averaged down, by whole factors, to about this many.
        motion: "rigid", "similarity" (and one scale) or "affine" (and a scale and a shear of every axis).

    Raises:
        ValueError: an unknown motion.
    """

    smoothing: tuple[float, ...] = (12.0, 8.0, 5.0, 0.0)
    samples: tuple[int, ...] = (50_000, 50_000, 50_000, 400_000)
    iterations: int = 30
    bins: int = 48
    seed: int = 0
    voxels: int = 450_000
    motion: str = "rigid"

    def __post_init__(self) -> None:
        if self.motion not in MOTIONS:
            raise ValueError(f"Refinement: motion is {self.motion!r}; take one of {', '.join(MOTIONS)}.")

    @one_thread()
    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64] | None = None) -> Result:
        """Refine a pose that is some millimetres and degrees off.

        Args: as of :class:`~regagents.classical.common.PoseMethod`; ``center`` is not used: the motion turns about the
            centroid of the fixed image's edges, which decorrelates rotation and translation.
        Returns: the refined pose, never worse in the metric of the last stage than the initial one; the initial one
            with metric ``inf`` if the images do not overlap or one of them is constant.
        Raises: ValueError: the images or the initial pose do not fit together.
        """
        began = perf_counter()
        initial = checked("Refinement", fixed, moving, initial)
        fixed, moving = downsampled(fixed, self.voxels), downsampled(moving, self.voxels)
        if is_flat(fixed, moving):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        pose, evaluations, stage = initial, 0, None
        for smoothing, samples in zip(self.smoothing, self.samples, strict=True):
            sigma = smoothing / 3.0 * float(np.mean(fixed.GetSpacing()))
            stage = _Objective.build(blurred(fixed, sigma), blurred(moving, sigma), samples, self.bins, self.seed,
                                     self.motion)
            if stage is None:
                return Result(initial, float("inf"), perf_counter() - began, evaluations)
            pose, count = stage.descend(pose, self.iterations)
            evaluations += count
        assert stage is not None
        candidates = [(stage.at(candidate), candidate) for candidate in (initial, pose)]
        metric, best = candidates[1] if candidates[1][0] <= candidates[0][0] else candidates[0]
        return Result(best, metric, perf_counter() - began, evaluations)


@dataclass(frozen=True, eq=False)
class _Objective:
    """Negated mutual information over fixed samples, as a function of a whitened motion u (d,).

    Attributes:
        values: (N,), of the fixed image at the points.
        points: (N, D+1), homogeneous, mm, relative to ``center`` (D,).
        moving: (1, 1, *shape), with ``world_to_voxel`` (D+1, D+1).
        whitening: (d, d). generators: of the motions, (d, D+1, D+1). bins: of the joint histogram.
    """

    values: Tensor
    points: Tensor
    moving: Tensor
    world_to_voxel: Tensor
    center: NDArray[np.float64]
    whitening: Tensor
    generators: Tensor
    bins: int

    @classmethod
    def build(cls, fixed: sitk.Image, moving: sitk.Image, samples: int, bins: int, seed: int,
              motion: str) -> _Objective | None:
        """The objective of one stage; None if the fixed image is constant."""
        grid, moving_grid = Grid.from_sitk(fixed), Grid.from_sitk(moving)
        n = grid.ndim
        array = normalize(sitk.GetArrayFromImage(fixed))
        points_vox = jittered_lattice(grid.shape, samples, seed)
        values = _sampled(torch.from_numpy(array)[None, None], torch.from_numpy(points_vox))
        if float(values.var()) < _LEAST_CONTRAST:
            return None
        # edges: gradients of the fixed image at the samples, per mm
        nearest = tuple(np.rint(points_vox).astype(np.int64).T)
        gradients: list[NDArray[np.float32]] = list(np.gradient(array))
        per_voxel = np.stack([each[nearest] for each in gradients], -1).astype(np.float64)
        edges = per_voxel @ grid.world_to_voxel[:n, :n]
        points_mm = grid.to_world(points_vox)
        strength = (edges**2).sum(1)
        if strength.sum() == 0:
            return None
        center = strength @ points_mm / strength.sum()
        offsets = points_mm - center
        parts = generators(n, motion)
        resisted = np.stack([((offsets @ part[:n, :n].T + part[:n, n]) * edges).sum(1) for part in parts], 1)
        normal = resisted.T @ resisted / strength.sum() * n
        radius = (offsets**2).sum(1).mean()
        normal += _RIDGE * np.diag([radius] * (len(parts) - n) + [1.0] * n)
        whitening = np.linalg.inv(np.linalg.cholesky(normal)).T * np.mean(grid.spacing)
        homogeneous = np.concatenate([offsets, np.ones((len(offsets), 1))], 1)
        volume = torch.from_numpy(normalize(sitk.GetArrayFromImage(moving)))[None, None]
        return cls(values, torch.from_numpy(homogeneous), volume, torch.from_numpy(moving_grid.world_to_voxel), center,
                   torch.from_numpy(whitening), torch.from_numpy(parts), bins)

    def __call__(self, motion: Tensor, pose: Tensor) -> Tensor:
        """Negated mutual information of ``pose @ exp(motion)``; ``pose`` starts at ``center``. ``inf`` off overlap."""
        n = self.points.shape[1] - 1
        to_voxel = self.world_to_voxel @ pose @ self._exponential(motion)
        points_vox = (self.points @ to_voxel[:n].T).to(torch.float32)
        last = torch.tensor(self.moving.shape[2:], dtype=torch.float32) - 1
        inside = ((points_vox >= 0) & (points_vox <= last)).all(1)
        if inside.float().mean() < LEAST_OVERLAP:
            return motion.sum() * 0 + float("inf")
        warped = _sampled(self.moving, points_vox[inside])
        return -mi(self.values[inside][None, None], warped[None, None], bins=self.bins)[0].double()

    def descend(self, initial: NDArray[np.float64], iterations: int) -> tuple[NDArray[np.float64], int]:
        """The best pose that L-BFGS meets from ``initial``, and the number of evaluations."""
        pose = torch.from_numpy(initial @ shift(self.center))
        motion, count = np.zeros(len(self.whitening)), 0

        def loss(move: Tensor) -> Tensor:
            value = self(move, pose)
            return value if value.isfinite() else move.sum() * 0    # of images that tell nothing of each other

        if np.isfinite(self.at(initial)):
            motion, count = descend(loss, len(motion), iterations, 2 * iterations, TOLERANCE)
        moved = pose @ self._exponential(torch.from_numpy(motion))
        return moved.numpy() @ shift(-self.center), count

    def at(self, pose: NDArray[np.float64]) -> float:
        """Negated mutual information at a pose."""
        with torch.no_grad():
            return float(self(torch.zeros(len(self.whitening), dtype=torch.float64),
                              torch.from_numpy(pose @ shift(self.center))))

    def _exponential(self, motion: Tensor) -> Tensor:
        """The matrix (D+1, D+1) of a whitened motion (d,)."""
        return torch.linalg.matrix_exp(torch.einsum("k,kij->ij", self.whitening @ motion, self.generators))


def generators(n: int, motion: str) -> NDArray[np.float64]:
    """Generators (P, D+1, D+1) of a motion: rotations; for "similarity" the scale, for "affine" the stretches along the
    axes and the shears; then the translations."""
    pairs = [(a, b) for a in range(n) for b in range(a, n)]
    linear = {"rigid": np.zeros((0, n, n)), "similarity": np.eye(n)[None],
              "affine": np.zeros((len(pairs), n, n))}[motion]
    for part, (a, b) in zip(linear, pairs, strict=False) if motion == "affine" else ():
        part[a, b] = part[b, a] = 1.0
    linear = np.concatenate([turn_generators(n), linear])
    found = np.zeros((len(linear) + n, n + 1, n + 1))
    found[:len(linear), :n, :n] = linear
    found[np.arange(len(linear), len(found)), np.arange(n), n] = 1.0
    return found


def refine_pose(fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                center: NDArray[np.float64] | None = None, motion: str = "rigid") -> Result:
    """Local refinement of an agent's pose with the standard settings of :class:`Refinement`."""
    return Refinement(motion=motion).register(fixed, moving, initial, center)


def _sampled(image: Tensor, points_vox: Tensor) -> Tensor:
    """Values (N,) of an image (1, 1, *shape) at voxel points (N, D)."""
    ndim = points_vox.shape[1]
    return sample(image, points_vox.to(torch.float32).view(1, *(1,) * (ndim - 1), -1, ndim)).flatten()
