"""What every id says of errors and success is true of its images; and the checker notices where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from regenv.core import RegistrationCore
from regenv.data.banks.pelvises import ORGAN
from regenv.data.catalogue import source_named
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import Wrapping
from regenv.data.sources.organs import OrganPairs
from regenv.grid import Grid
from regenv.ops.affine import invert_affine, transform_points
from regenv.ops.sampling import sample_labels
from regenv.registry import CATALOGUE, build
from regenv.tasks.sdm import FRAMES
from regenv.testing import check_truths
from regenv.testing.truths import true_pose
from regenv.vector import RegistrationVectorEnv
from tests.regenv.families import ndim, small

STARTS = 256       # episodes of an id whose start is looked at, fewer where images are costly
ON_SURFACE = 0.2   # share of surface points that may lie inside or outside on both sides of half a voxel
HELD_OUT: dict[str, Any] = {
    "RegDenseDigits": {"name": "digits", "split": "test"}, "RegSDM": {"name": "organs", "split": "test"},
    "RegDense": {"name": "deformed", "source": {"name": "phantoms", "split": "test"}},
    "RegKeypoint": {"name": "lungs", "split": "test"}, "Reg": {"name": "phantoms", "split": "test"}}


def held_out(name: str) -> Any:
    """The held-out pairs of an id's source."""
    return next(source for start, source in HELD_OUT.items() if name.startswith(start))


def seen(name: str) -> dict[str, Any]:
    """Arguments that make an id's images small, but the error of its starts visible."""
    return small(name) and {"size": 24 if ndim(name) == 3 else 48}


def costly(name: str) -> bool:
    """Whether an id's images take long to make."""
    return ndim(name) == 3 or "Keypoint" in name


# --- every id -------------------------------------------------------------------------------------------------------

PAIRS = [pytest.param(name, held, id=f"{name}, {'held-out' if held else 'usual'} pairs",
                      marks=[pytest.mark.slow] if held and costly(name) else [])
         for name in CATALOGUE for held in (False, True)]


@pytest.mark.parametrize(("name", "held"), PAIRS)
def test_every_id_tells_the_truth(name: str, held: bool) -> None:
    check_truths(name, seeds=(0,) if costly(name) else (0, 400, 800), **seen(name),
                 **({"source": held_out(name)} if held else {}))


@pytest.mark.parametrize(("name", "held"), PAIRS)
def test_no_episode_of_any_id_begins_with_a_success(name: str, held: bool) -> None:
    lanes = 8 if costly(name) else 32
    env: Any = gym.make_vec(name, num_envs=lanes, output="numpy", **seen(name),
                            **({"source": held_out(name)} if held else {}))
    for seed in range(0, STARTS // 16 if costly(name) else STARTS, lanes):
        _, infos = env.reset(seed=10_000 + seed)
        assert not infos.get("is_success", np.zeros(lanes, bool)).any(), infos["tre"].min()


@pytest.mark.parametrize("reward", [None, "mi", "ncc", "mse"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_the_score_is_what_the_reward_is_made_of(name: str, reward: str | None) -> None:
    arguments = {} if reward is None else {"reward": reward}
    env: Any = gym.make_vec(name, num_envs=3, output="numpy", **small(name), **arguments)
    env.action_space.seed(1)
    _, infos = env.reset(seed=0)
    before = infos["score"]
    for _ in range(4):
        _, rewards, terminated, _, infos = env.step(env.action_space.sample())
        gains = infos["score"] if name.startswith("RegSimilarity") and "Normalized" not in name and not reward else (
            infos["score"] - before)
        assert not terminated.any()
        np.testing.assert_allclose(rewards, gains, rtol=1e-9, atol=1e-9)
        before = infos["score"]


def test_the_score_of_unknown_truth_is_unknown() -> None:
    env: Any = gym.make_vec("RegSDM2D-v0", num_envs=2, output="numpy", source={"name": "organs", "split": "test"})
    _, infos = env.reset(seed=0)
    assert np.isnan(infos["score"]).all()
    _, rewards, *_, infos = env.step(env.action_space.sample())
    assert rewards.tolist() == [0.0, 0.0]
    assert np.isnan(infos["score"]).all()


# --- where nothing is known -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class HalfKnown(Wrapping):
    """Every second lane's truth is unknown."""

    def changed(self, pair: PairBatch, rngs: Any, grid: Grid, difficulty: float) -> PairBatch:
        return replace(pair, known=torch.tensor([int(rng.integers(2)) == 0 for rng in rngs]))


def test_an_unknown_error_says_nothing_of_success() -> None:
    source = HalfKnown(source_named("phantoms", 2))
    env: Any = gym.make_vec("RegRigid2D-v0", num_envs=16, output="numpy", size=36, source=source)
    results = env.reset(seed=0)[1], env.step(env.action_space.sample())[4]
    for infos in results:
        unknown = np.isnan(infos["tre"])
        assert 0 < unknown.sum() < 16
        assert np.array_equal(infos["_is_success"], ~unknown)
    alone: Any = gym.make("RegRigid2D-v0", size=36, source=source)
    for lane in range(16):
        info = alone.reset(seed=lane)[1]
        assert ("is_success" in info) == (not unknown[lane])
        assert alone.step(0)[4].keys() == info.keys()


# --- organs ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [{}, {"composition": "dense"}, {"composition": "dense", "turn": 6.0},
                                       {"intra": 1.0}, {"split": "test"}], ids=str)
@pytest.mark.parametrize("dimension", [2, 3])
def test_organs_points_lie_on_the_organs_surface_in_both_images(dimension: int, arguments: dict[str, Any]) -> None:
    pair = OrganPairs(dimension, **arguments).draw([np.random.default_rng(n) for n in range(6)], FRAMES[dimension],
                                                   torch.device("cpu"))
    assert pair.landmarks is not None and pair.targets is not None
    for points, matrix, labels, allowed in (
            (pair.landmarks, invert_affine(pair.fixed_to_world), pair.fixed_labels, ON_SURFACE),
            (pair.targets, pair.world_to_moving, pair.moving_labels, 2 * ON_SURFACE)):
        middle = points.mean(1, keepdim=True)
        offset = (points - middle) / (points - middle).norm(dim=-1, keepdim=True)
        voxel = max(FRAMES[dimension].spacing)
        inside, outside = (
            sample_labels(labels, transform_points(matrix, points + way * 2 * voxel * offset).to(torch.float32).view(
                6, *(1,) * (dimension - 1), -1, dimension)).flatten(1) == ORGAN for way in (-1, 1))
        assert (~inside).float().mean() < allowed
        assert outside.float().mean() < allowed


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_truth_of_organs_leaves_the_error_of_its_projection_only(dimension: int) -> None:
    """The amplitudes at alignment are of first order; the targets are of the composition that made the images."""
    core = RegistrationCore(build(f"RegSDM{dimension}D-v0"))
    state = core.reset([np.random.default_rng(n) for n in range(12)])
    end = core.begin(state.pair, state.pair.target_pose)
    assert (state.tre > core.task.success_mm).all()
    assert (end.tre < state.tre).all()
    assert end.tre.median() < {2: 2.0, 3: 3.0}[dimension]
    assert (core.info(end)["dice"] > core.info(state)["dice"]).all()


# --- the checker ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class RestIsTruth(Wrapping):
    """The fault of old: the rest position is taken for the truth."""

    def changed(self, pair: PairBatch, rngs: Any, grid: Grid, difficulty: float) -> PairBatch:
        return replace(pair, targets=pair.landmarks)


@dataclass(frozen=True)
class AnotherTruth(Wrapping):
    """The targets are those of another deformation."""

    def changed(self, pair: PairBatch, rngs: Any, grid: Grid, difficulty: float) -> PairBatch:
        assert pair.landmarks is not None and pair.targets is not None
        return replace(pair, targets=2 * pair.landmarks - pair.targets)


class PraisesAll(RegistrationVectorEnv):
    def _masked(self, numbers: dict[str, torch.Tensor], where: Any) -> dict[str, Any]:
        return super()._masked(numbers | {"is_success": torch.ones_like(numbers["is_success"])}, where)


class HidesTheScore(RegistrationVectorEnv):
    def _masked(self, numbers: dict[str, torch.Tensor], where: Any) -> dict[str, Any]:
        return super()._masked({key: value for key, value in numbers.items() if key != "score"}, where)


@pytest.mark.parametrize(("make", "name", "arguments", "words"), [
    (RegistrationVectorEnv, "RegSDM2D-v0", {"source": RestIsTruth(source_named("organs", 2))},
     "begins with a success at reset"),
    (RegistrationVectorEnv, "RegDense2D-v0", {"size": 48, "success_mm": 10.0}, "begins with a success at reset"),
    (RegistrationVectorEnv, "RegDense2D-v0", {"size": 48, "source": AnotherTruth(source_named("deformed", 2))},
     "truth must align the images"),
    (RegistrationVectorEnv, "RegSDM2D-v0", {"source": AnotherTruth(source_named("organs", 2))},
     "must fall"),
    (PraisesAll, "RegRigid2D-v0", {"size": 36}, "and a threshold of 3.0 mm"),
    (HidesTheScore, "RegRigid2D-v0", {"size": 36}, "have no 'score'")])
def test_the_checker_catches_untrue_words(make: Any, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AssertionError, match=f"check_truths: .*{words}"):
        check_truths(lambda **more: make(name, **arguments, **more), num_envs=8, seeds=(0,))


def test_a_dense_truth_brings_every_landmark_home() -> None:
    core = RegistrationCore(build("RegDense2D-v0", size=64))
    state = core.reset([np.random.default_rng(n) for n in range(3)])
    pose = true_pose(core, state)
    assert pose is not None
    assert core.begin(state.pair, pose).tre.max() < 0.1
