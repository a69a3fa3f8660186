"""What is true of pairs of a synthetic spine: aligned at the truth, and a vertebra off looks almost right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.regenv.data.drawing import CPU, PAINTED, generators, similarity

VERTEBRA_MM = range(24, 41, 2)  # one lumbar or lower thoracic pitch


@pytest.mark.parametrize("name", ["spine3d", "spine2d"])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_spine_aligns_best_at_truth_but_a_vertebra_off_is_a_local_maximum(name: str, difficulty: float) -> None:
    source, grid = PAINTED[name]
    batch = source.draw(generators(12), grid, CPU, difficulty)
    at_truth = similarity(batch, 0)
    up, down = (np.stack([similarity(batch, sign * s) for s in VERTEBRA_MM]) for sign in (1, -1))
    half_up, half_down = (np.stack([similarity(batch, sign * s) for s in (10, 14, 18)]) for sign in (1, -1))
    assert (at_truth > up.max(0)).all()
    assert (at_truth > down.max(0)).all()
    # between two vertebrae it is worse than on the next one, in most patients
    better = np.concatenate([up.max(0) > half_up.min(0), down.max(0) > half_down.min(0)])
    assert better.mean() > 0.6


@pytest.mark.parametrize("name", ["spine3d", "spine2d", "spine-roi"])
def test_spine_landmarks_lie_in_the_moving_field_of_view(name: str) -> None:
    source, grid = PAINTED[name]
    batch = source.draw(generators(16), grid, CPU, 0.0)
    n = grid.ndim
    size = torch.tensor(batch.moving.shape[2:], dtype=torch.float64)
    for lane in range(batch.lanes):
        voxels = batch.landmarks[lane] @ batch.world_to_moving[lane, :n, :n].T + batch.world_to_moving[lane, :n, n]
        assert ((voxels >= -0.5) & (voxels <= size - 0.5)).all()
        nearest = voxels.round().long().clamp(min=0).minimum(size.long() - 1)
        assert (batch.moving[lane, 0][tuple(nearest.T)] > 0).float().mean() > 0.9
        assert len(torch.unique(batch.landmarks[lane], dim=0)) >= 8


def test_spine_moving_image_is_placed_by_lane_within_the_fixed_one() -> None:
    source, grid = PAINTED["spine3d"]
    batch = source.draw(generators(16), grid, CPU)
    middle = torch.tensor(batch.moving.shape[2:], dtype=torch.float64) / 2 - 0.5
    places = torch.stack([torch.linalg.inv(m)[:3, :3] @ middle + torch.linalg.inv(m)[:3, 3]
                          for m in batch.world_to_moving])
    assert places[:, 2].max() - places[:, 2].min() > 100
    assert places[:, 2].abs().max() <= (grid.extent[2] - 176) / 2
    assert places[:, :2].abs().max() <= 8
