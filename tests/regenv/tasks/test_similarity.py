"""What is true of the similarity family: landmark error, rewards, starts and slices, against brute force."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from regenv.core import RegistrationCore
from regenv.data.banks import downloads as datasets
from regenv.data.sources.brain_phantoms import BrainPhantom
from regenv.data.sources.landmarked import Landmarked
from regenv.data.sources.slices import GAP_MM, LEVELS_MM, SLAB_MM, Slices
from regenv.grid import Grid
from regenv.ops.landmarks import sift
from regenv.registry import build
from regenv.state import EpisodeState

ID = "RegSimilarity2D-v0"
SMALL: dict[str, dict[str, Any]] = {ID: {"size": 42}, "RegSimilarity3D-v0": {"size": 12}}


def core(name: str = ID, **arguments: Any) -> RegistrationCore:
    return RegistrationCore(build(name, **{**SMALL.get(name, {"size": 42}), **arguments}))


def begun(one: RegistrationCore, pose: list[list[float]]) -> EpisodeState:
    """Episodes of seeds 0, 1, ... from poses given in pixels, degrees and s."""
    pixel, n = one.task.grid.spacing[0], one.task.grid.ndim
    poses = torch.tensor(pose, dtype=torch.float64)
    poses[:, :n] *= pixel
    return one.begin(one.reset([np.random.default_rng(i) for i in range(len(pose))]).pair, poses)


# --- landmark error, rewards, arrival -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", SMALL)
def test_d_is_the_mean_landmark_error_in_pixels(name: str) -> None:
    """Eq. 4, brute force: every landmark sent to the moving image by the truth and back by the current estimate."""
    one = core(name)
    state = one.reset([np.random.default_rng(i) for i in range(4)])
    for lane in range(4):
        back = np.linalg.inv(state.pull_back[lane].numpy()) @ state.pair.truth[lane].numpy()
        n = one.task.grid.ndim
        gaps = [np.linalg.norm(back[:n, :n] @ p + back[:n, n] - p) for p in state.pair.landmarks[lane].numpy()]
        assert float(state.distance[lane]) == pytest.approx(np.mean(gaps) / one.task.grid.spacing[0], abs=1e-9)


def test_reward_is_minus_d_and_ten_on_arrival() -> None:
    one = core()
    state = begun(one, [[5.0, 0, 0, 1], [1.4, 0, 0, 1]])
    after, reward, terminated, _ = one.step(state, torch.tensor([1, 1]))
    np.testing.assert_allclose(reward, [-4.0, 10.0], atol=1e-9)
    assert terminated.tolist() == [False, True]
    torch.testing.assert_close(after.distance, torch.tensor([4.0, 0.4], dtype=torch.float64), rtol=0, atol=1e-9)


def test_normalised_reward_is_the_gain_and_adds_up() -> None:
    one = core("RegSimilarity2DNormalized-v0")
    state = begun(one, [[3.0, -2, 2, 1.1]])
    start, total = float(state.distance), 0.0
    for action in (7, 7, 5, 5, 1, 1, 1, 2, 2):
        assert not bool(state.arrived)
        state, reward, *_ = one.step(state, torch.tensor([action]))
        total += float(reward)
        if bool(state.arrived):
            break
    assert bool(state.arrived)
    assert total == pytest.approx(start - float(state.distance) + 10, abs=1e-9)


def test_matrix_reward_is_the_parameters_distance() -> None:
    one = core(reward="matrix")
    state = begun(one, [[3.0, -2, 4, 1.25]])
    after, reward, *_ = one.step(state, torch.tensor([6]))
    assert float(reward) == pytest.approx(-math.sqrt((3 / 1.25)**2 + (2 / 1.25)**2 + 4**2 + 6**2), abs=1e-9)
    assert float(after.distance) == -float(reward)


@pytest.mark.parametrize("reward", ["landmarks", "matrix"])
@pytest.mark.parametrize("perturbation", ["E1", "E2"])
def test_greedy_actions_solve_the_papers_starts(perturbation: str, reward: str) -> None:
    """The supervised expert arrives from every start on the paper's grid, and then D is below one pixel."""
    one = RegistrationCore(build(ID, size=42, perturbation=perturbation, reward=reward), privileged=True)
    state = one.reset([np.random.default_rng(i) for i in range(64)])
    for _ in range(250):
        action = one.info(state)["q_star"].argmax(1)
        after, *_ = one.step(state, action)
        state = after.put(state.arrived, state.select(state.arrived))
    assert state.arrived.all()
    assert float((state.distance <= 1).double().mean()) >= 0.95


def test_q_star_is_the_decrease_of_d() -> None:
    one = RegistrationCore(build(ID, size=42), privileged=True)
    state = one.reset([np.random.default_rng(i) for i in range(3)])
    q = one.info(state)["q_star"]
    for action in range(8):
        after, *_ = one.step(state, torch.full((3,), action))
        torch.testing.assert_close(q[:, action], state.distance - after.distance, rtol=0, atol=1e-9)


# --- starts ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("perturbation", "widths"), [("E1", (25, 30, 5)), ("E2", (30, 45, 5))])
def test_starts_lie_on_the_papers_grid(perturbation: str, widths: tuple[int, int, int]) -> None:
    task = build(ID, perturbation=perturbation)
    drawn = task.start.draw([np.random.default_rng(i) for i in range(6000)])
    steps = drawn / (task.grid.spacing[0], task.grid.spacing[0], 1.0, 0.05)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    assert np.abs(np.round(steps)).max(0).tolist() == [widths[0], widths[0], widths[1], widths[2]]
    share = np.mean(np.round(steps[:, 3]) == widths[2])
    assert share == pytest.approx(1 / (2 * widths[2] + 1), abs=0.02), "the ends are as likely as the rest"


def test_continuous_starts_leave_the_grid() -> None:
    drawn = build(ID, whole=False).start.draw([np.random.default_rng(i) for i in range(100)])
    assert (np.abs(drawn[:, 2] - np.round(drawn[:, 2])) > 1e-6).all()
    assert not build("RegSimilarity2DContinuous-v0").start.whole


# --- landmarks ------------------------------------------------------------------------------------------------------

def test_landmarks_are_a_lattice_or_sift_key_points() -> None:
    grid = Grid.centered((84, 84), 2.0)
    rngs = [np.random.default_rng(3)]
    device = torch.device("cpu")
    regular = Landmarked(BrainPhantom(2), "lattice", 900).draw(rngs, grid, device)
    assert regular.landmarks.shape == (1, 900, 2)
    corners = regular.landmarks[0].view(30, 30, 2)
    middles = (corners[:-1, :-1] + corners[1:, 1:]).reshape(-1, 2) / 2
    between = Landmarked(BrainPhantom(2), "between", 900).draw([np.random.default_rng(3)], grid, device)
    torch.testing.assert_close(between.landmarks[0], middles)
    salient = Landmarked(BrainPhantom(2), "sift", 50).draw([np.random.default_rng(3)], grid, device)
    assert torch.equal(salient.fixed, regular.fixed)
    found = grid.to_world(sift(salient.fixed[0, 0], 50))
    np.testing.assert_allclose(salient.landmarks[0, :len(found)], found)
    assert len(np.unique(salient.landmarks[0], axis=0)) == len(found)


@pytest.mark.parametrize(("name", "arguments", "words"), [
    ("RegSimilarity3D-v0", {"landmarks": "sift"}, "sift"), (ID, {"landmarks": "eyes"}, "'eyes'"),
    (ID, {"perturbation": "E3"}, "'E3'.*E1, E2"), (ID, {"ranges": [1.0]}, "ranges has 1.*tx, ty, alpha, s"),
    (ID, {"ranges": [9.0, 9, 9, 1.0]}, "s - 1, must be below 1"), (ID, {"reward": "praise"}, "landmarks, matrix, gain"),
    (ID, {"source": {"name": "slices", "split": "all"}}, "'all'; it must be one of train, test")])
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(name, **arguments)


# --- slices ---------------------------------------------------------------------------------------------------------

needs_heads = pytest.mark.skipif(datasets.paths("mni2009c") is None, reason="needs: regenv data get mni2009c")


def test_slices_for_training_and_test_never_meet() -> None:
    levels = {split: np.array([Slices(split=split)._level(np.random.default_rng(i)) for i in range(2000)])
              for split in ("train", "test")}
    gap = min(np.abs(levels["train"] - level).min() for level in levels["test"])
    assert gap >= GAP_MM
    for drawn in levels.values():
        assert LEVELS_MM[0] < drawn.min()
        assert drawn.max() < LEVELS_MM[1]
    assert len(np.unique(levels["test"] // SLAB_MM)) >= 2


@needs_heads
def test_slices_show_one_plane_in_two_modalities() -> None:
    """Edges agree where intensities do not: aligned pairs share far more information than shifted ones."""
    from regenv.ops.similarity import mi, ncc

    env = gym.make_vec(ID, num_envs=16, source="slices", ranges=[0.0] * 4)
    env.reset(seed=0)
    pair = env.unwrapped.state.pair
    assert pair.fixed.shape == pair.moving.shape == (16, 1, 168, 168)
    assert ((pair.fixed >= 0) & (pair.fixed <= 1) & (pair.moving >= 0) & (pair.moving <= 1)).all()
    shifted = torch.roll(pair.moving, (12, 9), (2, 3))
    assert (mi(pair.fixed, pair.moving) > 1.2 * mi(pair.fixed, shifted)).all()
    assert float(ncc(pair.fixed, pair.moving).mean()) < 0.9
    again, _ = gym.make_vec(ID, num_envs=1, source="slices", ranges=[0.0] * 4).reset(seed=7)
    assert torch.equal(env.unwrapped._observation()[7], again[0]), "lane i of N is the single one seeded s + i"
