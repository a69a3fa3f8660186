"""What an image's voxels must be: finite intensities, whole labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError, not_finite

ROUNDED = 1e-3      # a label this far off a whole number, such as by a header's slope, still is that number


def whole_numbers(path: str | Path, array: NDArray[Any]) -> NDArray[Any]:
    """Labels as they are numbered, int32, or int64 where they need it.

    Args: path: of the file, for messages; array: of any real type.
    Raises ImageError: a voxel is not finite, or off a whole number by more than 1e-3; a label needs more than 64 bits;
        all are 0.
    """
    if array.dtype.kind == "f":
        check_finite(path, array)
        near = np.rint(array)
        off = array - near
        if max(off.max(), -off.min()) > ROUNDED:
            raise ImageError(f"{path}: label is {array[np.abs(off) > ROUNDED][0]:g}; labels must be whole numbers. "
                             "Use nearest-neighbour interpolation when resampling labels.")
        array = near
        del off     # reading takes three times the image's memory at most
    least, most = (int(value) for value in (array.min(), array.max()))
    if least < -2**63 or most >= 2**63:
        raise ImageError(f"{path}: label is {most if most >= 2**63 else least}; labels must fit into 64 bits with a "
                         "sign. Renumber them.")
    if least == most == 0:
        raise ImageError(f"{path}: labels are 0 everywhere; at least one voxel must carry a label. "
                         "Check the export, or leave the labels out.")
    small = least >= -2**31 and most < 2**31
    return array.astype(np.int32 if small else np.int64, copy=False)


def check_finite(path: str | Path, array: NDArray[Any]) -> None:
    """Raise ImageError if a voxel is NaN or infinite."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise not_finite(Path(path), first, float(array[first]), int(bad.sum()), array.size)
