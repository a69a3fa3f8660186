"""Pairs of the user's own images, and the conversion of two images to lanes of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.io.images import Image, ImageError, read_image, read_mask
from regenv.data.io.images import read_labels as read_label_image
from regenv.data.io.landmarks import corresponding
from regenv.data.io.resampling import foreground_center, on_image, reduced, resampled_labels
from regenv.data.io.transforms import read_transform
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import as_compact
from regenv.grid import Grid
from regenv.ops import landmarks as lattice_points

KEYS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels", "fixed_landmarks",
        "moving_landmarks", "truth")


@dataclass(frozen=True)
class Files:
    """Pairs of images on disk: ``{"name": "files", "pairs": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}]}``.

    Each pair is a mapping from the names below to paths; ``fixed`` and ``moving`` are needed.

    - ``fixed_mask``, ``moving_mask``: outside, the image is set to its smallest value.
    - ``fixed_labels``, ``moving_labels``: both give ``info["dice"]``.
    - ``fixed_landmarks``, ``moving_landmarks``: corresponding points; both give a true ``info["tre"]``.
    - ``truth``: the transform that aligns them (fixed to moving points), or "identity" for images that are already
      aligned. Without it the distance is unknown (NaN), and an action moves the image relative to the current estimate.

    Files are read, checked and resampled to the environment's grid once, on the first draw. The grid is centred on each
    fixed image's foreground.

    Raises:
        ImageError: an unknown or missing key, a bad file, or images of another dimension than ``ndim``.
    """

    ndim: int
    pairs: tuple[Mapping[str, str], ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ImageError("files: pairs is empty; give at least one pair of fixed and moving.")
        for pair in self.pairs:
            unknown = sorted(set(pair) - set(KEYS))
            missing = [key for key in ("fixed", "moving") if key not in pair]
            if unknown or missing:
                raise ImageError(f"files: pair {dict(pair)} has unknown keys {unknown} and lacks {missing}; "
                                 f"keys are {', '.join(KEYS)}.")
            for left, right in (("fixed_labels", "moving_labels"), ("fixed_landmarks", "moving_landmarks")):
                if (left in pair) != (right in pair):
                    raise ImageError(f"files: pair {dict(pair)} has only one of {left} and {right}; give both.")
        for key in ("fixed_labels", "fixed_landmarks"):
            if len({key in pair for pair in self.pairs}) > 1:
                raise ImageError(f"files: only some pairs have {key}; give it for all pairs or for none.")

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """Uniformly drawn pairs; ``difficulty`` changes nothing. All pairs of an environment share one moving shape."""
        batches = _loaded(self.ndim, tuple(tuple(sorted(pair.items())) for pair in self.pairs), grid)
        return PairBatch.stack([batches[rng.integers(len(batches))] for rng in rngs]).to(device)


@lru_cache(maxsize=4)
def _loaded(ndim: int, pairs: tuple[tuple[tuple[str, str], ...], ...], grid: Grid) -> tuple[PairBatch, ...]:
    """All pairs on the environment's grid, one lane each, padded to one moving size."""
    opened = [_Opened.read(dict(pair), ndim) for pair in pairs]
    spacing = min(grid.spacing)
    sizes = [pair.moving.grid.resized(spacing=spacing).shape for pair in opened]
    shape = tuple(int(n) for n in np.max(sizes, axis=0))
    batches = tuple(pair.batch(grid, shape) for pair in opened)
    _check_alike(opened, batches)
    fixed, moving = ([getattr(pair, name) for pair in batches] for name in ("fixed_labels", "moving_labels"))
    if fixed[0] is None:
        return batches
    labels = as_compact([*fixed, *moving])
    return tuple(replace(pair, fixed_labels=here, moving_labels=there)
                 for pair, here, there in zip(batches, labels, labels[len(batches):], strict=False))


def _check_alike(opened: Sequence[_Opened], batches: Sequence[PairBatch]) -> None:
    """Raise ImageError unless all pairs have as many landmarks, since they share one batch."""
    counts = [0 if batch.landmarks is None else batch.landmarks.shape[1] for batch in batches]
    for pair, here, there in zip(opened, [counts[0]] * len(counts), counts, strict=True):
        if here != there:
            raise ImageError(f"{pair.files['fixed_landmarks']}: number of landmarks is {there}, but "
                             f"{opened[0].files['fixed_landmarks']} has {here}; pairs of one environment need as many.")


@dataclass(frozen=True)
class _Opened:
    """A pair of files, read and checked.

    Attributes: truth: (D+1, D+1) or None; points: (N, D) of both worlds, or None; labels: of both images, or None.
    """

    fixed: Image
    moving: Image
    truth: np.ndarray | None
    points: tuple[np.ndarray | None, np.ndarray | None]
    labels: tuple[Image | None, Image | None]
    files: Mapping[str, str]

    @classmethod
    def read(cls, files: Mapping[str, str], ndim: int) -> _Opened:
        images = []
        for side in ("fixed", "moving"):
            image = read_image(files[side])
            if image.grid.ndim != ndim:
                raise ImageError(f"{image.path}: image is {image.grid.ndim}D; this environment needs {ndim}D images.")
            if f"{side}_mask" in files:
                inside = on_image(read_mask(files[f"{side}_mask"]), image).array > 0
                image = Image(np.where(inside, image.array, image.array.min()), image.grid, image.path)
            images.append(image)
        points: Sequence[np.ndarray | None] = (None, None)
        if "fixed_landmarks" in files:
            points = corresponding([files["fixed_landmarks"], files["moving_landmarks"]], images)
        labels = [read_label_image(files[key]) if key in files else None for key in ("fixed_labels", "moving_labels")]
        for each, image in zip(labels, images, strict=True):
            if each is not None:
                on_image(each, image)
        return cls(images[0], images[1], _truth(files.get("truth"), ndim), (points[0], points[1]),
                   (labels[0], labels[1]), files)

    def batch(self, grid: Grid, shape: tuple[int, ...]) -> PairBatch:
        here = Grid.centered(grid.shape, grid.spacing, foreground_center(self.fixed).tolist(), grid.direction)
        return image_pair(self.fixed, self.moving, here, truth=self.truth, points=self.points, labels=self.labels,
                          moving_shape=shape)


def _truth(given: str | None, ndim: int) -> np.ndarray | None:
    """The matrix (D+1, D+1) of a file, or of "identity". Raises ImageError: it has another dimension."""
    if given is None or given == "identity":
        return None if given is None else np.eye(ndim + 1)
    matrix = read_transform(given)
    if len(matrix) != ndim + 1:
        raise ImageError(f"{given}: transform is {len(matrix) - 1}D; this environment needs {ndim}D ones.")
    return matrix


def image_pair(fixed: Image, moving: Image, grid: Grid, lanes: int = 1, truth: np.ndarray | None = None,
               points: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
               labels: tuple[Image | None, Image | None] = (None, None),
               moving_shape: tuple[int, ...] | None = None) -> PairBatch:
    """Two images as lanes of an environment: fixed on ``grid``, moving on its own axes at the grid's spacing.

    Args:
        lanes: copies (sharing memory). truth: (D+1, D+1) pull-back at alignment, None where unknown.
        points: corresponding landmarks (N, D) mm of both worlds. labels: label images of both.
        moving_shape: shape of the moving grid; by default, as its extent needs.
    """
    on_moving = moving.grid.resized(spacing=min(grid.spacing))
    if moving_shape is not None:
        on_moving = Grid(moving_shape, on_moving.spacing, on_moving.origin, on_moving.direction)
    n = grid.ndim
    marks = lattice_points.lattice(grid, per_axis=3, margin=0.2) if points[0] is None else points[0]

    def repeat(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).expand(lanes, *array.shape)

    def labelled(image: Image | None, target: Grid) -> Tensor | None:
        if image is None:
            return None
        return repeat(resampled_labels(image, target, np.eye(n + 1)).array[None])

    return PairBatch(
        fixed=repeat(reduced(fixed, grid)[None]), moving=repeat(reduced(moving, on_moving)[None]),
        fixed_to_world=repeat(grid.voxel_to_world), world_to_moving=repeat(on_moving.world_to_voxel),
        truth=repeat(np.eye(n + 1) if truth is None else truth),
        known=torch.full((lanes,), truth is not None), center=repeat(grid.center),
        landmarks=repeat(np.asarray(marks, dtype=np.float64)),
        targets=None if points[1] is None else repeat(np.asarray(points[1], dtype=np.float64)),
        fixed_labels=labelled(labels[0], grid), moving_labels=labelled(labels[1], on_moving))
