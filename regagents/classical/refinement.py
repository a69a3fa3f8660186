"""Local refinement of a pose, such as an agent's, to the nearest optimum of mutual information."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.classical.common import LEAST_OVERLAP, Result, checked, downsampled, is_flat, shift, turn_generators
from regagents.common.threads import one_thread
from regenv.data.io.images import normalize
from regenv.data.io.resampling import SHORTEST_AXIS, matrix_to_sitk
from regenv.grid import Grid
from regenv.ops.sampling import sample
from regenv.ops.similarity import mi, nmi

_RIDGE = 0.01            # keeps the preconditioner regular where the image does not show a motion (a disc, a slab)
_LEAST_CONTRAST = 1e-12  # variance of the fixed samples, intensities in [0, 1]


@dataclass(frozen=True)
class Refinement:
    """Local refinement to the nearest optimum of mutual information, with its exact gradient.

    The metric is taken at a jittered lattice of points of the fixed image. The points are the same wherever the search
    begins, so the metric is one smooth function of the pose; they lie off the voxels, so interpolation favours no
    pose. L-BFGS with a strong Wolfe line search descends in whitened coordinates, in which the Gauss-Newton matrix of
    the mean squared error, ``H = sum_x (J^T grad I)(J^T grad I)^T``, is the identity. A few dozen evaluations reach
    the optimum. Between two different heads the unsmoothed metric has many optima a millimetre apart; the coarse
    stages bring starts some millimetres apart to one pose before the last stage begins.

    Args:
        smoothing: Gaussian sigma of each stage, mm at a working spacing of 3 mm (scaled with the working spacing).
        samples: points of each stage, at most.
        iterations: of L-BFGS in each stage.
        bins: of the joint histogram.
        seed: of the jitter.
        voxels: an image with more of them is first averaged down, by whole factors, to about this many.
    """

    smoothing: tuple[float, ...] = (12.0, 8.0, 5.0, 0.0)
    samples: tuple[int, ...] = (50_000, 50_000, 50_000, 400_000)
    iterations: int = 30
    bins: int = 48
    seed: int = 0
    voxels: int = 450_000

    @one_thread()
    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64] | None = None) -> Result:
        """Refine a pose that is some millimetres and degrees off, by a rigid motion.

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
            stage = _Objective.build(_blurred(fixed, sigma), _blurred(moving, sigma), samples, self.bins, self.seed)
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
    def build(cls, fixed: sitk.Image, moving: sitk.Image, samples: int, bins: int, seed: int) -> _Objective | None:
        """The objective of one stage; None if the fixed image is constant."""
        grid, moving_grid = Grid.from_sitk(fixed), Grid.from_sitk(moving)
        n = grid.ndim
        array = normalize(sitk.GetArrayFromImage(fixed))
        points_vox = _jittered_lattice(grid.shape, samples, seed)
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
        turns, shifts = turn_generators(n), np.eye(n)
        resisted = np.concatenate([np.stack([(offsets @ turn.T * edges).sum(1) for turn in turns], 1), edges], 1)
        normal = resisted.T @ resisted / strength.sum() * n
        radius = (offsets**2).sum(1).mean()
        normal += _RIDGE * np.diag([radius] * len(turns) + [1.0] * n)
        whitening = np.linalg.inv(np.linalg.cholesky(normal)).T * np.mean(grid.spacing)
        generators = np.zeros((len(turns) + n, n + 1, n + 1))
        generators[:len(turns), :n, :n] = turns
        generators[len(turns):, :n, n] = shifts
        homogeneous = np.concatenate([offsets, np.ones((len(offsets), 1))], 1)
        volume = torch.from_numpy(normalize(sitk.GetArrayFromImage(moving)))[None, None]
        return cls(values, torch.from_numpy(homogeneous), volume, torch.from_numpy(moving_grid.world_to_voxel), center,
                   torch.from_numpy(whitening), torch.from_numpy(generators), bins)

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
        motion = torch.zeros(len(self.whitening), dtype=torch.float64, requires_grad=True)
        best, best_motion, count = float("inf"), motion.detach().clone(), 0
        optimizer = torch.optim.LBFGS([motion], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=1e-6,
                                      tolerance_change=1e-5, history_size=8, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            nonlocal best, best_motion, count
            optimizer.zero_grad()
            value = self(motion, pose)
            value.backward()
            count += 1
            if value.item() < best:
                best, best_motion = value.item(), motion.detach().clone()
            return value

        with torch.enable_grad():
            if np.isfinite(self.at(initial)):
                optimizer.step(closure)
        moved = pose @ self._exponential(best_motion)
        return moved.detach().numpy() @ shift(-self.center), count

    def at(self, pose: NDArray[np.float64]) -> float:
        """Negated mutual information at a pose."""
        with torch.no_grad():
            return float(self(torch.zeros(len(self.whitening), dtype=torch.float64),
                              torch.from_numpy(pose @ shift(self.center))))

    def _exponential(self, motion: Tensor) -> Tensor:
        """The matrix (D+1, D+1) of a whitened motion (d,)."""
        return torch.linalg.matrix_exp(torch.einsum("k,kij->ij", self.whitening @ motion, self.generators))


def refine_pose(fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                center: NDArray[np.float64] | None = None) -> Result:
    """Local refinement of an agent's pose with the standard settings of :class:`Refinement`."""
    return Refinement().register(fixed, moving, initial, center)


def normalized_information(fixed: sitk.Image, moving: sitk.Image, pull_back: NDArray[np.float64]) -> float:
    """Normalised mutual information (Studholme et al. 1999) minus 1 over the overlap at a pose; 0 if the overlap is
    below 5 %. Unlike mutual information it does not grow as the overlap shrinks, so distant poses can be compared."""
    fixed, moving = downsampled(fixed, Refinement().voxels), downsampled(moving, Refinement().voxels)
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, matrix_to_sitk(pull_back), sitk.sitkLinear, np.inf))
    inside = np.isfinite(warped)
    values = sitk.GetArrayFromImage(moving)
    span = float(values.max() - values.min())
    if inside.mean() < LEAST_OVERLAP or span == 0:
        return 0.0
    pair = normalize(sitk.GetArrayFromImage(fixed))[inside], (warped[inside] - values.min()) / span
    here, there = (torch.from_numpy(np.ascontiguousarray(one, dtype=np.float32))[None, None] for one in pair)
    return float(nmi(here, there, bins=Refinement().bins)) - 1.0


def _blurred(image: sitk.Image, sigma: float) -> sitk.Image:
    """Gaussian smoothing, sigma in mm, along the axes that are long enough for the recursive filter."""
    for axis, size in enumerate(image.GetSize()):
        if sigma > 0 and size >= SHORTEST_AXIS:
            image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
    return image


def _jittered_lattice(shape: tuple[int, ...], samples: int, seed: int) -> NDArray[np.float64]:
    """About ``samples`` voxel points (N, D), one at a random place in each cell of a regular lattice."""
    last = np.asarray(shape, dtype=np.float64) - 1
    pitch = max(1.0, float((np.prod(shape) / samples) ** (1 / len(shape))))
    corners = np.stack(np.meshgrid(*(np.arange(0, n, pitch) for n in last), indexing="ij"), -1).reshape(-1, len(shape))
    points = corners + pitch * np.random.default_rng(seed).random(corners.shape)
    return points[(points <= last).all(1)]


def _sampled(image: Tensor, points_vox: Tensor) -> Tensor:
    """Values (N,) of an image (1, 1, *shape) at voxel points (N, D)."""
    ndim = points_vox.shape[1]
    return sample(image, points_vox.to(torch.float32).view(1, *(1,) * (ndim - 1), -1, ndim)).flatten()
