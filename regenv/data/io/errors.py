"""The error of every file that cannot be used, and the messages that several formats share."""

from __future__ import annotations

import re
from pathlib import Path


class ImageError(ValueError):
    """A file that cannot be used; the message names the file, the field, its value and the way out."""


def truncated(path: Path, field: str, found: int, needed: int) -> ImageError:
    """The error of a file that holds fewer bytes than its header declares."""
    return ImageError(f"{path}: {field} is {found} bytes, but the header declares {needed}; the file is truncated. "
                      "Copy or download it again.")


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
