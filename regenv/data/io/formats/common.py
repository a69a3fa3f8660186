"""What the formats share: fields of text headers, detached data files, directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError

HEADER_LIMIT = 1 << 20      # bytes
_SINGULAR = 1e-6


def first_bytes(path: Path) -> bytes:
    """As much of a file as a header may take."""
    with path.open("rb") as file:
        return file.read(HEADER_LIMIT)


def numbers(path: Path, field: str, text: str | None) -> list[float]:
    """The numbers of a field. Raises ImageError where it is missing or has other words."""
    try:
        if text is None:
            raise ValueError
        return [float(t) for t in text.split()]
    except ValueError:
        raise ImageError(f"{path}: {field} is {text}; it must be a list of numbers. Fix the header.") from None


def is_one_file(name: str) -> bool:
    """Whether a data file's name is that of one file, not a list or a pattern of several."""
    return not (name.startswith("LIST") or "%" in name)


def detached_bytes(path: Path, field: str, name: str) -> int:
    """Bytes in the separate data file of a header. Raises ImageError where it does not exist."""
    data = path.parent / name
    if not data.is_file():
        raise ImageError(f"{path}: {field} is {name}, which does not exist. Put it beside the header.")
    return data.stat().st_size


def is_singular(matrix: NDArray[np.float64]) -> bool:
    """Whether the columns of a matrix (D, D), whatever their lengths, span no space, or are not finite."""
    lengths = np.linalg.norm(matrix, axis=0)
    return bool(not np.isfinite(matrix).all() or (lengths == 0).any()
                or abs(np.linalg.det(matrix / lengths)) < _SINGULAR)
