"""Agents on images: poses known in closed form, lanes that do not see each other, and the choice between them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regagents.registration.pipeline import (
    SCATTER_MM,
    WINDOW,
    Aligned,
    align,
    centered,
    choose,
    saliency_center,
    scattered,
)
from regenv.data.io.images import Image, read_image
from regenv.data.io.resampling import foreground_center
from regenv.data.sources.files import image_pair as work_pair
from regenv.grid import Grid
from tests.regagents.toys import blobs, grids, image_pair, rigid, stubborn

EXACT = 1e-9


@pytest.fixture(params=[2, 3])
def ndim(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def images(ndim: int) -> tuple[Image, Image]:
    fixed, moving = grids(ndim)
    return Image(blobs(fixed), fixed, "fixed.nii"), Image(blobs(moving), moving, "moving.nii")


def test_centered_puts_foregrounds_on_each_other(tmp_path: Path, ndim: int) -> None:
    fixed, moving, _ = image_pair(tmp_path, ndim)
    a, b = read_image(fixed), read_image(moving)
    pull_back = centered(a, b)
    there = pull_back[:-1, :-1] @ foreground_center(a) + pull_back[:-1, -1]
    assert np.abs(there - foreground_center(b)).max() < EXACT


def test_scattered_starts_are_seeded_and_near(ndim: int) -> None:
    center = np.full(ndim, 30.0)
    start = rigid([5.0] * ndim + [8.0] * (1 if ndim == 2 else 3), center)
    starts = scattered(start, center, 6, seed=1)
    assert np.abs(starts[0] - start).max() < EXACT
    assert np.array_equal(starts, scattered(start, center, 6, seed=1))
    assert not np.array_equal(starts, scattered(start, center, 6, seed=2))
    moved = starts[:, :-1, :-1] @ center + starts[:, :-1, -1]
    shifts = np.linalg.norm(moved - moved[0], axis=1)
    assert shifts[1:].min() > 0 and shifts.max() <= SCATTER_MM * np.sqrt(ndim) + EXACT


def test_small_steps_stand_still_and_the_mean_is_kept(images: tuple[Image, Image]) -> None:
    """0.1 mm a step is 1 mm net over ten steps: still. The pose is the mean of those ten."""
    aligned = align(stubborn(images[0].ndim, action=0, step=0.1), *images, np.eye(images[0].ndim + 1)[None])
    assert aligned.steps.tolist() == [WINDOW]
    assert aligned.path[:, 0, 0, -1] == pytest.approx(0.1 * np.arange(WINDOW + 1), abs=EXACT)
    assert aligned.pull_backs[0, 0, -1] == pytest.approx(0.1 * np.mean(np.arange(1, WINDOW + 1)), abs=EXACT)


def test_large_steps_go_on_to_the_limit(images: tuple[Image, Image]) -> None:
    aligned = align(stubborn(images[0].ndim, action=1, step=1.0), *images, np.eye(images[0].ndim + 1)[None], steps=25)
    assert aligned.steps.tolist() == [25]
    assert aligned.path[-1, 0, 0, -1] == pytest.approx(-25.0, abs=EXACT)


def test_perfect_alignment_does_not_end_a_rollout(images: tuple[Image, Image]) -> None:
    """The truth is unknown: an agent at the (claimed) truth is not told that it has arrived."""
    fixed = images[0]
    aligned = align(stubborn(fixed.ndim, step=1.0), fixed, fixed, np.eye(fixed.ndim + 1)[None], steps=12)
    assert aligned.path[12, 0, 0, -1] == pytest.approx(12.0, abs=EXACT)
    pair = work_pair(fixed, fixed, Grid.centered((16,) * fixed.ndim, 8.0), lanes=3)
    assert pair.lanes == 3 and not pair.known.any()


def test_turns_add_up_about_the_view(images: tuple[Image, Image]) -> None:
    """Unknown truth: every step turns about the current estimate, T <- T o R, so k steps of one degree are R^k."""
    n = images[0].ndim
    center = np.full(n, 10.0)
    start = rigid([3.0] * n + [20.0] * (1 if n == 2 else 3), center)
    aligned = align(stubborn(n, action=2 * n, step=1.0), *images, start[None], steps=7, center=center)
    turn = rigid([0.0] * n + [7.0] + [0.0] * (0 if n == 2 else 2), center)
    assert np.abs(aligned.path[7, 0] - start @ turn).max() < 1e-6
    assert np.abs(aligned.path[0, 0] - start).max() < 1e-6


def test_lanes_do_not_see_each_other(images: tuple[Image, Image]) -> None:
    agent = stubborn(images[0].ndim)
    starts = scattered(np.eye(images[0].ndim + 1), np.zeros(images[0].ndim), 3, seed=0)
    together = align(agent, *images, starts).pull_backs
    alone = np.concatenate([align(agent, *images, start[None]).pull_backs for start in starts])
    assert np.abs(together - alone).max() < EXACT


def test_a_players_memory_stays_with_its_lanes(images: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lane 1 swings between two poses and stops; lane 0 goes on forwards and lane 2 backwards, as they remember."""
    agent = stubborn(images[0].ndim, step=1.0)

    def play(observation: torch.Tensor, allowed: None, memory: Any) -> tuple[torch.Tensor, Any]:
        lane, step = (torch.arange(3), torch.zeros(3, dtype=torch.int64)) if memory is None else memory
        return torch.where(lane == 1, step % 2, lane // 2), (lane, step + 1)

    monkeypatch.setattr(agent.policy, "play", play)
    aligned = align(agent, *images, np.stack([np.eye(images[0].ndim + 1)] * 3), steps=15)
    assert aligned.steps.tolist() == [15, WINDOW, 15]
    assert aligned.path[-1, :, 0, -1] == pytest.approx([15.0, 0.0, -15.0], abs=EXACT)


def test_agent_of_another_dimension_is_refused(images: tuple[Image, Image]) -> None:
    other = 5 - images[0].ndim
    with pytest.raises(ValueError, match=rf"fixed.nii: image is {5 - other}D; the agent registers {other}D"):
        align(stubborn(other), *images, np.eye(images[0].ndim + 1)[None])


def test_saliency_finds_what_the_network_looks_at(ndim: int) -> None:
    """A linear network: its gradient is its weights, so the centre is the mean by weight times warped intensity."""
    grid = Grid.centered((12,) * ndim, 2.0, [5.0, -3.0, 8.0][:ndim])
    weights = torch.zeros(1, 2, *grid.shape)
    spot, faint, fainter = (2,) * ndim, (2,) * (ndim - 1) + (6,), (9,) * ndim
    weights[(0, 1, *spot)], weights[(0, 1, *faint)], weights[(0, 1, *fainter)] = -1.5, 1.0, 0.5
    weights[(0, 0, *fainter)] = 9.0  # of the fixed image: does not count
    best_two = 100 * (1 - 1.9 / (12**ndim - 1))
    agent = SimpleNamespace(q_net=lambda image: (image * weights).flatten(1).sum(1, keepdim=True))
    observation = torch.ones(1, 2, *grid.shape)
    observation[(0, 1, *spot)] = 2.0
    seen = saliency_center(agent, observation, grid, percentile=best_two)  # type: ignore[arg-type]
    expected = np.average(grid.to_world(np.array([spot, faint])), axis=0, weights=[3.0, 1.0])
    assert seen == pytest.approx(expected, abs=EXACT)


def test_what_most_lanes_agree_on_wins() -> None:
    """Five lanes about one pose outvote three others; the result is their mean."""
    rng = np.random.default_rng(0)
    poses = np.stack([np.eye(4)] * 8)
    poses[:5, :3, 3] = np.array([20.0, 0, 0]) + rng.normal(0, 1, (5, 3))
    poses[5:, 0, 3] = [90.0, -90.0, 160.0]
    aligned = Aligned(poses, poses[None], np.zeros(8, dtype=int), np.zeros(3))
    blank = Image(np.zeros((8, 8, 8), np.float32), Grid.centered((8,) * 3, 10.0), "blank")
    lane, pose = choose(blank, blank, aligned)
    assert lane < 5
    assert np.allclose(pose[:3, 3], poses[:5, :3, 3].mean(0))


def test_a_smaller_group_wins_where_its_mutual_information_is_clearly_better() -> None:
    """Five lanes agree on a wrong pose of an image with itself, three on the right one."""
    rng = np.random.default_rng(1)
    rough = sitk.GetImageFromArray(rng.random((32, 32, 32)).astype(np.float32))
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(rough, 4.0))
    image = Image(smooth, Grid.centered((32,) * 3, 6.0), "texture")
    poses = np.stack([np.eye(4)] * 8)
    poses[:5, :2, :2] = -np.eye(2)
    poses[5:, :3, 3] = rng.normal(0, 1, (3, 3))
    aligned = Aligned(poses, poses[None], np.zeros(8, dtype=int), np.zeros(3))
    lane, pose = choose(image, image, aligned)
    assert lane >= 5
    assert np.allclose(pose[:3, 3], poses[5:, :3, 3].mean(0))
