"""The error of every file that cannot be used, and the messages that several formats share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHOWN = 80     # characters of a value


class ImageError(ValueError):
    """A file that cannot be used; the message names the file, the field, its value and the way out."""


def shown(value: object) -> str:
    """What a file says, fit for one line of a message: printable and not too long."""
    text = str(value).encode("unicode_escape").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


class OffImageError(ImageError):
    """Labels or a mask that meet no voxel of the image that they belong to."""


def truncated(path: Path, field: str, found: int, needed: int) -> ImageError:
    """The error of a file that holds fewer bytes than its header declares."""
    return ImageError(f"{path}: {field} is {found} bytes, but the header declares {needed}; the file is truncated. "
                      "Copy or download it again.")


def too_long(path: Path, field: str, needed: int) -> ImageError:
    """The error of a file that holds more bytes than its header declares."""
    return ImageError(f"{path}: {field} is more than the {needed} bytes that the header declares; header and voxels "
                      "do not belong together. Fix the header, or write the image anew.")


def not_finite(path: Path, index: tuple[int, ...], value: float, bad: int, count: int) -> ImageError:
    """The error of an image with ``bad`` of ``count`` voxels NaN or infinite, the first of them at ``index``."""
    return ImageError(f"{path}: voxel {index} is {value} ({bad} of {count} are not finite); every intensity must be "
                      "finite. Replace them, for example by numpy.nan_to_num.")


def reason(error: RuntimeError) -> str:
    """The line of a SimpleITK exception that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("[")][-1:]        # NRRD gives its innermost cause last
    told = told or [line.split("ERROR: ")[-1] for line in lines if "ERROR: " in line] or lines[-1:] or ["no reason"]
    return re.sub(r"\w+\(0x[0-9a-f]+\): |^\[nrrd\] _?\w+: ", "", told[0]).rstrip(".: ")


def check_utf8(path: Path) -> None:
    """Raise ImageError for a name that is not UTF-8: SimpleITK, asked to write there, would end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{shown(path)}: the name is not UTF-8; SimpleITK cannot write there. "
                         "Choose another.") from None


def unwritten(path: Path, why: str) -> ImageError:
    """The error of a file that is not on the disk as it was to be written."""
    return ImageError(f"{path}: it cannot be written ({why}). Check the folder and the free space.")


@contextmanager
def silent(into: int | None = None) -> Iterator[None]:
    """What C libraries print on the standard error goes nowhere, or into an open file; whoever calls them tells an
    error in one line."""
    try:
        kept = os.dup(2)
    except OSError:     # there is no standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY) if into is None else os.dup(into)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
