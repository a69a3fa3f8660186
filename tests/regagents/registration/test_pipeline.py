"""Agents on images: poses known in closed form, lanes that go their own ways until they meet, and groups of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from regagents.registration.candidates import RIVALS
from regagents.registration.pipeline import (
    AGENTS,
    AUTO,
    GROUPS,
    MEET_EVERY,
    WINDOW,
    Aligned,
    Pipeline,
    align,
    centered,
    groups,
    pipeline,
    run,
    saliency_center,
    turned,
    turns,
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


@pytest.mark.parametrize(("ndim", "count", "step"), [(2, 12, 30.0), (3, 24, 90.0)])
def test_turns_are_rotations_over_all_directions(ndim: int, count: int, step: float) -> None:
    """A closed group of distinct rotations, the identity first, the nearest of them a step away."""
    found = turns(ndim)
    assert found.shape == (count, ndim, ndim)
    assert np.array_equal(found[0], np.eye(ndim))
    assert np.linalg.det(found) == pytest.approx(1.0)
    assert found @ np.swapaxes(found, 1, 2) == pytest.approx(np.broadcast_to(np.eye(ndim), found.shape))
    apart = np.abs(found[:, None] - found[None]).max((2, 3))
    assert (apart < 1e-6).sum() == count
    products = (found[:, None] @ found[None]).reshape(-1, ndim, ndim)
    assert np.abs(products[:, None] - found[None]).max((2, 3)).min(1) == pytest.approx(0.0, abs=1e-9)
    cosine = (np.trace(found[1:], axis1=1, axis2=2).max() - (ndim - 2)) / 2
    assert np.degrees(np.arccos(cosine)) == pytest.approx(step)


def test_turned_starts_leave_the_centre_where_the_start_takes_it(ndim: int) -> None:
    center = np.array([30.0, -12.0, 7.0][:ndim])
    start = rigid([5.0] * ndim + [8.0] * (1 if ndim == 2 else 3), center)
    starts = turned(start, center)
    assert np.abs(starts[0] - start).max() < EXACT
    assert starts[:, :-1, :-1] == pytest.approx(start[:-1, :-1] @ turns(ndim))
    there = starts[:, :-1, :-1] @ center + starts[:, :-1, -1]
    assert np.abs(there - (start[:-1, :-1] @ center + start[:-1, -1])).max() < EXACT


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


def test_every_lane_begins_at_its_own_start(images: tuple[Image, Image]) -> None:
    """Also where two of the three angles of a rotation turn about one axis."""
    starts = turned(np.eye(images[0].ndim + 1), np.zeros(images[0].ndim))
    aligned = align(stubborn(images[0].ndim), *images, starts, steps=1)
    assert np.abs(aligned.path[0] - starts).max() < 1e-6


def test_lanes_do_not_see_each_other(images: tuple[Image, Image]) -> None:
    agent = stubborn(images[0].ndim)
    starts = turned(np.eye(images[0].ndim + 1), np.zeros(images[0].ndim))[:4]
    together = align(agent, *images, starts).pull_backs
    alone = np.concatenate([align(agent, *images, start[None]).pull_backs for start in starts])
    assert np.abs(together - alone).max() < EXACT


def shifted(ndim: int, *mm: float) -> np.ndarray:
    """Poses (K, D+1, D+1) that are shifts along the first axis."""
    poses = np.repeat(np.eye(ndim + 1)[None], len(mm), 0)
    poses[:, 0, -1] = mm
    return poses


def test_lanes_that_meet_go_on_as_one_and_all_have_its_pose(images: tuple[Image, Image]) -> None:
    """Lanes at 0, 3, 40 and 42 mm, a millimetre a step: the second joins the first, the fourth the third."""
    n = images[0].ndim
    aligned = align(stubborn(n, step=1.0), *images, shifted(n, 0.0, 3.0, 40.0, 42.0), steps=12)
    assert aligned.met.tolist() == [0, 0, 2, 2]
    assert aligned.steps.tolist() == [12, MEET_EVERY, 12, MEET_EVERY]
    assert aligned.pull_backs[:, 0, -1] == pytest.approx([12.0, 12.0, 52.0, 52.0], abs=EXACT)
    assert aligned.path[MEET_EVERY:, 1, 0, -1] == pytest.approx(3.0 + MEET_EVERY, abs=EXACT)
    assert [visited.pull_back[0, -1] for visited in aligned.visited("toy", 1)] == pytest.approx(
        np.arange(3, 4 + MEET_EVERY), abs=1e-6)


def test_a_lane_that_met_a_lane_that_met_another_has_the_last_ones_pose(images: tuple[Image, Image]) -> None:
    """Lane 2 (6 mm) joins lane 1 (3 mm) no more than lane 0: all three are where lane 0 is in the end."""
    n = images[0].ndim
    aligned = align(stubborn(n, step=1.0), *images, shifted(n, 3.0, 7.0, 0.0), steps=11)
    assert aligned.met.tolist() == [0, 0, 0]
    assert aligned.pull_backs[:, 0, -1] == pytest.approx(14.0, abs=EXACT)


def test_every_action_has_a_name_that_says_what_it_does(images: tuple[Image, Image]) -> None:
    n = images[0].ndim
    told = {}
    for action in range(4 if n == 2 else 12):
        aligned = align(stubborn(n, action=action, step=2.0), *images, np.eye(n + 1)[None], steps=1,
                        center=np.zeros(n))
        first, second = aligned.visited("toy", 0)
        assert (first.action, first.step, second.step) == ("", 0, 1)
        told[second.action] = second.pull_back
    axes = [*"xyz"[:n]]
    for k, name in enumerate([f"t{axis}" for axis in axes] + (["r"] if n == 2 else [f"r{axis}" for axis in axes])):
        for sign in (1, -1):
            parameters = [0.0] * (n + (1 if n == 2 else 3))
            parameters[k] = 2.0 * sign
            if f"{name} {2 * sign:+d}" in told:
                assert told.pop(f"{name} {2 * sign:+d}") == pytest.approx(rigid(parameters, np.zeros(n)), abs=1e-6)
    assert not told, f"unknown names {list(told)}"


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


def test_ends_near_each_other_are_a_group_and_the_largest_comes_first() -> None:
    """Three lanes elsewhere, then five about one pose: their mean, and one of them that was played to its end."""
    rng = np.random.default_rng(0)
    poses = np.stack([np.eye(4)] * 8)
    poses[:3, 0, 3] = [90.0, -90.0, 160.0]
    poses[3:, :3, 3] = np.array([20.0, 0, 0]) + rng.normal(0, 1, (5, 3))
    met = np.array([0, 1, 2, 4, 4, 4, 4, 7])
    found = groups(Aligned(poses, poses[None], np.zeros(8, dtype=int), met, [], np.zeros(3)))
    assert found[0][0] == [3, 4, 5, 6, 7]
    assert sorted(lane for members, _, _ in found for lane in members) == list(range(8))
    assert [len(members) for members, _, _ in found] == [5, 1, 1, 1]
    _members, lane, pose = found[0]
    assert lane in (4, 7)
    assert pose[:3, 3] == pytest.approx(poses[3:, :3, 3].mean(0))
    assert pose[:3, :3] == pytest.approx(np.eye(3))


def test_a_pipeline_ends_in_groups_with_their_ways(images: tuple[Image, Image]) -> None:
    """Two agents: from all directions to the limit of groups, then the second from where the first ended."""
    n = images[0].ndim
    chain = Pipeline(("one", "two"), turned=True, steps=(3, 2))
    start = rigid([0.0] * n + [10.0, 20.0, 30.0][:1 if n == 2 else 3], np.zeros(n))
    ended = run(chain, *images, start, agents=[stubborn(n, step=1.0), stubborn(n, action=1, step=1.0)])
    assert len(ended) == GROUPS
    assert [one.share for one in ended] == pytest.approx([1 / len(turns(n))] * GROUPS)
    for one in ended:
        assert [visited.stage for visited in one.path] == ["one"] * 4 + ["two"] * 3
        assert [visited.step for visited in one.path] == [0, 1, 2, 3, 0, 1, 2]
        assert one.path[3].pull_back == pytest.approx(one.path[4].pull_back, abs=1e-6)
        assert one.path[-1].pull_back == pytest.approx(one.pull_back, abs=1e-6)
        assert one.path[0].action == "" and one.path[1].action != one.path[5].action


def test_lanes_of_one_group_add_up(images: tuple[Image, Image]) -> None:
    n = images[0].ndim
    ended = run(Pipeline(("toy",), steps=(1,)), *images, np.eye(n + 1), agents=[stubborn(n, step=1.0)])
    assert [one.share for one in ended] == [1.0]
    assert run(Pipeline(()), *images, np.eye(n + 1)) == []


def test_names_are_pipelines_and_their_rivals_are_known() -> None:
    for chain in (*AGENTS.values(), *AUTO.values(), Pipeline(())):
        assert set(chain.rivals) <= set(RIVALS)
    assert pipeline("auto", 2) is AUTO[2] and pipeline("auto", 3) is AUTO[3]
    assert pipeline("head", 3) is AGENTS["head"]
    assert pipeline("a/file.safetensors", 2) == Pipeline(("a/file.safetensors",))
