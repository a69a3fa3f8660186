"""Rewards: the gain of a score in a step, plus a bonus on arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regenv.ops import similarity
from regenv.state import EpisodeState
from regenv.task import Reward


class Gain:
    """The reward of a step is the gain of a score, plus a bonus on arrival; a subclass defines the score.

    A score is NaN where it is unknown; such lanes earn nothing.
    """

    bonus: float

    def __call__(self, before: EpisodeState, after: EpisodeState) -> Tensor:
        """Rewards (B,) float64."""
        return torch.nan_to_num(after.score - before.score) + self.bonus * after.arrived


@dataclass(frozen=True)
class DistanceDecrease(Gain):
    """Decrease of the pose distance D, plus a bonus on arrival (Liao et al. 2017, eq. 3 and 4)."""

    bonus: float = 10.0

    def score(self, state: EpisodeState) -> Tensor:
        """-D (B,) float64; NaN where the truth is unknown."""
        return -state.distance


class NegativeDistance(DistanceDecrease):
    """-D in every step, the bonus on arrival (Sun et al. 2018, eq. 4). Unbounded: returns grow with the episode."""

    def __call__(self, before: EpisodeState, after: EpisodeState) -> Tensor:
        """Rewards (B,) float64."""
        return torch.where(after.arrived, self.bonus, torch.nan_to_num(after.score))


@dataclass(frozen=True)
class DiceGain(Gain):
    """Gain of the mean Dice of labels, which needs no deformation to be known (Luo et al. 2022, eq. 5).

    Args: scale: reward per unit of Dice; bonus: on arrival; of: "labels", or "clusters" of the intensities.
    """

    scale: float = 1.0
    bonus: float = 0.0
    of: str = "labels"

    def score(self, state: EpisodeState) -> Tensor:
        """(B,) float64. Raises ValueError where the pairs have no labels."""
        pair = state.pair
        if self.of == "clusters" and pair.fixed_clusters is not None and pair.moving_clusters is not None:
            dice = state.overlap(pair.fixed_clusters, pair.moving_clusters, pair.clusters)
        elif state.dice is not None:
            dice = state.dice
        else:
            raise ValueError("reward is 'dice'; it needs labels of both images. Use another source or reward.")
        return self.scale * dice.nan_to_num().to(torch.float64)


@dataclass(frozen=True)
class SimilarityGain(Gain):
    """Gain of an image similarity: the unsupervised reward, which needs no truth.

    Args: metric: a name in ``SIMILARITIES`` (higher is more alike); scale: reward per unit; bonus: on arrival, only
    where the truth is known.
    """

    metric: str = "mi"
    scale: float = 10.0
    bonus: float = 0.0

    def score(self, state: EpisodeState) -> Tensor:
        """(B,) float64."""
        if self.metric in FROM_MOMENTS and state.moments is not None:
            return self.scale * FROM_MOMENTS[self.metric](state.moments, state.pair.fixed[0, 0].numel())
        return self.scale * SIMILARITIES[self.metric](state.pair.fixed, state.warped).to(torch.float64)


@dataclass(frozen=True)
class LandmarkGain:
    """Decrease of the mean landmark error, mm."""

    def score(self, state: EpisodeState) -> Tensor:
        """(B,) float64; NaN where the source has no landmarks or does not know where they belong."""
        return -state.tre

    def __call__(self, before: EpisodeState, after: EpisodeState) -> Tensor:
        """Rewards (B,) float64."""
        return torch.nan_to_num(after.score - before.score)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mi": similarity.mi, "ncc": similarity.ncc, "lncc": similarity.lncc, "ssim": similarity.ssim,
    "mse": lambda fixed, warped: -similarity.mse(fixed, warped)}
FROM_MOMENTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ncc": similarity.ncc_of_moments, "mse": lambda sums, voxels: -similarity.mse_of_moments(sums, voxels)}
REWARDS: dict[str, Reward] = {"distance": DistanceDecrease(),
                              **{name: SimilarityGain(name) for name in SIMILARITIES}}
