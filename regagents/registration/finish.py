"""From the best candidate to the final transform: affine with its scales and shears, then what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regagents.classical import Refinement
from regagents.registration.score import Score, rigid_part
from regenv.data.io.images import Image
from regenv.data.io.resampling import to_sitk

TRANSFORMS = ("rigid", "similarity", "affine")
FINE_SAMPLES, COARSE_ITERATIONS, FINE_ITERATIONS = 20_000, 25, 20
DIFFERS = 1.15  # factor by which an affine map must agree better than a rigid one where two objects differ in size:
                # measured 1.05 to 1.09 within a person (CT to MR, T1 to T2), 1.0 to 3.1 between two
WORSE = 0.9     # factor of agreement below which the last refinement's end is given up
LOCAL = Refinement(smoothing=(5.0, 0.0), samples=(50_000, 400_000))   # a near pose needs the fine levels only


@dataclass(frozen=True, eq=False)
class Finished:
    """Attributes: pull_back: what was asked for, (D+1, D+1); affine: the affine map near it; differs: whether the two
    objects are of different size or shape."""

    pull_back: NDArray[np.float64]
    affine: NDArray[np.float64]
    differs: bool


def finished(fixed: Image, moving: Image, near: NDArray[np.float64], transform: str, score: Score, fine: Score,
             masked: bool) -> Finished:
    """The transform near an affine map.

    A rigid pose of one object (one person seen twice) is the optimum of mutual information, at the images' own
    resolution. Between two objects of different size that optimum follows the outlines, and what lies inside does not
    meet: between the heads of two people it ended up to 40 mm from where their brains meet. There the rigid pose is
    the rigid part of the affine map on which outlines and inside agree. Two objects count as different where the affine
    map agrees clearly better (:data:`DIFFERS`) than the best rigid pose.

    Args: near: (D+1, D+1). score, fine: coarse and fine. masked: the scores look at masks only.
    Raises ValueError: another transform.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"register: transform is {transform!r}; take one of {', '.join(TRANSFORMS)}.")
    middle = fine.fixed.points_mm[:, :-1].mean(0).numpy()
    affine = fine.climb(near, "affine", FINE_ITERATIONS)
    rigid = fine.climb(rigid_part(affine, middle), "rigid", FINE_ITERATIONS)
    maps = np.stack([affine, fine.climb(rigid, "affine", FINE_ITERATIONS), rigid])
    agreement = fine.at(maps).score
    affine = maps[agreement[:2].argmax()]       # the coarse one may have shrunk into an optimum of its own
    differs = bool(agreement[:2].max() > DIFFERS * agreement[2])
    if transform == "affine":
        return Finished(affine, affine, differs)
    if transform == "similarity":
        scaled = score.climb(rigid_part(affine, middle), "similarity", COARSE_ITERATIONS)
        return Finished(fine.climb(scaled, "similarity", FINE_ITERATIONS), affine, differs)
    if differs:
        return Finished(rigid_part(affine, middle), affine, differs)
    return Finished(rigid if masked else _refined(fixed, moving, rigid, fine), affine, differs)


def _refined(fixed: Image, moving: Image, pose: NDArray[np.float64], fine: Score) -> NDArray[np.float64]:
    """The optimum of mutual information near a pose, at the images' own resolution; the pose itself where the search
    leaves it for something that agrees clearly less, as it does where two images hardly inform about each other."""
    found = LOCAL.register(to_sitk(fixed), to_sitk(moving), pose).pull_back
    before, after = fine.at(np.stack([pose, found])).score
    return found if after >= WORSE * before else pose
