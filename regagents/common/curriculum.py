"""How training goes from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """How a source's difficulty and the range of starting poses grow: linearly between two shares of training.

    At full difficulty, training from scratch does not begin to learn (its loss is flat for thousands of batches); with
    the rise it learns from the first batches on.

    Args: start, end: shares of training between which they grow; difficulty, reach: their first and last values.
    """

    start: float = 0.15
    end: float = 0.6
    difficulty: tuple[float, float] = (0.0, 1.0)
    reach: tuple[float, float] = (0.5, 1.0)

    def at(self, progress: float) -> dict[str, float]:
        """Reset options at a share of training in [0, 1]."""
        rise = min(max((progress - self.start) / max(self.end - self.start, 1e-9), 0.0), 1.0)
        return {name: low + (high - low) * rise
                for name, (low, high) in (("difficulty", self.difficulty), ("reach", self.reach))}


def options_at(curriculum: Curriculum | None, progress: float) -> dict[str, float]:
    """Reset options at a share of training in [0, 1]; none without a curriculum."""
    return {} if curriculum is None else curriculum.at(progress)
