"""The learned optimiser on images of any extent: framed as in its training, from the masks' moments, on two levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regagents.classical.convexadam import PairByPair
from regagents.l2o.policies import L2OPolicy
from regenv.ops.features import pooled, spread

STRIDES = (2, 1)            # of the levels, voxels of the images
FRAMES = (1.0, 1.5)         # least extent of a level's images, of the training images' number of voxels
MOST_STRETCH = 1.5          # between the masks, along an axis
EMPTY = 1e-6


@dataclass(frozen=True)
class L2OLevels(PairByPair):
    """A learned optimiser's iterations on averaged images, then on the images themselves from there.

    Its network normalises by instance, so how much of an image is lung decides what it sees; images smaller than those
    of its training are therefore framed by nothing until they are as large. It looks for better places within a few
    voxels of where it is; it therefore starts from the displacement that brings the masks' means and standard
    deviations along each axis onto each other.

    Args: policy: trained on voxels twice as large as the images'; iterations: of each level.
    """

    policy: L2OPolicy
    iterations: tuple[int, ...] = (8, 4)

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None,
              initial: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape), voxels, array-axis order.

        Args: fixed, moving (B, 1, *shape) float32 in [0, 1]; fixed_mask, moving_mask (B, 1, *shape), the organ, default
        everywhere; initial (B, D, *shape), voxels, in place of the masks' moments.
        """
        shape = tuple(fixed.shape[2:])
        fixed_mask, moving_mask = (torch.ones_like(image) if mask is None else mask.to(image.dtype)
                                   for image, mask in ((fixed, fixed_mask), (moving, moving_mask)))
        u = moments_start(fixed_mask, moving_mask) if initial is None else initial
        for stride, share, iterations in zip(STRIDES, FRAMES, self.iterations, strict=True):
            given = fixed, moving, fixed_mask, moving_mask, u
            here = [each if stride == 1 else pooled(each, stride) for each in given]
            here[-1] = here[-1] / stride
            least = [round(share * n) for n in self.policy.extent]
            margin = [side for n, m in zip(reversed(here[0].shape[2:]), reversed(least), strict=True)
                      for side in (max(m - n, 0) // 2, max(m - n, 0) - max(m - n, 0) // 2)]
            a, b, *masks, start = (F.pad(each, margin, mode="constant" if number in (2, 3) else "replicate")
                                   for number, each in enumerate(here))
            found = self.policy.path(a, b, (iterations,), masks[0], masks[1], start)[0]
            for axis, n in enumerate(here[0].shape[2:]):
                found = found.narrow(axis + 2, margin[::-1][2 * axis + 1], n)
            u = found if stride == 1 else spread(found, stride, shape)
        return u


def moments_start(fixed_mask: Tensor, moving_mask: Tensor) -> Tensor:
    """The displacement (B, D, *shape), voxels, of the shift and stretch along each axis that bring the fixed mask's
    mean and standard deviation onto the moving mask's; none where a mask is empty.

    Args: masks (B, 1, *shape) float, weights of 0 to 1.
    """
    shape = tuple(fixed_mask.shape[2:])
    there = (fixed_mask.flatten(1).sum(1) > EMPTY) & (moving_mask.flatten(1).sum(1) > EMPTY)
    parts = []
    for axis, n in enumerate(shape):
        place = torch.arange(n, dtype=fixed_mask.dtype, device=fixed_mask.device)
        (mean, deviation), (wanted, width) = (_along(mask, axis, place) for mask in (fixed_mask, moving_mask))
        stretch = (width / deviation.clamp_min(EMPTY)).clamp(1 / MOST_STRETCH, MOST_STRETCH)
        along = (wanted + (place - mean) * stretch - place) * there[:, None]
        parts.append(along.view(-1, *(n if other == axis else 1 for other in range(len(shape)))).expand(-1, *shape))
    return torch.stack(parts, 1)


def _along(mask: Tensor, axis: int, place: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, 1) of a mask's places along an axis."""
    weight = mask[:, 0].movedim(axis + 1, 1).flatten(2).sum(2)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(EMPTY)
    mean = (weight * place).sum(1, keepdim=True)
    return mean, (weight * (place - mean).square()).sum(1, keepdim=True).sqrt()
