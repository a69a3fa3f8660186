"""How training rises from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curriculum:
    """How a source's difficulty and the range of starting poses grow over training: linearly between two shares of it.

    All at once nothing is learnt from scratch (loss flat for thousands of batches); with the rise it is learnt at once.
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
