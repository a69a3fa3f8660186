"""Pairs of different subjects from public collections on the user's disk, resampled once to the environment's grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regenv.data.io.images import Image, ImageError, normalize, read_image, read_labels, read_mask
from regenv.data.io.labels import check_labels
from regenv.data.io.resampling import antialiased, framed, matrix_to_sitk, resampled_labels, sampled
from regenv.data.layouts.brains_and_livers import learn2reg, lits, lpba40, sliver, subject_folders
from regenv.data.layouts.common import Collection, Scan
from regenv.data.layouts.lungs import dirlab_4dct, dirlab_copd, empire10, read_raw
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import as_compact, check_grid, check_ndim, pair_on_grid, plane
from regenv.grid import Grid

LAYOUTS: Mapping[str, Callable[..., Collection]] = {
    "lpba40": lpba40, "subjects": subject_folders, "lits": lits, "sliver": sliver, "learn2reg": learn2reg,
    "dirlab-4dct": dirlab_4dct, "dirlab-copd": dirlab_copd, "empire10": empire10,
}


@dataclass(frozen=True)
class FolderPairs:
    """Pairs of different subjects of a collection: ``{"name": "folder", "layout": "lits", "folder": "LiTS/train"}``.

    Every scan is read once, on the first draw, resampled to the environment's grid and held in memory: 6 bytes per
    voxel, 1.6 GB for 131 scans of 128 x 128 x 128; 8 or 12 where labels have numbers beyond 16 or 32 bits. The grid's
    middle lies in the middle of the image, and its spacing is kept. On a 2D grid a 3D scan shows the axial slice at
    ``level``. Images are not aligned otherwise: SPAC needs images that have been aligned affinely before.

    Args:
        ndim: 2 or 3.
        layout: "lpba40", "subjects" (ADNI, ABIDE, ADHD and the like), "lits", "sliver" or "learn2reg", see
            :mod:`regenv.data.layouts.brains_and_livers`; "dirlab-4dct", "dirlab-copd" or "empire10", see
            :mod:`regenv.data.layouts.lungs`.
        folder: of the collection.
        cases: names of the subjects to use; default all. With it a collection is divided into training and test.
        atlas: name of the subject of all fixed images; default any. SPAC's on LPBA40 is "S01".
        level: height of the slices above the image's middle, mm.
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
        check_ndim("folder", self.ndim)
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

        return pair_on_grid(grid, loaded.images[chosen[:, 0]], loaded.images[chosen[:, 1]], side(loaded.labels, 0),
                            side(loaded.labels, 1), side(loaded.points, 0), side(loaded.points, 1)).to(device)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A collection on one grid.

    Attributes:
        images: (S, 1, *shape) float32.
        labels: (S, 1, *shape) int16 (int32 or int64 where their numbers need it), or None.
        points: (S, N, D) float64, mm, or None.
        pairs: indices of the fixed and the moving scan.
    """

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
    named = None if labels[0] is None else torch.stack(as_compact([torch.from_numpy(each) for each in labels]))
    return Loaded(torch.from_numpy(np.stack(images)), named, _as_many(points), pairs)


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
    image = read_image(scan.image) if scan.raw is None else read_raw(scan.image, scan.raw)
    if image.ndim < grid.ndim:
        raise ImageError(f"{image.path}: image is {image.ndim}D; this environment needs {grid.ndim}D images.")
    values = normalize(image.array) if source.window is None else _windowed(image.array, source.window)
    if scan.mask is not None:
        values = np.where(_on_grid_of(image, read_mask(scan.mask)).array > 0, values, 0)
    like, pull_back = _placed(image, source, grid)
    smooth = antialiased(framed(values, image.grid, np.float32), [min(grid.spacing)] * image.ndim)
    shown = sampled(smooth, like, matrix_to_sitk(pull_back)).clip(0, 1).reshape(1, *grid.shape)
    labels = None
    if scan.labels is not None:
        found = read_labels(scan.labels)
        found = _on_grid_of(image, found if scan.raw is None else replace(found, grid=_same_voxels(found, scan.raw)))
        on_grid = resampled_labels(found, like, pull_back).array.reshape(1, *grid.shape)
        labels = (on_grid > 0).astype(np.int16) if merged else on_grid
    points = None
    if scan.keypoints is not None:
        points = (_keypoints(scan.keypoints, image, scan.first) - pull_back[:image.ndim, image.ndim])[:, :grid.ndim]
    return shown, labels, points


def _on_grid_of(image: Image, labels: Image) -> Image:
    """The labels. Raises ImageError unless they lie on their image's grid."""
    check_labels(labels, image)
    return labels


def _same_voxels(labels: Image, grid: Grid) -> Grid:
    """The grid of an image without a header. Raises ImageError unless its labels have the same shape."""
    if labels.array.shape != grid.shape:
        raise ImageError(f"{labels.path}: shape is {labels.array.shape}, but {grid.shape} in its image; they must have "
                         "the same voxels. Make the mask on the image as it comes.")
    return grid


def _placed(image: Image, source: FolderPairs, grid: Grid) -> tuple[Grid, np.ndarray]:
    """The environment's grid in the image's dimension, and the translation (D+1, D+1) that centres it on the image."""
    n = image.ndim
    shift, like = np.array(image.grid.center) - np.append(grid.center, np.zeros(n - grid.ndim)), grid
    if n > grid.ndim:
        like = plane(grid)
        shift[2] += source.level
    pull_back = np.eye(n + 1)
    pull_back[:n, n] = shift
    return like, pull_back


def _windowed(array: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return np.clip((array - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)


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
    """Raise ImageError unless both scans of a pair have the same number of key-points."""
    if landmarks is not None and targets is not None and len(landmarks) != len(targets):
        raise ImageError(f"{moving.keypoints}: number of key-points is {len(targets)}, but {len(landmarks)} in "
                         f"{fixed.keypoints}; row n of one must correspond to row n of the other. Copy both again.")


def _as_many(points: Sequence[np.ndarray | None]) -> Tensor | None:
    """Key-points (S, N, D), those of scans with fewer repeated in turn; None if there are none."""
    given = [each for each in points if each is not None]
    if not given:
        return None
    most = max(map(len, given))
    return torch.from_numpy(np.stack([each[np.arange(most) % len(each)] for each in given]))
