"""Branching trees of tubes that reach given places: vessels and airways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_MURRAY = 2.7       # exponent in the sum of branches' radii (3 in Murray 1926; a little lower in lungs)
_REACH = 0.42       # a branch forks after this share of the way to the middle of the places that it feeds


@dataclass(frozen=True)
class Segments:
    """Straight tubes: starts and ends (N, 3), mm; radii (N, 2) at both."""

    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray

    @classmethod
    def line(cls, points: Sequence[Sequence[float]], radius: float) -> Segments:
        """Tubes of one radius through points."""
        path = np.asarray(points, dtype=np.float64)
        return cls(path[:-1], path[1:], np.full((len(path) - 1, 2), radius))

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "ends", "radii")))

    def thinner(self, factor: float) -> Segments:
        return Segments(self.starts, self.ends, self.radii * factor)

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
        for start, end, (first, last) in zip(self.starts, self.ends, self.radii.tolist(), strict=True):
            yield start, end, first, last

    def along(self, step_mm: float) -> np.ndarray:
        """Points (K, 3) on the axes, about ``step_mm`` apart; the ends of all segments are among them."""
        points = []
        for start, end, _, _ in self.rows():
            count = max(1, round(float(np.linalg.norm(end - start)) / step_mm))
            points.append(start + (end - start) * (np.arange(1, count + 1) / count)[:, None])
        return np.concatenate(points)


def grown(root: np.ndarray, parts: Sequence[np.ndarray], leaf_mm: float, rng: np.random.Generator) -> Segments:
    """A tree from ``root`` to all places of all parts, in which no branch feeds two parts.

    A branch runs part of the way to the middle of the places that it feeds and forks there; the fork divides the places
    across their longest extent. Radii follow Murray's law.

    Args: root (3,), mm; parts: places (N, 3) each, mm; leaf_mm: radius of the last branches; rng.
    """
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    radii: list[tuple[float, float]] = []

    def tube(start: np.ndarray, end: np.ndarray, first: float, last: float) -> None:
        """Add a tube with a bend in its middle."""
        bend = (start + end) / 2 + 0.07 * float(np.linalg.norm(end - start)) * rng.normal(size=3)
        middle = (first + last) / 2
        starts.extend((start, bend))
        ends.extend((bend, end))
        radii.extend(((first, middle), (middle, last)))

    def grow(start: np.ndarray, places: np.ndarray, radius: float) -> None:
        own = leaf_mm * len(places) ** (1 / _MURRAY)
        radius = min(radius, own)
        if len(places) == 1:
            tube(start, places[0], radius, leaf_mm)
            return
        middle = places.mean(0)
        fork = start + _REACH * (middle - start)
        tube(start, fork, radius, 0.94 * radius)
        spread = places - middle
        longest = np.linalg.eigh(spread.T @ spread + 1e-9 * np.eye(3))[1][:, -1]
        side = spread @ longest + rng.normal(0, 0.15) * np.abs(spread @ longest).mean()
        order = np.argsort(side, kind="stable")
        cut = int(np.clip((side < 0).sum(), 1, len(places) - 1))
        grow(fork, places[order[:cut]], radius)
        grow(fork, places[order[cut:]], radius)

    for places in parts:
        if len(places):
            grow(root, places, np.inf)
    return Segments(np.array(starts), np.array(ends), np.array(radii))
