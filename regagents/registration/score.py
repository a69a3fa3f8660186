"""How well two images agree at a pose, so that poses from different methods, near or far apart, can be ranked, and the
best pose near each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.classical.common import blurred, downsampled, jittered_lattice, shift
from regagents.classical.refinement import generators
from regagents.common.descent import descend
from regagents.common.threads import one_thread
from regagents.registration.information import Measured, Object, looked_up, measured
from regenv.data.io.images import Image, normalize
from regenv.data.io.resampling import SHORTEST_AXIS, resampled_labels, to_sitk
from regenv.grid import Grid

CLOSING_VOXELS = 2      # of the foreground, before its holes are filled
STRETCH_COST = 0.1      # of the squared logarithms of the stretches along the axes
FLATTEST = 0.05         # determinant of a pose that the ascent may look at, and the inverse of the greatest
GAIN, ITERATIONS = 30.0, 40     # of the objective, so that L-BFGS's first step is neither tiny nor wild; of the descent


@dataclass(frozen=True)
class Level:
    """How finely a score looks at two images.

    Args:
        voxels: by dimension; images with more are averaged down to about so many.
        samples: points on each foreground, about.
        blur: Gaussian sigma, voxels of the image that is then left: what two people's scans share is coarse.
    """

    voxels: Mapping[int, int]
    samples: int
    blur: float = 1.0


COARSE = Level({2: 30_000, 3: 40_000}, 12_000)
FINE = Level({2: 60_000, 3: 500_000}, 20_000)               # all voxels that a search for a pose is given
FINEST = Level({2: 5_000_000, 3: 5_000_000}, 80_000, 0.0)   # a head of 1 mm as it is


@dataclass(frozen=True, eq=False)
class Agreement:
    """What :class:`Score` finds at K poses.

    Attributes:
        information: (K,) normalised mutual information less 1 over the union of the foregrounds, in [0, 1].
        overlap: (K,) share of the smaller foreground that lies on the other, in [0, 1].
        covered: (K,) share of the smaller foreground that lies within the other image's field of view, in [0, 1].
        stretching: (K,) see :func:`stretching`.
    """

    information: NDArray[np.float64]
    overlap: NDArray[np.float64]
    covered: NDArray[np.float64]
    stretching: NDArray[np.float64]

    @property
    def score(self) -> NDArray[np.float64]:
        """(K,) information times overlap, less what stretching costs: higher is better."""
        return self.information * self.overlap - STRETCH_COST * self.stretching


@dataclass(frozen=True, eq=False)
class Foreground:
    """One image and points on its foreground.

    Attributes:
        values: (2, *shape), intensity in [0, 1] and 1 on the foreground. grid: of both.
        points_mm: (N, D+1) float64, homogeneous, one in each cell of a lattice. at_points: (N,) the intensity there.
        volume: of the foreground, mm^D.
    """

    values: NDArray[np.float32]
    grid: Grid
    points_mm: Tensor
    at_points: NDArray[np.float64]
    volume: float

    @classmethod
    def of(cls, image: Image, level: Level, mask: Image | None = None) -> Foreground:
        """The foreground by Otsu's threshold, closed, its holes filled, or a given mask; the whole image where that is
        empty."""
        small = downsampled(to_sitk(image), level.voxels[image.ndim])
        small = blurred(small, level.blur * float(np.mean(small.GetSpacing())))
        grid = Grid.from_sitk(small)
        inside = (sitk.GetArrayFromImage(_filled(small)) if mask is None else
                  resampled_labels(mask, grid, np.eye(grid.ndim + 1)).array) > 0
        if not inside.any():
            inside = np.ones_like(inside)
        points = jittered_lattice(grid.shape, max(1, int(inside.size * level.samples / inside.sum())), seed=0)
        points = points[inside[tuple(np.rint(points).astype(np.int64).T)]]
        if not len(points):
            points = np.argwhere(inside).astype(np.float64)
        homogeneous = np.concatenate([grid.to_world(points), np.ones((len(points), 1))], 1)
        both = np.stack([normalize(sitk.GetArrayFromImage(small)), inside]).astype(np.float32)
        found = cls(both, grid, torch.from_numpy(homogeneous), np.empty(0),
                    float(inside.sum()) * float(np.prod(grid.spacing)))
        return replace(found, at_points=found.at(homogeneous)[0])

    def thinned(self, samples: int) -> Foreground:
        """The same foreground with fewer points, drawn with a fixed seed."""
        kept = np.random.default_rng(0).permutation(len(self.points_mm))[:samples]
        return replace(self, points_mm=self.points_mm[torch.from_numpy(kept)], at_points=self.at_points[kept])

    def at(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Intensity, foreground and whether the image reaches there (0 to 1), (3, N), at points (N, D+1)."""
        own = self.object
        found: NDArray[np.float64] = looked_up(points_mm, own.to_voxels, own.values, self.grid.ndim)[:, [0, 4, 8]].T
        return found

    @cached_property
    def object(self) -> Object:
        """As the kernel takes it."""
        n = self.grid.ndim
        to_voxels = np.zeros((3, n + 1))
        to_voxels[3 - n:] = self.grid.world_to_voxel[:n]
        return Object(self.values.reshape(2, *(1,) * (3 - n), *self.grid.shape), to_voxels,
                      np.ascontiguousarray(self.points_mm.numpy()), self.at_points, self.volume)


def _filled(image: sitk.Image) -> sitk.Image:
    """The foreground of an image, 0 or 1."""
    mask = sitk.OtsuThreshold(image, 0, 1)
    if min(image.GetSize()) >= SHORTEST_AXIS:
        mask = sitk.BinaryMorphologicalClosing(mask, [CLOSING_VOXELS] * image.GetDimension(), sitk.sitkBall, 1)
    return sitk.BinaryFillhole(mask)


@dataclass(frozen=True, eq=False)
class Score:
    """Agreement of two images at any pose, as a smooth function of it.

    Normalised mutual information (Studholme et al. 1999) over the union of the two foregrounds, within both fields of
    view: every part of either object takes part, wherever it lies, so a pose gains nothing by moving objects off each
    other. Two objects side by side would still inform about each other (where one is, the other is not); hence the
    factor :attr:`Agreement.overlap` where distant poses are ranked.
    """

    fixed: Foreground
    moving: Foreground
    bins: int = 24

    @classmethod
    @one_thread()
    def of(cls, fixed: Image, moving: Image, masks: tuple[Image, Image] | None = None, level: Level = COARSE) -> Score:
        """Args: masks: in place of the foregrounds."""
        here, there = masks or (None, None)
        return cls(Foreground.of(fixed, level, here), Foreground.of(moving, level, there))

    def thinned(self, samples: int) -> Score:
        """The same score from fewer points on each foreground."""
        return replace(self, fixed=self.fixed.thinned(samples), moving=self.moving.thinned(samples))

    def at(self, pull_backs: NDArray[np.float64]) -> Agreement:
        """Agreement at K poses, (K, D+1, D+1), fixed world to moving world points, mm."""
        found = [self.measured(pose, False) for pose in pull_backs]
        stretched = np.array([float(stretching(torch.from_numpy(np.ascontiguousarray(pose)))) for pose in pull_backs])
        information, overlap, covered = np.clip([one[:3] for one in found], 0, 1).T
        return Agreement(information, overlap, covered, stretched)

    def measured(self, pose: NDArray[np.float64], wanted: bool) -> Measured:
        """At one pose (D+1, D+1), with the information's gradient where it is wanted."""
        return measured(self.fixed.object, self.moving.object, np.ascontiguousarray(pose), self.bins, wanted)

    @one_thread()
    def climb(self, pull_back: NDArray[np.float64], motion: str,
              iterations: int = ITERATIONS) -> NDArray[np.float64]:
        """The best pose near a pose (D+1, D+1), by L-BFGS on the information less what stretching costs.

        Args: motion: "rigid", "similarity" or "affine": what may change about the pose.
        Returns: (D+1, D+1), never worse than the pose given.
        """
        start = torch.from_numpy(np.ascontiguousarray(pull_back))
        center = self.fixed.points_mm[:, :-1].mean(0)
        radius = float((self.fixed.points_mm[:, :-1] - center).norm(dim=1).mean())
        before, after = (torch.from_numpy(shift(sign * center.numpy())) for sign in (1, -1))
        parts = generators(self.fixed.grid.ndim, motion)
        linear = np.abs(parts[:, :-1, :-1]).sum((1, 2)) > 0
        parts[linear] /= radius
        basis = torch.from_numpy(parts * float(np.mean(self.fixed.grid.spacing)))

        def pose(move: Tensor) -> Tensor:
            return start @ before @ torch.linalg.matrix_exp(torch.einsum("k,kij->ij", move, basis)) @ after

        def loss(move: Tensor) -> Tensor:
            moved = pose(move)
            if not FLATTEST < float(torch.linalg.det(moved.detach()).abs()) < 1 / FLATTEST:
                return move.sum() * 0 + GAIN
            return -GAIN * (_Information.apply(moved, self) - STRETCH_COST * stretching(moved))

        return pose(torch.from_numpy(descend(loss, len(basis), iterations, iterations + iterations // 4)[0])).numpy()


class _Information(torch.autograd.Function):
    """The information at a pose (D+1, D+1) as a differentiable function of it."""

    @staticmethod
    def forward(ctx: Any, pose: Tensor, score: Score) -> Tensor:
        found = score.measured(pose.detach().numpy(), True)
        ctx.gradient = torch.from_numpy(found.gradient)
        return pose.new_tensor(found.information)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return given[0] * ctx.gradient, None


def stretching(pose: Tensor) -> Tensor:
    """How much a linear map (D+1, D+1) stretches: near the sum of the squared logarithms of its stretches along the
    principal axes, without their decomposition, which has no gradient where two are alike."""
    metric = pose[:-1, :-1].mT @ pose[:-1, :-1]
    unit = torch.eye(len(metric), dtype=metric.dtype)
    return ((metric - unit).square().sum() + (torch.linalg.inv(metric) - unit).square().sum()) / 8


def stretches(pull_back: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms of a linear map's stretches along its principal axes, (D,)."""
    return np.log(np.linalg.svd(pull_back[:-1, :-1], compute_uv=False))


def rigid_part(pull_back: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rigid pose (D+1, D+1) with the rotation nearest to a linear map's that takes ``center`` (D,) to where the
    map takes it."""
    u, _, vt = np.linalg.svd(pull_back[:-1, :-1])
    pose = np.eye(len(pull_back))
    pose[:-1, :-1] = u @ vt
    pose[:-1, -1] = pull_back[:-1, :-1] @ center + pull_back[:-1, -1] - pose[:-1, :-1] @ center
    return pose
