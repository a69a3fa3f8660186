"""What the episodes of a training ended with, for the loggers of Stable-Baselines3."""

from __future__ import annotations

from collections import deque

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

LAST = 100      # episodes, as SB3's own means over episodes
NUMBERS = ("tre", "dice", "folding", "distance", "score")


class EpisodeMetrics(BaseCallback):
    """Logs ``rollout/tre``, ``rollout/dice`` and so on: means of what the last 100 episodes ended with.

        model.learn(100_000, callback=EpisodeMetrics())

    The numbers are those of the last step's info, of every environment that tells ends as SB3's Monitor does: that is
    :class:`regenv.wrappers.sb3.SB3VecEnv`, and SB3's own vector environments over ``gym.make``. A number that an id
    does not have, or that is NaN in all episodes, is left out. SB3 itself logs ``rollout/success_rate``.

    Args: numbers: keys of infos.
    """

    def __init__(self, numbers: tuple[str, ...] = NUMBERS) -> None:
        super().__init__()
        self.ends: dict[str, deque[float]] = {name: deque(maxlen=LAST) for name in numbers}

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                for name, ends in self.ends.items():
                    if name in info:
                        ends.append(float(info[name]))
        return True

    def _on_rollout_end(self) -> None:
        for name, ends in self.ends.items():
            values = np.array(ends)
            if np.isfinite(values).any():
                self.logger.record(f"rollout/{name}", float(np.nanmean(values)))
