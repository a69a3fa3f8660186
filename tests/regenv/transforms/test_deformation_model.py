"""Deformation models: laws of the projection, statistics of the samples, files."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from regenv.ops import bspline
from regenv.transforms.deformation_model import DeformationModel, ModelError

VOXEL_TOLERANCE = 1e-4  # voxels, float32
DRAWS = 4000
SHAPES = {2: (40, 33), 3: (12, 20, 17)}
SPACING = {2: (0.9, 1.4), 3: (0.9, 1.4, 3.0)}
BY_NDIM = pytest.mark.parametrize("ndim", [2, 3])
DIRECTIONS = 5


def make_coefficients(ndim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """60 deformations around a mean that vary in 5 directions: (60, D, *control_shape), voxels."""
    generator = torch.Generator().manual_seed(0)
    control = bspline.control_shape(SHAPES[ndim], 8)
    modes = torch.randn(DIRECTIONS, ndim, *control, generator=generator, dtype=torch.float64)
    weights = torch.randn(60, DIRECTIONS, generator=generator, dtype=torch.float64)
    weights = weights * torch.linspace(1, 0.2, DIRECTIONS, dtype=torch.float64)
    mean = torch.randn(ndim, *control, generator=generator, dtype=torch.float64)
    return (mean + torch.tensordot(weights, modes, 1)).to(dtype)


def make_model(ndim: int, count: int = DIRECTIONS, dtype: torch.dtype = torch.float32) -> DeformationModel:
    return DeformationModel.fit(make_coefficients(ndim, dtype), count, SHAPES[ndim], SPACING[ndim])


@BY_NDIM
def test_training_fields_come_back(ndim):
    """All directions are kept, so each training field is in the model."""
    model = make_model(ndim)
    fields = bspline.displacement(make_coefficients(ndim), SHAPES[ndim])
    theta = model.project(fields)
    assert theta.dtype == torch.float32 and theta.shape == (60, DIRECTIONS)
    torch.testing.assert_close(model.displacement(theta), fields, rtol=0, atol=VOXEL_TOLERANCE)
    torch.testing.assert_close(theta.std(0), model.deviations, rtol=1e-4, atol=0)
    torch.testing.assert_close(theta.abs().mean(0), model.mean_amplitudes, rtol=1e-4, atol=0)
    torch.testing.assert_close(theta.abs().amax(0), model.largest_amplitudes, rtol=1e-4, atol=0)
    assert theta.mean(0).abs().max() < 1e-4 * model.deviations.max()


@BY_NDIM
def test_displacement_and_projection_are_inverse(ndim):
    model = make_model(ndim)
    theta = 3 * torch.randn(7, DIRECTIONS, generator=torch.Generator().manual_seed(1)) * model.deviations
    torch.testing.assert_close(model.project(model.displacement(theta)), theta, rtol=0, atol=1e-4)


@BY_NDIM
def test_no_amplitudes_give_the_mean_deformation(ndim):
    model = make_model(ndim, count=2)
    mean = bspline.displacement(make_coefficients(ndim).mean(0, keepdim=True), SHAPES[ndim])
    torch.testing.assert_close(model.displacement(torch.zeros(1, 2)), mean, rtol=0, atol=VOXEL_TOLERANCE)


@BY_NDIM
def test_projection_is_numpys_least_squares_in_millimetres(ndim):
    """Of fields that are not in the model."""
    model = make_model(ndim, count=3, dtype=torch.float64)
    fields = torch.randn(4, ndim, *SHAPES[ndim], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    steps = torch.tensor(SPACING[ndim][::-1], dtype=torch.float64).view(-1, *(1,) * ndim)
    origin = model.displacement(torch.zeros(1, 3, dtype=torch.float64))
    columns = ((model.displacement(torch.eye(3, dtype=torch.float64)) - origin) * steps).flatten(1).T.numpy()
    expected = np.linalg.lstsq(columns, ((fields - origin) * steps).flatten(1).T.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(model.project(fields), expected, rtol=1e-8, atol=1e-10)


@BY_NDIM
def test_components_are_taken_in_millimetres(ndim):
    coefficients = make_coefficients(ndim, torch.float64)
    steps = torch.tensor(SPACING[ndim][::-1], dtype=torch.float64).view(-1, *(1,) * ndim)
    model = make_model(ndim, count=3, dtype=torch.float64)
    in_mm = DeformationModel.fit(coefficients * steps, 3, SHAPES[ndim])
    assert in_mm.spacing == (1.0,) * ndim
    torch.testing.assert_close(model.modes, in_mm.modes)
    torch.testing.assert_close(model.deviations, in_mm.deviations)
    theta = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(model.displacement(theta) * steps, in_mm.displacement(theta))
    assert not torch.allclose(model.modes, DeformationModel.fit(coefficients, 3, SHAPES[ndim]).modes, atol=0.01)


@BY_NDIM
def test_modes_are_orthonormal_in_order_and_signed(ndim):
    model = make_model(ndim, dtype=torch.float64)
    rows = model.modes.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(DIRECTIONS, dtype=torch.float64))
    assert (model.deviations.diff() < 0).all()
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
    again = DeformationModel.fit(make_coefficients(ndim, torch.float64).flip(0), DIRECTIONS, SHAPES[ndim],
                                 SPACING[ndim])
    torch.testing.assert_close(again.modes, model.modes)


def test_amplitudes_pass_gradients_also_after_use_in_inference_mode():
    model = make_model(2, count=2, dtype=torch.float64)
    theta = torch.randn(2, 2, dtype=torch.float64)
    with torch.inference_mode():
        model.project(model.displacement(theta))
    assert torch.autograd.gradcheck(model.displacement, theta.requires_grad_())
    assert torch.autograd.gradcheck(model.project, model.displacement(theta).detach().requires_grad_())


@BY_NDIM
def test_a_lane_equals_the_same_amplitudes_alone(ndim):
    model = make_model(ndim)
    theta = torch.randn(9, DIRECTIONS)
    fields = model.displacement(theta)
    thetas = model.project(fields)
    for lane in range(9):
        assert torch.equal(model.displacement(theta[lane:lane + 1])[0], fields[lane])
        assert torch.equal(model.project(fields[lane:lane + 1])[0], thetas[lane])


# ------------------------------------------------------------------------------------------------------------ samples

@pytest.mark.parametrize("bound", [0.7, 1.5, 100.0])
def test_samples_are_normal_and_cut_off_at_the_bound_or_at_the_largest_in_training(bound, rng):
    model = make_model(2)
    theta = model.sample([rng] * DRAWS, bound)
    assert theta.shape == (DRAWS, DIRECTIONS) and theta.dtype == torch.float32
    limits = torch.minimum(bound * model.deviations, model.largest_amplitudes)
    assert (theta.abs() <= limits).all()
    assert (theta.abs().amax(0) > 0.9 * limits).all()
    for mode in range(DIRECTIONS):
        sigma, limit = model.deviations[mode].item(), limits[mode].item()
        law = stats.truncnorm(-limit / sigma, limit / sigma, scale=sigma)
        assert stats.kstest(theta[:, mode].numpy(), law.cdf).pvalue > 1e-3
    correlation = np.corrcoef(theta.numpy().T)[np.triu_indices(DIRECTIONS, 1)]
    assert np.abs(correlation).max() < 5 / DRAWS**0.5


def test_a_lanes_sample_depends_on_its_generator_alone():
    model = make_model(3)
    together = model.sample([np.random.default_rng(seed) for seed in range(5)])
    for seed in range(5):
        assert torch.equal(model.sample([np.random.default_rng(seed)])[0], together[seed])


def test_the_least_number_of_a_generator_gives_the_bound_not_infinity():
    class Lowest:
        def uniform(self, low, high):
            return low

    model = make_model(2)
    wide = replace(model, largest_amplitudes=1000 * model.deviations)
    assert torch.equal(wide.sample([Lowest()], 100.0)[0], -100 * model.deviations)


def test_a_bound_that_is_not_positive_is_refused(rng):
    with pytest.raises(ValueError, match=r"bound is 0\.0"):
        make_model(2).sample([rng], 0.0)


# -------------------------------------------------------------------------------------------------------------- files

TENSORS = ("mean", "modes", "deviations", "mean_amplitudes", "largest_amplitudes")


@BY_NDIM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_model_is_loaded_to_the_bit(ndim, dtype, tmp_path):
    model, path = make_model(ndim, dtype=dtype), tmp_path / "organ.safetensors"
    model.save(path)
    loaded = DeformationModel.load(path)
    for name in TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(model, name))
    assert (loaded.shape, loaded.spacing) == (model.shape, model.spacing)
    theta = torch.randn(2, DIRECTIONS, dtype=dtype)
    assert torch.equal(loaded.displacement(theta), model.displacement(theta))
    assert [file.name for file in tmp_path.iterdir()] == ["organ.safetensors"]
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before


def card(**changes) -> dict[str, str]:
    return {"regenv_deformation_model": json.dumps({"version": 1, "shape": SHAPES[2], "spacing": SPACING[2]} | changes)}


def refused(path, reason: str) -> None:
    """The error is one line that names the file."""
    with pytest.raises(ModelError, match=reason) as caught:
        DeformationModel.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value) and re.search(r"\.$", str(caught.value))


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "organ.safetensors"
    refused(path, "no such file")
    make_model(2).save(path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "cannot be read")
    path.write_bytes(b"not a model at all" * 50)
    refused(path, "cannot be read")
    save_file({"weight": torch.zeros(3)}, path)
    refused(path, "regenv_deformation_model is missing")


@pytest.mark.parametrize(("metadata", "reason"), [
    ({"regenv_deformation_model": "{"}, "must be JSON"),
    ({"regenv_deformation_model": "[1]"}, "must be JSON"),
    (card(shape=None), "must be JSON"),
    (card(version=2), "version is 2; this release reads 1"),
    (card(spacing=[1.0]), "spacing is"),
    (card(spacing=[1.0, -1.0]), "spacing is"),
    (card(shape=[40, 33, 9]), "DeformationModel: "),
])
def test_damaged_cards_are_refused(metadata, reason, tmp_path):
    path = tmp_path / "organ.safetensors"
    make_model(2).save(path)
    save_file(load_file(path), path, metadata)
    refused(path, reason)


@pytest.mark.parametrize("name", TENSORS)
def test_files_with_a_wrong_tensor_are_refused(name, tmp_path):
    path = tmp_path / "organ.safetensors"
    make_model(2).save(path)
    tensors = load_file(path)
    good = tensors[name]
    for bad, reason in ((None, f"tensor {name} is missing"), (good[..., :-1].contiguous(), "it must be"),
                        (good.double() if name != "mean" else good.half(), "is torch.float"),
                        (good * torch.nan, f"{name} is not .*finite")):
        save_file({k: v for k, v in (tensors | {name: bad}).items() if v is not None}, path, card())
        refused(path, reason)
    save_file(tensors | {f"{name}_too": good.clone()}, path, card())
    refused(path, f"tensor {name}_too is not part of")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "organ.safetensors"
    make_model(2).save(path)
    before = path.read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("regenv.transforms.deformation_model.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_model(2, count=2).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("call", "reason"), [
    (lambda: make_model(2, count=6), "count is 6, but 60 rows .* vary in 5 directions"),
    (lambda: DeformationModel.fit(torch.zeros(9, 3, 5, 5), 2, (20, 20)), r"coefficients is \(9, 3, 5, 5\)"),
    (lambda: DeformationModel.fit(torch.zeros(9, 2, 5, 5), 2, (20, 20), (1.0,)), r"spacing is \(1.0,\)"),
    (lambda: replace(make_model(2), shape=(4,)), r"shape is \(4,\)"),
    (lambda: replace(make_model(2), deviations=torch.zeros(DIRECTIONS)), "deviations is not positive"),
    (lambda: replace(make_model(2), modes=torch.zeros(0, 2, 5, 5), deviations=torch.zeros(0),
                     mean_amplitudes=torch.zeros(0), largest_amplitudes=torch.zeros(0)), "number of modes is 0"),
    (lambda: make_model(2).project(torch.zeros(1, 2, 9, 9)), r"displacement is \(1, 2, 9, 9\)"),
])
def test_what_does_not_fit_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
