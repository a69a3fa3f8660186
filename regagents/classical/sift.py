"""Registration by key-points: SIFT matches and a robust similarity fit, with OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.classical.common import Result, checked
from regenv.data.io.images import normalize
from regenv.grid import Grid
from regenv.ops.landmarks import sift_matches

FEWEST_MATCHES = 3   # two matches fit some similarity exactly, so only a third one confirms it
SCALES = (0.25, 4.0)  # of a plausible fit


@dataclass(frozen=True)
class SiftSimilarity:
    """SIFT key-points (Lowe 2004), matched by their descriptors, and the similarity transform that most matches agree
    on (RANSAC, then least squares over the inliers). 2D only. It needs no start.

    Args:
        ratio: of Lowe's test. contrast: weakest key-point. tolerance: error of an inlier, mm.
    """

    ratio: float = 0.9
    contrast: float = 0.01
    tolerance: float = 6.0

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64] | None = None) -> Result:
        """Register two 2D images.

        Args: as of :class:`~regagents.classical.common.PoseMethod`; ``center`` is not used.
        Returns: the fit, with minus its number of inliers as metric; the initial pose with metric ``inf`` if too few
            key-points match or the fit is implausible.
        Raises: ValueError: the images are not 2D, or do not fit together.
        """
        import cv2

        began = perf_counter()
        initial = checked("SiftSimilarity", fixed, moving, initial)
        if fixed.GetDimension() != 2:
            raise ValueError(f"SiftSimilarity: the images are {fixed.GetDimension()}D; SIFT needs 2D images.")
        first, second = (normalize(sitk.GetArrayFromImage(image)) for image in (fixed, moving))
        here, there = sift_matches(first, second, self.ratio, self.contrast)
        if len(here) < FEWEST_MATCHES:
            return Result(initial, float("inf"), perf_counter() - began, 0)
        cv2.setRNGSeed(0)
        fit, inliers = cv2.estimateAffinePartial2D(Grid.from_sitk(fixed).to_world(here),
                                                   Grid.from_sitk(moving).to_world(there),
                                                   method=cv2.RANSAC, ransacReprojThreshold=self.tolerance,
                                                   maxIters=5000, confidence=0.999)
        if fit is None or inliers.sum() < FEWEST_MATCHES or not _plausible(fit):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        return Result(np.vstack([fit, [0.0, 0.0, 1.0]]), -float(inliers.sum()), perf_counter() - began, 0)


def _plausible(fit: NDArray[Any]) -> bool:
    """Whether the scale of a similarity (2, 3) is one that images of a patient may have."""
    return SCALES[0] <= np.sqrt(np.linalg.det(fit[:, :2])) <= SCALES[1]
