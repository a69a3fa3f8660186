"""Which optimiser suits two images: what measured best, on training pairs, for pairs of their kind.

Kinds are told apart by a few numbers of the two images (:class:`Traits`). ``choice.json`` holds their limits, and what
each optimiser scored on pairs of each kind (``benchmarks/choice.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regagents.classical.syn import SyN
from regagents.registration.score import Score
from regenv.data.io.images import Image
from regenv.stored import parse_json

AUTO = "auto"
FILE = "choice.json"
LUNG_HU, SOFT_HU, AIR_HU = (-950, -500), (-150, 250), -500    # densities of lungs, of soft tissue; the most of air
LEAST_AIR, LEAST_SOFT = 0.01, 0.02      # shares of the voxels of a CT that has both


@dataclass(frozen=True)
class Traits:
    """What the choice is made from.

    Attributes:
        ndim: of the images.
        lungs: share of voxels as dense as lungs, of the image with fewer; None unless both are CT in Hounsfield units.
        correlation: of the two images' intensities on the fixed one's foreground at the pose, in [-1, 1].
    """

    ndim: int
    lungs: float | None
    correlation: float

    @classmethod
    def of(cls, fixed: Image, moving: Image, score: Score, pull_back: NDArray[np.float64]) -> Traits:
        """Args: fixed, moving: with the intensities of their files; score: of them; pull_back: (D+1, D+1), mm."""
        shares = [lung_share(image) for image in (fixed, moving)]
        known = [share for share in shares if share is not None]
        return cls(fixed.ndim, min(known) if len(known) == len(shares) else None, correlation(score, pull_back))

    def kind(self, limits: Mapping[str, float]) -> str:
        """"3D lung", "3D ct", or "same" or "different" (modality) in either dimension."""
        if self.ndim == 3 and self.lungs is not None:
            return "3D lung" if self.lungs > limits["lungs"] else "3D ct"
        return f"{self.ndim}D {'same' if self.correlation > limits['correlation'] else 'different'}"


@dataclass(frozen=True)
class Chosen:
    """An optimiser's name, and why it was chosen."""

    name: str
    kind: str
    traits: Traits
    measured: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """For ``metrics.json``: the pair's kind, the numbers that say so with their limits, and what was measured."""
        return {"kind": self.kind, **asdict(self.traits), "limits": dict(table()["limits"]),
                "measured": dict(self.measured)}


def choose(traits: Traits) -> Chosen:
    """What measured best, of what is installed, for pairs of this kind."""
    kind = traits.kind(table()["limits"])
    row = next(row for row in table()["kinds"][kind]["optimisers"] if available(row["name"]))
    return Chosen(row["name"], kind, traits, row)


def available(name: str) -> bool:
    """Whether an optimiser is installed."""
    return name != "syn" or SyN.available()


@lru_cache
def table() -> Mapping[str, Any]:
    """What was measured: "limits" by trait; and by kind "pairs", "score" and "optimisers", best first, each with its
    name, score, seconds and share of folded voxels."""
    read: Mapping[str, Any] = parse_json((resources.files("regagents.registration") / FILE).read_text(), FILE)
    return read


def lung_share(image: Image) -> float | None:
    """Share of the voxels that are as dense as lungs; None of an image that is no CT in Hounsfield units."""
    values = image.array
    air, soft = (values < AIR_HU).mean(), _share(values, SOFT_HU)
    return _share(values, LUNG_HU) if air > LEAST_AIR and soft > LEAST_SOFT else None


def _share(values: NDArray[Any], limits: tuple[float, float]) -> float:
    return float(((values > limits[0]) & (values < limits[1])).mean())


def correlation(score: Score, pull_back: NDArray[np.float64]) -> float:
    """Of the two intensities at the points of the fixed foreground that the moving image reaches; 0 where one is flat
    or fewer than three points are reached."""
    there, _, reached = score.moving.at(score.fixed.points_mm.numpy() @ pull_back.T)
    one, other = score.fixed.at_points[reached > 0.5], there[reached > 0.5]
    return float(np.corrcoef(one, other)[0, 1]) if len(one) > 2 and min(one.std(), other.std()) > 0 else 0.0
