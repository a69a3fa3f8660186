"""What is true of pairs of breathing lungs: they slide along the ribs, and their key-points correspond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates
from torch import Tensor

from regenv.data.catalogue import source_named
from regenv.data.pairs import PairBatch, PairSource
from regenv.data.phantoms.lung_anatomy import Patient
from regenv.data.sources import lungs
from regenv.data.sources.lungs import KEY_POINTS, LUNG, Lungs, lung_patient
from regenv.grid import Grid
from tests.regenv.data.drawing import CPU, generators, tensors

GRID = Grid.centered((48, 48, 48), 6.5)
FLAT = Grid.centered((96, 96), 3.4)
PATIENTS, COARSE_MM, FINE_MM = 2, 5.2, 2.5
LUNGS, SHEETS = Lungs(patients=PATIENTS), Lungs(ndim=2, patients=PATIENTS, bank_spacing=COARSE_MM)
STILL = {"motion": (0.0, 0.0), "expansion": 0.0, "lobes": 0.0, "bending": 0.0, "mm": 0.0, "degrees": 0.0,
         "stretch": 0.0}
EXACT_MM = 0.05
LITRES = (2.0, 6.5)
BEFORE_MM = (8.0, 15.0)         # mean distance of key-points before registration


def distances(pair: PairBatch) -> Tensor:
    assert pair.landmarks is not None and pair.targets is not None
    return (pair.targets - pair.landmarks).norm(dim=-1)


def at(image: Tensor, points_mm: Tensor, grid: Grid, order: int = 1) -> np.ndarray:
    """Values of an image (1, *shape) at world points (N, D), by SciPy."""
    return map_coordinates(image[0].numpy(), grid.to_voxel(points_mm.numpy()).T, order=order, mode="nearest")


def with_ramps(patch: pytest.MonkeyPatch, axis: int, low: float, high: float) -> None:
    """Every patient's cavity filled with a ramp along an axis of the painted chest, 0 at ``low`` mm, 1 at ``high``."""
    def patient(split: str, index: int, spacing: float, device: str) -> Patient:
        painted = lung_patient(split, index, spacing, device)
        ticks = painted.grid.origin[axis] + painted.grid.spacing[axis] * torch.arange(painted.grid.size[axis])
        span = [1, 1, 1]
        span[2 - axis] = -1
        volumes = painted.volumes.float().clone()
        volumes[0], volumes[2] = 0, 0
        volumes[1] = ((ticks - low) / (high - low)).view(span)
        return replace(painted, volumes=volumes)

    patch.setattr(lungs, "lung_patient", patient)
    patch.setattr(lungs, "noise_at", lambda u, shape, device: torch.zeros(len(u), 1, *shape))
    patch.setattr(lungs, "_LEAST_DIFFICULTY", 0.0)


# -------------------------------------------------------------------------------------------------------------- motion

@pytest.mark.parametrize(("source", "grid"), [(LUNGS, GRID), (SHEETS, FLAT)], ids=["3D", "2D"])
def test_pairs_are_as_promised(source: Lungs, grid: Grid) -> None:
    assert isinstance(source, PairSource) and source.ndim == grid.ndim
    pair = source.draw(generators(3), grid, CPU)
    assert pair.fixed.shape == pair.moving.shape == pair.fixed_labels.shape == (3, 1, *grid.shape)
    assert pair.fixed.dtype == torch.float32 and pair.moving_labels.dtype == torch.int16
    assert pair.fixed.isfinite().all() and pair.fixed.min() >= 0 and pair.moving.max() <= 1
    assert pair.classes == (LUNG,) and not pair.known.any()
    assert pair.landmarks.shape == pair.targets.shape == (3, KEY_POINTS[grid.ndim], grid.ndim)
    assert pair.landmarks.dtype == pair.targets.dtype == torch.float64
    eye = torch.eye(grid.ndim + 1, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(pair.world_to_moving @ pair.fixed_to_world, eye)
    for points, labels in ((pair.landmarks, pair.fixed_labels), (pair.targets, pair.moving_labels)):
        for lane in range(3):
            assert len(points[lane].unique(dim=0)) == len(points[lane])
            voxels = np.floor(grid.to_voxel(points[lane].numpy()) + 0.5).astype(int)
            assert (labels[lane, 0].numpy()[tuple(voxels.T)] == LUNG).all()


@pytest.mark.parametrize(("source", "grid"), [(LUNGS, GRID), (SHEETS, FLAT)], ids=["3D", "2D"])
def test_as_hard_as_asked_and_harder_with_difficulty(source: Lungs, grid: Grid) -> None:
    mean = [float(distances(source.draw(generators(8), grid, CPU, difficulty)).mean()) for difficulty in (0, 0.5, 1)]
    assert mean[0] < 1e-3 and mean[1] == pytest.approx(mean[2] / 2, rel=0.15)
    assert BEFORE_MM[0] < mean[2] < BEFORE_MM[1]


def test_the_diaphragm_moves_10_to_30_mm_and_the_apex_hardly() -> None:
    pair = LUNGS.draw(generators(8), GRID, CPU)
    up = (pair.targets - pair.landmarks)[..., 2]
    for lane in range(8):
        z = pair.landmarks[lane, :, 2]
        low, high = up[lane][z < z.quantile(0.05)], up[lane][z > z.quantile(0.95)]
        assert 8 < float(low.mean()) < 32 and abs(float(high.mean())) < 7 and float(low.mean()) > float(high.mean()) + 6
    inhaled, exhaled = (labels.flatten(1).sum(1) for labels in (pair.fixed_labels, pair.moving_labels))
    assert (inhaled > 1.08 * exhaled).all()
    backwards = Lungs(patients=PATIENTS, fixed="exhale").draw(generators(8), GRID, CPU)
    assert (backwards.targets - backwards.landmarks)[..., 2].mean() < -4


def test_the_lungs_are_denser_at_exhale() -> None:
    pair = LUNGS.draw(generators(4), GRID, CPU)
    inhaled, exhaled = ((image * labels).flatten(1).sum(1) / labels.flatten(1).sum(1)
                        for image, labels in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)))
    assert (exhaled > inhaled + 0.03).all()


def best_shift(fixed: np.ndarray, moving: np.ndarray, where: np.ndarray, shifts: range) -> int:
    """Voxels along z by which ``moving`` must be shifted to agree best with ``fixed``, by brute force."""
    def agreement(shift: int) -> float:
        return float(np.corrcoef(fixed[where], np.roll(moving, -shift, 0)[where])[0, 1])
    return max(shifts, key=agreement)


def test_the_lungs_slide_along_the_ribs() -> None:
    """Side by side at the pleura, vessels have moved by 2 cm and ribs have not, as block matching sees it."""
    source = Lungs(patients=1, bank_spacing=FINE_MM, **{**STILL, "motion": (26.0, 26.0)})
    grid = Grid.centered((64, 24, 112), 2.6, (0.0, 20.0, -25.0))
    pair = source.draw(generators(2), grid, CPU)
    for lane in range(2):
        fixed, moving = (image[lane, 0].numpy() for image in (pair.fixed, pair.moving))
        both = (pair.fixed_labels[lane, 0] > 0) & (pair.moving_labels[lane, 0] > 0)
        lung = both.numpy().copy()
        lung[:16], lung[44:] = False, False
        rim = np.zeros_like(lung)
        for x in range(4, 13):                      # 1 to 3 cm outside the lung
            rim |= np.roll(lung, x, 2) | np.roll(lung, -x, 2)
        near = pair.fixed_labels[lane, 0].numpy() > 0
        for x in range(-3, 4):
            near |= np.roll(pair.fixed_labels[lane, 0].numpy() > 0, x, 2)
        ribs = rim & ~near & (np.abs(np.arange(112) - 55.5) > 38)[None, None]
        assert ribs.sum() > 500 and fixed[ribs].std() > 0.05
        assert abs(best_shift(fixed, moving, ribs, range(-4, 13))) <= 1
        assert best_shift(fixed, moving, lung, range(-4, 13)) >= 4


# ------------------------------------------------------------------------------------------------------ correspondence

@pytest.mark.parametrize(("ndim", "axis", "zoom"), [(3, 0, 1.0), (3, 1, 1.0), (3, 2, 1.0), (2, 0, 1.0), (2, 2, 1.0),
                                                    (2, 0, 1.6), (2, 2, 1.6)])
def test_key_points_see_the_same_place_of_the_patient(ndim: int, axis: int, zoom: float,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that show the painted chest's own coordinate agree at key-points and targets."""
    low, high = ((-190.0, 190.0), (-140.0, 140.0), (-165.0, 165.0))[axis]
    with_ramps(monkeypatch, axis, low, high)
    grid = Grid.centered((44, 40, 44), 2.0, ((-70.0, 10.0, -20.0), (70.0, 20.0, 0.0), (-60.0, -10.0, 20.0))[axis])
    if ndim == 2:
        grid = Grid.centered((80, 50), 2.0, (-66.0, 10.0))
    source = Lungs(ndim=ndim, patients=PATIENTS, key_points=100, bank_spacing=COARSE_MM, zoom=(zoom, zoom))
    monkeypatch.setattr(lungs, "_scan", plain(lungs._scan))
    monkeypatch.setattr(lungs, "_seen_in_both", anywhere(lungs._seen_in_both))
    pair = source.draw(generators(2), grid, CPU)
    assert float(distances(pair).mean()) > 3
    for lane in range(2):
        seen = [at(image[lane], points[lane], grid, order=3) * (high - low) for image, points in
                ((pair.fixed, pair.landmarks), (pair.moving, pair.targets))]
        assert seen[0].std() > 5
        assert np.abs(seen[0] - seen[1]).max() < EXACT_MM


def test_imperfect_scans_are_noisier_and_their_masks_are_off() -> None:
    grid = Grid.centered((90, 60), 3.0, (-66.0, 10.0))
    clean, flawed = (Lungs(ndim=2, patients=PATIENTS, imperfect=share).draw(generators(4), grid, CPU)
                     for share in (0.0, 1.0))
    assert (flawed.fixed - clean.fixed).std() > 0.01
    off = (flawed.fixed_labels != clean.fixed_labels).float().flatten(1).mean(1)
    assert (off > 0).any() and (off < 0.2).all()


@pytest.mark.parametrize(("argument", "value"), [("zoom", (2.0, 1.0)), ("zoom", (0.1, 1.0)), ("imperfect", 1.5)])
def test_a_bad_look_is_told(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"lungs: {argument} is"):
        Lungs(**{argument: value})


def plain(scan: Callable) -> Callable:
    """Scans whose intensities are the painted ones."""
    def made(breath, patient, placed, grid, look, difficulty, flaws):
        return scan(breath, patient, placed, grid, np.full(5, 0.5), 0.0)
    return made


def anywhere(seen: Callable) -> Callable:
    """Key-points on both grids, whatever the labels; not in the outermost voxels, where splines are less exact."""
    def made(painted, breaths, placed, grid, labels):
        inner = torch.zeros_like(labels[0])
        inner[(slice(4, -4),) * grid.ndim] = LUNG
        return seen(painted, breaths, placed, grid, [inner, inner])
    return made


@pytest.mark.parametrize(("source", "grid"), [
    (Lungs(patients=1, key_points=900, mm=0.0, degrees=0.0), Grid.centered((40, 36, 36), 3.0, (-70.0, 10.0, -10.0))),
    (Lungs(ndim=2, patients=1, key_points=300, mm=0.0, degrees=0.0), Grid.centered((90, 60), 2.0, (-66.0, 10.0))),
], ids=["3D", "2D"])
def test_a_field_through_the_key_points_registers_the_lungs(source: Lungs, grid: Grid) -> None:
    pair = source.draw(generators(1), grid, CPU)
    landmarks, first = np.unique(pair.landmarks[0].numpy(), axis=0, return_index=True)
    shifts = pair.targets[0].numpy()[first] - landmarks
    lung = pair.fixed_labels[0, 0].numpy() > 0
    world = grid.to_world(np.argwhere(lung).astype(float))
    field = RBFInterpolator(landmarks, shifts, neighbors=24)(world)
    fixed = pair.fixed[0, 0].numpy()[lung]
    before = pair.moving[0, 0].numpy()[lung]
    after = at(pair.moving[0], torch.from_numpy(world + field), grid)
    inside = at(pair.moving_labels[0].float(), torch.from_numpy(world + field), grid)
    assert np.corrcoef(fixed, after)[0, 1] > np.corrcoef(fixed, before)[0, 1] + 0.3
    assert np.corrcoef(fixed, after)[0, 1] > 0.6 and (inside > 0.5).mean() > 0.93
    overlap = (pair.fixed_labels & pair.moving_labels).sum() / pair.fixed_labels.sum()
    assert (inside > 0.5).mean() > float(overlap)


# --------------------------------------------------------------------------------------------------------- the protocol

@pytest.mark.parametrize(("source", "grid"), [(LUNGS, GRID), (SHEETS, FLAT)], ids=["3D", "2D"])
def test_a_draw_is_reproducible_and_a_lane_independent(source: Lungs, grid: Grid) -> None:
    many, again = (tensors(source.draw(generators(3), grid, CPU, 0.8)) for _ in range(2))
    assert all(torch.equal(many[key], again[key]) for key in many)
    for lane in range(3):
        one = tensors(source.draw(generators(1, lane), grid, CPU, 0.8))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


@pytest.mark.parametrize("grid", [Grid.centered((36, 30, 40), (8.0, 9.0, 9.0), (40.0, -30.0, 15.0)),
                                  Grid.centered((40, 40, 40), 8.0, direction=(0, 1, 0, -1, 0, 0, 0, 0, 1))])
def test_any_grid_shows_the_lungs_in_its_middle(grid: Grid) -> None:
    pair = LUNGS.draw(generators(3), grid, CPU, 0.0)
    voxels = torch.nonzero(pair.fixed_labels[:, 0])[:, 1:].double().mean(0)
    assert np.abs(grid.to_world(voxels.numpy()) - grid.center).max() < 25
    litres = float(pair.fixed_labels.sum()) / 3 * np.prod(grid.spacing) / 1e6
    assert LITRES[0] < litres < LITRES[1]


def test_a_2d_image_is_a_coronal_sheet_head_up() -> None:
    pair = SHEETS.draw(generators(4), FLAT, CPU)
    for labels in pair.fixed_labels[:, 0].numpy() > 0:
        rows, columns = np.nonzero(labels)
        widths = labels.sum(1)
        assert widths[rows.min() + 3] < 0.7 * widths.max()                  # the apex is above
        assert labels[:, :48].sum() > 300 and labels[:, 48:].sum() > 300
        assert columns.max() - columns.min() > 50
    down = (pair.targets - pair.landmarks)[..., 1]
    assert (down.mean(1) < -3).all()


def test_a_small_view_repeats_the_key_points_it_has() -> None:
    grid = Grid.centered((6, 6, 6), 3.0, (0.0, 0.0, 0.0))
    shifted = replace(LUNGS, mm=0.0, motion=(4.0, 4.0), bank_spacing=COARSE_MM)
    with pytest.raises(ValueError, match=r"lungs: the grid \(6, 6, 6\) of \(3.0, 3.0, 3.0\) mm shows no lung"):
        shifted.draw(generators(1), grid, CPU)
    pair = replace(LUNGS, key_points=3000).draw(generators(1), GRID, CPU)
    assert pair.landmarks.shape == (1, 3000, 3)


def test_it_is_found_by_its_name() -> None:
    assert source_named("lungs", 3) == Lungs() and source_named("lungs", 2) == Lungs(ndim=2)
    assert source_named({"name": "lungs", "motion": [5, 9], "split": "test"}, 3) == Lungs(motion=(5, 9), split="test")


@pytest.mark.parametrize(("arguments", "told"), [
    ({"ndim": 4}, "lungs: ndim is 4"), ({"split": "val"}, "lungs: split is 'val'"), ({"patients": 0}, "patients is 0"),
    ({"bank_spacing": 0.0}, "bank_spacing is 0.0 mm"), ({"fixed": "T00"}, "fixed is 'T00'; it must be one of inhale"),
    ({"motion": (30.0, 10.0)}, r"motion is \(30.0, 10.0\) mm; give the least and the largest"),
    ({"motion": (0.0, 90.0)}, r"motion is \(0.0, 90.0\)"), ({"motion": (5.0,)}, r"motion is \(5.0,\)"),
    ({"expansion": -1.0}, r"expansion is -1.0; it must lie in \[0, 20\]"), ({"lobes": 30.0}, "lobes is 30.0"),
    ({"bending": float("nan")}, "bending is nan"), ({"mm": -1.0}, "mm is -1.0"), ({"degrees": 90.0}, "degrees is 90"),
    ({"stretch": 0.5}, "stretch is 0.5"), ({"key_points": 0}, "key_points is 0; at least one"),
])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Lungs(**arguments)


def test_a_grid_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lungs: it makes 3D images, but the grid is 2D \(96, 96\)"):
        LUNGS.draw(generators(1), FLAT, CPU)
