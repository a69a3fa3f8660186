"""Fuzzy action control and the counter-based numbers behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from regenv.ops.random import counter_uniform
from regenv.parts.guard import FuzzyControl

DRAWS = 100_000
ALPHA = 1e-4  # of the statistical tests, whose seeds are fixed


def splitmix(state: int) -> int:
    """Steele et al. 2014, in Python's whole numbers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_numbers_are_splitmix64() -> None:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    found = counter_uniform(torch.tensor([12345, -7]), torch.tensor([0, 41]), 3)
    for lane, (seed, counter) in enumerate([(12345, 0), (-7, 41)]):
        state = splitmix((seed + golden * (counter + 1)) & mask)
        for column in range(3):
            assert found[lane, column].item() == (splitmix(state + golden * (column + 1)) >> 11) / 2**53


def test_numbers_are_uniform_over_seeds_counters_and_columns() -> None:
    seeds = torch.arange(DRAWS // 10)
    assert kstest(counter_uniform(seeds, torch.zeros_like(seeds), 10).flatten(), "uniform").pvalue > ALPHA
    assert kstest(counter_uniform(torch.zeros_like(seeds) + 5, seeds, 10).flatten(), "uniform").pvalue > ALPHA


def test_a_lanes_numbers_depend_on_no_other_lane() -> None:
    seeds, steps = torch.tensor([3, 8, 1 << 61]), torch.tensor([0, 7, 199])
    whole = counter_uniform(seeds, steps, 30)
    for lane in range(3):
        assert torch.equal(whole[lane:lane + 1], counter_uniform(seeds[lane:lane + 1], steps[lane:lane + 1], 30))


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
