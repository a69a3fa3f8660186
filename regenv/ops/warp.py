"""Warps: an image, labels or points through an affine map or a dense field, and the algebra of those maps.

Everything pulls back, as in ITK: ``warp(moving, T)(x) = moving(T(x))``. Voxel points are in array-axis order.
An image covers its voxels to their edges, as in ITK: half a voxel past the last centre the last value holds, beyond
that the value is zero.
"""

from __future__ import annotations

from torch import Tensor

from regenv.ops.kernels import cpu, operators
from regenv.ops.sampling import sample

VIEWS = ("warped", "difference", "pair", "difference_uint8", "pair_uint8")
MODES = ("bilinear", "nearest")
PADDINGS = ("zeros", "border")


def warp_affine(image: Tensor, matrix: Tensor, shape: tuple[int, ...], mode: str = "bilinear") -> Tensor:
    """An image resampled through an affine map: ``out(x) = image(matrix x)``.

    Args:
        image: (B, C, *input_shape) float; with ``mode="nearest"`` any type, for labels.
        matrix: (B or 1, D+1, D+1), voxel points of the output grid to voxel points of the input grid.
        shape: output grid.
        mode: "bilinear" (linear in any D) or "nearest".
    Returns: (B, C, *shape), dtype of ``image``.
    Raises: ValueError: the lanes or the dimensions differ.
    """
    _known("mode", mode, MODES)
    if mode == "nearest":
        return operators.warp_labels(image, matrix, None, shape)
    return operators.warp_affine(image, matrix, shape)


def warp_dense(image: Tensor, displacement: Tensor, padding: str = "zeros") -> Tensor:
    """An image resampled through a displacement field: ``out(x) = image(x + displacement(x))``.

    Args:
        image: (B, C, *input_shape) float.
        displacement: (B, D, *shape), voxels of the grid, array-axis order.
        padding: "zeros" (outside the image's edges) or "border" (the nearest voxel's value).
    Returns: (B, C, *shape), dtype of ``image``.
    Raises: ValueError: the lanes or the dimensions differ.
    """
    _known("padding", padding, PADDINGS)
    return operators.warp_dense(image, None, displacement, padding == "border")


def warp_through(image: Tensor, matrix: Tensor, displacement: Tensor | None, shape: tuple[int, ...],
                 mode: str = "bilinear") -> Tensor:
    """An image resampled once through a displacement and then an affine map: ``out(x) = image(matrix (x + u(x)))``.

    Args: as :func:`warp_affine`; displacement (B, D, *shape), voxels of the output grid, or None for no displacement.
    Returns: (B, C, *shape), dtype of ``image``.
    """
    if displacement is None:
        return warp_affine(image, matrix, shape, mode)
    _known("mode", mode, MODES)
    if mode == "nearest":
        return operators.warp_labels(image, matrix, displacement, shape)
    if tuple(displacement.shape[2:]) != tuple(shape):
        raise ValueError(f"warp_through: the displacement is {tuple(displacement.shape)}, the grid {tuple(shape)}; "
                         "they must agree.")
    return operators.warp_dense(image, matrix, displacement, False)


def fused_warp(fixed: Tensor, moving: Tensor, matrix: Tensor, displacement: Tensor | None,
               view: str = "warped") -> tuple[Tensor, Tensor]:
    """A view of the warped image, and the moments of both images, in one pass over the voxels. Not differentiable.

    Args:
        fixed: (B, C, *shape) float. moving, matrix, displacement: as in :func:`warp_through`.
        view: "warped" (the warped image), "difference" (``fixed - warped``) or "pair" (fixed, then warped, clipped to
            [0, 1]); "difference_uint8" (128 where the images agree) or "pair_uint8", in bytes.
    Returns: the view (B, C or 2C, *shape) float32 or uint8; and the moments (B, C, 5) float64, sums over the voxels of
        f, w, f f, w w and f w, where f is ``fixed`` and w the warped image.
    Raises: ValueError: the view is unknown, or lanes or dimensions differ.
    """
    _known("view", view, VIEWS)
    return operators.fused_warp(fixed, moving, matrix, displacement, view)


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")


def warp_points(points_vox: Tensor, displacement: Tensor) -> Tensor:
    """Points moved by a displacement field, which is interpolated at them: ``p + displacement(p)``.

    Args: points_vox (B, N, D); displacement (B, D, *shape).
    Returns: (B, N, D).
    """
    ndim = points_vox.shape[-1]
    spread = points_vox.to(displacement.dtype).view(points_vox.shape[0], -1, *(1,) * (ndim - 1), ndim)
    moved = sample(displacement, spread, padding="border").flatten(2).transpose(1, 2)
    return points_vox + moved


def unwarped_points(points_vox: Tensor, displacement: Tensor, iterations: int = 40) -> Tensor:
    """Points that a displacement field moves to ``points_vox``, by fixed-point iteration ``q <- p - u(q)``.

    Converges where the displacement's Lipschitz constant is below 1 (no folding).

    Args: points_vox (B, N, D); displacement (B, D, *shape).
    Returns: (B, N, D).
    """
    found = points_vox
    for _ in range(iterations):
        found = points_vox - (warp_points(found, displacement) - found)
    return found


def compose(a: Tensor, b: Tensor) -> Tensor:
    """Field of the map ``x -> a(b(x))``, for displacement fields a and b.

    Args: a, b: (B, D, *shape), voxels of the grid, array-axis order.
    Returns: (B, D, *shape), ``b(x) + a(x + b(x))``.
    """
    if operators.plain(a, b) and a.shape == b.shape and b.shape[1] == b.ndim - 2:
        return cpu.warp(a, None, b, tuple(b.shape[2:]), border=True, add=True)     # a tenth of an operator's overhead
    return operators.compose(a, b)


def invert(displacement: Tensor, iterations: int = 20) -> Tensor:
    """Displacement of the inverse map, by fixed-point iteration ``v <- -u(x + v)`` (Chen et al. 2008).

    Converges where the displacement's Lipschitz constant is below 1 (no folding).

    Args: displacement (B, D, *shape).
    Returns: (B, D, *shape).
    """
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp_dense(displacement, inverse, padding="border")
    return inverse


