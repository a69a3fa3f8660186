"""Dense instance optimisation on self-similarity features: coupled convex search, Adam, and both (ConvexAdam).

All functions are batched, on torch tensors of any device, with the same code in 2D and 3D. Images are (B, 1, *shape)
on one grid, masks (B, 1, *shape), bool or weights, and multiply the features. Displacements are (B, D, *shape), voxels
of the fixed grid, array-axis order. Both stages work on the features averaged over blocks of ``stride`` voxels an axis;
"coarse voxels" are these blocks.

The features respond to noise as well as to anatomy. Where there is only noise, such as in air, Adam's field folds: on
liver phantoms in a tenth of the air and 0.3 % of the body; with masks of the bodies in less than 0.02 % of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regagents.classical.common import from_zero, is_flat
from regagents.common.threads import one_thread
from regenv.grid import Grid
from regenv.ops.features import box_mean, mind_ssc, pooled, spread
from regenv.ops.regularity import diffusion
from regenv.ops.warp import warp_dense

CHANNELS = 12  # of the features in 3D; in 2D there are 4, and a difference is scaled to count as much


class Solver(Protocol):
    """An optimiser of a batch's displacements, such as AdamInstance or the policy of a learned one."""

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, array-axis order.

        Args: fixed, moving: (B, 1, *shape); fixed_mask, moving_mask: (B, 1, *shape), default everywhere.
        """


class PairByPair:
    """Makes a :class:`~regagents.classical.common.FieldMethod` of a solver: ``register`` of one pair of images."""

    def register(self: Solver, fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float32]:
        """See :class:`~regagents.classical.common.FieldMethod`; the moving image is first resampled on the fixed one's
        grid, its least value outside."""
        grid = Grid.from_sitk(fixed)
        if is_flat(fixed, moving):
            return np.zeros((grid.ndim, *grid.shape), dtype=np.float32)
        with one_thread():
            fixed, moving = from_zero(fixed), from_zero(moving)
            moving = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
            images = (sitk.GetArrayFromImage(image) for image in (fixed, moving))
            field = self.solve(*(torch.from_numpy(array)[None, None] for array in images))[0]
        return np.asarray(field.numpy())


def pooled_features(image: Tensor, mask: Tensor | None, stride: int) -> Tensor:
    """MIND-SSC features times the mask, averaged over blocks: (B, 1, *shape) to (B, C, *coarse shape).

    Where ``stride`` does not divide an axis, the last block has the voxels that are left.
    """
    features = mind_ssc(image)
    return pooled(features if mask is None else features * mask.to(features.dtype), stride)


def dissimilarity(fixed: Tensor, moving: Tensor) -> Tensor:
    """Squared distance of features (B, C, *shape) at every voxel, scaled to 12 channels: (B, 1, *shape)."""
    return CHANNELS * (fixed - moving).square().mean(1, keepdim=True)


def energy(fixed: Tensor, moving: Tensor, displacement: Tensor, weight: float) -> Tensor:
    """``mean_x |F(x) - M(x + u(x))|^2 + weight sum_a mean_x |du/da|^2`` of features F, M and a field u, (B,).

    Args: fixed, moving: (B, C, *shape); displacement: (B, D, *shape), voxels of that shape; weight: of the diffusion.
    """
    apart = dissimilarity(fixed, warp_dense(moving, displacement, padding="border")).flatten(1).mean(1)
    return apart + weight * displacement.shape[1] * diffusion(displacement)


@dataclass(frozen=True)
class AdamInstance(PairByPair):
    """Adam on a coarse field that is smoothed inside the loop, the second stage of ConvexAdam (Siebert et al. 2021) and
    the "Adam" that learned optimisers are compared with. It minimises :func:`energy` of the features.

    Beyond the border, box means and warps repeat the last value: a constant field stays constant.

    Args:
        iterations: of Adam. lr: its learning rate, coarse voxels. weight: of the diffusion.
        stride: of the field's grid, voxels. smoothings: 3^D box means of the field, in every iteration.
    """

    iterations: int = 80
    lr: float = 1.0
    weight: float = 1.25
    stride: int = 2
    smoothings: int = 3

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("stride", 1), ("smoothings", 0), ("weight", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"AdamInstance: {name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.lr > 0:
            raise ValueError(f"AdamInstance: lr is {self.lr}; it must be positive.")

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None,
              initial: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape) after all iterations. Arguments and errors as of :meth:`path`."""
        return self.path(fixed, moving, (self.iterations,), fixed_mask, moving_mask, initial)[0]

    def path(self, fixed: Tensor, moving: Tensor, at: Sequence[int], fixed_mask: Tensor | None = None,
             moving_mask: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Displacements after some of the iterations.

        Args:
            fixed, moving: (B, 1, *shape) float32; every axis has at least two blocks.
            at: iterations to report, in any order; 0 is the start. The last of them ends the run.
            fixed_mask, moving_mask: (B, 1, *shape), where the features count; default everywhere.
            initial: (B, D, *shape), voxels, where the field starts, smoothed like every iterate; default 0.
        Returns: (len(at), B, D, *shape), voxels, without gradient, whatever gradient mode the caller is in.
        Raises: ValueError: shapes that do not fit together, or an iteration below 0.
        """
        _check("AdamInstance", self.stride, fixed, moving, fixed_mask, moving_mask, initial)
        if not at or min(at) < 0:
            raise ValueError(f"AdamInstance: at is {tuple(at)}; it needs iterations of 0 or more.")
        lanes, ndim, shape = len(fixed), fixed.ndim - 2, tuple(fixed.shape[2:])
        found: dict[int, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            here, there = (pooled_features(image, mask, self.stride)
                           for image, mask in ((fixed, fixed_mask), (moving, moving_mask)))
            knots = here.new_zeros(lanes, ndim, *here.shape[2:]) if initial is None else (
                pooled(initial.to(here.dtype), self.stride) / self.stride)
            adam = torch.optim.Adam([knots.requires_grad_()], lr=self.lr)
            for iteration in range(max(at) + 1):
                with torch.enable_grad():
                    coarse = self._smooth(knots)
                    if iteration in at:
                        found[iteration] = spread(coarse.detach(), self.stride, shape)
                    if iteration < max(at):
                        adam.zero_grad()
                        energy(here, there, coarse, self.weight).sum().backward()
                        adam.step()
            return torch.stack([found[iteration] for iteration in at])

    def _smooth(self, field: Tensor) -> Tensor:
        """The field after its box means."""
        for _ in range(self.smoothings):
            field = box_mean(field)
        return field


@dataclass(frozen=True)
class CoupledConvex(PairByPair):
    """Discrete search by coupled convex optimisation (Steinbruecker et al. 2009; Heinrich et al. 2014), the first stage
    of ConvexAdam (Siebert et al. 2021): it finds large displacements, whole coarse voxels smoothed once.

    Every displacement of up to ``reach`` coarse voxels an axis has a cost. Two steps alternate: every voxel takes the
    displacement with the least sum of cost and weighted squared distance from the smooth field; then the field becomes
    the 3^D box mean of the displacements taken. The weight grows.

    Args:
        stride: of the grid, voxels; displacements are multiples of it.
        reach: largest displacement an axis, coarse voxels.
        weights: of the squared distance (coarse voxels) from the smooth field, one an iteration.
        consistency: iterations that make the field and the field of the exchanged images inverse to each other; 0:
            none, in half the time.
    """

    stride: int = 4
    reach: int = 4
    weights: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    consistency: int = 15

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("reach", 1), ("consistency", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"CoupledConvex: {name} is {getattr(self, name)}; it must be at least {least}.")
        if not all(weight >= 0 for weight in self.weights):
            raise ValueError(f"CoupledConvex: weights are {self.weights}; none may be negative.")

    @torch.no_grad()
    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, without gradient.

        Args:
            fixed, moving: (B, 1, *shape) float32; every axis has at least two blocks.
            fixed_mask, moving_mask: (B, 1, *shape), where the features count; default everywhere.
        Raises: ValueError: shapes that do not fit together.
        """
        _check("CoupledConvex", self.stride, fixed, moving, fixed_mask, moving_mask)
        here, there = (pooled_features(image, mask, self.stride)
                       for image, mask in ((fixed, fixed_mask), (moving, moving_mask)))
        coarse = self._search(here, there)
        if self.consistency:
            back = self._search(there, here)
            for _ in range(self.consistency):
                coarse, back = ((coarse - warp_dense(back, coarse, padding="border")) / 2,
                                (back - warp_dense(coarse, back, padding="border")) / 2)
        return spread(coarse, self.stride, tuple(fixed.shape[2:]))

    def _search(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Field (B, D, *coarse shape), coarse voxels, from features to features."""
        ndim = fixed.ndim - 2
        width = 2 * self.reach + 1
        ticks = torch.arange(-self.reach, self.reach + 1, device=fixed.device, dtype=fixed.dtype)
        costs = cost_volume(fixed, moving, self.reach)
        field = box_mean(_taken(costs, ticks, ndim))
        for weight in self.weights:
            coupled = costs.unflatten(1, (width,) * ndim)
            for axis in range(ndim):
                away = weight * (ticks.view(1, -1, *(1,) * ndim) - field[:, axis:axis + 1]).square()
                coupled = coupled + away.unflatten(1, [width if a == axis else 1 for a in range(ndim)])
            field = box_mean(_taken(coupled.flatten(1, ndim), ticks, ndim))
        return field


@dataclass(frozen=True)
class ConvexAdam(PairByPair):
    """ConvexAdam (Siebert et al. 2021): a coupled convex search for large displacements, then Adam for small ones."""

    convex: CoupledConvex = CoupledConvex()
    adam: AdamInstance = AdamInstance()

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels. Arguments and errors as of :meth:`CoupledConvex.solve`."""
        start = self.convex.solve(fixed, moving, fixed_mask, moving_mask)
        return self.adam.solve(fixed, moving, fixed_mask, moving_mask, start)


def cost_volume(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Dissimilarity of features for every displacement, as 3^D box means.

    Args: fixed, moving: (B, C, *shape); reach: largest displacement an axis, voxels of that shape.
    Returns: (B, (2 reach + 1)^D, *shape), displacements in lexicographic order, the last axis fastest.
    """
    ndim, shape = fixed.ndim - 2, fixed.shape[2:]
    padded = F.pad(moving, [reach] * (2 * ndim), mode="replicate")
    costs = fixed.new_empty(len(fixed), (2 * reach + 1) ** ndim, *shape)
    for number, place in enumerate(product(range(2 * reach + 1), repeat=ndim)):
        there = padded
        for axis, (start, n) in enumerate(zip(place, shape, strict=True)):
            there = there.narrow(axis + 2, start, n)
        costs[:, number:number + 1] = box_mean(dissimilarity(fixed, there))
    return costs


def _taken(costs: Tensor, ticks: Tensor, ndim: int) -> Tensor:
    """The displacement of least cost at each voxel: (B, K^D, *shape) to (B, D, *shape)."""
    best, axes = costs.argmin(1), []
    for _ in range(ndim):
        axes.append(ticks[best % len(ticks)])
        best = best // len(ticks)
    return torch.stack(axes[::-1], 1)


def _check(who: str, stride: int, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None,
           moving_mask: Tensor | None, initial: Tensor | None = None) -> None:
    """Raise ValueError if shapes do not fit together."""
    shape = tuple(fixed.shape)
    if min(shape[2:], default=0) <= stride:
        raise ValueError(f"{who}: the fixed image is {shape}; every axis needs more than {stride} voxels, the stride.")
    field = (shape[0], len(shape) - 2, *shape[2:])
    for name, tensor, wanted in (("moving image", moving, shape), ("fixed mask", fixed_mask, shape),
                                 ("moving mask", moving_mask, shape), ("initial displacement", initial, field)):
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(f"{who}: the {name} is {tuple(tensor.shape)}; with a fixed image of {shape} it must be "
                             f"{wanted}.")
