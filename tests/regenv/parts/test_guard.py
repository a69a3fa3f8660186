"""Fuzzy action control (Krebs et al. 2017)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from regenv.ops.random import counter_uniform
from regenv.parts.guard import FuzzyControl

DRAWS = 100_000
ALPHA = 1e-4  # of the statistical tests, whose seeds are fixed


@pytest.mark.parametrize("value", [0.0, 1.4, -1.5, 1.6, -2.0, 3.0])
def test_acceptance_frequency_is_the_gaussian_ratio(value: float) -> None:
    """100,000 draws: an action that ends at ``value`` standard deviations, against SciPy's densities."""
    sigma, k = 2.5, 1.5
    guard = FuzzyControl((sigma, 1.0), k)
    step = 0.5 if value > 0 else -0.5
    pose = torch.tensor([[value * sigma - step, 0.0]], dtype=torch.float64).expand(DRAWS, -1)
    delta = torch.tensor([[[step, 0.0]]], dtype=torch.float64).expand(DRAWS, -1, -1)
    chance = counter_uniform(torch.arange(DRAWS), torch.zeros(DRAWS, dtype=torch.int64), 4)
    accepted = guard.accepted(pose, delta, chance)
    assert accepted[..., 1].all()
    expected = min(1.0, norm.pdf(value) / norm.pdf(k))
    frequency = accepted[:, 0, 0].double().mean().item()
    if expected == 1.0:
        assert frequency == 1.0
    else:
        statistic = (frequency - expected) ** 2 * DRAWS / (expected * (1 - expected))
        assert chi2.sf(statistic, 1) > ALPHA


def test_raising_and_lowering_have_their_own_numbers() -> None:
    guard = FuzzyControl((1.0,))
    pose = torch.full((DRAWS // 10, 1), 2.0, dtype=torch.float64)
    chance = counter_uniform(torch.arange(len(pose)), torch.zeros(len(pose), dtype=torch.int64), 2)
    moves = torch.tensor([[[0.1], [-0.1]]], dtype=torch.float64).expand(len(pose), -1, -1)
    up, down = guard.accepted(pose, moves, chance)[..., 0].unbind(1)
    assert down.double().mean() > up.double().mean()
    assert abs(np.corrcoef(up.numpy(), down.numpy())[0, 1]) < 0.05


@pytest.mark.parametrize(("deviations", "k"), [((1.0, 0.0), 1.5), ((1.0,), 0.0)])
def test_wrong_arguments_are_named(deviations: tuple[float, ...], k: float) -> None:
    with pytest.raises(ValueError, match="FuzzyControl: k is"):
        FuzzyControl(deviations, k)
