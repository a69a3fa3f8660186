"""Greedy registration: known deformations, the half-voxel bias, inverses, batches, and its coarse-to-fine neighbour."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regagents.classical.convexadam import AdamInstance
from regagents.classical.deformable import Demons
from regagents.classical.greedy import SETTINGS, Greedy
from regagents.classical.levels import AdamLevels
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from regenv.ops.regularity import folding
from regenv.ops.smoothing import gaussian
from regenv.ops.warp import compose, warp_dense

SHAPES = pytest.mark.parametrize("shape", [(60, 64), (24, 28, 26)], ids=["2D", "3D"])
MARGIN = 4      # voxels at the border, where the answer has left the image
QUICK = Greedy(strides=(2, 1), iterations=(30, 30))


def texture(shape: tuple[int, ...], lanes: int = 1) -> Tensor:
    """Smooth images (lanes, 1, *shape) with structure everywhere."""
    noise = torch.randn(lanes, 1, *shape, generator=torch.Generator().manual_seed(3))
    smooth = gaussian(noise, 1.5)
    return smooth / smooth.std()


def pair(shape: tuple[int, ...], lanes: int = 1, size: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed and moving images, and the displacement that aligns them, of up to ``size`` voxels."""
    moving = texture(shape, lanes)
    noise = torch.randn(lanes, len(shape), *shape, generator=torch.Generator().manual_seed(5))
    field = gaussian(noise, 6.0)
    field = size * field / field.abs().flatten(1).amax(1).view(-1, *(1,) * (field.ndim - 1))
    return warp_dense(moving, field, padding="border"), moving, field


def inner(values: Tensor) -> Tensor:
    return values[(slice(None), slice(None), *(slice(MARGIN, -MARGIN),) * (values.ndim - 2))]


def apart(found: Tensor, field: Tensor) -> float:
    """Mean distance, voxels, away from the border."""
    return float(inner(found - field).square().sum(1).sqrt().mean())


@SHAPES
@pytest.mark.parametrize(("measure", "share"), [("lncc", 0.15), ("mse", 0.25), ("mind", 0.75)])
def test_a_known_deformation_is_found_without_folds(shape: tuple[int, ...], measure: str, share: float) -> None:
    fixed, moving, field = pair(shape)
    found = replace(QUICK, measure=measure).solve(fixed, moving)
    assert apart(found, field) < share * apart(torch.zeros_like(field), field)
    assert float(folding(found)) < 0.005


@SHAPES
def test_a_gain_an_offset_and_a_shading_of_one_image_change_little(shape: tuple[int, ...]) -> None:
    fixed, moving, field = pair(shape)
    shading = torch.linspace(0.5, 1.5, shape[-1])
    found = QUICK.solve(fixed, 7 - 3 * moving * shading)
    assert apart(found, field) < 0.5 * apart(torch.zeros_like(field), field)


@SHAPES
def test_a_shift_is_found_to_a_hundredth_of_a_voxel_on_either_side(shape: tuple[int, ...]) -> None:
    """By forward differences the first steps lie half a voxel off, and shifts to the two sides end differently."""
    wide = texture(tuple(n + 8 for n in shape))

    def seen(at: float) -> Tensor:
        field = torch.zeros(1, len(shape), *wide.shape[2:])
        field[:, 0] = at
        return inner(warp_dense(wide, field, padding="border")).contiguous()

    ends = []
    for sign in (-1, 1):
        found = replace(QUICK, iterations=(40, 40)).solve(seen(0.5 * sign), seen(0.0))
        ends.append(float(inner(found)[:, 0].mean()))
    assert ends[1] == pytest.approx(0.5, abs=0.02) and ends[0] == pytest.approx(-0.5, abs=0.02)
    assert ends[0] + ends[1] == pytest.approx(0, abs=0.01)


def test_images_that_agree_stay_where_they_are() -> None:
    image = texture((40, 44))
    assert float(QUICK.solve(image, image).abs().max()) < 1e-3


def test_it_is_nearer_than_demons_where_contrast_varies() -> None:
    fixed, moving, field = pair((28, 30, 27), size=3.5)
    grid = Grid.centered((28, 30, 27), 1.0)
    uneven = moving * torch.linspace(0.6, 1.4, 27) + 0.3
    demons = Demons(smoothing=1.0).register(framed(fixed[0, 0].numpy(), grid), framed(uneven[0, 0].numpy(), grid))
    assert apart(QUICK.solve(fixed, uneven), field) < 0.6 * apart(torch.from_numpy(demons)[None], field)


@SHAPES
def test_lanes_do_not_know_of_each_other(shape: tuple[int, ...]) -> None:
    fixed, moving, _ = pair(shape, lanes=3)
    fixed[1] = moving[1]                # this lane ends early
    solver = replace(QUICK, iterations=(12, 26), tolerance=1e-2)
    together = solver.solve(fixed, moving)
    for lane in range(3):
        assert torch.equal(together[lane:lane + 1], solver.solve(fixed[lane:lane + 1], moving[lane:lane + 1]))


@SHAPES
def test_the_inverse_undoes_the_field(shape: tuple[int, ...]) -> None:
    fixed, moving, _ = pair(shape)
    found, inverse = QUICK.solve_both(fixed, moving)
    assert torch.equal(found, QUICK.solve(fixed, moving))
    assert float(inner(found).abs().max()) > 0.5
    for round_trip in (compose(found, inverse), compose(inverse, found)):
        assert float(inner(round_trip).abs().mean()) < 0.01 and float(inner(round_trip).abs().max()) < 0.2


def test_it_continues_from_a_field_and_keeps_its_detail() -> None:
    fixed, moving, field = pair((60, 64))
    still = replace(QUICK, iterations=(0, 0)).solve(fixed, moving, initial=field)
    assert torch.allclose(still, field, atol=1e-5)
    fewer = replace(QUICK, iterations=(0, 3))
    assert apart(fewer.solve(fixed, moving, initial=field), field) < 0.5 * apart(fewer.solve(fixed, moving), field)


def test_masks_say_where_the_images_count() -> None:
    fixed, moving, field = pair((60, 64))
    spoiled = fixed.clone()
    spoiled[..., 34:] = texture((60, 30)) + 3
    mask = torch.ones_like(fixed, dtype=torch.bool)
    mask[..., 34:] = False
    found = QUICK.solve(spoiled, moving, mask, torch.ones_like(mask))
    left = (..., slice(MARGIN, -MARGIN), slice(MARGIN, 30))
    assert float((found - field)[left].abs().mean()) < 0.1 * float(field[left].abs().mean()) + 0.05
    nowhere = QUICK.solve(fixed, moving, torch.zeros_like(mask), mask)
    assert not nowhere.any()


def test_labels_alone_move_what_the_images_do_not_show() -> None:
    blank = torch.zeros(1, 1, 48, 50)
    axes = torch.meshgrid(torch.arange(48.0), torch.arange(50.0), indexing="ij")

    def disc(y: float) -> Tensor:
        return (((axes[0] - y) ** 2 + (axes[1] - 25) ** 2) < 100).long()[None, None]

    labels = disc(22), disc(26)
    found = QUICK.solve(blank, blank, labels=labels)
    warped = warp_dense(labels[1].float(), found) > 0.5
    assert float((warped ^ (labels[0] > 0)).sum()) < 0.1 * float((labels[0] ^ labels[1]).sum())
    assert not QUICK.solve(blank, blank).any()


def test_it_registers_images_of_simpleitk_like_every_field_method() -> None:
    fixed, moving, field = pair((60, 64))
    grid = Grid.centered((60, 64), 2.0)
    found = QUICK.register(framed(fixed[0, 0].numpy(), grid), framed(moving[0, 0].numpy(), grid))
    assert apart(torch.from_numpy(found)[None], field) < 0.3 * apart(torch.zeros_like(field), field)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_register_images_of_a_few_voxels_too(name: str) -> None:
    small = texture((9, 8, 12))
    assert SETTINGS[name].solve(small, small.roll(1, 3)).isfinite().all()
    assert SETTINGS[name].bytes_per_voxel > 100


@pytest.mark.parametrize(("settings", "told"), [
    ({"strides": (2, 4)}, "multiple"), ({"strides": (3, 2)}, "multiple"), ({"strides": (4,)}, "every level"),
    ({"strides": (), "iterations": ()}, "every level"), ({"iterations": (1, -1)}, "iterations"),
    ({"measure": "nmi"}, "measure is 'nmi'"), ({"window": 4}, "window is 4"), ({"step": 0.0}, "step is 0"),
    ({"smoothing": -1.0}, "smoothing is -1"), ({"regularity": float("nan")}, "regularity is nan"),
])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(QUICK, **settings)


def test_images_that_do_not_fit_together_are_refused() -> None:
    image = texture((20, 22))
    for given in ((image, image[..., 1:]), (image, image, image[..., 1:]), (image, image, None, None, image)):
        with pytest.raises(ValueError, match="Greedy: the"):
            QUICK.solve(*given)
    with pytest.raises(ValueError, match="labels"):
        QUICK.solve(image, image, labels=(image, image))


def test_adam_from_coarse_to_fine_needs_fewer_iterations_on_the_fine_level() -> None:
    fixed, moving, field = pair((96, 104), size=6.0)
    levels = AdamLevels().solve(fixed, moving)
    assert apart(levels, field) < 0.5 * apart(torch.zeros_like(field), field)
    assert apart(levels, field) < apart(AdamInstance(iterations=20).solve(fixed, moving), field)
    with pytest.raises(ValueError, match="AdamLevels: strides"):
        AdamLevels(strides=(3, 2))
    with pytest.raises(ValueError, match="every level"):
        AdamLevels(iterations=(40,))
