"""Similarity of two images: pure batched functions, one number per lane, differentiable, the same code in 2D and 3D.

Every function takes ``fixed`` and ``warped`` (B, C, *shape) float, by convention in [0, 1], and returns (B,). An
optional ``mask`` (B, 1, *shape), bool or non-negative weights, restricts it to the voxels that count; a lane whose
mask is empty gives NaN. More than one channel: each channel is measured alone, and the mean is returned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regenv.ops.kernels import operators
from regenv.ops.windows import window_mean as _box

_FLAT = 1e-12  # product of two variances, intensities in [0, 1]: below it one of the images has no contrast
_TINY = 1e-12  # added inside a logarithm of a probability, so that an empty bin has value 0 and a finite gradient
_MARGIN = 2  # empty histogram bins on either side, which hold the tails of the cubic Parzen window (as in ITK)


def mse(fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error, ``mean (I - J)^2``. 0 is perfect."""
    return _mean((fixed - warped) ** 2, mask).mean(1)


def ncc(fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> Tensor:
    """Normalised cross-correlation, ``cov(I, J) / sqrt(var I var J)``, in [-1, 1]; 0 if an image has no contrast."""
    a = fixed - _spread(_mean(fixed, mask), fixed)
    b = warped - _spread(_mean(warped, mask), warped)
    cov, var_a, var_b = _mean(a * b, mask), _mean(a * a, mask), _mean(b * b, mask)
    return (cov / (var_a * var_b).clamp_min(_FLAT).sqrt()).mean(1)


def mse_of_moments(moments: Tensor, voxels: int) -> Tensor:
    """:func:`mse` (B,) from sums over all voxels (B, C, 5) float64 of I, J, I I, J J and I J."""
    _, _, aa, bb, ab = moments.unbind(-1)
    return ((aa + bb - 2 * ab) / voxels).mean(1)


def ncc_of_moments(moments: Tensor, voxels: int) -> Tensor:
    """:func:`ncc` (B,) from the same sums."""
    a, b, aa, bb, ab = (moments / voxels).unbind(-1)
    variances = (aa - a * a).clamp_min(0) * (bb - b * b).clamp_min(0)
    return ((ab - a * b) / variances.clamp_min(_FLAT).sqrt()).mean(1)


def lncc(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, window: int = 9) -> Tensor:
    """Squared local cross-correlation, ``mean_x cov_x(I, J)^2 / (var_x I var_x J)``, in [0, 1] (Avants et al. 2008).

    The statistics at voxel x are those of the voxels of the window around x that lie inside the image (and the mask):
    nothing is padded, so the value does not change when an image is scaled or shifted in intensity. A window without
    contrast counts 0. Its gradient is that of :func:`lncc_force`; there is no second one, and none by the mask.

    Args:
        window: side of the window, voxels, odd.
    Returns: (B,), float32 at least.
    """
    if not (torch.is_grad_enabled() and (fixed.requires_grad or warped.requires_grad)):
        return _lncc(fixed, warped, mask, window, False)[0]
    value: Tensor = _LNCC.apply(fixed, warped, mask, window)
    return value


def lncc_force(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, window: int = 9) -> tuple[Tensor, Tensor]:
    """:func:`lncc` and its gradient by ``warped``, in closed form and in one pass over the voxels, on CPU and CUDA.

    With c the covariance, v the variances, n the number of voxels in a window, and the sum over all windows about which
    y lies in: ``(1 / N) sum_x [P (I(y) - mean_x I) - Q (J(y) - mean_x J)] / n(x)``, P = 2 c / (v_I v_J) and
    Q = 2 c^2 / (v_I v_J^2). Not differentiable; float32 whatever the images are.

    Args:
        fixed, warped: (B, C, *shape) float, on one device, 2D or 3D.
        mask: (B, 1, *shape), bool or non-negative weights; default everywhere.
        window: side of the window, voxels, odd.
    Returns: (B,), and (B, C, *shape) float32, whose sums over the voxels of a lane with a step are the value's changes.
    Raises: ValueError: shapes, types or devices that do not fit together, or the window.
    """
    value, force = _lncc(fixed, warped, mask, window, True)
    assert force is not None
    return value, force


@torch.no_grad()
def _lncc(fixed: Tensor, warped: Tensor, mask: Tensor | None, window: int,
          want_force: bool) -> tuple[Tensor, Tensor | None]:
    """The value, and its gradient by ``warped`` where that is wanted."""
    _check_window("lncc", window)
    operators.check_lncc(fixed, warped, mask)
    standard = torch.stack([*_moments(fixed, mask), *_moments(warped, mask)], -1).nan_to_num(1.0)   # of an empty mask
    standard[..., 1::2] = 1 / standard[..., 1::2]
    weights = None if mask is None else mask.expand(len(fixed), 1, *fixed.shape[2:])
    sums, force = operators.lncc_force(fixed, warped, weights, standard, window, want_force)
    total = sums.new_full((len(fixed), 1), fixed[0, 0].numel()) if weights is None else (
        weights.to(sums.dtype).flatten(2).sum(-1))
    share = 1 / (total * fixed.shape[1])
    value = (sums * share).sum(1).to(force.dtype)
    if not want_force:
        return value, None
    return value, force * _spread(torch.where(total > 0, share, 0.0).to(force.dtype), force)


class _LNCC(torch.autograd.Function):
    """:func:`lncc`, whose gradients are found with the value where one is wanted."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, warped: Tensor, mask: Tensor | None, window: int) -> Tensor:
        of_fixed, of_warped = ctx.needs_input_grad[:2]
        value, slope = _lncc(fixed, warped, mask, window, of_warped)
        other = _lncc(warped, fixed, mask, window, True)[1] if of_fixed else None
        ctx.slopes = other, slope
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if slope is None else slope * _spread(grad[:, None], slope) for slope in ctx.slopes), None, None


def ssim(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, window: int = 7, span: float = 1.0) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) with a flat window, K1 = 0.01 and K2 = 0.03; 1 is perfect.

    ``(2 mu_I mu_J + C1)(2 cov + C2) / ((mu_I^2 + mu_J^2 + C1)(var I + var J + C2))``, averaged over the windows that
    lie wholly inside the image. A mask chooses the windows by their centres.

    Args:
        window: side of the window, voxels, odd, no longer than any axis.
        span: the intensities' range, L in ``C1 = (K1 L)^2``.
    """
    _check_window("ssim", window)
    if min(fixed.shape[2:]) < window:
        raise ValueError(f"ssim: the image is {tuple(fixed.shape[2:])} voxels; every axis needs at least the "
                         f"window's {window}.")
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    a, b = fixed, warped
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _box_means([a, b, a * a, b * b, a * b], window, None)
    cov, var_a, var_b = mean_ab - mean_a * mean_b, mean_aa - mean_a * mean_a, mean_bb - mean_b * mean_b
    values = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    inner = (slice(None), slice(None), *(slice(window // 2, n - window // 2) for n in fixed.shape[2:]))
    return _mean(values[inner], None if mask is None else mask.expand(-1, -1, *fixed.shape[2:])[inner]).mean(1)


def mi(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, bins: int = 32, order: int = 3,
       limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Mutual information in nats, ``H(I) + H(J) - H(I, J)``, from a Parzen histogram (Mattes et al. 2003).

    As in ITK, ``fixed`` falls into whole bins and ``warped`` is spread over its neighbouring bins by a B-spline, so
    the value is smooth in ``warped`` (and has no gradient in ``fixed``); the outer two bins on each side are margin.

    Args:
        bins: bins per image, margins included.
        order: of the B-spline: 3 (ITK's), 1 (linear), or 0 (a plain histogram, without a gradient).
        limits: intensities at the ends of the histogram; values beyond count as the limit.
    """
    joint = _joint_histogram(fixed, warped, mask, bins, order, limits)
    value = _entropy(joint.sum(-1)) + _entropy(joint.sum(-2)) - _entropy(joint.flatten(2))
    return value.mean(1).to(warped.dtype)


def nmi(fixed: Tensor, warped: Tensor, mask: Tensor | None = None, bins: int = 32, order: int = 3,
        limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Normalised mutual information, ``(H(I) + H(J)) / H(I, J)``, in [1, 2] (Studholme et al. 1999).

    It changes less than :func:`mi` with the size of the overlap. Arguments as :func:`mi`. 1 if both images are flat.
    """
    joint = _joint_histogram(fixed, warped, mask, bins, order, limits)
    both = _entropy(joint.flatten(2))
    value = (_entropy(joint.sum(-1)) + _entropy(joint.sum(-2)) + _TINY) / (both + _TINY)
    return value.mean(1).to(warped.dtype)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the voxels of each lane and channel: (B, C, *shape) to (B, C)."""
    if mask is None:
        return values.flatten(2).mean(-1)
    weight = mask.to(values.dtype)
    return (values * weight).flatten(2).sum(-1) / weight.flatten(2).sum(-1)


def _spread(statistic: Tensor, like: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, ...), to broadcast over the voxels of ``like``."""
    return statistic.view(*statistic.shape, *(1,) * (like.ndim - 2))


def _moments(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, which is 1 where an image is flat, (B, C) each.

    An image less its mean, over its deviation, keeps float32 exact enough whatever the intensities' offset.
    """
    mean = _mean(image, mask)
    deviation = _mean((image - _spread(mean, image)) ** 2, mask).sqrt()
    return mean, torch.where(deviation > 1e-6 * mean.abs() + 1e-12, deviation, 1.0)


def _check_window(name: str, window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"{name}: window is {window}; it must be a positive odd number of voxels.")


def _box_means(images: list[Tensor], window: int, mask: Tensor | None) -> list[Tensor]:
    """Means over the window around each voxel, of the voxels inside the image (and the mask)."""
    if mask is None:
        return list(_box(torch.cat(images, 1), window).chunk(len(images), 1))
    weight = mask.to(images[0].dtype).expand(images[0].shape[0], 1, *images[0].shape[2:])
    share = _box(weight, window)
    share = torch.where(share > 0, share, 1.0)
    return [mean / share for mean in _box(torch.cat(images, 1) * weight, window).chunk(len(images), 1)]


def _joint_histogram(fixed: Tensor, warped: Tensor, mask: Tensor | None, bins: int, order: int,
                     limits: tuple[float, float]) -> Tensor:
    """Joint probabilities of the bins of the two images: (B, C, bins, bins) float64, rows for ``fixed``.

    Sums run in float64: in float32 a bin stops growing properly at a million voxels.
    """
    inner = bins - 2 * _MARGIN
    if inner < 1:
        raise ValueError(f"mi: bins is {bins}; it must be more than {2 * _MARGIN}, of which {2 * _MARGIN} are margin.")
    low, high = limits
    if not low < high:
        raise ValueError(f"mi: limits is {limits}; the first must be below the second.")

    def place(image: Tensor) -> tuple[Tensor, Tensor]:
        """Each voxel's position on the axis of bins, and the bin it falls into: (B, C, voxels)."""
        position = ((image.flatten(2) - low) / (high - low)).clamp(0, 1) * inner + _MARGIN
        return position, position.detach().floor().clamp(_MARGIN, bins - _MARGIN - 1).to(torch.int64)

    row = place(fixed)[1] * bins
    position, column = place(warped)
    weight = None if mask is None else mask.to(torch.float64).expand(*fixed.shape[:1], 1, *fixed.shape[2:]).flatten(2)
    joint = torch.zeros(*row.shape[:2], bins * bins, dtype=torch.float64, device=fixed.device)
    for shift, share in _parzen(position.to(torch.float64) - column, order):
        joint = joint.scatter_add(-1, row + (column + shift), share if weight is None else share * weight)
    return (joint / joint.sum(-1, keepdim=True)).unflatten(-1, (bins, bins))


def _parzen(u: Tensor, order: int) -> list[tuple[int, Tensor]]:
    """Neighbouring bins (as shifts) and a voxel's share in each, ``B(shift - u)``, for its place u in [0, 1] in a bin.

    The shares of each voxel sum to 1.
    """
    if order == 0:
        return [(0, torch.ones_like(u))]
    if order == 1:
        return [(0, 1 - u), (1, u)]
    if order == 3:
        return [(-1, (1 - u) ** 3 / 6), (0, (3 * u**3 - 6 * u**2 + 4) / 6),
                (1, (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6), (2, u**3 / 6)]
    raise ValueError(f"mi: order is {order}; it must be 0, 1 or 3.")


def _entropy(probability: Tensor) -> Tensor:
    """``-sum p log p`` over the last axis, nats."""
    return -(probability * (probability + _TINY).log()).sum(-1)
