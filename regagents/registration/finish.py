"""From the best candidate to the final transform: affine with its scales and shears, then what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regagents.registration.score import Score, rigid_part

TRANSFORMS = ("rigid", "similarity", "affine")
FINE_ITERATIONS, FINEST_ITERATIONS = 20, 25
DIFFERS = 1.2   # factor by which an affine map must agree better than a rigid one where two objects differ in size:
                # measured 1.03 to 1.14 within a person (CT to MR, T1 to T2), 1.05 to 2.6 between two


@dataclass(frozen=True, eq=False)
class Finished:
    """Attributes: pull_back: what was asked for, (D+1, D+1); affine: the affine map near it; differs: whether the two
    objects are of different size or shape."""

    pull_back: NDArray[np.float64]
    affine: NDArray[np.float64]
    differs: bool


def finished(near: NDArray[np.float64], transform: str, fine: Score, finest: Score) -> Finished:
    """The transform near an affine map, up to the images' own resolution.

    A rigid pose of one object (one person seen twice) is the one that agrees best. Between two objects of different
    size that optimum follows the outlines, and what lies inside does not meet. There the rigid pose is the rigid part
    of the affine map on which outlines and inside agree. Two objects count as different where the affine map agrees
    clearly better (:data:`DIFFERS`) than the best rigid pose.

    Affine maps are sought from ``near`` and from the rigid pose, since a coarse one may have shrunk into an optimum of
    its own; the better one is taken.

    Args: near: (D+1, D+1). fine, finest: scores of the two images; the last says what agrees.
    Raises ValueError: another transform.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"register: transform is {transform!r}; take one of {', '.join(TRANSFORMS)}.")
    middle = fine.fixed.points_mm[:, :-1].mean(0).numpy()
    affine = fine.climb(near, "affine", FINE_ITERATIONS)
    rigid = fine.climb(rigid_part(affine, middle), "rigid", FINE_ITERATIONS)
    affine = _better(fine, affine, fine.climb(rigid, "affine", FINE_ITERATIONS))
    if transform == "similarity":
        scaled = fine.climb(rigid, "similarity", FINE_ITERATIONS)
        return Finished(finest.climb(scaled, "similarity", FINEST_ITERATIONS), affine, False)
    rigid = finest.climb(rigid, "rigid", FINEST_ITERATIONS)
    affine = _better(finest, *(finest.climb(each, "affine", FINEST_ITERATIONS) for each in (affine, rigid)))
    agreement = finest.at(np.stack([affine, rigid])).score
    differs = bool(agreement[0] > DIFFERS * agreement[1])
    asked = affine if transform == "affine" else rigid_part(affine, middle) if differs else rigid
    return Finished(asked, affine, differs)


def _better(score: Score, one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map of the two that agrees better."""
    agreement = score.at(np.stack([one, other])).score
    return one if agreement[0] >= agreement[1] else other
