"""What is true of painted abdomens: a whole liver where it belongs, with vessels and lesions, each patient its own."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.data.sources.livers import painted_livers
from regenv.grid import Grid

PATIENTS, BANK_MM = 12, 8.0
VOLUME_ML = (350, 2600)
CHANNELS = {name: i for i, name in enumerate(("tissue", "blood", "liver"))}


def painted(split: str = "train") -> tuple[np.ndarray, Grid]:
    bank = painted_livers(split, PATIENTS, BANK_MM, "cpu")
    return bank.volumes.numpy(), bank.grid


# ------------------------------------------------------------------------------------------------------------- anatomy

@pytest.mark.parametrize("split", ["train", "test"])
def test_livers_are_whole_and_as_large_as_livers(split: str) -> None:
    volumes, grid = painted(split)
    livers = volumes[:, CHANNELS["liver"]] >= 0.5
    millilitres = livers.sum((1, 2, 3)) * np.prod(grid.spacing) / 1000
    assert millilitres.min() > VOLUME_ML[0] and millilitres.max() < VOLUME_ML[1]
    assert 900 < millilitres.mean() < 1600 and millilitres.std() > 200
    for liver in livers:
        pieces = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(liver.astype(np.uint8))))
        assert (sitk.GetArrayFromImage(pieces) == 1).sum() > 0.98 * liver.sum()
        for axis in range(3):
            assert not np.take(liver, [0, -1], axis).any()


def test_the_liver_lies_where_it_belongs() -> None:
    """Under the lungs, on the patient's right of the spine (-x), in front of it (-y), about the origin."""
    volumes, grid = painted()
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    centers = []
    for patient in volumes:
        tissue, liver = patient[CHANNELS["tissue"]], patient[CHANNELS["liver"]] >= 0.5
        center = world[liver].mean(0)
        bone = (tissue > 0.62) & (np.abs(world[..., 0] - 48) < 30) & (np.abs(world[..., 1] - 56) < 30)
        inside = (tissue > 0.02) & (tissue < 0.2) & (np.abs(world[..., 0]) < 110) & (np.abs(world[..., 1]) < 60)
        lung = inside & (world[..., 2] > 70)
        spine = world[bone].mean(0)
        centers.append(center)
        assert center[0] < spine[0] - 25 and center[1] < spine[1] - 20
        assert lung.sum() > 100 and world[lung][:, 2].mean() > center[2] + 60
        assert abs(float(np.median(tissue[liver])) - 0.56) < 0.02 and tissue[liver].min() > 0.3
    assert np.abs(np.mean(centers, axis=0)).max() < 20 and np.abs(centers).max() < 50


def test_vessels_carry_contrast_agent_and_lesions_do_not() -> None:
    volumes, _ = painted()
    blood = [patient[CHANNELS["blood"]][patient[CHANNELS["liver"]] > 0.9] for patient in volumes]
    assert all(0.2 < np.median(each) < 0.3 for each in blood)
    assert all((each > 0.45).mean() > 0.02 for each in blood)
    assert sum((each < 0.15).mean() > 0 for each in blood) >= PATIENTS // 3


def test_no_patient_is_in_both_splits_and_all_differ() -> None:
    livers = np.concatenate([painted(split)[0][:, CHANNELS["liver"]] for split in ("train", "test")])
    flat = livers.reshape(2 * PATIENTS, -1)
    apart = np.abs(flat[:, None] - flat).sum(-1) / flat.sum(-1)
    assert apart[~np.eye(2 * PATIENTS, dtype=bool)].min() > 0.15


def test_the_bank_is_painted_once_and_reproducibly() -> None:
    arguments = ("test", 2, 12.0, "cpu")
    made = painted_livers(*arguments)
    assert painted_livers(*arguments) is made
    assert torch.equal(painted_livers.__wrapped__(*arguments).volumes, made.volumes)
