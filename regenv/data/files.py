"""The user's own images as a source of pairs, and the step from two images to lanes of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.io import Image, ImageError, normalize, read_image, read_landmarks, read_mask, read_transform
from regenv.data.io import read_labels as read_label_image
from regenv.data.pairs import PairBatch
from regenv.grid import Grid
from regenv.ops import landmarks as lattice_points

BLUR = 0.35
KEYS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels", "fixed_landmarks",
        "moving_landmarks", "truth")


@dataclass(frozen=True)
class Files:
    """Pairs of images on disk: ``{"name": "files", "pairs": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}]}``.

    Each pair is a mapping from the names below to paths; ``fixed`` and ``moving`` are needed.

    - ``fixed_mask``, ``moving_mask``: outside, the image is shown as 0.
    - ``fixed_labels``, ``moving_labels``: both give ``info["dice"]``.
    - ``fixed_landmarks``, ``moving_landmarks``: corresponding points; both give a true ``info["tre"]``.
    - ``truth``: the transform that aligns them (fixed to moving points), or "identity" for images that are aligned as
      they stand. Without it the distance is unknown (NaN) and an action moves the image about the current estimate.

    Files are read, checked and reduced to the environment's grid once, on the first draw. The grid is centred on each
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
        """Pairs picked uniformly; ``difficulty`` changes nothing. Pairs of one environment share a moving grid size."""
        batches = _loaded(self.ndim, tuple(tuple(sorted(pair.items())) for pair in self.pairs), grid)
        return PairBatch.stack([batches[rng.integers(len(batches))] for rng in rngs]).to(device)


@lru_cache(maxsize=4)
def _loaded(ndim: int, pairs: tuple[tuple[tuple[str, str], ...], ...], grid: Grid) -> tuple[PairBatch, ...]:
    """All pairs on the environment's grid, one lane each, padded to one moving size."""
    opened = [_Opened.read(dict(pair), ndim) for pair in pairs]
    spacing = min(grid.spacing)
    sizes = [coarser(pair.moving.grid, spacing).shape for pair in opened]
    shape = tuple(int(n) for n in np.max(sizes, axis=0))
    return tuple(pair.batch(grid, shape) for pair in opened)


@dataclass(frozen=True)
class _Opened:
    fixed: Image
    moving: Image
    files: Mapping[str, str]

    @classmethod
    def read(cls, files: Mapping[str, str], ndim: int) -> _Opened:
        images = []
        for side in ("fixed", "moving"):
            image = read_image(files[side])
            if image.grid.ndim != ndim:
                raise ImageError(f"{image.path}: image is {image.grid.ndim}D; this environment needs {ndim}D images.")
            if f"{side}_mask" in files:
                mask = read_mask(files[f"{side}_mask"])
                inside = _on(mask.array.astype(np.float32), mask.grid, image.grid, sitk.sitkNearestNeighbor) > 0
                image = Image(np.where(inside, image.array, image.array.min()), image.grid, image.path)
            images.append(image)
        return cls(images[0], images[1], files)

    def batch(self, grid: Grid, shape: tuple[int, ...]) -> PairBatch:
        here = Grid.centered(grid.shape, grid.spacing, foreground_center(self.fixed).tolist(), grid.direction)
        truth = self.files.get("truth")
        matrix = None if truth is None else np.eye(grid.ndim + 1) if truth == "identity" else read_transform(truth)
        points = [read_landmarks(self.files[key]) if key in self.files else None
                  for key in ("fixed_landmarks", "moving_landmarks")]
        labels = [read_label_image(self.files[key]) if key in self.files else None
                  for key in ("fixed_labels", "moving_labels")]
        return image_pair(self.fixed, self.moving, here, truth=matrix, points=(points[0], points[1]),
                          labels=(labels[0], labels[1]), moving_shape=shape)


def image_pair(fixed: Image, moving: Image, grid: Grid, lanes: int = 1, truth: np.ndarray | None = None,
               points: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
               labels: tuple[Image | None, Image | None] = (None, None),
               moving_shape: tuple[int, ...] | None = None) -> PairBatch:
    """Two images as lanes of an environment: fixed on ``grid``, moving on its own axes at the grid's spacing.

    Args:
        lanes: copies (sharing memory). truth: (D+1, D+1) pull-back at alignment, None where unknown.
        points: corresponding landmarks (N, D) mm of both worlds. labels: label images of both.
        moving_shape: voxels of the moving grid, at least what its extent asks for.
    """
    on_moving = coarser(moving.grid, min(grid.spacing))
    if moving_shape is not None:
        on_moving = Grid(moving_shape, on_moving.spacing, on_moving.origin, on_moving.direction)
    n = grid.ndim
    marks = lattice_points.lattice(grid, per_axis=3, margin=0.2) if points[0] is None else points[0]

    def repeat(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).expand(lanes, *array.shape)

    def labelled(image: Image | None, target: Grid) -> Tensor | None:
        if image is None:
            return None
        values = _on(image.array.astype(np.float32), image.grid, target, sitk.sitkNearestNeighbor)
        return repeat(values.astype(np.int16)[None])

    return PairBatch(
        fixed=repeat(reduced(fixed, grid)[None]), moving=repeat(reduced(moving, on_moving)[None]),
        fixed_to_world=repeat(grid.voxel_to_world), world_to_moving=repeat(on_moving.world_to_voxel),
        truth=repeat(np.eye(n + 1) if truth is None else truth),
        known=torch.full((lanes,), truth is not None), center=repeat(grid.center),
        landmarks=repeat(np.asarray(marks, dtype=np.float64)),
        targets=None if points[1] is None else repeat(np.asarray(points[1], dtype=np.float64)),
        fixed_labels=labelled(labels[0], grid), moving_labels=labelled(labels[1], on_moving))


def coarser(grid: Grid, spacing: float) -> Grid:
    """A grid's own extent and axes at (about) an isotropic spacing."""
    return grid.resized(spacing=spacing)


def reduced(image: Image, grid: Grid) -> np.ndarray:
    """An image on another grid, antialiased, intensities in [0, 1]: float32 (*grid.shape)."""
    smooth = to_sitk(image)
    sigmas = [BLUR * np.sqrt(max(0.0, min(grid.spacing) ** 2 - s**2)) for s in image.grid.spacing]
    if max(sigmas) > 0 and min(image.grid.shape) >= 4:
        smooth = sitk.SmoothingRecursiveGaussian(smooth, [max(s, 1e-3) for s in sigmas])
    return np.clip(_resample(smooth, grid, sitk.sitkLinear), 0, 1).astype(np.float32)


@lru_cache(maxsize=4)
def to_sitk(image: Image) -> sitk.Image:
    """An image as SimpleITK's, intensities in [0, 1]. Remembered for the last images: do not change it."""
    return _framed(normalize(image.array), image.grid)


@lru_cache(maxsize=4)
def foreground_center(image: Image) -> np.ndarray:
    """World centroid of what is not background (Otsu's threshold), mm, (D,)."""
    mask = sitk.OtsuThreshold(to_sitk(image), 0, 1)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    return np.array(shape.GetCentroid(1)) if shape.HasLabel(1) else image.grid.center


def resampled(image: Image, like: Grid, through: np.ndarray | sitk.Transform,
              interpolator: int = sitk.sitkLinear) -> Image:
    """An image on another grid through a pull-back (D+1, D+1) or a transform, 0 outside, float32."""
    if isinstance(through, sitk.Transform):
        transform = through
    else:
        n = like.ndim
        transform = sitk.AffineTransform(n)
        transform.SetMatrix(np.asarray(through)[:n, :n].ravel().tolist())
        transform.SetTranslation(np.asarray(through)[:n, n].tolist())
    warped = _resample(_framed(image.array, image.grid), like, interpolator, transform)
    return Image(warped.astype(np.float32), like, image.path)


def _on(array: np.ndarray, grid: Grid, target: Grid, interpolator: int) -> np.ndarray:
    return _resample(_framed(array, grid), target, interpolator)


def _resample(image: sitk.Image, grid: Grid, interpolator: int, transform: sitk.Transform | None = None) -> np.ndarray:
    identity = sitk.Transform(grid.ndim, sitk.sitkIdentity)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid.size, transform or identity, interpolator, grid.origin,
                                                grid.spacing, grid.direction, 0.0, sitk.sitkFloat32))


def _framed(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


