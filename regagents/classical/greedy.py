"""Greedy diffeomorphic registration: small smooth steps along the gradient of a similarity, composed, coarse to fine.

As in ANTs' and PICSL's greedy methods (Avants et al. 2008; Yushkevich et al. 2016), but batched, on torch tensors of
any device, and the same code in 2D and 3D. Images are (B, 1, *shape) on one grid; displacements u are (B, D, *shape),
voxels of that grid, array-axis order, of the map ``x -> x + u(x)``. With w the moving image through the map, one
iteration is

    g = smooth(dS/dw * grad w)        S: squared local correlation, or minus a squared difference
    v = step * g / max |g|            less where g is almost 0: images that agree stay where they are
    u = smooth(compose(u, v))

grad is by central differences. The derivative of a linear interpolation at a voxel is the forward difference instead,
which is half a voxel off: followed, it ends in a worse place. A lane's step is halved when its similarity has become
worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from regagents.classical.convexadam import PairByPair
from regagents.classical.convexadam import _check as check_together
from regenv.ops.features import mind_ssc, pooled, spread
from regenv.ops.kernels.operators import central_force
from regenv.ops.overlap import classes
from regenv.ops.similarity import lncc_force
from regenv.ops.smoothing import gaussian
from regenv.ops.warp import compose, warp_dense

MEASURES = ("lncc", "mse", "mind")
SHORTEST = 4        # blocks along an axis: levels with fewer are left out, but for the finest
EMPTY = 1e-6        # voxels: a mask of no more is empty
SHORTER = 0.5       # share of a lane's step that is left for its level after one that made it worse
STEEP = 0.5         # of |g|, change of a voxel's own similarity a voxel moved: below it, steps shrink with it
LOOK_BACK, EVERY = 10, 5        # iterations: over which a level's progress is judged, and how often
INVERSIONS, DAMPING = 12, 0.7   # fixed-point iterations for the inverse, a level, and their step
Labels = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Greedy(PairByPair):
    """Multi-resolution greedy optimisation of a displacement field.

    Working memory in 3D is about 160 bytes a voxel of the finest level and lane, 420 with ``measure="mind"``: 1.3 GB
    for a brain of 8 million voxels.

    Args:
        strides: of the levels, voxels, coarse to fine: images are averaged over blocks of as many voxels. A last stride
            above 1 works on a coarser grid than the image's in less time; the field is then interpolated.
        iterations: of each level at most.
        measure: "lncc" (squared local correlation: one modality, any contrast that varies slowly), "mse" (same
            intensities), or "mind" (squared difference of self-similarity features: any modality).
        window: side of the window of "lncc", blocks, odd.
        smoothing: sigma of the Gaussian that smooths a step, blocks. regularity: the same of the field.
        step: longest displacement of an iteration, blocks.
        tolerance: a lane's level ends when the similarity has changed by less than this share in 10 iterations.
        labels: weight of the squared difference of one-hot labels, where they are given, beside the images.
    """

    strides: tuple[int, ...] = (4, 2, 1)
    iterations: tuple[int, ...] = (40, 40, 20)
    measure: Literal["lncc", "mse", "mind"] = "lncc"
    window: int = 9
    smoothing: float = 1.5
    regularity: float = 0.3
    step: float = 0.5
    tolerance: float = 1e-4
    labels: float = 1.0

    def __post_init__(self) -> None:
        if not self.strides or len(self.strides) != len(self.iterations):
            raise ValueError(f"Greedy: strides are {self.strides}, iterations {self.iterations}; every level needs "
                             "both.")
        if min(self.strides) < 1 or any(a <= b or a % b for a, b in pairwise(self.strides)):
            raise ValueError(f"Greedy: strides are {self.strides}; they must be positive whole numbers of voxels, each "
                             "a multiple of the next.")
        if min(self.iterations) < 0:
            raise ValueError(f"Greedy: iterations are {self.iterations}; none may be negative.")
        if self.measure not in MEASURES:
            raise ValueError(f"Greedy: measure is {self.measure!r}; it must be one of {', '.join(MEASURES)}.")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"Greedy: window is {self.window} blocks; it must be odd and at least 3.")
        for name, least in (("smoothing", 0), ("regularity", 0), ("tolerance", -math.inf), ("labels", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"Greedy: {name} is {getattr(self, name)}; it must be at least {least} and finite.")
        if not 0 < self.step < math.inf:
            raise ValueError(f"Greedy: step is {self.step} blocks; it must be positive and finite.")

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None,
              initial: Tensor | None = None, labels: Labels | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, without gradient; those of a lane do not depend on the other lanes.

        Args:
            fixed, moving: (B, 1, *shape) float, 2D or 3D; every axis has at least two blocks of the last level.
            fixed_mask, moving_mask: (B, 1, *shape), bool or weights, where the images count; default everywhere.
            initial: (B, D, *shape), voxels, where the field starts; default 0.
            labels: of the fixed and of the moving image, (B, 1, *shape) integer each; 0 is background.
        Raises: ValueError: shapes that do not fit together.
        """
        return self._solved(fixed, moving, fixed_mask, moving_mask, initial, labels)[0]

    @property
    def bytes_per_voxel(self) -> int:
        """Working memory in 3D, measured, bytes a voxel of the image."""
        return math.ceil((420 if self.measure == "mind" else 160) / self.strides[-1] ** 3)

    def solve_both(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
                   moving_mask: Tensor | None = None, initial: Tensor | None = None,
                   labels: Labels | None = None) -> tuple[Tensor, Tensor]:
        """The displacements of :meth:`solve`, and those of the inverse map, made consistent on every level."""
        field, inverse = self._solved(fixed, moving, fixed_mask, moving_mask, initial, labels, both=True)
        assert inverse is not None
        return field, inverse

    @torch.no_grad()
    def _solved(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None, moving_mask: Tensor | None,
                initial: Tensor | None, labels: Labels | None, both: bool = False) -> tuple[Tensor, Tensor | None]:
        """The field, and its inverse where both are asked for."""
        self._check(fixed, moving, fixed_mask, moving_mask, initial, labels)
        shape = tuple(fixed.shape[2:])
        before: tuple[Tensor, Tensor, int] | None = None        # start and end of the level before, and its stride
        inverse: Tensor | None = None
        for stride, iterations in self._levels(shape):
            terms = self._terms(stride, fixed, moving, labels)
            masks = [None if mask is None else _pooled(mask.to(torch.float32), stride)
                     for mask in (fixed_mask, moving_mask)]
            here = tuple(terms[0].fixed.shape[2:])
            start = terms[0].fixed.new_zeros((len(fixed), len(shape), *here)) if initial is None else (
                _pooled(initial.to(torch.float32), stride) / stride)
            u = start if before is None else start + spread(before[1] - before[0], before[2] // stride, here)
            u = self._descended(terms, masks, u, iterations)
            if both:
                assert inverse is None or before is not None
                inverse = _inverse(u, -u if inverse is None or before is None else (
                    spread(inverse, before[2] // stride, here)))
            before = start, u, stride
        assert before is not None
        field, stride = before[1:]
        return spread(field, stride, shape), None if inverse is None else spread(inverse, stride, shape)

    def _levels(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Strides and iterations of the levels that the shape has room for."""
        levels = list(zip(self.strides, self.iterations, strict=True))
        return [level for level in levels[:-1] if min(shape) // level[0] >= SHORTEST] + levels[-1:]

    def _terms(self, stride: int, fixed: Tensor, moving: Tensor, labels: Labels | None) -> list[_Term]:
        """What is to become alike on a level."""
        here, there = (_pooled(image.to(torch.float32), stride) for image in (fixed, moving))
        if self.measure == "mind":
            here, there = mind_ssc(here), mind_ssc(there)
        if self.measure == "mse":       # of images of one scale, whatever their unit
            deviation = here.flatten(1).std(1).clamp_min(EMPTY).view(-1, *(1,) * (here.ndim - 1))
            here, there = here / deviation, there / deviation
        terms = [_Term(here, there, self.window if self.measure == "lncc" else None, 1.0)]
        if labels is not None and self.labels > 0:
            found = sorted({c for each in labels for c in classes(each)})
            if found:
                here, there = (_pooled(torch.cat([(each == c).to(torch.float32) for c in found], 1), stride)
                               for each in labels)
                terms.append(_Term(here, there, None, self.labels))
        return terms

    def _descended(self, terms: list[_Term], masks: list[Tensor | None], u: Tensor, iterations: int) -> Tensor:
        """The field after a level's iterations."""
        spread_out = (-1, *(1,) * (u.ndim - 1))
        running, everyone = torch.ones(len(u), dtype=torch.bool, device=u.device), True
        step, values = u.new_full((len(u),), self.step), list[Tensor]()
        for iteration in range(iterations):
            value, g = _force(terms, masks, u)
            if values:
                step = torch.where(value < values[-1], SHORTER * step, step)
            values.append(value)
            if iteration >= LOOK_BACK and iteration % EVERY == 0 and self.tolerance > -math.inf:
                running = running & (value - values[-1 - LOOK_BACK] > self.tolerance * value.abs())
                everyone = bool(running.all())
                if not running.any():
                    break
            g = gaussian(g, self.smoothing)
            longest = g.square().sum(1).flatten(1).amax(1).sqrt()
            new = compose(u, g.mul_((step / longest.clamp_min(STEEP)).view(spread_out)))
            new = gaussian(new, self.regularity)
            u = new if everyone else torch.where(running.view(spread_out), new, u)
        return u

    def _check(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None, moving_mask: Tensor | None,
               initial: Tensor | None, labels: Labels | None) -> None:
        """Raise ValueError if shapes do not fit together."""
        check_together("Greedy", self.strides[-1], fixed, moving, fixed_mask, moving_mask, initial)
        for name, each in zip(("fixed labels", "moving labels"), labels or (), strict=False):
            if each.shape != fixed.shape or each.is_floating_point():
                raise ValueError(f"Greedy: the {name} are {tuple(each.shape)} {each.dtype}; with a fixed image of "
                                 f"{tuple(fixed.shape)} they must be of that shape, and integers.")


@dataclass(frozen=True, eq=False)
class _Term:
    """Two images (B, C, *shape) that are to become alike: in a window's local correlation, or by squared difference."""

    fixed: Tensor
    moving: Tensor
    window: int | None
    weight: float

    def force(self, u: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The similarity (B,), a mean over the voxels that count, and the gradient of their sum by u (B, D, *shape)."""
        warped = warp_dense(self.moving, u, padding="border")
        if self.window is not None:
            voxels = warped[0].numel() if mask is None else mask.flatten(1).sum(1).view(-1, *(1,) * (warped.ndim - 1))
            value, slope = lncc_force(self.fixed, warped, mask, self.window)
            return self.weight * value, central_force(slope * (self.weight * voxels), warped)
        apart = self.fixed - warped
        weighted = apart if mask is None else apart * mask
        total = apart[0, 0].numel() if mask is None else mask.flatten(1).sum(1).clamp_min(EMPTY)
        value = -(weighted * apart).flatten(1).sum(1) / total
        return self.weight * value, central_force(weighted * (2 * self.weight), warped)


def _force(terms: list[_Term], masks: list[Tensor | None], u: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the terms' similarities, and of their gradients."""
    mask, moving_mask = masks
    if moving_mask is not None:
        there = warp_dense(moving_mask, u)
        mask = there if mask is None else mask * there
    (value, g), *others = (term.force(u, mask if number == 0 else None) for number, term in enumerate(terms))
    for more, slope in others:
        value, g = value + more, g + slope
    return value, g


def _inverse(u: Tensor, start: Tensor) -> Tensor:
    """Displacement of the inverse map, by a damped fixed-point iteration: with a full step it would diverge where the
    map stretches twofold."""
    found = start
    for _ in range(INVERSIONS):
        found = found - DAMPING * (found + warp_dense(u, found, padding="border"))
    return found


def _pooled(image: Tensor, stride: int) -> Tensor:
    """Means over blocks; the image itself where they are of one voxel."""
    return image if stride == 1 else pooled(image, stride)


@dataclass(frozen=True)
class ByDimension(PairByPair):
    """The settings for 2D images and for 3D images behind one contract."""

    flat: Greedy
    deep: Greedy

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None,
              initial: Tensor | None = None, labels: Labels | None = None) -> Tensor:
        """See :meth:`Greedy.solve`."""
        solver = self.flat if fixed.ndim == 4 else self.deep
        return solver.solve(fixed, moving, fixed_mask, moving_mask, initial, labels)

    @property
    def bytes_per_voxel(self) -> int:
        """Of the two, the larger working memory."""
        return max(self.flat.bytes_per_voxel, self.deep.bytes_per_voxel)


_FLAT = Greedy(strides=(4, 2, 1), iterations=(60, 60, 60), window=15, smoothing=1.0, regularity=0.0)
_DEEP = Greedy(strides=(4, 2, 1), iterations=(60, 50, 20), window=7, regularity=0.0)
SETTINGS = {
    "generic": ByDimension(_FLAT, _DEEP),
    "brain": ByDimension(_FLAT, replace(_DEEP, smoothing=1.2)),
    "lung": ByDimension(_FLAT, replace(_DEEP, smoothing=3.5, strides=(8, 4, 2, 1), iterations=(60, 60, 40, 10))),
    "organ": ByDimension(_FLAT, replace(_DEEP, smoothing=2.0, iterations=(60, 60, 40))),
    "mind": ByDimension(replace(_FLAT, measure="mind"), replace(_DEEP, measure="mind")),
    "mse": ByDimension(replace(_FLAT, measure="mse"), replace(_DEEP, measure="mse")),
}
"""By name, tuned on training pairs only: brains (in 2D, too) on the tissues of CSI1 and CSI2, lungs on key-points of
synthetic patients, organs on livers of synthetic patients; "generic" is between them. "mind" and "mse" are "generic"
by another measure."""
