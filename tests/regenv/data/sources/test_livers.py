"""What is true of pairs of livers: as hard to align as asked, labels and images together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.livers import LIVER, Livers
from regenv.grid import Grid
from regenv.ops.overlap import dice
from tests.regenv.data.drawing import CPU, generators, tensors

GRID = Grid.centered((30, 32, 36), 8.0)
PATIENTS, BANK_MM = 12, 8.0
LIVERS = Livers(patients=PATIENTS, bank_spacing=BANK_MM)
BEFORE = (0.55, 0.75)           # mean Dice before registration


def overlap(pair: PairBatch) -> Tensor:
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    return dice(pair.fixed_labels, pair.moving_labels, (LIVER,))[:, 0]


# --------------------------------------------------------------------------------------------------------------- pairs

@pytest.mark.parametrize("split", ["train", "test"])
def test_as_hard_as_asked_and_harder_with_difficulty(split: str) -> None:
    source = Livers(split, patients=PATIENTS, bank_spacing=BANK_MM)
    easy, hard = (overlap(source.draw(generators(60), GRID, CPU, difficulty)) for difficulty in (0.0, 1.0))
    assert BEFORE[0] < float(hard.mean()) < BEFORE[1] and float(hard.min()) > 0.2
    assert float(easy.mean()) > float(hard.mean()) + 0.02


def test_the_deformation_is_unknown_and_all_lies_on_one_grid() -> None:
    assert isinstance(LIVERS, PairSource) and LIVERS.ndim == 3
    pair = LIVERS.draw(generators(3), GRID, CPU)
    assert pair.fixed.shape == pair.moving.shape == pair.fixed_labels.shape == (3, 1, *GRID.shape)
    assert pair.fixed.dtype == torch.float32 and pair.moving_labels.dtype == torch.int16
    assert pair.fixed.isfinite().all() and pair.fixed.min() >= 0 and pair.moving.max() <= 1
    assert set(pair.fixed_labels.unique().tolist()) == {0, LIVER}
    assert not pair.known.any() and pair.targets is None and pair.landmarks is None
    eye = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(pair.truth, eye)
    torch.testing.assert_close(pair.world_to_moving @ pair.fixed_to_world, eye)


@pytest.mark.parametrize("part", [{"mm": 20.0}, {"degrees": 15.0}, {"stretch": 0.15}, {"bending": 20.0}])
def test_every_part_of_a_pose_moves_the_liver(part: dict[str, float]) -> None:
    still = {"mm": 0.0, "degrees": 0.0, "stretch": 0.0, "bending": 0.0}
    lanes, shown = generators(8), []
    for arguments in (still, {**still, **part}):
        source = Livers(patients=PATIENTS, bank_spacing=BANK_MM, **arguments)
        shown.append(source.draw(generators(len(lanes)), GRID, CPU))
    assert torch.equal(shown[0].fixed_labels, LIVERS.draw(lanes, GRID, CPU, 0.0).fixed_labels)
    for side in ("fixed_labels", "moving_labels"):
        kept = dice(getattr(shown[0], side), getattr(shown[1], side), (LIVER,))
        assert 0.5 < float(kept.mean()) < 0.95


def test_labels_belong_to_their_images() -> None:
    """In its bounding box the liver is the brighter part, by and large; shifted labels fit worse."""
    pair = LIVERS.draw(generators(8), GRID, CPU)
    for image, labels in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)):
        for values, mask in zip(image[:, 0], labels[:, 0] > 0, strict=True):
            spread = [values[torch.roll(mask, shift, (0, 1, 2))].std() for shift in ((0, 0, 0), (2, 2, 2), (0, -3, 3))]
            assert spread[0] < 0.75 * min(spread[1:])


def test_two_images_of_a_pair_differ_in_contrast() -> None:
    pair = LIVERS.draw(generators(30), GRID, CPU)
    means = torch.stack([(image * labels).sum((1, 2, 3, 4)) / labels.sum((1, 2, 3, 4)) for image, labels in
                         ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels))])
    assert float((means[0] - means[1]).abs().mean()) > 0.02 and 0.45 < float(means.min()) < float(means.max()) < 0.85


@pytest.mark.parametrize("grid", [Grid.centered((24, 30, 26), (11.0, 9.0, 12.0), (40.0, -30.0, 15.0)),
                                  Grid.centered((48, 48, 48), 6.0)])
def test_any_grid_shows_the_liver_in_its_middle(grid: Grid) -> None:
    pair = LIVERS.draw(generators(6), grid, CPU, 0.0)
    voxels = torch.nonzero(pair.fixed_labels[:, 0])[:, 1:].double().mean(0)
    assert np.abs(grid.to_world(voxels.numpy()) - grid.center).max() < 30
    assert float(pair.fixed_labels.sum()) / 6 * np.prod(grid.spacing) / 1000 == pytest.approx(1200, rel=0.45)


def test_a_draw_is_reproducible_and_a_lane_independent() -> None:
    many, again = (tensors(LIVERS.draw(generators(3), GRID, CPU, 0.8)) for _ in range(2))
    assert all(torch.equal(many[key], again[key]) for key in many)
    for lane in range(3):
        one = tensors(LIVERS.draw(generators(1, lane), GRID, CPU, 0.8))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


@pytest.mark.parametrize(("arguments", "told"), [
    ({"split": "val"}, "livers: split is 'val'"), ({"patients": 1}, "patients is 1; a pair needs at least 2"),
    ({"bank_spacing": 0.0}, "bank_spacing is 0.0 mm"), ({"mm": -1.0}, r"mm is -1.0; it must lie in \[0, 100\]"),
    ({"degrees": 90.0}, "degrees is 90.0"), ({"stretch": 0.5}, "stretch is 0.5"),
    ({"bending": 30.0}, r"bending is 30.0 mm; it must lie in \[0, 25.6\]"), ({"knots": float("inf")}, "knots is inf"),
])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Livers(**arguments)


def test_a_2d_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"livers: it makes 3D images, but the grid is 2D \(64, 64\)"):
        LIVERS.draw(generators(1), Grid.centered((64, 64), 4.0), CPU)
