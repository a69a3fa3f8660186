"""Which actions have an effect: fuzzy action control (Krebs et al. 2017, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class FuzzyControl:
    """Actions that move a parameter beyond k standard deviations are accepted only with some probability.

    An action that would move parameter m to f is accepted if a uniform number is less than
    ``N(f; mu, sigma) / N(mu + k sigma; mu, sigma) = exp(k^2 / 2 - (f - mu)^2 / (2 sigma^2))``: always within k standard
    deviations, and with falling probability beyond. The means mu of a deformation model's amplitudes are zero.

    Args: deviations: sigma of the P parameters; k: tightness, the paper's is 1.5.
    """

    deviations: tuple[float, ...]
    k: float = 1.5
    kernel: ClassVar[tuple[str, ...]] = ("fuzzy", "deviations", "k")

    def __post_init__(self) -> None:
        if not self.k > 0 or min(self.deviations) <= 0:
            raise ValueError(f"FuzzyControl: k is {self.k} and the smallest deviation {min(self.deviations)}; "
                             "both must be positive.")

    def odds(self, value: Tensor) -> Tensor:
        """Ratio of the densities (..., P) for parameters that become ``value`` (..., P); 1 or more: always accepted."""
        return torch.exp(self.k**2 / 2 - (value / _kept(self.deviations, value.dtype, value.device)) ** 2 / 2)

    def accepted(self, pose: Tensor, delta: Tensor, chance: Tensor) -> Tensor:
        """Which parts of actions are accepted, (B, A, P) bool; parts that change nothing always are.

        Args: pose (B, P); delta (B, A, P), changes by the actions; chance (B, 2 P), uniform numbers: column 2 p is
        for raising parameter p, 2 p + 1 for lowering it.
        """
        up, down = chance[:, None, 0::2], chance[:, None, 1::2]
        return (delta == 0) | (torch.where(delta > 0, up, down) < self.odds(pose[:, None] + delta))


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _kept(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor, cached on the device."""
    return torch.tensor(numbers, dtype=dtype, device=device)
