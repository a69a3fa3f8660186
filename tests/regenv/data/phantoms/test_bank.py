"""What is true of all sources of painted patients: reproducible, lane-independent, other patients for test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from regenv.data.pairs import PairSource
from regenv.data.phantoms.bank import PhantomBank, sample_bank
from regenv.data.sources.brain_phantoms import BrainPhantom, painted_heads
from regenv.data.sources.spine_phantoms import SpinePhantom, painted_spines
from regenv.grid import Grid
from tests.regenv.data.drawing import CPU, PAINTED, PATIENTS, generators, tensors

SOURCES = [pytest.param(*case, id=name) for name, case in PAINTED.items()]


@pytest.mark.parametrize(("source", "grid"), SOURCES)
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_images_are_finite_in_range_and_placed(source: PairSource, grid: Grid, difficulty: float) -> None:
    assert isinstance(source, PairSource)
    batch = source.draw(generators(3), grid, CPU, difficulty)
    n = source.ndim
    assert batch.fixed.shape == (3, 1, *grid.shape)
    for image in (batch.fixed, batch.moving):
        assert image.dtype == torch.float32
        assert torch.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert (image.flatten(1).std(1) > 0.02).all()
    assert batch.landmarks.shape == (3, 32, n)
    assert batch.known.all()
    assert torch.equal(batch.truth, torch.eye(n + 1, dtype=torch.float64).expand(3, -1, -1))
    np.testing.assert_allclose(batch.center.numpy(), np.tile(grid.center, (3, 1)), atol=1e-9)
    np.testing.assert_array_equal(batch.fixed_to_world[1].numpy(), grid.voxel_to_world)


@pytest.mark.parametrize(("source", "grid"), SOURCES)
def test_lane_alone_equals_lane_in_batch_bit_for_bit(source: PairSource, grid: Grid) -> None:
    seeds = (11, 12, 13, 14, 15)
    batch = tensors(source.draw(generators(5, 11), grid, CPU, 1.0))
    for lane, seed in enumerate(seeds):
        for name, value in tensors(source.draw(generators(1, seed), grid, CPU, 1.0)).items():
            assert torch.equal(value[0], batch[name][lane]), name


@pytest.mark.parametrize(("source", "grid"), SOURCES)
def test_a_seed_gives_the_same_pair_again_and_seeds_differ(source: PairSource, grid: Grid) -> None:
    first, again, other = (source.draw(generators(1, s), grid, CPU) for s in (5, 5, 6))
    assert torch.equal(first.fixed, again.fixed)
    assert torch.equal(first.moving, again.moving)
    assert not torch.equal(first.fixed, other.fixed)
    assert not torch.equal(first.moving, other.moving)


@pytest.mark.parametrize("bank", [
    lambda split: painted_spines(split, PATIENTS, 6.0, "cpu"),
    lambda split: painted_heads(3, split, PATIENTS, 6.0, "cpu"),
], ids=["spine", "brain"])
def test_no_patient_is_shared_between_training_and_test(bank) -> None:  # type: ignore[no-untyped-def]
    everyone = torch.cat([bank("train").volumes, bank("test").volumes]).flatten(1)
    for i in range(len(everyone)):
        for j in range(i):
            assert (everyone[i] - everyone[j]).abs().max() > 0.5


@pytest.mark.parametrize(("source", "grid"), SOURCES)
def test_oblique_grid_sees_the_same_patient(source: PairSource, grid: Grid) -> None:
    """The fast path for aligned axes agrees with the general one, here taken by a barely turned grid."""
    n, tiny = grid.ndim, 1e-6
    turn = np.eye(n)
    turn[:2, :2] = [[math.cos(tiny), -math.sin(tiny)], [math.sin(tiny), math.cos(tiny)]]
    turned = Grid.centered(grid.shape, grid.spacing, grid.center.tolist(), turn.ravel().tolist())
    plain, oblique = (source.draw(generators(1, 3), g, CPU) for g in (grid, turned))
    assert (plain.fixed - oblique.fixed).abs().max() < 2e-3
    assert (plain.moving - oblique.moving).abs().quantile(0.99) < 2e-3


@pytest.mark.parametrize(("make", "says"), [
    (lambda: SpinePhantom(ndim=4), "ndim is 4"),
    (lambda: SpinePhantom(split="validation"), "split is 'validation'"),
    (lambda: BrainPhantom(patients=0), "patients is 0"),
    (lambda: BrainPhantom(bank_spacing=-1.0), "bank_spacing is -1.0 mm"),
    (lambda: SpinePhantom(moving_extent_mm=(1.0, 2.0, 0.0)), "moving_extent_mm is"),
    (lambda: BrainPhantom(ndim=3).draw(generators(1), Grid.centered((8, 8), 2.0), CPU), "the grid is 2D"),
])
def test_errors_name_the_field_and_its_value(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("shape", [(1, 9, 14), (7, 5, 6)])
def test_the_kernel_samples_a_bank_as_torch_does(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    bank = PhantomBank(torch.rand(3, 4, 8, 10, 12), Grid.centered((8, 10, 12), 2.0), ())
    maps = np.tile(np.eye(4), (5, 1, 1))
    maps[:, [0, 1, 2], [2, 1, 0]], maps[:, [0, 1, 2], [0, 1, 2]] = draw.uniform(-3, 3, (5, 3)), [0, 1, 0]
    maps[:, [1], [1]] = draw.uniform(-3, 3, (5, 1))
    maps[:, :3, 3] = draw.uniform(-12, 12, (5, 3))
    mix = draw.normal(size=(5, 2, 4))
    ours = sample_bank(bank, np.array([0, 2, 1, 1, 0]), maps, shape, mix)
    monkeypatch.setenv("REGENV_KERNELS", "torch")
    assert torch.equal(ours, sample_bank(bank, np.array([0, 2, 1, 1, 0]), maps, shape, mix))
    assert ours.std() > 0.1
