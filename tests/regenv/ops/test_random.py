"""Counter-based random numbers against SplitMix64, and their laws."""

from __future__ import annotations

import torch
from scipy.stats import kstest

from regenv.ops.random import counter_uniform

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
