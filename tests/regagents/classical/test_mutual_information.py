"""Registration by mutual information: known poses are found, failures are results, the same call gives the same answer.
"""

import os
import signal
import threading
from itertools import islice

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.classical import (
    MattesMI,
    Refinement,
    evaluate_metric,
    multi_start,
    random_starts,
    refine_pose,
)
from tests.regagents.classical.images import FAR_MM, FOUND_MM, error_mm, pair

QUICK = MattesMI(iterations=60)


@pytest.mark.parametrize("ndim", [2, 3])
def test_baseline_finds_a_known_pose(ndim: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed=1, translation=10, rotation=12)
    result = MattesMI().register(fixed, moving, np.eye(ndim + 1), grid.center)
    assert error_mm(np.eye(ndim + 1), truth, grid) > 5
    assert error_mm(result.pull_back, truth, grid) < FOUND_MM
    assert result.metric < 0 and result.iterations > 0 and result.seconds > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", [MattesMI(), MattesMI(metric="ncc"), MattesMI(metric="mse"), Refinement()],
                         ids=["mi", "ncc", "mse", "refinement"])
def test_no_overlap_is_a_result(ndim: int, method: MattesMI | Refinement) -> None:
    fixed, moving, _, grid = pair(ndim, seed=7, translation=5, rotation=5)
    away = np.eye(ndim + 1)
    away[:ndim, ndim] = FAR_MM
    result = method.register(fixed, moving, away, grid.center)
    assert result.metric == float("inf")
    np.testing.assert_array_equal(result.pull_back, away)
    assert evaluate_metric(fixed, moving, away) == float("inf")


@pytest.mark.parametrize("which", [0, 1], ids=["fixed", "moving"])
def test_a_flat_image_is_a_result(which: int) -> None:
    *images, _, grid = pair(3, seed=7, translation=5, rotation=5)
    images[which] = images[which] * 0
    for method in (MattesMI(), MattesMI(metric="ncc"), Refinement()):
        result = method.register(*images, np.eye(4), grid.center)
        assert result.metric == float("inf")
        np.testing.assert_array_equal(result.pull_back, np.eye(4))
    assert evaluate_metric(*images, np.eye(4)) == float("inf")


def test_the_metric_is_best_at_the_truth() -> None:
    fixed, moving, truth, grid = pair(3, seed=8, translation=10, rotation=10)
    others = islice(random_starts(truth, grid.center, np.random.default_rng(0), 20, 20), 1, 6)
    assert all(evaluate_metric(fixed, moving, truth) < evaluate_metric(fixed, moving, other) for other in others)


def test_multi_start_is_never_worse_than_its_first_start() -> None:
    fixed, moving, _, grid = pair(3, seed=9, translation=25, rotation=40)
    first = QUICK.register(fixed, moving, np.eye(4), grid.center)
    starts = random_starts(np.eye(4), grid.center, np.random.default_rng(0))
    best = multi_start(fixed, moving, islice(starts, 4), grid.center, seconds=60, method=QUICK)
    assert best.metric <= evaluate_metric(fixed, moving, first.pull_back)
    assert best.metric == pytest.approx(evaluate_metric(fixed, moving, best.pull_back))
    assert best.iterations > first.iterations


def test_multi_start_ends_when_its_time_is_used() -> None:
    fixed, moving, _, grid = pair(3, seed=9, translation=10, rotation=10)
    used = []

    def counted():
        for start in random_starts(np.eye(4), grid.center, np.random.default_rng(0)):
            used.append(start)
            yield start

    first = multi_start(fixed, moving, counted(), grid.center, seconds=0, method=QUICK)
    np.testing.assert_array_equal(first.pull_back, QUICK.register(fixed, moving, np.eye(4), grid.center).pull_back)
    assert len(used) <= 2  # one used, one drawn when the time was up
    budget = 0.3
    best = multi_start(fixed, moving, counted(), grid.center, seconds=budget, method=QUICK)
    assert best.seconds >= budget
    assert best.seconds - budget < 10 * first.seconds + 1  # at most one run over, on a busy machine


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_call_gives_the_same_answer(ndim: int) -> None:
    fixed, moving, _, grid = pair(ndim, seed=10, translation=8, rotation=8)
    for method in (QUICK, Refinement()):
        a, b = (method.register(fixed, moving, np.eye(ndim + 1), grid.center) for _ in range(2))
        np.testing.assert_array_equal(a.pull_back, b.pull_back)
        assert a.metric == b.metric
    other = MattesMI(iterations=60, seed=1).register(fixed, moving, np.eye(ndim + 1), grid.center)
    assert ndim == 2 or not np.array_equal(other.pull_back,
                                           QUICK.register(fixed, moving, np.eye(4), grid.center).pull_back)


def test_an_affine_motion_corrects_size() -> None:
    fixed, moving, truth, grid = pair(2, seed=11, translation=3, rotation=3)
    larger = truth @ np.diag([1.1, 1.1, 1.0])
    larger[:2, 2] += truth[:2, :2] @ (grid.center - 1.1 * grid.center)
    result = MattesMI(motion="similarity").register(fixed, moving, larger, grid.center)
    assert error_mm(larger, truth, grid) > 3
    assert error_mm(result.pull_back, truth, grid) < FOUND_MM


def test_errors_name_the_field_and_the_way_out() -> None:
    flat, volume = sitk.Image([32, 32], sitk.sitkFloat32), sitk.Image([8, 8, 8], sitk.sitkFloat32)
    with pytest.raises(ValueError, match="2D and the moving one 3D"):
        MattesMI().register(flat, volume, np.eye(3), np.zeros(2))
    with pytest.raises(ValueError, match="initial has shape"):
        refine_pose(volume, volume, np.eye(3))
    with pytest.raises(ValueError, match="Register a single slice"):
        refine_pose(sitk.Image([32, 32, 1], sitk.sitkFloat32), volume, np.eye(4))
    with pytest.raises(ValueError, match="metric is 'ssim'"):
        MattesMI(metric="ssim")
    with pytest.raises(ValueError, match="initials is empty"):
        multi_start(volume, volume, [], np.zeros(3), seconds=1)


class Asked(BaseException):
    """What a signal raises here."""


def test_a_signal_during_the_search_is_not_lost_in_it() -> None:
    fixed, moving, _, grid = pair(2, seed=3, translation=5, rotation=5)

    def raise_asked(*_: object) -> None:
        raise Asked

    before = signal.signal(signal.SIGUSR1, raise_asked)
    try:
        for moment in (0.02, 0.035, 0.05, 0.065, 0.08):     # most of them within SimpleITK
            threading.Timer(moment, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Asked):
                for _ in range(1000):
                    MattesMI().register(fixed, moving, np.eye(3), grid.center)
    finally:
        signal.signal(signal.SIGUSR1, before)
