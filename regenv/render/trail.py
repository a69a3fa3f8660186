"""What has happened in an episode so far, as its frames tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOWN_PARTS = 2     # of an action that changes several parameters


@dataclass(frozen=True)
class Reading:
    """How far an episode is from its end: "TRE, mm", "distance" or "score", its value, and the value of a success."""

    name: str
    value: float
    goal: float | None = None


@dataclass(frozen=True)
class Trail:
    """An episode's steps.

    Attributes:
        readings: values of the :class:`Reading` from the start to now, NaN where unknown.
        action: the last one in words; reward: of the last step; total: of all steps.
    """

    readings: tuple[float, ...]
    action: str = ""
    reward: float | None = None
    total: float = 0.0

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.readings) - 1

    def after(self, action: str, reward: float, reading: float) -> Trail:
        """The trail with one more step."""
        return replace(self, readings=(*self.readings, reading), action=action, reward=reward,
                       total=self.total + reward)


def action_words(action: Any, deltas: NDArray[np.float64], names: Sequence[str]) -> str:
    """An action in words: "tx +1", "ty -0.5, theta +0.1 (of 3)", or the mean size of a field.

    Args:
        action: of one lane, a number or an array.
        deltas: (A, P) changes of the parameters by discrete actions, or by unit steps of continuous ones.
        names: of the P parameters.
    """
    given = np.asarray(action)
    if given.ndim == 0 and len(deltas):
        change = deltas[int(given)] if 0 <= int(given) < len(deltas) else np.zeros(deltas.shape[1])
    elif len(deltas) and given.shape == (deltas.shape[1],):
        change = given.clip(-1, 1) * deltas.max(axis=0)
    else:
        return f"field, mean {np.abs(given).mean():.2g}"
    parts = [place for place in np.argsort(-np.abs(change), kind="stable") if change[place] != 0]
    if not parts:
        return "no change"
    told = ", ".join(f"{names[place]} {change[place]:+.2g}" for place in parts[:SHOWN_PARTS])
    return told if len(parts) <= SHOWN_PARTS else f"{told} (of {len(parts)})"
