"""Pairs of different subjects from the user's own collections, resampled once to the environment's grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.io.analyze import SUFFIXES as TWO_FILES
from regenv.data.io.analyze import two_files
from regenv.data.io.images import Image, ImageError, normalize, read_image, read_labels, read_mask
from regenv.data.io.resampling import framed, resampled
from regenv.data.layouts.brains_and_livers import LAYOUTS as GENERAL
from regenv.data.layouts.brains_and_livers import Collection, Scan
from regenv.data.layouts.lungs import LAYOUTS as OF_LUNGS
from regenv.data.layouts.lungs import read_raw
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import check_grid, unknown_pair
from regenv.grid import Grid

LAYOUTS = {**GENERAL, **OF_LUNGS}

_BLUR = 0.35            # of the grid's spacing, against aliasing
_THINNEST = 4           # voxels along an axis, for ITK's recursive filters
_TOLERANCES = {"shape": 0, "spacing": 1e-3, "direction": 1e-3, "origin": 0.1}   # of segmentations; voxels, mm, 1, mm


@dataclass(frozen=True)
class FolderPairs:
    """Pairs of different subjects of a collection: ``{"name": "folder", "layout": "lits", "folder": "LiTS/train"}``.

    Every scan is read once, on the first draw, resampled to the environment's grid, whose middle comes to the middle of
    the image and whose spacing is kept, and held in memory: 6 bytes a voxel, 1.6 GB for 131 scans of 128 x 128 x 128.
    On a 2D grid a 3D scan shows the axial slice at ``level``. Images are not aligned otherwise: SPAC wants them
    affinely aligned before.

    Args:
        ndim: 2 or 3.
        layout: "lpba40", "subjects" (ADNI, ABIDE, ADHD and the like), "lits", "sliver" or "learn2reg", see
            :mod:`regenv.data.collections`; "dirlab-4dct", "dirlab-copd" or "empire10", see
            :mod:`regenv.data.lung_layouts`.
        folder: of the collection.
        cases: names of the subjects to use; default all. So is a collection parted into training and test.
        atlas: name of the subject of all fixed images; default any. SPAC's on LPBA40 is "S01".
        level: height of the slices over the image's middle, mm.
        window: intensities shown as 0 and 1, such as (-160, 240) HU for livers; default percentiles of each image.
        options: further arguments of the layout: ``{"split": "val"}``, ``{"labels": "aseg"}``.

    Raises:
        ValueError: an argument is unknown or out of range.
        ImageError: on the first draw, the folder is not of the layout, a case is unknown, a file cannot be used, or
            labels lie on another grid than their image, or the key-points of a pair differ in number.
    """

    ndim: int
    layout: str
    folder: str
    cases: tuple[str, ...] | None = None
    atlas: str | None = None
    level: float = 0.0
    window: tuple[float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.ndim not in (2, 3):
            raise ValueError(f"folder: ndim is {self.ndim}; it must be 2 or 3.")
        if self.layout not in LAYOUTS:
            raise ValueError(f"folder: layout is {self.layout!r}; it must be one of {', '.join(LAYOUTS)}.")
        if self.window is not None and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise ValueError(f"folder: window is {self.window}; give the intensities shown as 0 and as 1, in this "
                             "order.")
        if not math.isfinite(self.level):
            raise ValueError(f"folder: level is {self.level} mm; it must be finite.")

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource; ``difficulty`` changes nothing."""
        check_grid("folder", self.ndim, grid)
        loaded = _loaded(self, grid)
        chosen = torch.tensor([loaded.pairs[rng.integers(len(loaded.pairs))] for rng in rngs])

        def side(tensor: Tensor | None, which: int) -> Tensor | None:
            return None if tensor is None else tensor[chosen[:, which]]

        return unknown_pair(grid, loaded.images[chosen[:, 0]], loaded.images[chosen[:, 1]], side(loaded.labels, 0),
                            side(loaded.labels, 1), side(loaded.points, 0), side(loaded.points, 1)).to(device)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A collection on one grid: images (S, 1, *shape) float32, labels (S, 1, *shape) int16 or None, points (S, N, D)
    float64, mm, or None, and the pairs, indices of fixed and moving scan."""

    images: Tensor
    labels: Tensor | None
    points: Tensor | None
    pairs: tuple[tuple[int, int], ...]


@lru_cache(maxsize=2)
def _loaded(source: FolderPairs, grid: Grid) -> Loaded:
    collection = LAYOUTS[source.layout](source.folder, **source.options)
    scans, pairs = _chosen(source, collection)
    images, labels, points = zip(*(_shown(scan, source, grid, collection.merged) for scan in scans), strict=True)
    for fixed, moving in pairs if collection.pairs is not None else ():
        _check_rows(scans[fixed], scans[moving], points[fixed], points[moving])
    return Loaded(torch.from_numpy(np.stack(images)), None if labels[0] is None else torch.from_numpy(np.stack(labels)),
                  _as_many(points), pairs)


def _chosen(source: FolderPairs, collection: Collection) -> tuple[tuple[Scan, ...], tuple[tuple[int, int], ...]]:
    """The scans of ``cases`` and ``atlas``, and all pairs of them."""
    names = [scan.name for scan in collection.scans]
    wanted = set(names if source.cases is None else source.cases) | ({source.atlas} if source.atlas else set())
    for name in wanted:
        if name not in names:
            raise ImageError(f"{source.folder}: case {name!r} is missing; the folder has {', '.join(names)}. Check "
                             "cases=... and atlas=...")
    scans = tuple(scan for scan in collection.scans if scan.name in wanted)
    index = {scan.name: i for i, scan in enumerate(scans)}
    every = collection.pairs if collection.pairs is not None else itertools.permutations(index, 2)
    pairs = tuple((index[fixed], index[moving]) for fixed, moving in every
                  if fixed in index and moving in index and source.atlas in (None, fixed))
    if not pairs:
        raise ImageError(f"{source.folder}: number of pairs is 0 among {', '.join(index)}; at least one is needed. "
                         "Check cases=... and atlas=...")
    return scans, pairs


def _shown(scan: Scan, source: FolderPairs, grid: Grid, merged: bool
           ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Image (1, *shape), labels (1, *shape) and points (N, D) of a scan on the environment's grid."""
    image = _read(read_image, scan.image) if scan.raw is None else read_raw(scan.image, scan.raw)
    if image.ndim < grid.ndim:
        raise ImageError(f"{image.path}: image is {image.ndim}D; this environment needs {grid.ndim}D images.")
    values = normalize(image.array) if source.window is None else _windowed(image.array, source.window)
    if scan.mask is not None:
        values = np.where(_like(_read(read_mask, scan.mask), image).array > 0, values, 0)
    like, pull_back = _placed(image, source, grid)
    smooth = Image(_antialiased(values, image.grid, grid), image.grid, image.path)
    shown = resampled(smooth, like, pull_back).array.clip(0, 1).reshape(1, *grid.shape)
    labels = None
    if scan.labels is not None:
        found = _read(read_labels, scan.labels)
        found = _like(found if scan.raw is None else replace(found, grid=_same_voxels(found, scan.raw)), image)
        on_grid = resampled(found, like, pull_back, sitk.sitkNearestNeighbor).array.reshape(1, *grid.shape)
        labels = (on_grid > 0 if merged else on_grid).astype(np.int16)
    points = None
    if scan.keypoints is not None:
        points = (_keypoints(scan.keypoints, image, scan.first) - pull_back[:image.ndim, image.ndim])[:, :grid.ndim]
    return shown, labels, points


def _read(reader: Any, path: Path) -> Image:
    return two_files(reader, path) if path.name.lower().endswith(TWO_FILES) else reader(path)


def _like(labels: Image, image: Image) -> Image:
    """Labels that lie on their image's grid. Raises ImageError where they do not."""
    for name, tolerance in _TOLERANCES.items():
        values = getattr(labels.grid, name), getattr(image.grid, name)
        if len(values[0]) != len(values[1]) or not np.allclose(*values, rtol=0, atol=tolerance):
            raise ImageError(f"{labels.path}: {name} is {values[0]}, but {values[1]} in its image {image.path}; they "
                             "must lie on one grid. Resample the labels, or fix the header.")
    return labels


def _same_voxels(labels: Image, grid: Grid) -> Grid:
    """The grid of an image without a header, where its labels have as many voxels. Raises ImageError if not."""
    if labels.array.shape != grid.shape:
        raise ImageError(f"{labels.path}: shape is {labels.array.shape}, but {grid.shape} in its image; they must have "
                         "the same voxels. Make the mask on the image as it comes.")
    return grid


def _placed(image: Image, source: FolderPairs, grid: Grid) -> tuple[Grid, np.ndarray]:
    """The environment's grid in the image's dimension, and the translation that brings its middle to the image's."""
    n = image.ndim
    shift, like = np.array(image.grid.center) - np.append(grid.center, np.zeros(n - grid.ndim)), grid
    if n > grid.ndim:
        direction = np.eye(3)
        direction[:2, :2] = np.reshape(grid.direction, (2, 2))
        like = Grid((1, *grid.shape), (*grid.spacing, 1.0), (*grid.origin, 0.0), tuple(direction.ravel().tolist()))
        shift[2] += source.level
    pull_back = np.eye(n + 1)
    pull_back[:n, n] = shift
    return like, pull_back


def _windowed(array: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return np.clip((array - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)


def _antialiased(values: np.ndarray, own: Grid, grid: Grid) -> np.ndarray:
    """Smoothed where the environment's grid is coarser."""
    sigmas = [_BLUR * math.sqrt(max(0.0, min(grid.spacing) ** 2 - s**2)) for s in own.spacing]
    if max(sigmas) == 0 or min(own.shape) < _THINNEST:
        return values.astype(np.float32)
    smooth = sitk.SmoothingRecursiveGaussian(framed(values.astype(np.float32), own), [max(s, 1e-3) for s in sigmas])
    return sitk.GetArrayFromImage(smooth)


def _keypoints(path: Path, image: Image, first: int) -> np.ndarray:
    """World points (N, D), mm, of rows of voxel indices x, y[, z] that count from ``first``."""
    try:
        rows = np.loadtxt(path, delimiter="," if path.suffix.lower() == ".csv" else None, ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: key-points cannot be read ({error}). Give a CSV of voxel indices x, y, z without a "
                         "header.") from error
    if rows.size == 0 or rows.shape[1] != image.ndim or not np.isfinite(rows).all():
        raise ImageError(f"{path}: key-points are {rows.shape[0]} x {rows.shape[1]}; rows of {image.ndim} finite voxel "
                         "indices are needed. Check the export.")
    return image.grid.to_world(rows[:, ::-1] - first)


def _check_rows(fixed: Scan, moving: Scan, landmarks: np.ndarray | None, targets: np.ndarray | None) -> None:
    """Raise ImageError unless a pair's key-points are as many."""
    if landmarks is not None and targets is not None and len(landmarks) != len(targets):
        raise ImageError(f"{moving.keypoints}: number of key-points is {len(targets)}, but {len(landmarks)} in "
                         f"{fixed.keypoints}; row n of one must answer to row n of the other. Copy both again.")


def _as_many(points: Sequence[np.ndarray | None]) -> Tensor | None:
    """Key-points (S, N, D), those of scans with fewer repeated in turn; None without any."""
    given = [each for each in points if each is not None]
    if not given:
        return None
    most = max(map(len, given))
    return torch.from_numpy(np.stack([each[np.arange(most) % len(each)] for each in given]))
