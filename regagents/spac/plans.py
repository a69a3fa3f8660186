"""Plans: Gaussian numbers squashed by tanh, and the density of what comes out (Haarnoja et al. 2018, appendix C)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR_ONE = 1 - 1e-6


def squashed(raw: Tensor) -> Tensor:
    """Plans in (-1, 1)."""
    return torch.tanh(raw)


def unsquashed(plan: Tensor) -> Tensor:
    """What was squashed into a plan."""
    return torch.atanh(plan.clamp(-NEAR_ONE, NEAR_ONE))


def log_prob_of(raw: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability densities (B,) of the squashed plans ``tanh(raw)``, where ``raw`` (B, ...) is Gaussian.

    ``log N(raw) - sum log(1 - tanh(raw)^2)``, eq. 21; the last logarithm in its stable form.
    """
    raw, mean, log_std = raw.float(), mean.float(), log_std.float()
    away = (raw - mean) * (-log_std).exp()
    gaussian = -0.5 * away.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_det = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return (gaussian - log_det).flatten(1).sum(1)


class Proposal(NamedTuple):
    """A distribution of plans: mean and log standard deviation (B, D, *lattice) before they are squashed, and the
    planner's features, finest first."""

    mean: Tensor
    log_std: Tensor
    features: list[Tensor]

    def drawn(self) -> Tensor:
        """A sample before it is squashed, reparameterised."""
        return self.mean + torch.randn_like(self.mean) * self.log_std.exp()

    def log_prob(self, raw: Tensor) -> Tensor:
        """See :func:`log_prob_of`."""
        return log_prob_of(raw, self.mean, self.log_std)

    def unsteered(self) -> Proposal:
        """The same, whose mean takes no gradient."""
        return self._replace(mean=self.mean.detach())
