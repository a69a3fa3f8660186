"""The learned optimiser on images of any extent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regagents.l2o.levels import moments_start
from regagents.registration.deformation import optimiser
from regenv.data.io.images import read_image, read_mask

ALONE_MM = 3.2


def box(*sides: tuple[int, int], shape: tuple[int, ...] = (40, 30, 20)) -> torch.Tensor:
    mask = torch.zeros(1, 1, *shape)
    mask[(..., *(slice(*side) for side in sides))] = 1
    return mask


def test_the_start_maps_one_box_onto_another() -> None:
    """A box's deviation is that of evenly spaced voxels, sqrt((n^2 - 1) / 12)."""
    u = moments_start(box((10, 20), (5, 15), (8, 14)), box((14, 24), (5, 18), (3, 9)))
    places = torch.arange(40.0)
    torch.testing.assert_close(u[0, 0, :, 0, 0], torch.full_like(places, 4.0))
    torch.testing.assert_close(u[0, 2, 0, 0], torch.full((20,), -5.0))
    stretch = ((13**2 - 1) / (10**2 - 1)) ** 0.5
    along = torch.arange(30.0)
    torch.testing.assert_close(u[0, 1, 0, :, 0], 11 + (along - 9.5) * stretch - along)


def test_without_a_mask_nothing_moves() -> None:
    everywhere, nowhere = torch.ones(1, 1, 8, 9, 10), torch.zeros(1, 1, 8, 9, 10)
    for masks in ((everywhere, everywhere), (everywhere, nowhere), (nowhere, everywhere)):
        assert not moments_start(*masks).any()


@pytest.mark.slow
def test_the_network_alone_registers_real_lungs_in_either_direction(shared_data: Path) -> None:
    """Ten landmark pairs, 5.3 mm apart when the lungs' middles agree; elastix's affine registration leaves 4.6 to 5.3.
    Nothing refines what the network finds."""
    stem = f"{shared_data}/lung_ct/3DCT_lung_"
    names = ["baseline", "followup"]
    for order in (names, names[::-1]):
        images = [read_image(f"{stem}{name}.mha") for name in order]
        masks = [read_mask(f"{stem}{name}_mask.mha") for name in order]
        points = [image.grid.to_world(np.loadtxt(f"{stem}{name}.txt", skiprows=2)[:, ::-1])
                  for name, image in zip(order, images, strict=True)]
        middles = [mask.grid.to_world(np.argwhere(mask.array > 0).astype(float)).mean(0) for mask in masks]
        pose = np.eye(4)
        pose[:3, 3] = middles[1] - middles[0]
        found = optimiser("lung3d-l2o", 3, refine=False).register(images[0], images[1], pose, (masks[0], masks[1]))
        through = found.through(pose)
        moved = np.array([through.TransformPoint(point) for point in points[0].tolist()])
        assert np.linalg.norm(moved - points[1], axis=1).mean() < ALONE_MM
        assert found.folding < 2e-3        # 0.12 % in one of the two
