"""Roughness and Jacobians: closed forms, NumPy, MONAI, and the Learn2Reg challenge's evaluation written out."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss

from regenv.ops import regularity, sampling

TOLERANCE = 1e-12  # of float64 arithmetic on numbers around 1
SHAPES = pytest.mark.parametrize("shape", [(12, 15), (9, 11, 10)])
PENALTIES = pytest.mark.parametrize("penalty", [regularity.diffusion, regularity.bending])


def random_field(shape: tuple[int, ...], lanes: int = 2, size: float = 0.4) -> torch.Tensor:
    """Rough enough to fold here and there: (lanes, D, *shape) float64."""
    generator = torch.Generator().manual_seed(0)
    return size * torch.randn(lanes, len(shape), *shape, generator=generator, dtype=torch.float64)


def linear_field(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """u = A x, and A (D, D)."""
    matrix = 0.3 * torch.randn(len(shape), len(shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.einsum("ka,ba...->bk...", matrix, sampling.identity(shape).to(torch.float64)), matrix


@SHAPES
def test_linear_field(shape):
    u, matrix = linear_field(shape)
    size = [1] * len(shape)
    determinant = torch.linalg.det(torch.eye(len(shape), dtype=torch.float64) + matrix)
    torch.testing.assert_close(regularity.diffusion(u)[0], (matrix**2).mean())
    assert regularity.bending(u)[0] < TOLERANCE
    torch.testing.assert_close(regularity.jacobian(u)[0], determinant.view(size).expand(shape))
    assert regularity.sd_log_jacobian(u)[0] < 1e-9


@SHAPES
def test_quadratic_field_has_the_bending_energy_of_its_hessian(shape):
    """u_k = x^T H_k x / 2 has second derivatives H_k everywhere: the energy is the squared Frobenius norm."""
    ndim = len(shape)
    x = sampling.identity(shape)[0].to(torch.float64)
    hessians = torch.randn(ndim, ndim, ndim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hessians = hessians + hessians.transpose(1, 2)
    u = torch.einsum("kab,a...,b...->k...", hessians, x, x)[None] / 2
    torch.testing.assert_close(regularity.bending(u)[0], (hessians**2).sum((1, 2)).mean())
    spacing = (0.8, 1.3, 2.9)[:ndim]
    steps = torch.tensor(spacing[::-1], dtype=torch.float64)
    in_mm = hessians * steps[:, None, None] / (steps[None, :, None] * steps[None, None, :])
    torch.testing.assert_close(regularity.bending(u, spacing)[0], (in_mm**2).sum((1, 2)).mean())


@SHAPES
def test_spacing_makes_slopes_those_in_millimetres(shape):
    u, matrix = linear_field(shape)
    steps = np.array((0.8, 1.3, 2.9)[:len(shape)])
    in_mm = matrix.numpy() * steps[:, None] / steps[None]
    spacing = steps[::-1].tolist()  # ITK order
    np.testing.assert_allclose(regularity.diffusion(u, spacing)[0], (in_mm**2).mean())


@SHAPES
def test_forward_differences_against_numpy(shape):
    u = random_field(shape)
    for lane in range(2):
        slopes = [np.diff(u[lane].numpy(), axis=axis + 1) for axis in range(len(shape))]
        np.testing.assert_allclose(regularity.diffusion(u)[lane], np.mean([(d**2).mean() for d in slopes]))


@SHAPES
def test_bending_is_monais(shape):
    u = random_field(shape)
    torch.testing.assert_close(regularity.bending(u).mean(), BendingEnergyLoss()(u))


@SHAPES
def test_diffusion_is_monais_on_linear_fields_but_for_the_sum_over_axes(shape):
    """On others it is not: MONAI's central differences do not see a checkerboard."""
    u, _ = linear_field(shape)
    torch.testing.assert_close(len(shape) * regularity.diffusion(u).mean(), DiffusionLoss()(u))
    checkerboard = ((-1.0) ** sampling.identity(shape).sum(1, keepdim=True)).expand(1, len(shape), *shape)
    assert DiffusionLoss()(checkerboard) == 0
    assert regularity.diffusion(checkerboard) == 4


@SHAPES
def test_jacobian_against_numpy_gradient(shape):
    u = random_field(shape)
    for lane in range(2):
        gradient = np.stack([np.stack(np.gradient(component)) for component in u[lane].numpy()])
        expected = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(len(shape)))
        np.testing.assert_allclose(regularity.jacobian(u)[lane], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(regularity.folding(u)[lane], (expected <= 0).mean())
        assert 0.01 < regularity.folding(u)[lane] < 0.5
        half = torch.zeros(len(u), 1, *u.shape[2:], dtype=torch.bool)
        half[:, :, ::2] = True
        np.testing.assert_allclose(regularity.folding(u, half)[lane], (expected[::2] <= 0).mean())


@SHAPES
def test_mirrored_space_is_folded_everywhere_and_a_flattened_one_too(shape):
    x = sampling.identity(shape)
    mirrored = torch.cat([-2 * x[:, :1], 0 * x[:, 1:]], dim=1)
    assert regularity.folding(0 * x) == 0
    assert regularity.folding(mirrored) == 1
    assert regularity.folding(mirrored / 2) == 1  # the determinant is 0


def cells_folded(u: np.ndarray) -> np.ndarray:
    """Folded volume in each cell between voxels of a field (D, *shape), from its simplices' corners, a mean over the
    two ways to cut it: (*shape - 1)."""
    ndim, shape = len(u), u.shape[1:]
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) + u
    corners = {c: places[(slice(None), *(slice(a, n - 1 + a) for a, n in zip(c, shape, strict=True)))]
               for c in itertools.product((0, 1), repeat=ndim)}
    total = np.zeros([n - 1 for n in shape])
    for parity in (0, 1):           # corners of this parity are cut off, each with its neighbours
        cut = [c for c in corners if sum(c) % 2 == parity]
        simplices = [[c, *(tuple(1 - v if a == axis else v for a, v in enumerate(c)) for axis in range(ndim))]
                     for c in cut]
        if ndim == 3:               # and the corners that are left are those of the middle one
            simplices.append([c for c in corners if sum(c) % 2 != parity])
        for simplex in simplices:
            before, after = (np.stack([where[c] - where[simplex[0]] for c in simplex[1:]], -1)
                             for where in ({c: np.array(c) for c in corners},
                                           {c: np.moveaxis(corners[c], 0, -1) for c in corners}))
            signed = np.linalg.det(after.swapaxes(-1, -2)) * np.sign(np.linalg.det(before)) / math.factorial(ndim)
            total += np.maximum(-signed, 0) / 2
    return total


@SHAPES
def test_non_diffeomorphic_volume_is_that_of_the_simplices_turned_inside_out(shape):
    u = random_field(shape)
    rim = torch.zeros_like(u)
    rim[(..., *[slice(2, -2)] * len(shape))] = u[(..., *[slice(2, -2)] * len(shape))]
    inner = math.prod(n - 2 for n in shape)
    for lane in range(2):
        expected = cells_folded(rim[lane].numpy()).sum() / inner
        np.testing.assert_allclose(regularity.non_diffeomorphic_volume(rim)[lane], expected, rtol=1e-10)
    assert 0.01 < expected < 0.5


@SHAPES
def test_non_diffeomorphic_volume_of_a_mirror_is_all_and_sees_a_voxel_that_jumps(shape):
    x = sampling.identity(shape)
    mirrored = torch.cat([-3 * x[:, :1], 0 * x[:, 1:]], dim=1)              # twofold
    assert regularity.non_diffeomorphic_volume(0 * x) == 0
    assert regularity.non_diffeomorphic_volume(mirrored) == pytest.approx(2)
    jumped = torch.zeros_like(x)
    middle = tuple(n // 2 for n in shape)
    jumped[(0, 0, *middle)] = 1.5                                           # over its neighbour
    assert regularity.jacobian(jumped)[(0, *middle)] == 1                   # central differences do not see it
    there = torch.zeros(1, 1, *shape, dtype=torch.bool)
    there[(0, 0, *middle)] = True
    assert regularity.non_diffeomorphic_volume(jumped, there) > 0
    assert regularity.non_diffeomorphic_volume(jumped, there & False).isnan()


def learn2reg_sd_log_jacobian(displacement: np.ndarray, mask: np.ndarray | None) -> float:
    """SDlogJ of one field (D, *shape), step by step as the challenge's evaluation has it, for any D."""
    ndim = len(displacement)
    gradient = np.zeros((ndim, *displacement.shape))
    for axis in range(ndim):
        kernel = np.array([-0.5, 0.0, 0.5]).reshape([-1 if a == axis else 1 for a in range(ndim)])
        for k in range(ndim):
            gradient[axis, k] = scipy.ndimage.correlate(displacement[k], kernel, mode="constant", cval=0.0)
    matrices = gradient + np.eye(ndim).reshape(ndim, ndim, *[1] * ndim)
    matrices = matrices[(slice(None), slice(None), *[slice(2, -2)] * ndim)]
    values = []
    for voxel in np.ndindex(*matrices.shape[2:]):
        if mask is None or mask[tuple(i + 2 for i in voxel)]:
            values.append(np.log(np.clip(np.linalg.det(matrices[(..., *voxel)]) + 3, 1e-9, 1e9)))
    return float(np.std(values))


@SHAPES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sd_log_jacobian_is_learn2regs(shape, masked, dtype, tolerance):
    u = random_field(shape, size=1.0)  # so rough that det J + 3 is clipped in places
    assert (regularity.jacobian(u) < -3).any()
    mask = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(3)) < 0.4
    expected = [learn2reg_sd_log_jacobian(u[lane].to(dtype).numpy(), mask[lane, 0].numpy() if masked else None)
                for lane in range(2)]
    found = regularity.sd_log_jacobian(u.to(dtype), mask if masked else None, offset=3.0)
    np.testing.assert_allclose(found, expected, rtol=tolerance)


@SHAPES
def test_sd_log_jacobian_without_offset(shape):
    """u_k = c x_k^2 / 2 stretches axis k by 1 + c x_k, so log det J is a sum of logarithms."""
    x = sampling.identity(shape).to(torch.float64)
    logs = (1 + 0.05 * x[0]).log().sum(0)[(slice(2, -2),) * len(shape)]
    torch.testing.assert_close(regularity.sd_log_jacobian(0.025 * x**2)[0], logs.std(correction=0))


@SHAPES
def test_sd_log_jacobian_of_an_empty_mask_is_nan_in_its_lane_only(shape):
    mask = torch.ones(2, 1, *shape, dtype=torch.bool)
    mask[0] = False
    found = regularity.sd_log_jacobian(random_field(shape), mask)
    assert found.isnan().tolist() == [True, False]
    torch.testing.assert_close(found[1], regularity.sd_log_jacobian(random_field(shape))[1])


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 3)])
@PENALTIES
def test_penalties_pass_gradients(penalty, shape):
    u = random_field(shape).requires_grad_()
    assert torch.autograd.gradcheck(penalty, u)
    assert torch.autograd.gradcheck(lambda v: penalty(v, (1.0, 2.0, 3.0)[:len(shape)]), u)


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 5)])
def test_jacobians_pass_gradients(shape):
    u = random_field(shape, size=0.1).requires_grad_()
    assert torch.autograd.gradcheck(regularity.jacobian, u)
    assert torch.autograd.gradcheck(regularity.sd_log_jacobian, u)


@SHAPES
@PENALTIES
def test_a_lane_equals_the_same_field_alone(penalty, shape):
    u = random_field(shape, lanes=5).float()
    for lane in range(5):
        assert torch.equal(penalty(u)[lane], penalty(u[lane:lane + 1])[0])


@pytest.mark.parametrize(("function", "shape", "least"), [
    (regularity.diffusion, (1, 2, 1, 5), 2), (regularity.bending, (1, 2, 5, 2), 3),
    (regularity.jacobian, (1, 3, 5, 5), 2),
    (regularity.non_diffeomorphic_volume, (1, 2, 5, 2), 3), (regularity.sd_log_jacobian, (1, 3, 9, 4, 9), 5),
])
def test_fields_of_a_wrong_shape_are_refused(function, shape, least):
    with pytest.raises(ValueError, match=rf"{function.__name__}: the displacement is .*at least {least} voxels"):
        function(torch.zeros(shape))


@PENALTIES
def test_a_spacing_of_the_wrong_length_is_refused(penalty):
    with pytest.raises(ValueError, match=rf"{penalty.__name__}: spacing is \(1.0, 1.0\); a 3D field needs 3 numbers"):
        penalty(torch.zeros(1, 3, 5, 5, 5), (1.0, 1.0))
