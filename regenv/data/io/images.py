"""Images on disk, read through SimpleITK with every check made where data enters; and their intensities in [0, 1].

Reads NIfTI, MetaImage, NRRD, PNG, JPEG and DICOM series. Every error is an :class:`ImageError` that names file, field,
value and the way out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from regenv.data.io import headers
from regenv.data.io.dicom import read_series
from regenv.data.io.errors import ImageError, not_finite, reason
from regenv.data.io.formats import inspect
from regenv.data.io.headers import MAX_BYTES
from regenv.grid import Grid

__all__ = ["Image", "ImageError", "normalize", "read_image", "read_labels", "read_mask"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_PADDING_FRACTION = 0.01        # of the voxels, from which on the least value counts as padding or air


@dataclass(frozen=True, eq=False)
class Image:
    """An image as it lies in the world.

    Attributes:
        array: (D, H, W) or (H, W); float32 intensities, int32 labels or uint8 mask (0 or 1).
        grid: where its voxels lie.
        path: the file or folder that it came from, for messages.
    """

    array: NDArray[Any]
    grid: Grid
    path: str

    @property
    def ndim(self) -> int:
        return self.array.ndim


# --------------------------------------------------------------------------------------------------------- reading

def read_image(path: str | Path, spacing: float | Sequence[float] | None = None, *,
               max_bytes: int = MAX_BYTES) -> Image:
    """Read intensities.

    Args:
        path: a file, or the folder of one DICOM series.
        spacing: mm, one number or ITK order (x, y[, z]); replaces the header's, origin and direction stay.
        max_bytes: largest image as float32.

    Returns:
        The image, array float32 as stored (see :func:`normalize` for [0, 1]).

    Raises:
        ImageError: the file is missing, unreadable, truncated, too big, not 2D or 3D, multichannel, one voxel thin or
            constant; or its spacing, direction or voxels are invalid.
    """
    path = Path(path)
    image, grid = _read(path, spacing, max_bytes)
    array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    _check_finite(path, array)
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise ImageError(f"{path}: intensity is {low:g} everywhere; nothing can be registered in a constant image. "
                         "Check the export, or use another image.")
    return Image(array, grid, str(path))


def read_labels(path: str | Path, spacing: float | Sequence[float] | None = None, *,
                max_bytes: int = MAX_BYTES) -> Image:
    """Read a label image, int32. Arguments and errors as :func:`read_image`, and all voxels must be whole numbers and
    not all zero."""
    path = Path(path)
    image, grid = _read(path, spacing, max_bytes)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f":
        _check_finite(path, array)
        fractional = array != np.round(array)
        if fractional.any():
            raise ImageError(f"{path}: label is {float(array[fractional][0]):g}; labels must be whole numbers. "
                             "Use nearest-neighbour interpolation when resampling labels.")
    if array.min() < np.iinfo(np.int32).min or array.max() > np.iinfo(np.int32).max:
        raise ImageError(f"{path}: label is {array.max():g}; labels must fit into 32 bits. Renumber them.")
    array = array.astype(np.int32)
    if not array.any():
        raise ImageError(f"{path}: labels are 0 everywhere; at least one voxel must carry a label. "
                         "Check the export, or leave the labels out.")
    return Image(array, grid, str(path))


def read_mask(path: str | Path, spacing: float | Sequence[float] | None = None, *,
              max_bytes: int = MAX_BYTES) -> Image:
    """Read a mask, uint8: 1 where the file is not 0. Arguments and errors as :func:`read_image`; an empty mask is an
    error."""
    path = Path(path)
    image, grid = _read(path, spacing, max_bytes)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f":
        _check_finite(path, array)
    mask = (array != 0).astype(np.uint8)
    if not mask.any():
        raise ImageError(f"{path}: mask is 0 everywhere; at least one voxel must be inside. "
                         "Check the export, or leave the mask out.")
    return Image(mask, grid, str(path))


def _read(path: Path, spacing: float | Sequence[float] | None, max_bytes: int) -> tuple[sitk.Image, Grid]:
    """The SimpleITK image, 2D or 3D with one number per voxel, and its grid."""
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder. Check the path.")
    try:
        if path.is_dir() or path.name.lower().endswith(_DICOM_SUFFIXES):
            image = read_series(path, spacing is not None, max_bytes)
        else:
            image = _read_file(path, spacing, max_bytes)
    except RuntimeError as error:
        raise ImageError(f"{path}: SimpleITK cannot read it ({reason(error)}). "
                         "Check that the file is complete, or convert it.") from error
    except (OSError, MemoryError) as error:
        raise ImageError(f"{path}: it cannot be read ({error}). Check the file and its permissions.") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{path}: channels is {image.GetNumberOfComponentsPerPixel()}; one intensity per voxel is "
                         "needed. Save one channel, or a grey-value image.")
    if spacing is not None:
        image.SetSpacing(_spacings(path, spacing, image.GetDimension()))
    headers.check_spacing(path, "spacing", image.GetSpacing())
    try:
        return image, Grid.from_sitk(image)
    except ValueError as error:
        raise ImageError(f"{path}: {error} Fix the header.") from error


def _read_file(path: Path, spacing: float | Sequence[float] | None, max_bytes: int) -> sitk.Image:
    header = inspect(path)
    headers.check(path, header, spacing_given=spacing is not None, max_bytes=max_bytes)
    if spacing is None or header.spacing is None or headers.is_valid_spacing(header.spacing):
        return _without_trailing_axes(sitk.ReadImage(str(path)))
    if header.repair is None:
        raise headers.bad_spacing(path, header.fields[2], header.spacing, mendable=False)
    # SimpleITK would flip the direction or refuse, so it gets a copy with the given spacing.
    with tempfile.TemporaryDirectory() as folder:
        mended = Path(folder) / path.name
        header.repair(mended, _spacings(path, spacing, len(header.size)))
        return _without_trailing_axes(sitk.ReadImage(str(mended)))


def _without_trailing_axes(image: sitk.Image) -> sitk.Image:
    """The image without the axes of one voxel that follow the third."""
    while image.GetDimension() > 3:
        image = image[..., 0]
    return image


def _spacings(path: Path, spacing: float | Sequence[float], ndim: int) -> tuple[float, ...]:
    values = (float(spacing),) * ndim if isinstance(spacing, (int, float)) else tuple(map(float, spacing))
    if len(values) != ndim:
        raise ImageError(f"{path}: spacing=... is {values}; a {ndim}D image needs {ndim} numbers (x, y[, z]).")
    headers.check_spacing(path, "spacing=...", values)
    return values


def _check_finite(path: Path, array: NDArray[Any]) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise not_finite(path, first, float(array[first]), int(bad.sum()), array.size)


# ------------------------------------------------------------------------------------------------------ intensities

def normalize(array: ArrayLike, low: float = 0.5, high: float = 99.5) -> NDArray[np.float32]:
    """Intensities scaled to [0, 1] between two percentiles of the finite foreground, clipped outside.

    Where at least one voxel in a hundred has exactly the least value (air, or the padding around a CT), these count as
    background and take no part in the percentiles. Values that are not finite become 0.

    Args:
        array: any shape, any real type.
        low, high: percentiles.

    Returns:
        float32, same shape; all 0 for a constant image.
    """
    values = np.asarray(array, dtype=np.float32)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros_like(values)
    least, most = float(finite.min()), float(finite.max())
    foreground = finite[finite > least]
    if foreground.size == 0:
        return np.zeros_like(values)
    if finite.size - foreground.size < _PADDING_FRACTION * finite.size:
        foreground = finite
    bottom, top = (float(p) for p in np.percentile(foreground, (low, high)))
    if not top > bottom:        # two values only, such as a mask
        bottom, top = least, most
    scaled = np.nan_to_num((values - bottom) / (top - bottom), nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(scaled, 0.0, 1.0, out=scaled)
