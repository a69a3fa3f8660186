"""Images on disk, with every check made where data enters; and their intensities in [0, 1].

Reads NIfTI, Analyze, MetaImage, NRRD, PNG, JPEG, TIFF, BMP and DICOM series. Every error is an :class:`ImageError`
that names file, field, value and the way out.

Damage is noticed where a format lets anybody notice it: by the checksums of deflate, gzip and PNG, and by sizes
everywhere. JPEG, DICOM, LZW and PackBits in TIFF, and voxels that are stored plainly have no checksum, so that there a
changed byte may change voxels in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regenv.data.io import headers
from regenv.data.io.errors import ImageError, reason, shown
from regenv.data.io.formats import inspect
from regenv.data.io.headers import MAX_BYTES, Header
from regenv.data.io.voxels import check_finite, whole_numbers
from regenv.grid import Grid

__all__ = ["Image", "ImageError", "normalize", "read_image", "read_labels", "read_mask"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_PADDING_FRACTION = 0.01        # of the voxels, from which on the least value counts as padding or air


@dataclass(frozen=True, eq=False)
class Image:
    """An image as it lies in the world.

    Attributes:
        array: (D, H, W) or (H, W); float32 intensities, int32 or int64 labels, or uint8 mask (0 or 1).
        grid: where its voxels lie.
        path: the file or folder that it came from, for messages.
        notes: what was decided in reading where the caller and the file disagree, a sentence each.
    """

    array: NDArray[Any]
    grid: Grid
    path: str
    notes: tuple[str, ...] = ()

    @property
    def ndim(self) -> int:
        return self.array.ndim


# --------------------------------------------------------------------------------------------------------- reading

def read_image(path: str | Path, spacing: float | Sequence[float] | None = None, *, time: int | None = None,
               max_bytes: int = MAX_BYTES) -> Image:
    """Read intensities.

    Args:
        path: a file, or the folder of one DICOM series.
        spacing: mm, one number or ITK order (x, y[, z]), of an image whose file has none, such as PNG; default 1.
            A header's own spacing stays, and a note in the result says so. Dots per inch of a picture (PNG, JPEG,
            TIFF, BMP) say how to print and are no spacing.
        time: which volume, from 0, of a NIfTI, Analyze, MetaImage or NRRD file that has several (4D).
        max_bytes: largest image as float32.

    Returns:
        The image, array float32 as stored (see :func:`normalize` for [0, 1]).

    Raises:
        ImageError: the file is missing, unreadable, damaged, truncated, too big, not 2D or 3D, multichannel, one voxel
            thin or constant; or its spacing, direction or voxels are invalid, or its header contradicts itself; or it
            has several volumes and ``time`` chooses none of them.
    """
    path = Path(path)
    stored = _read(path, spacing, time, max_bytes)
    with np.errstate(over="ignore"):        # what float32 cannot hold becomes infinite, and is refused
        array = stored.array.astype(np.float32, copy=False)
    check_finite(path, array)
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise ImageError(f"{path}: intensity is {low:g} everywhere; nothing can be registered in a constant image. "
                         "Check the export, or use another image.")
    return replace(stored, array=array)


def read_labels(path: str | Path, spacing: float | Sequence[float] | None = None, *, time: int | None = None,
                max_bytes: int = MAX_BYTES) -> Image:
    """Read a label image: int32, or int64 where its numbers need it. Arguments and errors as :func:`read_image`, and
    all voxels must be whole numbers and not all zero; see :func:`~regenv.data.io.voxels.whole_numbers`."""
    path = Path(path)
    stored = _read(path, spacing, time, max_bytes)
    return replace(stored, array=whole_numbers(path, stored.array))


def read_mask(path: str | Path, spacing: float | Sequence[float] | None = None, *, time: int | None = None,
              max_bytes: int = MAX_BYTES) -> Image:
    """Read a mask, uint8: 1 where the file is not 0. Arguments and errors as :func:`read_image`; an empty mask is an
    error."""
    path = Path(path)
    stored = _read(path, spacing, time, max_bytes)
    if stored.array.dtype.kind == "f":
        check_finite(path, stored.array)
    mask = (stored.array != 0).astype(np.uint8)
    if not mask.any():
        raise ImageError(f"{path}: mask is 0 everywhere; at least one voxel must be inside. "
                         "Check the export, or leave the mask out.")
    return replace(stored, array=mask)


def _read(path: Path, spacing: float | Sequence[float] | None, time: int | None, max_bytes: int) -> Image:
    """The image with its voxels as they are stored, of any real type."""
    try:
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder. Check the path.")
        if path.is_dir() or path.name.lower().endswith(_DICOM_SUFFIXES):
            from regenv.data.io.dicom import read_series  # a quarter of a second, which few need

            header = read_series(path, spacing, max_bytes)
            headers.volume_number(path, "size", header.size, 1, time)
        else:
            header = inspect(path, max_bytes, time)
        chosen, notes = _spacing(path, header, spacing)
        grid = Grid(header.size[::-1], chosen, header.origin, header.direction)
        return Image(header.voxels(), grid, str(path), notes)
    except RuntimeError as error:
        raise ImageError(f"{path}: SimpleITK cannot read it ({reason(error)}). "
                         "Check that the file is complete, or convert it.") from error
    except (OSError, MemoryError) as error:
        raise ImageError(f"{path}: it cannot be read ({shown(error) or type(error).__name__}). Check the file and its "
                         "permissions.") from error


def _spacing(path: Path, header: Header, given: float | Sequence[float] | None) -> tuple[tuple[float, ...],
                                                                                           tuple[str, ...]]:
    """The header's spacing or, where it has none, the given one; and a note where the given one is left aside."""
    n = len(header.size)
    values = (1.0,) * n if given is None else (float(given),) * n if isinstance(given, (int, float)) else tuple(
        map(float, given))
    if len(values) != n:
        raise ImageError(f"{path}: spacing=... is {values}; a {n}D image needs {n} numbers (x, y[, z]).")
    headers.check_spacing(path, "spacing=...", values)
    if header.spacing is None:
        return values, ()
    if given is None or np.allclose(values, header.spacing, rtol=headers.ORTHONORMAL, atol=0):
        return header.spacing, ()
    return header.spacing, (f"{path}: {header.spacing_field} is {header.spacing} mm; the given spacing {values} is for "
                            "files that have none, and was left aside.",)


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
    finite = _finite(values)
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
    scaled = values - bottom
    scaled /= top - bottom
    if _finite(scaled).size < scaled.size:
        scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The finite ones among values, (N,); the values' own memory where all are."""
    finite = np.isfinite(values)
    return values.ravel() if finite.all() else values[finite]
