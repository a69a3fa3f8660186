"""The operators: ``torch.ops.regenv.*``. They take part in autograd, ``torch.compile`` and ``torch.export``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from regenv.ops.kernels import cpu, reference
from regenv.ops.kernels.layout import MOMENTS, QUANTIZED, quantized
from regenv.ops.sampling import affine_coordinates

VARIABLE = "REGENV_KERNELS"
BACKENDS = ("torch", "numba", "triton")
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def backend(device: torch.device, displacement: Tensor | None = None) -> ModuleType:
    """The implementation for a device. Raises ValueError where ``REGENV_KERNELS`` names none, or none that fits."""
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", *BACKENDS):
        raise ValueError(f"{VARIABLE} is {forced!r}; it must be one of {', '.join(BACKENDS)}.")
    if forced == "numba" and device.type != "cpu":
        raise ValueError(f"{VARIABLE} is 'numba', and a tensor is on {device}; numba's kernels run on the CPU.")
    if forced == "torch" or (displacement is not None and displacement.dtype == torch.float64):
        return reference
    if forced == "triton" or (not forced and device.type == "cuda" and _HAS_TRITON):
        from regenv.ops.kernels import cuda
        return cuda
    return cpu if device.type == "cpu" else reference


def plain(*tensors: Tensor) -> bool:
    """Whether kernels may take the memory of tensors as it is: on the CPU, and neither differentiated nor traced."""
    return (backend(tensors[0].device) is cpu and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
            and all(type(each) is Tensor and each.dtype == torch.float32 for each in tensors)
            and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)))


def check(name: str, image: Tensor, matrix: Tensor | None, displacement: Tensor | None,
          shape: Sequence[int]) -> None:
    """Raise ValueError unless the arguments fit together: kernels do not check the bounds of memory."""
    lanes, ndim = len(image), image.ndim - 2
    if ndim not in (2, 3) or min(image.shape[2:]) < 1 or len(shape) != ndim:
        raise ValueError(f"{name}: the image is {tuple(image.shape)}, the grid {tuple(shape)}; the image must be "
                         "(B, C, H, W) or (B, C, D, H, W) with voxels in it, the grid of as many axes.")
    if matrix is not None and (len(matrix) not in (1, lanes) or matrix.shape[1:] != (ndim + 1, ndim + 1)):
        raise ValueError(f"{name}: the image is {tuple(image.shape)}, the matrix {tuple(matrix.shape)}; "
                         f"the matrix must be ({lanes}, {ndim + 1}, {ndim + 1}).")
    if displacement is not None and displacement.shape != (lanes, ndim, *shape):
        raise ValueError(f"{name}: the image is {tuple(image.shape)}, the displacement {tuple(displacement.shape)}; "
                         f"the displacement must be {(lanes, ndim, *shape)}.")
    for other, what in ((matrix, "matrix"), (displacement, "displacement")):
        if other is not None and other.device != image.device:
            raise ValueError(f"{name}: the image is on {image.device}, the {what} on {other.device}; move one of them.")


def check_float(name: str, image: Tensor) -> None:
    """Raise ValueError unless an image can be interpolated linearly."""
    if not image.is_floating_point():
        raise ValueError(f"{name}: the image is of type {image.dtype}; it must be float. Labels need mode=\"nearest\".")


def check_lncc(fixed: Tensor, warped: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless two images and a mask fit together."""
    check("lncc", fixed, None, None, fixed.shape[2:])
    if mask is not None and (mask.shape[1:] != (1, *fixed.shape[2:]) or len(mask) not in (1, len(fixed))):
        raise ValueError(f"lncc: the fixed image is {tuple(fixed.shape)}, the mask {tuple(mask.shape)}; the mask "
                         f"must be {(len(fixed), 1, *fixed.shape[2:])}.")
    _check_alike("lncc", fixed, warped, mask)


def _check_alike(name: str, first: Tensor, second: Tensor, mask: Tensor | None = None) -> None:
    """Raise ValueError unless two images have one shape and one device, and their values are float."""
    if first.shape != second.shape:
        raise ValueError(f"{name}: the images are {tuple(first.shape)} and {tuple(second.shape)}; both must have one "
                         "shape.")
    for image in (first, second):
        check_float(name, image)
    for other in (second, mask):
        if other is not None and other.device != first.device:
            raise ValueError(f"{name}: tensors are on {first.device} and {other.device}; move one of them.")


# An operator of custom_op loads torch's compiler when it is first called, for seconds. These, which rewards and all
# agents call, do not.
_LIGHT = (torch.Tag.pt2_compliant_tag,)
torch.library.define("regenv::lncc_force", "(Tensor fixed, Tensor warped, Tensor? mask, Tensor standard, int window, "
                     "bool want_force) -> (Tensor, Tensor)", tags=_LIGHT)
torch.library.define("regenv::fused_warp", "(Tensor fixed, Tensor moving, Tensor? matrix, Tensor? displacement, "
                     "str view) -> (Tensor, Tensor)", tags=_LIGHT)
lncc_force, fused_warp = torch.ops.regenv.lncc_force, torch.ops.regenv.fused_warp


@torch.library.impl("regenv::lncc_force", "default")
def _lncc_force(fixed: Tensor, warped: Tensor, mask: Tensor | None, standard: Tensor, window: int,
                want_force: bool) -> tuple[Tensor, Tensor]:
    """Sums of local correlations and their gradient, in one pass: ``reference.lncc_force``."""
    check_lncc(fixed, warped, mask)
    if standard.shape != (*fixed.shape[:2], 4) or standard.device != fixed.device:
        raise ValueError(f"lncc: standard is {tuple(standard.shape)} on {standard.device}; it must be "
                         f"{(*fixed.shape[:2], 4)} on {fixed.device}.")
    if mask is not None and len(mask) != len(fixed):
        mask = mask.expand(len(fixed), *mask.shape[1:])
    if window < 1 or window % 2 == 0:
        raise ValueError(f"lncc_force: window is {window}; it must be a positive odd number of voxels.")
    return backend(fixed.device, fixed).lncc_force(fixed, warped, mask, standard, window, want_force)


@custom_op("regenv::smoothed", mutates_args=(), schema="(Tensor image, Tensor taps) -> Tensor")
def smoothed(image: Tensor, taps: Tensor) -> Tensor:
    """An image filtered along every axis, at the border repeated."""
    check("smoothed", image, None, None, image.shape[2:])
    check_float("smoothed", image)
    if taps.ndim != 1 or len(taps) < 1 or taps.device != image.device:
        raise ValueError(f"smoothed: the filter is {tuple(taps.shape)} on {taps.device}; it must be (radius + 1,) on "
                         f"{image.device}.")
    return backend(image.device, image).smoothed(image, taps)


@custom_op("regenv::central_force", mutates_args=(), schema="(Tensor force, Tensor image) -> Tensor")
def central_force(force: Tensor, image: Tensor) -> Tensor:
    """A force times the central differences of an image, summed over its channels."""
    check("central_force", image, None, None, image.shape[2:])
    _check_alike("central_force", force, image)
    return backend(image.device, image).central_force(force, image)


@custom_op("regenv::warp_affine", mutates_args=(), schema="(Tensor image, Tensor matrix, SymInt[] shape) -> Tensor")
def warp_affine(image: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An image through an affine map, linear, 0 outside."""
    check("warp_affine", image, matrix, None, shape)
    check_float("warp_affine", image)
    return backend(image.device).warp(image, matrix, None, tuple(shape), False)


@custom_op("regenv::warp_dense", mutates_args=(),
           schema="(Tensor image, Tensor? matrix, Tensor displacement, bool border) -> Tensor")
def warp_dense(image: Tensor, matrix: Tensor | None, displacement: Tensor, border: bool) -> Tensor:
    """An image through a displacement, and an affine map after it if there is one."""
    check("warp_dense", image, matrix, displacement, displacement.shape[2:])
    check_float("warp_dense", image)
    return backend(image.device, displacement).warp(image, matrix, displacement, tuple(displacement.shape[2:]), border)


@custom_op("regenv::compose", mutates_args=(), schema="(Tensor a, Tensor b) -> Tensor")
def compose(a: Tensor, b: Tensor) -> Tensor:
    """``b + a(x + b)``, at the border repeated."""
    check("compose", a, None, b, b.shape[2:])
    check_float("compose", a)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"compose: a is {tuple(a.shape)}, b {tuple(b.shape)}; both must have {b.shape[1]} components.")
    return backend(a.device, b).warp(a, None, b, tuple(b.shape[2:]), True, add=True)


@custom_op("regenv::warp_labels", mutates_args=(),
           schema="(Tensor labels, Tensor? matrix, Tensor? displacement, SymInt[] shape) -> Tensor")
def warp_labels(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The nearest voxels' labels, 0 outside."""
    check("warp_labels", labels, matrix, displacement, shape)
    return backend(labels.device, displacement).warp_labels(labels, matrix, displacement, tuple(shape))


@torch.library.impl("regenv::fused_warp", "default")
def _fused_warp(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
                view: str) -> tuple[Tensor, Tensor]:
    """The step of an environment in one pass: warp, observation, and the sums that rewards are made of."""
    check("fused_warp", moving, matrix, displacement, fixed.shape[2:])
    if fixed.shape[:2] != moving.shape[:2] or fixed.device != moving.device:
        raise ValueError(f"fused_warp: fixed is {tuple(fixed.shape)} on {fixed.device}, moving {tuple(moving.shape)} "
                         f"on {moving.device}; lanes, channels and device must agree.")
    check_float("fused_warp", fixed)
    check_float("fused_warp", moving)
    chosen = backend(fixed.device, displacement)
    if view.endswith(QUANTIZED) and chosen is not cpu:
        kind = view.removesuffix(QUANTIZED)
        image, moments = chosen.fused_warp(fixed, moving, matrix, displacement, kind)
        return quantized(image, kind), moments
    return chosen.fused_warp(fixed, moving, matrix, displacement, view)


@custom_op("regenv::warp_vjp", mutates_args=(),
           schema="(Tensor grad, Tensor image, Tensor? matrix, Tensor? displacement, bool border, bool want_image, "
                  "bool want_points) -> (Tensor, Tensor)")
def warp_vjp(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None, border: bool,
             want_image: bool, want_points: bool) -> tuple[Tensor, Tensor]:
    """Gradients of a linear warp; empty where not wanted."""
    check("warp_vjp", image, matrix, displacement, grad.shape[2:])
    if grad.shape[:2] != image.shape[:2]:
        raise ValueError(f"warp_vjp: grad is {tuple(grad.shape)}, the image {tuple(image.shape)}; lanes and channels "
                         "must agree.")
    found = backend(image.device, displacement).vjp(grad, image, matrix, displacement, border, want_image, want_points)
    of_image, of_points = (image.new_empty(0) if each is None else each for each in found)
    return of_image, of_points


@warp_affine.register_fake
def _(image: Tensor, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    return image.new_empty((*image.shape[:2], *shape))


@warp_dense.register_fake
def _(image: Tensor, matrix: Tensor | None, displacement: Tensor, border: bool) -> Tensor:
    return image.new_empty((*image.shape[:2], *displacement.shape[2:]))


@compose.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(b.shape)


@warp_labels.register_fake
def _(labels: Tensor, matrix: Tensor | None, displacement: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return labels.new_empty((*labels.shape[:2], *shape))


@torch.library.register_fake("regenv::fused_warp")
def _(fixed: Tensor, moving: Tensor, matrix: Tensor | None, displacement: Tensor | None,
      view: str) -> tuple[Tensor, Tensor]:
    lanes, channels = moving.shape[:2]
    shape = (lanes, (2 if view.startswith("pair") else 1) * channels, *fixed.shape[2:])
    return (fixed.new_empty(shape, dtype=torch.uint8 if view.endswith(QUANTIZED) else torch.float32),
            fixed.new_empty((lanes, channels, MOMENTS), dtype=torch.float64))


@torch.library.register_fake("regenv::lncc_force")
def _(fixed: Tensor, warped: Tensor, mask: Tensor | None, standard: Tensor, window: int,
      want_force: bool) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(fixed.dtype, torch.float32)
    return (fixed.new_empty(fixed.shape[:2], dtype=torch.float64),
            fixed.new_empty(fixed.shape if want_force else 0, dtype=kind))


@smoothed.register_fake
def _(image: Tensor, taps: Tensor) -> Tensor:
    return image.new_empty(image.shape, dtype=torch.promote_types(image.dtype, torch.float32))


@central_force.register_fake
def _(force: Tensor, image: Tensor) -> Tensor:
    return image.new_empty((len(image), image.ndim - 2, *image.shape[2:]),
                           dtype=torch.promote_types(image.dtype, torch.float32))


@warp_vjp.register_fake
def _(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None, border: bool,
      want_image: bool, want_points: bool) -> tuple[Tensor, Tensor]:
    points = (len(image), image.ndim - 2, *grad.shape[2:]) if want_points else (0,)
    kind = torch.float32 if displacement is None else torch.promote_types(displacement.dtype, torch.float32)
    return image.new_empty(image.shape if want_image else (0,)), image.new_empty(points, dtype=kind)


def _gradients(grad: Tensor, image: Tensor, matrix: Tensor | None, displacement: Tensor | None,
               border: bool, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of an image, a matrix and a displacement; None where not wanted."""
    want_image, want_matrix, want_displacement = wanted
    of_image, of_points = warp_vjp(grad, image, matrix, displacement, border, want_image,
                                   want_matrix or want_displacement)
    of_matrix = of_displacement = None
    if want_matrix and matrix is not None:
        still = torch.eye(of_points.shape[1] + 1, device=grad.device)[None]
        before = affine_coordinates(still, tuple(of_points.shape[2:]), displacement).movedim(-1, 1)
        before = before.expand(len(image), *before.shape[1:])
        flow = of_points.flatten(2)
        linear = flow @ before.to(flow.dtype).flatten(2).transpose(1, 2)
        rows = torch.cat([linear, flow.sum(-1, keepdim=True)], -1)
        of_matrix = torch.nn.functional.pad(rows, (0, 0, 0, 1)).sum_to_size(matrix.shape).to(matrix.dtype)
    if want_displacement and displacement is not None:
        if matrix is not None:
            turn = matrix[:, :-1, :-1].to(of_points.dtype).transpose(1, 2).expand(len(image), -1, -1)
            of_points = (turn @ of_points.flatten(2)).view_as(of_points)
        of_displacement = of_points.to(displacement.dtype)
    return of_image if want_image else None, of_matrix, of_displacement


def _affine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _affine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, matrix = ctx.saved_tensors
    wanted = (*ctx.needs_input_grad[:2], False)
    return (*_gradients(grad, image, matrix, None, False, wanted)[:2], None)


def _dense_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.border = inputs[3]


def _dense_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, matrix, displacement = ctx.saved_tensors
    return (*_gradients(grad, image, matrix, displacement, ctx.border, ctx.needs_input_grad[:3]), None)


def _compose_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _compose_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    want_a, want_b = ctx.needs_input_grad
    of_a, _, of_b = _gradients(grad, a, None, b, True, (want_a, False, want_b))
    return of_a, None if of_b is None else of_b + grad


warp_affine.register_autograd(_affine_backward, setup_context=_affine_setup)
warp_dense.register_autograd(_dense_backward, setup_context=_dense_setup)
compose.register_autograd(_compose_backward, setup_context=_compose_setup)
