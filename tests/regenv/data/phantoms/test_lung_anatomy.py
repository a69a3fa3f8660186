"""What is true of painted chests: lungs, heart, spine and vessels where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from regenv.data.phantoms.lung_anatomy import within_lung
from regenv.data.sources.lungs import lung_patient

PATIENTS, COARSE_MM, FINE_MM = 2, 5.2, 2.5
LITRES = (2.0, 6.5)


# ------------------------------------------------------------------------------------------------------------- anatomy

@pytest.mark.parametrize("split", ["train", "test"])
def test_lungs_are_as_large_as_lungs_and_lie_where_they_belong(split: str) -> None:
    """Two lungs about the origin, the spine behind and between them, the heart left of the middle, air in the
    trachea."""
    for index in range(PATIENTS):
        patient = lung_patient(split, index, COARSE_MM, "cpu")
        wall, tissue, air, _ = patient.volumes.float().numpy()
        world = patient.grid.to_world(np.stack(np.meshgrid(*map(np.arange, patient.grid.shape), indexing="ij"), -1))
        inside = within_lung(patient.chest, world.reshape(-1, 3)).reshape(tissue.shape) > 0
        x, y, z = (world[..., axis] for axis in range(3))
        litres = [inside[x * side > 0].sum() * COARSE_MM**3 / 1e6 for side in (-1, 1)]
        assert LITRES[0] < sum(litres) < LITRES[1] and 0.6 < litres[1] / litres[0] < 1.2
        assert np.abs(world[inside].mean(0)).max() < 25
        assert 0.08 < np.median(tissue[inside]) < 0.2 and np.median(air[inside]) > 0.9
        column = (np.abs(x) < 12) & (np.abs(z) < 60) & (wall > 0.78) & (y > 0)
        assert column.sum() > 50 and world[column][:, 1].mean() > world[inside][:, 1].mean() + 40
        hx, hy, hz = patient.chest.heart[:3]
        heart = tissue[(np.abs(x - hx) < 15) & (np.abs(y - hy) < 15) & (np.abs(z - hz) < 15)]
        assert hx > 0 and 0.6 < heart.mean() < 0.8
        assert tissue[(np.abs(x) < 8) & (np.abs(z - 85) < 12) & (np.abs(y - 14) < 10)].min() < 0.2


def test_vessels_branch_down_to_millimetres_and_carry_the_key_points() -> None:
    patient = lung_patient("train", 0, FINE_MM, "cpu")
    tissue = patient.volumes[1].float().numpy()
    points = patient.points
    assert len(points) > 3000 and within_lung(patient.chest, points).min() > 4.9
    at_points = map_coordinates(tissue, patient.grid.to_voxel(points).T, order=1)
    beside = map_coordinates(tissue, patient.grid.to_voxel(points + np.array([0.0, 0.0, 9.0])).T, order=1)
    assert np.median(at_points) > 0.4 > 0.25 > np.median(beside)
    cells = np.unique((points // 30).astype(int), axis=0)
    inside = np.stack(np.meshgrid(*[np.arange(-135.0, 150, 30)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = inside[within_lung(patient.chest, inside) > 12]
    reached = {tuple(cell) for cell in cells.tolist()}
    assert np.mean([tuple(cell) in reached for cell in (inside // 30).astype(int).tolist()]) > 0.95


def test_no_patient_is_in_both_splits_and_all_differ() -> None:
    """In their vessels and in their lungs."""
    patients = [lung_patient(split, index, COARSE_MM, "cpu")
                for split in ("train", "test") for index in range(PATIENTS)]
    assert len({patient.chest for patient in patients}) == 2 * PATIENTS
    for channel, threshold, alike in ((1, 0.3, 0.4), (3, 0.5, 0.97)):
        masks = torch.stack([((patient.volumes[channel].float() > threshold) & (patient.volumes[3] > 0.5)).flatten()
                             for patient in patients])
        shared = (masks[:, None] & masks).sum(-1) / (masks[:, None] | masks).sum(-1)
        assert shared[~torch.eye(len(patients), dtype=torch.bool)].max() < alike


def test_a_patient_is_painted_once_and_reproducibly() -> None:
    arguments = ("train", 0, 6.4, "cpu")
    made = lung_patient(*arguments)
    again = lung_patient.__wrapped__(*arguments)
    assert lung_patient(*arguments) is made and again.chest == made.chest
    assert torch.equal(again.volumes, made.volumes) and np.array_equal(again.points, made.points)
    assert np.array_equal(lung_patient("train", 0, COARSE_MM, "cpu").points, made.points)
