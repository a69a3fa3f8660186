"""Local correlation with its gradient against autograd, by every backend; smoothing and forces against SciPy."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from regenv.ops import similarity
from regenv.ops.kernels import operators
from regenv.ops.kernels.layout import LOCALLY_FLAT
from regenv.ops.smoothing import gaussian
from regenv.ops.windows import window_sum

SHAPES = pytest.mark.parametrize("shape", [(14, 23), (11, 7, 9), (9, 1, 6)])
RELATIVE = 1e-5     # of the largest gradient
BACKENDS = ("torch", "numba", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without a GPU triton's interpreter runs its kernels (see conftest.py)."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv(operators.VARIABLE, request.param)
    return str(request.param)


def images(shape: tuple[int, ...], channels: int = 2, masked: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two lanes of images that share some of their content, and weights, of which a third are 0."""
    draw = torch.Generator().manual_seed(2)
    common, a, b = torch.rand(3, 2, channels, *shape, generator=draw)
    weights = (torch.rand(2, 1, *shape, generator=draw) * 1.5 - 0.5).clamp_min(0) if masked else None
    return 0.7 * common + 0.3 * a, 0.6 * common + 0.4 * b, weights


def by_autograd(fixed: Tensor, warped: Tensor, mask: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    """The definition of the local correlation in float64, and its gradient by autograd."""
    leaf = warped.double().requires_grad_()
    weight = torch.ones_like(leaf[:, :1]) if mask is None else mask.double()
    count = window_sum(weight, window).clamp_min(1e-12)
    # Their product must be far above LOCALLY_FLAT: no window of these images is flat.
    a, b = ((each - each.mean()) / each.std() for each in (fixed.double(), leaf))
    mean_a, mean_b, aa, bb, ab = (window_sum(each * weight, window) / count for each in (a, b, a * a, b * b, a * b))
    local = (ab - mean_a * mean_b) ** 2 / ((aa - mean_a**2) * (bb - mean_b**2) + LOCALLY_FLAT)
    value = ((local * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)).mean(1)
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@SHAPES
@pytest.mark.parametrize(("masked", "window"), [(False, 9), (True, 5)])
def test_lncc_and_its_force_are_those_of_autograd(shape: tuple[int, ...], masked: bool, window: int,
                                                  backend: str) -> None:
    fixed, warped, mask = images(shape, masked=masked)
    value, force = similarity.lncc_force(fixed, warped, mask, window)
    expected, gradient = by_autograd(fixed, warped, mask, window)
    torch.testing.assert_close(value.double(), expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(force.double(), gradient, rtol=0, atol=RELATIVE * float(gradient.abs().max()))


@SHAPES
@pytest.mark.parametrize("masked", [False, True])
def test_the_value_alone_is_that_with_its_gradients_by_either_image(shape: tuple[int, ...], masked: bool,
                                                                    backend: str) -> None:
    fixed, warped, mask = images(shape, masked=masked)
    alone = similarity.lncc(fixed, warped, mask, 5)
    assert torch.equal(alone, similarity.lncc_force(fixed, warped, mask, 5)[0])
    leaves = fixed.clone().requires_grad_(), warped.clone().requires_grad_()
    value = similarity.lncc(*leaves, mask, 5)
    found = torch.autograd.grad(value, leaves, torch.tensor([1.0, 3.0]))    # lanes weigh differently
    assert torch.equal(value.detach(), alone)
    for gradient, (one, other) in zip(found, ((warped, fixed), (fixed, warped)), strict=True):
        expected = by_autograd(one, other, mask, 5)[1].float()
        expected[1] *= 3
        torch.testing.assert_close(gradient, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


def test_there_is_no_second_gradient() -> None:
    fixed, warped, _ = images((8, 9))
    leaf = warped.requires_grad_()
    [slope] = torch.autograd.grad(similarity.lncc(fixed, leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_lane_of_many_slices_is_the_same_on_any_number_of_threads() -> None:
    fixed, warped, mask = images((70, 90, 90), channels=1, masked=True)
    assert mask is not None
    standard = torch.tensor([0.5, 3.0, 0.5, 3.5]).expand(2, 1, 4)
    whole = operators.lncc_force(fixed, warped, mask, standard, 9, True)
    torch.set_num_threads(3)
    shared = operators.lncc_force(fixed, warped, mask, standard, 9, True)
    assert all(torch.equal(one, other) for one, other in zip(whole, shared, strict=True))
    alone = operators.lncc_force(fixed[1:], warped[1:], mask[1:], standard[1:], 9, True)
    assert all(torch.equal(one[1:], other) for one, other in zip(whole, alone, strict=True))


def test_running_sums_stay_exact_over_hundreds_of_slices() -> None:
    fixed, warped, _ = images((600, 9, 10), channels=1)
    warped = warped + 50                               # an offset that sums must not drown in
    _, force = similarity.lncc_force(fixed, warped)
    _, gradient = by_autograd(fixed, warped, None, 9)
    assert float((force - gradient).abs().max() / gradient.abs().max()) < 5 * RELATIVE


def test_a_step_along_the_force_gains_what_the_force_says() -> None:
    fixed, warped, _ = images((30, 34))
    value, force = similarity.lncc_force(fixed.double(), warped.double())
    step = 1e-5 * force / force.abs().max()
    gained = similarity.lncc(fixed.double(), warped.double() + step) - value
    torch.testing.assert_close(gained, (step * force).flatten(1).sum(1), rtol=1e-3, atol=0)


def test_a_lane_with_an_empty_mask_has_no_value_and_no_force(backend: str) -> None:
    fixed, warped, _ = images((6, 5, 7))
    mask = torch.stack([torch.zeros(1, 6, 5, 7), torch.ones(1, 6, 5, 7)])
    value, force = similarity.lncc_force(fixed, warped, mask)
    assert value[0].isnan() and value[1] > 0
    assert not force[0].any() and force[1].isfinite().all() and force[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, backend: str) -> None:
    fixed, warped, _ = (None if each is None else each.to(dtype) for each in images((12, 11)))
    value, force = similarity.lncc_force(fixed, warped)
    expected, gradient = similarity.lncc_force(fixed.float(), warped.float())
    torch.testing.assert_close(value, expected, rtol=2e-2, atol=0)
    assert force.dtype == torch.float32
    assert torch.cosine_similarity(force.flatten(), gradient.flatten(), 0) > 0.99


@pytest.mark.parametrize(("given", "told"), [
    (lambda a, b: (a, b[..., :-1]), "one shape"),
    (lambda a, b: (a, b.to(torch.int16)), "must be float"),
    (lambda a, b: (a, b, torch.ones(2, 2, 8, 9)), "the mask must be"),
    (lambda a, b: (a, b, torch.ones(3, 1, 8, 9)), "the mask must be"),
    (lambda a, b: (a[0], b[0]), "must be"),
    (lambda a, b: (a, b, None, 4), "window is 4"),
    (lambda a, b: (a, b, None, -3), "window is -3"),
    (lambda a, b: (a, b.to("meta")), "tensors are on cpu and meta"),
    (lambda a, b: (a[..., :0], b[..., :0]), "voxels in it"),
])
def test_what_does_not_fit_together_is_named_before_memory_is_touched(given, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        similarity.lncc_force(*given(*images((8, 9))[:2]))


def test_the_operators_themselves_refuse_what_would_leave_memory() -> None:
    a, b, _ = images((8, 9))
    with pytest.raises(ValueError, match="standard is"):
        operators.lncc_force(a, b, None, torch.zeros(2, 1, 4), 9, True)
    with pytest.raises(ValueError, match="the images are"):
        operators.central_force(a[:, :1], b)
    with pytest.raises(ValueError, match="filter is"):
        operators.smoothed(a, torch.ones(1, 3))
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma is"):
            gaussian(a, sigma)


@SHAPES
@pytest.mark.parametrize("sigma", [0.3, 1.5, 2.4])
def test_gaussian_is_scipys(shape: tuple[int, ...], sigma: float, backend: str) -> None:
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    axes = tuple(range(2, image.ndim))
    expected = scipy.ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest", axes=axes,
                                             radius=int(np.ceil(3 * sigma)))
    np.testing.assert_allclose(gaussian(image, sigma).numpy(), expected, atol=2e-6)


@SHAPES
def test_the_force_is_along_central_differences(shape: tuple[int, ...], backend: str) -> None:
    force, image, _ = images(shape)
    found = operators.central_force(force, image).numpy()
    for axis in range(len(shape)):
        taps = np.array([0.5, 0.0, -0.5])
        slope = scipy.ndimage.convolve1d(image.numpy(), taps, axis=axis + 2, mode="nearest")
        np.testing.assert_allclose(found[:, axis], (force.numpy() * slope).sum(1), atol=1e-6)


def test_compiled_and_exported_programs_know_the_shapes() -> None:
    pair = images((8, 9))[:2]
    for operator, arguments in ((torch.ops.regenv.lncc_force, (*pair, None, torch.ones(2, 2, 4), 5, True)),
                                (torch.ops.regenv.lncc_force, (*pair, None, torch.ones(2, 2, 4), 5, False)),
                                (torch.ops.regenv.smoothed, (pair[0], torch.ones(2))),
                                (torch.ops.regenv.central_force, pair)):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_cuda_kernels_compile_for_a_data_centre_gpu() -> None:
    """Needs no GPU. In a process of its own, for in this one they are read."""
    pytest.importorskip("triton")
    program = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from regenv.ops.kernels import lncc_cuda as cuda
for kernel, more in ((cuda._products, {}), (cuda._along, {"RADIUS": 4}), (cuda._coefficients, {}), (cuda._force, {})):
    constants = {"BLOCK": cuda.BLOCK, **({} if more else {"MASKED": True}), **more}
    integers = ("voxels", "blocks", "channels", "stride", "n")
    kinds = {name: "constexpr" if name in constants else "i32" if name in integers else "fp32" if name == "flat"
             else "*fp32" for name in kernel.arg_names}
    assert compile(ASTSource(kernel, kinds, constexprs=constants), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240, env=compiled)


def test_the_module_of_each_backend_has_the_same_functions() -> None:
    pytest.importorskip("triton")
    from regenv.ops.kernels import cpu, cuda, reference
    modules: tuple[ModuleType, ...] = (cpu, cuda, reference)
    for name in cpu.__all__:
        assert all(callable(getattr(module, name)) for module in modules)
