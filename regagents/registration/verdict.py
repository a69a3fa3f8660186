"""Whether a registration found the right pose, told from what can be seen without the truth.

The evidence (:func:`evidence`) goes into a logistic regression that was fitted to registrations with known answers, a
third of them impossible. ``verdict.json`` holds its coefficients and how they were found
(``benchmarks/verdict_fit.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regagents.classical.common import shift
from regagents.registration.candidates import Candidate
from regagents.registration.pipeline import turned, turns
from regagents.registration.score import Score, stretches
from regenv.stored import parse_json

WRONG, WRONG_SHIFT, SEED = 48, 0.3, 0   # wrong poses; their shifts, of the foreground's radius
MIRROR_ITERATIONS, FEW = 12, 3_000    # of the ascent to mirror images; points of the score there
TINY = 1e-6
REASONS = 2         # told at most
MOST = 3.0          # logarithm of a ratio of scores
DECIDED = 0.25      # beyond this the mirror's logarithm says no more
FOLDS = 0.01        # share of voxels that fold, from which a deformation is doubtful at best
FEATURES: dict[str, str] = {
    "contrast": "the images agree little more than at wrong poses",
    "distance": "a wrong pose agrees nearly as well",
    "information": "the images share little information",
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
    """Evidence as the model sees it, (F,): of the contrast its logarithm, of the mirror what lies within +-0.25."""
    seen = {**found, "contrast": times(found["contrast"], 1.0),
            "mirror": float(np.clip(found["mirror"], -DECIDED, DECIDED))}
    return np.array([seen[name] for name in names])


@lru_cache(maxsize=1)
def fitted() -> dict[str, Any]:
    """The fitted model, from the package's own file."""
    path = resources.files("regagents.registration") / "verdict.json"
    model: dict[str, Any] = parse_json(path.read_text(), str(path))
    return model
