"""Whatever a file holds, its reader gives what the undamaged file holds, or one clear error; it never crashes or
hangs, and takes no more memory than the image needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.robustness.damage import cases
from tests.robustness.worker import REFUSED, SAME, outcomes

LEAST_CASES, SAMPLE = 2_000, 200


def assert_all_right(indices: list[int]) -> Counter[str]:
    found = list(outcomes(indices))
    wrong = [f"{outcome.name}: {outcome.result}: {outcome.message}" for outcome in found if not outcome.is_right]
    assert len(found) == len(indices) and not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong[:40])
    return Counter(outcome.result for outcome in found)


def test_a_sample_of_damaged_files_is_refused_or_read_as_undamaged() -> None:
    count = len(cases())
    assert count >= LEAST_CASES
    chosen = np.random.default_rng(1).choice(count, SAMPLE, replace=False).tolist()
    tally = assert_all_right(sorted(chosen))
    assert tally[REFUSED] > SAMPLE / 4 and tally[SAME] > 0


@pytest.mark.slow
def test_all_damaged_files_are_refused_or_read_as_undamaged() -> None:
    tally = assert_all_right(list(range(len(cases()))))
    print(tally)
