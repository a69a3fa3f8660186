"""Every backend of the operators against torch's reference, over random shapes, maps and types."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from types import ModuleType

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regenv import RegistrationCore
from regenv.ops import similarity, warp
from regenv.ops.kernels import cpu, operators, reference
from regenv.ops.kernels.layout import QUANTIZED, quantized
from regenv.registry import build

TOLERANCE = 2e-5  # of the intensity range, which is 1 here
MAPS = ("affine", "dense", "through")
OPERATORS = torch.ops.regenv
CUDA = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def triton_kernels() -> ModuleType:
    """The CUDA kernels; without a GPU triton's interpreter runs them (see conftest.py)."""
    pytest.importorskip("triton")
    from regenv.ops.kernels import cuda
    return cuda


class Problem:
    """Images, a map and labels, all random; some of the points are far outside."""

    def __init__(self, shape: tuple[int, ...], source: tuple[int, ...], lanes: int = 1, channels: int = 1,
                 kind: str = "affine", seed: int = 0) -> None:
        draw, ndim = torch.Generator().manual_seed(seed), len(shape)
        self.shape = shape
        self.image = torch.rand(lanes, channels, *source, generator=draw)
        self.fixed = torch.rand(lanes, channels, *shape, generator=draw)
        self.labels = torch.randint(1, 3000, (lanes, channels, *source), generator=draw, dtype=torch.int16)
        self.matrix = self.displacement = None
        if kind != "dense":
            self.matrix = torch.eye(ndim + 1, dtype=torch.float64).repeat(lanes, 1, 1)
            self.matrix[:, :-1] += 0.3 * torch.randn(lanes, ndim, ndim + 1, generator=draw, dtype=torch.float64)
        if kind != "affine":
            self.displacement = 2 * torch.randn(lanes, ndim, *shape, generator=draw)

    def to(self, device: str) -> "Problem":
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    @property
    def map(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.matrix, self.displacement


@st.composite
def problems(draw: st.DrawFn, most: int = 14) -> Problem:
    ndim = draw(st.sampled_from((2, 3)))
    sizes = st.tuples(*[st.integers(1, most)] * ndim)
    return Problem(draw(sizes), draw(sizes), draw(st.integers(1, 4)), draw(st.integers(1, 3)),
                   draw(st.sampled_from(MAPS)), draw(st.integers(0, 2**20)))


FLOATS = tuple(view for view in warp.VIEWS if not view.endswith(QUANTIZED))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(("difference", "pair")))
def test_views_in_bytes_are_the_float_views_rounded(case: Problem, view: str) -> None:
    image, moments = cpu.fused_warp(3 * case.fixed - 1, case.image, *case.map, view)
    whole, same = cpu.fused_warp(3 * case.fixed - 1, case.image, *case.map, view + QUANTIZED)
    assert torch.equal(whole, quantized(image, view)) and torch.equal(moments, same)


@numba.njit
def soiled(n: int) -> float:
    """Fills memory where the kernel's own buffers are likely to lie next, and gives it back."""
    worst = np.full((8, 3, n), np.nan, np.float32)
    return worst[0, 0, 0] + sum([np.full((3, n), np.nan, np.float32)[0, 0] for _ in range(8)])


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (7, 6)])
@pytest.mark.parametrize("view", ["difference", "pair", "warped"])
def test_memory_that_was_used_before_does_not_show(shape: tuple[int, ...], view: str) -> None:
    for seed in range(20):
        case = Problem(shape, shape, seed=seed)
        soiled(case.fixed.numel())
        agree(cpu, case, False, view)


def agree(backend, case: Problem, border: bool, view: str) -> None:
    ours, theirs = (each.warp(case.image, *case.map, case.shape, border) for each in (backend, reference))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    ours, theirs = (each.warp_labels(case.labels, *case.map, case.shape) for each in (backend, reference))
    assert ours.dtype == torch.int16 and torch.equal(ours, theirs)
    ours, theirs = (each.fused_warp(case.fixed, case.image, *case.map, view) for each in (backend, reference))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=TOLERANCE)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.booleans(), st.sampled_from(FLOATS))
def test_the_cpu_kernels_equal_the_reference(case: Problem, border: bool, view: str) -> None:
    agree(cpu, case, border, view)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(case=problems(most=5), border=st.booleans(), view=st.sampled_from(FLOATS))
def test_the_cuda_kernels_equal_the_reference(triton_kernels, case: Problem, border: bool, view: str) -> None:
    agree(triton_kernels, case.to(CUDA), border, view)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.booleans())
def test_gradients_equal_the_reference(case: Problem, border: bool) -> None:
    grad = torch.rand(*case.image.shape[:2], *case.shape, generator=torch.Generator().manual_seed(1))
    given_, wanted = (each.vjp(grad, case.image, *case.map, border, True, True) for each in (cpu, reference))
    for one, other in zip(given_, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lanes", [1, 257])
@pytest.mark.parametrize("kind", MAPS)
def test_one_lane_and_many(lanes: int, kind: str) -> None:
    agree(cpu, Problem((9, 11), (12, 8), lanes, kind=kind), False, "pair")
    agree(cpu, Problem((6, 7, 8), (5, 9, 6), lanes, kind=kind), True, "difference")


def test_many_cuda_lanes(triton_kernels) -> None:
    case = Problem((3, 5), (4, 3), 257).to(CUDA)
    ours, theirs = (each.warp(case.image, *case.map, case.shape, False) for each in (triton_kernels, reference))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([0.0, 1.0, 1.0])),
                                    torch.diag(torch.tensor([1e6, -1e6, 1.0])), torch.diag(torch.tensor([-1.0, 1, 1])),
                                    torch.full((3, 3), torch.nan)], ids=["zero", "flat", "huge", "flip", "nan"])
def test_degenerate_matrices(matrix: torch.Tensor) -> None:
    image, shape = torch.rand(2, 1, 7, 9), (8, 6)
    ours, theirs = (each.warp(image, matrix[None], None, shape, False) for each in (cpu, reference))
    torch.testing.assert_close(ours, theirs.nan_to_num(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7), (5, 6, 1), (1, 1, 1)])
def test_an_image_through_the_identity_is_itself_to_the_last_bit(shape: tuple[int, ...], triton_kernels) -> None:
    image, still = torch.rand(2, 1, *shape), torch.eye(len(shape) + 1)[None]
    field = torch.zeros(2, len(shape), *shape)
    for given_ in ((still, None), (None, field), (still, field)):
        assert torch.equal(cpu.warp(image, *given_, shape, False), image)
        on_cuda = [None if part is None else part.to(CUDA) for part in (image, *given_)]
        assert torch.equal(triton_kernels.warp(*on_cuda, shape, True).cpu(), image)


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_threads_limit(threads: int) -> None:
    case = Problem((80, 130, 127), (70, 90, 110), kind="through")
    torch.set_num_threads(threads)
    agree(cpu, case, False, "difference")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_images_of_other_types(dtype: torch.dtype, backend: str, triton_kernels, monkeypatch) -> None:
    """Coordinates stay float32: what differs is the rounding of the result."""
    monkeypatch.setenv(operators.VARIABLE, backend)
    case = Problem((6, 8, 7), (5, 9, 8), 2, kind="through").to(CUDA if backend == "triton" else "cpu")
    image = case.image.to(dtype)
    warped = warp.warp_through(image, case.matrix, case.displacement, case.shape)
    expected = reference.warp(image.float(), *case.map, case.shape, False)
    assert warped.dtype == dtype
    torch.testing.assert_close(warped.float(), expected.to(dtype).float(), rtol=torch.finfo(dtype).eps, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32])
def test_labels_of_other_types(dtype: torch.dtype, triton_kernels) -> None:
    case = Problem((6, 8, 7), (5, 9, 8), 2, kind="affine")
    labels = (case.labels * 5001).to(dtype)  # int32 labels that float32 could not hold
    expected = reference.warp_labels(labels, *case.map, case.shape)
    assert (expected != 0).any()
    assert torch.equal(cpu.warp_labels(labels, *case.map, case.shape), expected)
    found = triton_kernels.warp_labels(labels.to(CUDA), case.matrix.to(CUDA), None, case.shape)
    assert torch.equal(found.cpu(), expected)


def test_memory_in_any_order() -> None:
    case = Problem((6, 8, 7), (5, 9, 8), 2, 3, kind="through")
    expected = warp.warp_through(case.image, case.matrix, case.displacement, case.shape)
    image, field = (part.movedim(1, -1).contiguous().movedim(-1, 1) for part in (case.image, case.displacement))
    turned = case.matrix.transpose(1, 2).contiguous().transpose(1, 2)
    assert not image.is_contiguous() and not field.is_contiguous() and not turned.is_contiguous()
    assert torch.equal(warp.warp_through(image, turned, field, case.shape), expected)
    doubled = torch.stack([case.labels, case.labels], -1)[..., 0]
    assert torch.equal(warp.warp_through(doubled, turned, field, case.shape, "nearest"),
                       warp.warp_through(case.labels, case.matrix, case.displacement, case.shape, "nearest"))


@pytest.mark.parametrize("ndim", [2, 3])
def test_composition_by_every_backend(ndim: int, triton_kernels, monkeypatch) -> None:
    shape = (7, 8, 9)[:ndim]
    a, b = (2 * torch.randn(3, ndim, *shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    monkeypatch.setenv(operators.VARIABLE, "torch")
    expected = b + warp.warp_dense(a, b, "border")
    for backend in operators.BACKENDS:
        monkeypatch.setenv(operators.VARIABLE, backend)
        device = CUDA if backend == "triton" else "cpu"
        found = warp.compose(a.to(device), b.to(device)).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=5 * TOLERANCE)  # fields span 5 voxels


SAMPLES = {
    "warp_affine": lambda case: (case.image.requires_grad_(), case.matrix.requires_grad_(), case.shape),
    "warp_dense": lambda case: (case.image.requires_grad_(), case.matrix.requires_grad_(),
                                case.displacement.requires_grad_(), True),
    "compose": lambda case: (case.displacement.clone().requires_grad_(), case.displacement.requires_grad_()),
    "warp_labels": lambda case: (case.labels, case.matrix, case.displacement, case.shape),
    "fused_warp": lambda case: (case.fixed, case.image, case.matrix, case.displacement, "pair"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_operators_are_well_behaved(name: str) -> None:
    """Schema, fake tensors, autograd's registration and tracing, as torch itself checks them."""
    case = Problem((6, 8, 7), (6, 8, 7), 2, kind="through")
    torch.library.opcheck(getattr(OPERATORS, name).default, SAMPLES[name](case))


def test_gradients_of_all_that_a_warp_depends_on() -> None:
    """Against finite differences, in float64."""
    case = Problem((5, 6), (6, 5), 2, 2, kind="through", seed=3)
    image, matrix, field = (part.to(torch.float64).requires_grad_() for part in (case.image, case.matrix,
                                                                               case.displacement))
    away = (0.3 * field.detach().tanh() + 0.05).requires_grad_()
    turned = (torch.eye(3).double() + 0.01 * matrix.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, m, u: warp.warp_through(i, m, u, case.shape), (image, turned, away))
    assert torch.autograd.gradcheck(lambda u, v: warp.compose(u, v), (away, (away + 0.1).detach().requires_grad_()))


@pytest.mark.parametrize("kind", MAPS)
def test_gradients_do_not_depend_on_the_backend(kind: str, monkeypatch) -> None:
    found = []
    for backend in ("torch", "numba"):
        monkeypatch.setenv(operators.VARIABLE, backend)
        case = Problem((6, 8, 7), (7, 6, 9), 2, 2, kind)
        inputs = [part.requires_grad_() for part in (case.image, *case.map) if part is not None]
        if kind == "affine":
            out = warp.warp_affine(case.image, case.matrix, case.shape)
        elif kind == "dense":
            out = warp.warp_dense(case.image, case.displacement)
        else:
            out = warp.warp_through(case.image, case.matrix, case.displacement, case.shape)
        found.append(torch.autograd.grad((out * out).sum(), inputs))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_operators_survive_compilation() -> None:
    case = Problem((6, 8), (6, 8), 2, kind="dense")
    field = case.displacement.requires_grad_()

    def energy(u: torch.Tensor) -> torch.Tensor:
        return warp.warp_dense(case.image, warp.compose(u, u)).square().sum()

    compiled = torch.compile(energy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(field), energy(field))
    torch.testing.assert_close(*(torch.autograd.grad(each(field), field) for each in (compiled, energy)))


def test_moments_are_what_similarities_need() -> None:
    case = Problem((9, 11, 10), (9, 11, 10), 3, 2)
    warped, moments = warp.fused_warp(case.fixed, case.image, case.matrix, None)
    for of_moments, plain in ((similarity.mse_of_moments, similarity.mse), (similarity.ncc_of_moments, similarity.ncc)):
        torch.testing.assert_close(of_moments(moments, 990), plain(case.fixed, warped).double(), rtol=1e-4, atol=1e-6)
    flat = torch.zeros(1, 1, 4, 4)
    assert similarity.ncc_of_moments(warp.fused_warp(flat, flat, torch.eye(3)[None], None)[1], 16).item() == 0


def test_a_lane_of_a_look_equals_the_lane_alone() -> None:
    case = Problem((9, 11, 10), (9, 11, 10), 5)
    together = warp.fused_warp(case.fixed, case.image, case.matrix, None, "pair")
    for lane in range(5):
        mine = slice(lane, lane + 1)
        alone = warp.fused_warp(case.fixed[mine], case.image[mine], case.matrix[mine], None, "pair")
        assert all(torch.equal(one[mine], other) for one, other in zip(together, alone, strict=True))


def test_the_variable_forces_a_backend(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(cpu, "warp", lambda *args, **kwargs: calls.append("numba") or reference.warp(*args, **kwargs))
    image, field = torch.rand(1, 1, 5, 5), torch.zeros(1, 2, 5, 5)
    warp.warp_dense(image, field)
    assert calls == ["numba"]
    monkeypatch.setenv(operators.VARIABLE, "torch")
    warp.warp_dense(image, field)
    assert calls == ["numba"]
    monkeypatch.setenv(operators.VARIABLE, "cupy")
    with pytest.raises(ValueError, match=r"REGENV_KERNELS is 'cupy'; it must be one of torch, numba, triton"):
        warp.warp_dense(image, field)
    monkeypatch.setenv(operators.VARIABLE, "numba")
    with pytest.raises(ValueError, match="'numba', and a tensor is on meta"):
        operators.backend(torch.device("meta"))


@pytest.mark.parametrize(("call", "message"), [
    (lambda image, field: warp.warp_dense(image, field[:1]), r"displacement \(1, 2, 5, 5\)"),
    (lambda image, field: warp.warp_dense(image, field[:, :1]), r"displacement must be \(2, 2"),
    (lambda image, field: warp.warp_affine(image, torch.eye(4)[None], (5, 5)), r"matrix must be \(2, 3, 3\)"),
    (lambda image, field: warp.compose(field, field[:1]), r"compose: the image"),
    (lambda image, field: warp.compose(image, field), r"compose: a is \(2, 1, 5, 5\)"),
    (lambda image, field: warp.warp_affine(image, torch.eye(3)[None], (5, 5, 5)), r"the grid \(5, 5, 5\)"),
    (lambda image, field: warp.warp_affine(image[..., :0], torch.eye(3)[None], (5, 5)), "with voxels in it"),
    (lambda image, field: warp.warp_through(image, torch.eye(3)[None], field, (9, 9)), r"the grid \(9, 9\)"),
    (lambda image, field: warp.fused_warp(image[..., :4], image, torch.eye(3)[None], field), r"must be \(2, 2, 5, 4\)"),
    (lambda image, field: warp.fused_warp(image[:1], image, torch.eye(3)[None], None), r"fixed is \(1, 1, 5, 5\)"),
    (lambda image, field: warp.fused_warp(image.repeat(1, 2, 1, 1), image, torch.eye(3)[None], None),
     r"fixed is \(2, 2"),
    (lambda image, field: warp.warp_dense(image.to(torch.int16), field), "type torch.int16; it must be float"),
    (lambda image, field: warp.warp_dense(image, field, "reflect"), "padding is 'reflect'"),
    (lambda image, field: warp.warp_affine(image, torch.eye(3)[None], (5, 5), "cubic"), "mode is 'cubic'"),
    (lambda image, field: OPERATORS.warp_dense(image, None, field[:1], True), r"displacement \(1, 2, 5, 5\)"),
    (lambda image, field: warp.fused_warp(image, image, torch.eye(3)[None], None, "both"), "view is 'both'"),
], ids=["lanes", "axes", "matrix", "compose", "components", "grid", "no voxels", "through", "fused_warp's grid",
        "fused_warp's lanes", "fused_warp's channels", "type", "padding", "mode", "operator", "view"])
def test_misfits_are_named_before_any_work(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.rand(2, 1, 5, 5), torch.zeros(2, 2, 5, 5))


@pytest.mark.parametrize("name", ["RegRigid3D-v0", "RegDense2D-v0", "RegSDM2D-v0"])
def test_nothing_is_compiled_in_a_step(name: str) -> None:
    core = RegistrationCore(build(name, size=32) if name == "RegRigid3D-v0" else build(name))
    state = core.reset([np.random.default_rng(seed) for seed in range(3)])
    kernels = [each for each in vars(cpu).values() if hasattr(each, "signatures")]
    before = [len(kernel.signatures) for kernel in kernels]
    space = core.task.actions.space()
    for _ in range(2):
        actions = torch.stack([torch.as_tensor(space.sample()) for _ in range(3)])
        state, *_ = core.step(state, actions)
        core.observe(state)
    assert sum(before) > 0 and [len(kernel.signatures) for kernel in kernels] == before


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_cuda_kernels_compile_for_a_data_centre_gpu(bent: bool, flat: bool) -> None:
    """Needs no GPU: the compiler brings its own assembler. In a process of its own, for in this one they are read."""
    pytest.importorskip("triton")
    program = f"""
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from regenv.ops.kernels import cuda
for kernel, more in (
        (cuda._warp, dict(BORDER=True, ADD=True)), (cuda._nearest, {{}}), (cuda._fused_warp, dict(VIEW=2))):
    constants = dict(MOVED=True, BENT={bent!r}, FLAT={flat!r}, BLOCK=cuda.BLOCK, **more)
    pointers = "*i16" if kernel is cuda._nearest else "*fp32"
    integers = ("channels", "voxels", "blocks", "height", "width", "d", "h", "w")
    kinds = {{name: "constexpr" if name in constants else "i32" if name in integers else
              "*fp32" if name in ("rows", "field") else pointers for name in kernel.arg_names}}
    made = compile(ASTSource(kernel, kinds, constexprs=constants), target=GPUTarget("cuda", 90, 32),
                   options=dict(enable_fp_fusion=False))
    assert made.asm["cubin"] and "fma.rn.f32" not in made.asm["ptx"]
"""
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240, env=compiled)


RECORDED = Path(__file__).parents[3] / "benchmarks" / "results" / "kernels.json"


@pytest.mark.parametrize("name", ["affine", "dense", "composition", "labels"])
def test_kernels_are_as_fast_beside_torch_as_recorded(name: str, monkeypatch) -> None:
    """No absolute times: the ratio to the reference, in this process, is at least half of the recorded one."""
    row = next(row for row in json.loads(RECORDED.read_text())["rows"]
               if (row["warp"], row["shape"], row["lanes"], row["threads"]) == (name, "64x64x64", 1, "1"))
    recorded = row["seconds"]["torch broadcast grid"] / row["seconds"]["regenv"]
    case = Problem((64,) * 3, (64,) * 3, kind={"affine": "affine", "labels": "through"}.get(name, "dense"))
    if case.displacement is not None:  # smooth, as the benchmark's: how often a cache is missed is part of a time
        case.displacement = torch.nn.functional.interpolate(case.displacement[..., :4, :4, :4], size=case.shape,
                                                            mode="trilinear", align_corners=True)
    run = {"affine": lambda: warp.warp_affine(case.image, case.matrix, case.shape),
           "dense": lambda: warp.warp_dense(case.image, case.displacement),
           "composition": lambda: warp.compose(case.displacement, case.displacement),
           "labels": lambda: operators.warp_labels(case.labels, *case.map, case.shape)}[name]
    taken: dict[str, list[float]] = {"torch": [], "numba": []}
    for _ in range(8):
        for backend, times in taken.items():
            monkeypatch.setenv(operators.VARIABLE, backend)
            begin = process_time()
            run()
            times.append(process_time() - begin)
    assert min(taken["torch"]) / min(taken["numba"]) > recorded / 2
