"""Images to disk, through SimpleITK: NIfTI, MetaImage, NRRD and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.data.io.errors import ImageError, check_utf8, reason, silent, unwritten
from regenv.data.io.resampling import framed
from regenv.grid import Grid

_ROUNDING = 1e-3    # mm, and of the directions: NIfTI keeps 32 bits
_WRITABLE = (".nii", ".nii.gz", ".mha", ".nrrd", ".png")


def write_image(path: str | Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an image; the file appears whole or not at all.

    Args:
        path: .nii, .nii.gz, .mha, .nrrd or (2D, uint8 or uint16) .png.
        array: (*shape) of any real type, bool as uint8; (*shape, C) for vectors.
        grid: of shape ``shape``.

    Raises:
        ImageError: the suffix or the array's type is not writable, or array and grid differ in shape.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    check_utf8(path)
    array = np.asarray(array)
    if not path.name.lower().endswith(_WRITABLE):
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {', '.join(_WRITABLE)}.")
    if array.shape[:grid.ndim] != grid.shape or array.ndim - grid.ndim not in (0, 1):
        raise ImageError(f"{path}: array shape is {array.shape}, but the grid's is {grid.shape}; they must agree.")
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{path}: array type is {array.dtype}; real numbers are needed.")
    if path.suffix.lower() == ".png" and (grid.ndim != 2 or array.dtype not in (np.uint8, np.uint16)):
        raise ImageError(f"{path}: array is {grid.ndim}D {array.dtype}; PNG takes 2D uint8 or uint16. "
                         "Scale it, or write .nii.gz.")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    image = framed(array, grid)
    with atomic(path) as temporary:
        try:
            with silent():
                sitk.WriteImage(image, str(temporary), useCompression=path.suffix.lower() in (".mha", ".nrrd"))
                found = sitk.ReadImage(str(temporary))
        except RuntimeError as error:
            raise unwritten(path, reason(error)) from error
        if not _same_values(array, sitk.GetArrayViewFromImage(found)):     # such as on a full disk
            raise unwritten(path, "what can be read back is not what was written")
        if path.suffix.lower() != ".png" and not _same_place(found, image):
            raise ImageError(f"{path}: direction is {grid.direction} and origin {grid.origin} mm, which this format "
                             "does not hold. Write .mha or .nrrd.")


def _same_values(array: NDArray[Any], found: NDArray[Any]) -> bool:
    """Whether an array's finite values are found again; the library of NIfTI reads NaN as 0."""
    if np.array_equal(array, found):
        return True
    kept = np.isfinite(array)
    return found.shape == array.shape and np.array_equal(array[kept], found[kept])


def _same_place(one: sitk.Image, other: sitk.Image) -> bool:
    """Whether two images' voxels lie in the same places of the world, but for rounding."""
    fields = ((image.GetSpacing(), image.GetOrigin(), image.GetDirection()) for image in (one, other))
    return all(len(a) == len(b) and np.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING)
               for a, b in zip(*fields, strict=True))
