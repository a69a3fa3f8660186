"""Segmentations and masks that belong to an image."""

from __future__ import annotations

import numpy as np

from regenv.data.io.images import Image, ImageError

_TOLERANCES = {"shape": 0, "spacing": 1e-3, "direction": 1e-3, "origin": 0.1}   # voxels, mm, 1, mm


def check_labels(labels: Image, image: Image) -> None:
    """Raise ImageError unless the labels lie on their image's grid."""
    for name, tolerance in _TOLERANCES.items():
        values = getattr(labels.grid, name), getattr(image.grid, name)
        if len(values[0]) != len(values[1]) or not np.allclose(*values, rtol=0, atol=tolerance):
            raise ImageError(f"{labels.path}: {name} is {values[0]}, but {values[1]} in its image {image.path}; they "
                             "must lie on one grid. Resample the labels, or fix the header.")
