"""What is true of the phantoms: reproducible, lane-independent, aligned, and honest about how hard they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.brain_phantoms import BrainPhantom, head_bank
from regenv.data.sources.spine_phantoms import SpinePhantom, spine_bank
from regenv.grid import Grid
from regenv.ops.affine import matmul
from regenv.ops.warp import warp_affine

CPU = torch.device("cpu")
VERTEBRA_MM = range(24, 41, 2)  # one lumbar or lower thoracic pitch
PATIENTS = 3
CASES = {
    "spine3d": (SpinePhantom(patients=PATIENTS, bank_spacing=6.0), Grid.centered((48, 24, 24), 8.0)),
    "spine2d": (SpinePhantom(ndim=2, patients=PATIENTS, bank_spacing=6.0), Grid.centered((96, 48), 4.0)),
    "spine-roi": (SpinePhantom(moving_extent_mm=(80.0, 80.0, 80.0), truncated=False, placement_mm=120.0,
                               patients=PATIENTS, bank_spacing=6.0),
                  Grid.centered((20, 21, 19), 4.0, center=(3.0, 10.0, -30.0))),
    "brain3d": (BrainPhantom(patients=PATIENTS, bank_spacing=6.0), Grid.centered((32, 31, 33), 6.5)),
    "brain2d": (BrainPhantom(ndim=2, patients=PATIENTS), Grid.centered((127, 128), 2.0)),
}
SOURCES = [pytest.param(*case, id=name) for name, case in CASES.items()]


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(s) for s in seeds]


def tensors(batch: PairBatch) -> dict[str, Tensor]:
    return {k: v for k, v in vars(batch).items() if v is not None}


def moved_up(batch: PairBatch, shift_mm: float) -> tuple[Tensor, Tensor]:
    """The moving image on the fixed grid under a pull-back shifted along the last world axis, and where it is."""
    n = batch.ndim
    pull_back = batch.truth.clone()
    pull_back[:, n - 1, n] += shift_mm
    matrix = matmul(batch.world_to_moving, matmul(pull_back, batch.fixed_to_world))
    shape = tuple(batch.fixed.shape[2:])
    return warp_affine(batch.moving, matrix, shape), warp_affine((batch.moving > 0).float(), matrix, shape) > 0.99


def similarity(batch: PairBatch, shift_mm: float) -> np.ndarray:
    """Normalized cross-correlation within the moving image's field of view, (B,)."""
    warped, seen = moved_up(batch, shift_mm)
    return np.array([np.corrcoef(f[s].numpy(), w[s].numpy())[0, 1]
                     for f, w, s in zip(batch.fixed, warped, seen, strict=True)])


@pytest.mark.parametrize(("source", "grid"), SOURCES)
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_images_are_finite_in_range_and_placed(source: PairSource, grid: Grid, difficulty: float) -> None:
    assert isinstance(source, PairSource)
    batch = source.draw(generators(0, 1, 2), grid, CPU, difficulty)
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
    batch = tensors(source.draw(generators(*seeds), grid, CPU, 1.0))
    for lane, seed in enumerate(seeds):
        for name, value in tensors(source.draw(generators(seed), grid, CPU, 1.0)).items():
            assert torch.equal(value[0], batch[name][lane]), name


@pytest.mark.parametrize(("source", "grid"), SOURCES)
def test_a_seed_gives_the_same_pair_again_and_seeds_differ(source: PairSource, grid: Grid) -> None:
    first, again, other = (source.draw(generators(s), grid, CPU) for s in (5, 5, 6))
    assert torch.equal(first.fixed, again.fixed)
    assert torch.equal(first.moving, again.moving)
    assert not torch.equal(first.fixed, other.fixed)
    assert not torch.equal(first.moving, other.moving)


@pytest.mark.parametrize("bank", [
    lambda split: spine_bank(split, PATIENTS, 6.0, "cpu"),
    lambda split: head_bank(3, split, PATIENTS, 6.0, "cpu"),
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
    plain, oblique = (source.draw(generators(3), g, CPU) for g in (grid, turned))
    assert (plain.fixed - oblique.fixed).abs().max() < 2e-3
    assert (plain.moving - oblique.moving).abs().quantile(0.99) < 2e-3


@pytest.mark.parametrize("name", ["spine3d", "spine2d"])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_spine_aligns_best_at_truth_but_a_vertebra_off_is_a_local_maximum(name: str, difficulty: float) -> None:
    source, grid = CASES[name]
    batch = source.draw(generators(*range(12)), grid, CPU, difficulty)
    at_truth = similarity(batch, 0)
    up, down = (np.stack([similarity(batch, sign * s) for s in VERTEBRA_MM]) for sign in (1, -1))
    half_up, half_down = (np.stack([similarity(batch, sign * s) for s in (10, 14, 18)]) for sign in (1, -1))
    assert (at_truth > up.max(0)).all()
    assert (at_truth > down.max(0)).all()
    # between two vertebrae it is worse than on the next one, in most patients
    better = np.concatenate([up.max(0) > half_up.min(0), down.max(0) > half_down.min(0)])
    assert better.mean() > 0.6


@pytest.mark.parametrize("name", ["spine3d", "spine2d", "spine-roi"])
def test_spine_landmarks_lie_in_the_moving_field_of_view(name: str) -> None:
    source, grid = CASES[name]
    batch = source.draw(generators(*range(16)), grid, CPU, 0.0)
    n = grid.ndim
    size = torch.tensor(batch.moving.shape[2:], dtype=torch.float64)
    for lane in range(batch.lanes):
        voxels = batch.landmarks[lane] @ batch.world_to_moving[lane, :n, :n].T + batch.world_to_moving[lane, :n, n]
        assert ((voxels >= -0.5) & (voxels <= size - 0.5)).all()
        nearest = voxels.round().long().clamp(min=0).minimum(size.long() - 1)
        assert (batch.moving[lane, 0][tuple(nearest.T)] > 0).float().mean() > 0.9
        assert len(torch.unique(batch.landmarks[lane], dim=0)) >= 8


def test_spine_moving_image_is_placed_by_lane_within_the_fixed_one() -> None:
    source, grid = CASES["spine3d"]
    batch = source.draw(generators(*range(16)), grid, CPU)
    middle = torch.tensor(batch.moving.shape[2:], dtype=torch.float64) / 2 - 0.5
    places = torch.stack([torch.linalg.inv(m)[:3, :3] @ middle + torch.linalg.inv(m)[:3, 3]
                          for m in batch.world_to_moving])
    assert places[:, 2].max() - places[:, 2].min() > 100
    assert places[:, 2].abs().max() <= (grid.extent[2] - 176) / 2
    assert places[:, :2].abs().max() <= 8


def test_brain_without_difficulty_has_one_contrast_and_with_it_many() -> None:
    source, grid = CASES["brain2d"]
    plain, hard = (source.draw(generators(*range(12)), grid, CPU, d) for d in (0.0, 1.0))
    assert (similarity(plain, 0) > 0.99).all()
    inside = [np.corrcoef(f[c].numpy(), m[c].numpy())[0, 1]
              for f, m, c in zip(hard.fixed, hard.moving, hard.fixed > 0.12, strict=True)]
    assert min(inside) < 0


@pytest.mark.parametrize("turn", [(0,), (1,), (0, 1)])
def test_brain_orientation_is_unique(turn: tuple[int, ...]) -> None:
    source, grid = CASES["brain2d"]
    batch = source.draw(generators(*range(6)), grid, CPU, 0.0)
    flipped = batch.fixed.flip([2 + a for a in turn])
    assert ((flipped - batch.fixed).abs().flatten(1).mean(1) > 0.01).all()


@pytest.mark.parametrize(("make", "says"), [
    (lambda: SpinePhantom(ndim=4), "ndim is 4"),
    (lambda: SpinePhantom(split="validation"), "split is 'validation'"),
    (lambda: BrainPhantom(patients=0), "patients is 0"),
    (lambda: BrainPhantom(bank_spacing=-1.0), "bank_spacing is -1.0 mm"),
    (lambda: SpinePhantom(moving_extent_mm=(1.0, 2.0, 0.0)), "moving_extent_mm is"),
    (lambda: BrainPhantom(ndim=3).draw(generators(0), Grid.centered((8, 8), 2.0), CPU), "the grid is 2D"),
])
def test_errors_name_the_field_and_its_value(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        make()
