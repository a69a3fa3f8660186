"""Whether a registration found the right pose, told from what can be seen without the truth.

The evidence (:func:`evidence`) goes into a logistic regression that was fitted to registrations with known answers, a
third of them impossible. ``verdict.json`` holds its coefficients and how they were found
(``benchmarks/verdict_fit.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regagents.classical.common import shift
from regagents.registration.candidates import Candidate
from regagents.registration.information import Object, measured
from regagents.registration.pipeline import turned, turns
from regagents.registration.score import Score, stretches
from regenv.stored import parse_json

WRONG, WRONG_SHIFT, SEED = 48, 0.3, 0   # wrong poses; their shifts, of the foreground's radius
MIRROR_ITERATIONS, FEW = 12, 3_000    # of the ascent to mirror images; points of the score there
TINY = 1e-6
REASONS = 2         # told at most
MOST = 3.0          # logarithm of a ratio of scores
PART_POINTS, PART_BINS, FEWEST = 8_000, 12, 20      # of the score of an object's parts; points that make a part
AWAY = (0.12, 0.24)     # displacements of a part, of the foreground's radius
BOUNDS = {"contrast": (-3.0, 3.0), "local": (0.0, 1.2), "mirror": (-0.02, 0.12)}    # beyond them a number says no more
FOLDS = 0.01        # share of voxels that fold, from which a deformation is doubtful at best
FEATURES: dict[str, str] = {
    "contrast": "the images agree little more than at wrong poses",
    "distance": "a wrong pose agrees nearly as well",
    "information": "the images share little information",
    "local": "parts of the object agree as well elsewhere",
    "lead": "another pose agrees as well",
    "share": "few of the agent's starts ended there",
    "overlap": "the objects lie hardly on each other",
    "covered": "most of the object lies outside of the other image",
    "mirror": "the mirrored image fits as well",
    "stretch": "the objects differ much in size or shape",
    "fine": "fine structures agree no better than coarse ones",
}
"""What can be weighed, with what is said where it speaks against the pose; ``verdict.json`` says what is."""


def evidence(score: Score, fine: Score, pose: NDArray[np.float64], affine: NDArray[np.float64],
             candidates: Sequence[Candidate], folding: float = 0.0) -> dict[str, float]:
    """Numbers that tell a right pose from a wrong one; larger speaks for it, but for "mirror", "stretch" and "folding".

    Args:
        score, fine: of the two images, coarse and fine.
        pose, affine: (D+1, D+1), the pose found and the affine map near it.
        candidates: best first. folding: share of voxels that fold.
    """
    here = score.at(np.stack([pose, affine]))
    best = max(float(here.score.max()), TINY)
    null = score.at(wrong_poses(affine, score)).score
    deviation = max(float(null.std()), TINY)
    others = [one.score for one in candidates[1:]]
    detail, coarse = (float(each.information.max()) for each in (fine.at(np.stack([pose, affine])), here))
    return {
        "contrast": (best - float(null.mean())) / deviation,
        "distance": times(best, float(null.max())),
        "information": float(np.log(max(coarse, TINY))),
        "local": local(fine.thinned(PART_POINTS), affine),
        "lead": times(best, max(others)) if others else 1.0,
        "share": candidates[0].share,
        "overlap": float(here.overlap.max()),
        "covered": float(here.covered.max()),
        "mirror": mirrored(score.thinned(FEW), affine),
        "stretch": float(np.abs(stretches(affine)).max()),
        "fine": times(detail, coarse),
        "folding": folding,
    }


def times(one: float, other: float) -> float:
    """Logarithm of how many times one score is the other, within +-3: scores near or below 0 mean nothing more."""
    return float(np.clip(np.log(max(one, TINY) / max(other, TINY)), -MOST, MOST))


def wrong_poses(pose: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
    """Poses (K, D+1, D+1) that are surely wrong: turned by rotations of the cube (in 2D over the circle) and
    shifted by up to a third of the object's radius, at random with a fixed seed."""
    points = score.fixed.points_mm[:, :-1].numpy()
    middle, n = points.mean(0), points.shape[1]
    radius = float(np.linalg.norm(points - middle, axis=1).mean())
    rng = np.random.default_rng(SEED)
    regular = turns(n)[1:]
    rotations = regular[rng.integers(len(regular), size=WRONG)]
    found = turned(pose, middle, rotations)
    for wrong in found:
        away = np.asarray(rng.uniform(-1, 1, n)) * (WRONG_SHIFT * radius)
        wrong[:] = wrong @ shift(away)
    return found


def mirrored(score: Score, pose: NDArray[np.float64]) -> float:
    """Logarithm of the best score near the pose's mirror images, through the planes of the fixed image's axes, over the
    best near the pose itself."""
    middle: NDArray[np.float64] = score.fixed.points_mm[:, :-1].mean(0).numpy()
    poses = []
    for flipped in (None, *range(len(middle))):
        flip = np.eye(len(middle) + 1)
        if flipped is not None:
            flip[flipped, flipped] = -1
        poses.append(score.climb(pose @ shift(middle) @ flip @ shift(-middle), "similarity", MIRROR_ITERATIONS))
    scores = score.at(np.stack(poses)).score
    return times(float(scores[1:].max()), float(scores[0]))


def local(score: Score, pose: NDArray[np.float64]) -> float:
    """How much better the parts of the object agree where they lie than displaced: the information of each part less
    its mean over displacements, in their standard deviations, and the mean of that over the parts.

    A wrong pose may be the best for the whole; its parts would rather lie elsewhere. The parts are cut by the medians
    of the fixed foreground along the axes, 2^D in all.
    """
    here, there, n = score.fixed.object, score.moving.object, len(pose) - 1
    points, others = here.points_mm, there.points_mm @ np.linalg.inv(pose).T
    cuts = np.median(points, 0)
    radius = float(np.linalg.norm(points - points.mean(0), axis=1).mean())
    steps = np.array([step for step in product((-1.0, 0.0, 1.0), repeat=n) if any(step)])
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    moves = [np.eye(n + 1), *(shift(share * radius * step) for share in AWAY for step in steps)]
    found = []
    for sides in product((False, True), repeat=n):
        mine, its = (((each > cuts)[:, :n] == sides).all(1) for each in (points, others))
        if min(mine.sum(), its.sum()) < FEWEST:
            continue
        pair = (_part(here, mine), _part(there, its))
        values = np.array([measured(*pair, pose @ move, PART_BINS, False).information for move in moves])
        found.append((values[0] - values[1:].mean()) / max(float(values[1:].std()), TINY))
    return float(np.mean(found)) if found else 0.0


def _part(whole: Object, chosen: NDArray[np.bool_]) -> Object:
    return whole._replace(points_mm=whole.points_mm[chosen], at_points=whole.at_points[chosen],
                          volume=whole.volume * float(chosen.mean()))


def verdict(found: Mapping[str, float]) -> dict[str, Any]:
    """``{"state", "probability", "reasons", "evidence"}`` of evidence: "aligned", "doubtful" or "failed"; the
    probability that the pose is right; what speaks most against it, unless it is aligned."""
    model = fitted()
    names = model["features"]
    standard = (weighed(found, names) - np.array(model["mean"])) / np.array(model["deviation"])
    terms = standard * np.array(model["weights"])
    probability = float(1 / (1 + np.exp(-(model["intercept"] + terms.sum()))))
    state = next((state for state in ("aligned", "doubtful") if probability >= model[state]), "failed")
    weakest = [FEATURES[names[place]] for place in np.argsort(terms)[:REASONS]]
    against = [FEATURES[names[place]] for place in np.argsort(terms)[:REASONS] if terms[place] < 0] or weakest[:1]
    reasons = [] if state == "aligned" else against
    if found["folding"] > FOLDS:
        state = "doubtful" if state == "aligned" else state
        reasons = [f"{found['folding']:.1%} of the deformation's voxels fold", *reasons]
    return {"state": state, "probability": probability, "reasons": reasons, "evidence": dict(found)}


def weighed(found: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    """Evidence as the model sees it, (F,): of the contrasts of the whole and of the parts their logarithms, and each
    number within its bounds: a wrong pose may have one that is overwhelming, such as the contrast of a mirror image."""
    seen = {**found, "contrast": np.log(max(found["contrast"], TINY)), "local": np.log1p(max(found["local"], 0.0))}
    return np.array([np.clip(seen[name], *BOUNDS.get(name, (-np.inf, np.inf))) for name in names])


@lru_cache(maxsize=1)
def fitted() -> dict[str, Any]:
    """The fitted model, from the package's own file."""
    path = resources.files("regagents.registration") / "verdict.json"
    model: dict[str, Any] = parse_json(path.read_text(), str(path))
    return model
