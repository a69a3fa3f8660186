"""What is true of the parts of an episode: what is seen, earned, done, and where it begins and ends."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.core import RegistrationCore
from regenv.parts.action import ContinuousSteps, DiscreteSteps
from regenv.parts.observation import OBSERVATIONS
from regenv.parts.reward import SIMILARITIES, DistanceDecrease
from regenv.parts.start import UniformStart
from regenv.parts.termination import Arrived, Never
from regenv.registry import CATALOGUE, build
from regenv.state import EpisodeState
from regenv.transforms.rigid import Rigid, RigidMotion
from tests.regenv import families
from tests.regenv.families import ndim

UNITS = torch.from_numpy(DiscreteSteps((1.0,) * 6).deltas)


def small(name: str, **arguments: Any) -> RegistrationCore:
    return RegistrationCore(build(name, **{**families.small(name), **arguments}))


def at(pose: torch.Tensor, known: torch.Tensor) -> Any:
    """What a stopping rule looks at."""
    return SimpleNamespace(pose=pose, pair=SimpleNamespace(known=known))


def begun(core: RegistrationCore, pose: list[list[float]]) -> EpisodeState:
    """Episodes of seeds 0, 1, ... from given poses."""
    pair = core.reset([np.random.default_rng(i) for i in range(len(pose))]).pair
    return core.begin(pair, torch.tensor(pose, dtype=torch.float64))


# --- actions --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("parameters", [3, 6])
def test_pairs_of_actions_raise_and_lower_one_parameter(parameters: int) -> None:
    sizes = (1.0, 4.0, 16.0)
    deltas = DiscreteSteps((1.0,) * parameters, sizes).deltas
    assert deltas.shape == (len(sizes) * 2 * parameters, parameters)
    for k, size in enumerate(sizes):
        for i in range(parameters):
            up = 2 * parameters * k + 2 * i
            assert np.array_equal(deltas[up], size * np.eye(parameters)[i])
            assert np.array_equal(deltas[up + 1], -deltas[up])


@pytest.mark.parametrize("name", ["RegRigid2D-v0", "RegRigid3D-v0"])
def test_action_2i_raises_parameter_i_by_exactly_one_unit(name: str) -> None:
    core = small(name, stop="never")
    p = len(core.task.transform.names)
    pose = [[3.0, -7.0, 11.0, 2.0, -5.0, 13.0][:p]] * 2 * p
    state = begun(core, pose)
    after, *_ = core.step(state, torch.arange(2 * p))
    for i in range(p):
        unit = torch.eye(p, dtype=torch.float64)[i]
        assert torch.equal(after.pose[2 * i] - state.pose[2 * i], unit)
        assert torch.equal(after.pose[2 * i + 1] - state.pose[2 * i + 1], -unit)


def test_geometric_actions_move_by_each_step_size() -> None:
    core = small("RegRigid3DGeometric-v0", stop="never")
    assert core.task.actions.space().n == 36
    state = begun(core, [[5.0, -6.0, 7.0, 0, 0, 0]] * 36)
    after, *_ = core.step(state, torch.arange(36))
    change = after.pose - state.pose
    for k, size in enumerate((1.0, 4.0, 16.0)):
        for i in range(6):
            for sign in (1, -1):
                expected = sign * size * torch.eye(6, dtype=torch.float64)[i]
                torch.testing.assert_close(change[12 * k + 2 * i + (sign < 0)], expected, rtol=0, atol=1e-12)


def test_continuous_action_changes_all_parameters_by_at_most_a_unit() -> None:
    steps = ContinuousSteps((1.0,) * 3)
    table = torch.from_numpy(steps.deltas)
    assert steps.space().shape == (3,)
    given = torch.tensor([[0.25, -1.0, 1.0], [7.0, -7.0, 0.0]])
    expected = torch.tensor([[0.25, -1, 1], [1, -1, 0]], dtype=torch.float64)
    assert torch.equal(steps.delta(given, table), expected)
    sized = ContinuousSteps((1.0, 2.0, 0.05), (1.0, 4.0))
    units = torch.tensor([1.0, 2.0, 0.05], dtype=torch.float64)
    torch.testing.assert_close(sized.delta(given, torch.from_numpy(sized.deltas)), 4 * units * expected)


# --- observations ---------------------------------------------------------------------------------------------------

def test_observations_are_the_difference_or_the_pair() -> None:
    core = small("RegRigid3D-v0")
    state = begun(core, [[0.0] * 6, [9.0] * 6])
    fixed, warped = state.pair.fixed, state.warped
    seen = {(kind, dtype): OBSERVATIONS[kind](dtype)(state) for kind in OBSERVATIONS for dtype in ("float32", "uint8")}
    assert torch.equal(seen["difference", "float32"], fixed - warped)
    both = torch.cat([fixed, warped], 1).clamp(0, 1)
    assert torch.equal(seen["pair", "float32"], both)
    assert torch.equal(seen["pair", "uint8"], torch.round(both * 255).to(torch.uint8))
    anew = {(kind, dtype): OBSERVATIONS[kind](dtype)(state.release_views()) for kind, dtype in seen}
    for (kind, dtype), observation in seen.items():
        atol = 1 if dtype == "uint8" else 1e-6
        torch.testing.assert_close(observation, anew[kind, dtype], rtol=0, atol=atol)
    coded = (seen["difference", "uint8"].float() - 128) / 127.5
    assert (coded - (fixed - warped)).abs().max() <= 1 / 127.5
    for (kind, dtype), observation in seen.items():
        space = OBSERVATIONS[kind](dtype).space(core.task.grid.shape)
        assert all(space.contains(lane) for lane in observation.numpy()), (kind, dtype)


def test_agreeing_images_have_a_grey_difference() -> None:
    state = begun(small("RegRigid2D-v0"), [[0.0] * 3])
    same = replace(state, views={"difference": torch.zeros_like(state.pair.fixed)})
    assert (OBSERVATIONS["difference"]("uint8")(same) == 128).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_2d_is_shown_as_uint8_images_and_3d_as_floats(name: str) -> None:
    space = build(name).observation.space(build(name).grid.shape)
    shapes = {"Rigid2D": (128, 128), "Rigid3D": (64,) * 3, "Similarity2D": (168, 168), "Similarity3D": (64,) * 3,
              "SDM2D": (100, 100), "SDM3D": (20, 75, 75), "Dense2D": (128, 128), "Dense3D": (128,) * 3,
              "DenseDigits": (28, 28), "Keypoint2D": (128, 128), "Keypoint3D": (64,) * 3}
    family = next(key for key in shapes if name.startswith("Reg" + key))
    assert space.dtype == (np.uint8 if ndim(name) == 2 else np.float32)
    assert space.shape[1:] == shapes[family]


# --- rewards --------------------------------------------------------------------------------------------------------

def test_reward_is_the_decrease_of_d_and_ten_on_arrival() -> None:
    """Liao et al. 2017, eq. 3 and 4."""
    core = small("RegRigid3D-v0")
    apart, last = [3.0, 0, 0, 4, 0, 0], [1.0, 0, 0, 0, 0, 0]
    state = begun(core, [apart, apart, last, [0.6, 0.5, 0.5, 0.5, 0.5, 0.5]])
    after, reward, terminated, _ = core.step(state, torch.tensor([7, 6, 1, 1]))
    leftover = math.hypot(0.6, math.sqrt(5 * 0.25)) - math.hypot(0.4, math.sqrt(5 * 0.25))
    expected = [5 - math.sqrt(18), 5 - math.sqrt(34), 1 + 10, leftover + 10]
    np.testing.assert_allclose(reward.numpy(), expected, rtol=0, atol=1e-12)
    assert terminated.tolist() == [False, False, True, True]
    torch.testing.assert_close(after.distance, torch.linalg.vector_norm(after.pose, dim=1), rtol=0, atol=1e-12)


def test_rewards_of_an_episode_add_up_to_the_way_and_the_bonus() -> None:
    core = small("RegRigid2D-v0")
    state = begun(core, [[2.0, -3.0, 1.0]])
    total = 0.0
    for action in (1, 1, 2, 2, 2, 5):
        assert not bool(state.arrived)
        state, reward, *_ = core.step(state, torch.tensor([action]))
        total += float(reward)
    assert bool(state.arrived)
    assert total == pytest.approx(math.sqrt(14) + 10, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarity_reward_is_its_gain_and_needs_no_truth(name: str) -> None:
    core = small("RegRigid3D-v0", reward=name)
    state = begun(core, [[4.0, 0, 0, 0, 0, 0]])
    unknown = replace(state, pair=replace(state.pair, known=torch.zeros(1, dtype=torch.bool)))
    after, reward, *_ = core.step(state, torch.tensor([1]))
    _, blind, *_ = core.step(unknown, torch.tensor([1]))
    metric = SIMILARITIES[name]
    gain = metric(after.pair.fixed, after.warped) - metric(state.pair.fixed, state.warped)
    torch.testing.assert_close(reward, 10 * gain.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(blind, reward, rtol=0, atol=1e-5)


def test_similarity_is_best_at_the_truth() -> None:
    """Image and pose agree: what the pose calls aligned, looks aligned."""
    core = small("RegRigid3D-v0", size=24, reward="mi")
    at, off = begun(core, [[0.0] * 6] * 3), begun(core, [[12.0, 0, 0, 0, 15, 0]] * 3)
    assert (at.score > off.score).all()


# --- arrival --------------------------------------------------------------------------------------------------------

def arrived(pose: Tensor, transform: Rigid | None = None) -> Tensor:
    transform = transform or Rigid(3)
    return Arrived()(transform, transform.distance, at(pose, torch.ones(len(pose), dtype=torch.bool)), UNITS)


def test_the_papers_rule_alone_stops_8_percent_of_the_episodes(rng: np.random.Generator) -> None:
    """Unit steps end at v - round(v); D <= 0.5 holds there with probability (pi^3 / 6) 0.5^6 = 8 %."""
    start = torch.from_numpy(UniformStart((30.0,) * 6).draw([rng] * 20_000))
    ends = start - start.round()
    within = (torch.linalg.vector_norm(ends, dim=1) <= 0.5).double().mean()
    assert float(within) == pytest.approx(math.pi**3 / 6 * 0.5**6, abs=0.006)
    assert arrived(ends).all()


def test_arrival_in_unit_steps_means_every_parameter_within_half(rng: np.random.Generator) -> None:
    pose = torch.from_numpy(rng.uniform(-1, 1, (5000, 6)))
    assert torch.equal(arrived(pose), (pose.abs() <= 0.5).all(1))


def test_arrival_is_within_half_a_unit_for_any_transform() -> None:
    pose = torch.tensor([[0.3, 0, 0, 0, 0.3, 0], [0.9, 0, 0, 0, 0, 0], [0, 0, 0, 0.2, 0.2, 0.2]], dtype=torch.float64)
    assert arrived(pose, RigidMotion(3)).tolist() == [True, False, True]


def test_unknown_truth_never_arrives_and_never_stops_never() -> None:
    pose = torch.zeros(2, 6, dtype=torch.float64)
    known = torch.tensor([True, False])
    assert Arrived()(Rigid(3), Rigid(3).distance, at(pose, known), UNITS).tolist() == [True, False]
    assert Never()(Rigid(3), Rigid(3).distance, at(pose, known), UNITS).tolist() == [False, False]


# --- rows -----------------------------------------------------------------------------------------------------------

def test_ranges_are_the_papers() -> None:
    assert build("RegRigid2D-v0").start.ranges == (30.0,) * 3
    assert build("RegRigid3D-v0").start.ranges == (30.0,) * 6
    assert build("RegRigid3D-v0", source="spine").start.ranges == (30.0, 30.0, 150.0, 30.0, 30.0, 30.0)
    assert build("RegRigid3D-v0", source={"name": "spine"}).start.ranges[2] == 150.0


def test_size_and_spacing_make_the_grid() -> None:
    grid = build("RegRigid3D-v0", size=(20, 24, 28), spacing=(1.0, 2.0, 3.0)).grid
    assert (grid.shape, tuple(grid.spacing)) == ((20, 24, 28), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(grid.center, 0, atol=1e-12)
    assert build("RegRigid3D-v0", size=32).grid.spacing == pytest.approx((7.0,) * 3)


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ({"source": "cats"}, ValueError, ["cats", "phantoms", "spine", "heads"]),
    ({"source": {"name": "spine", "legs": 4}}, TypeError, ["legs"]),
    ({"observation": "sound"}, ValueError, ["observation", "sound", "difference", "pair"]),
    ({"reward": "praise"}, ValueError, ["reward", "praise", "distance", "mi"]),
    ({"motion": "dance"}, ValueError, ["motion", "dance", "parameters", "disentangled"]),
    ({"stop": "later"}, ValueError, ["stop", "later", "arrived", "never"]),
    ({"ranges": [30.0] * 3}, ValueError, ["ranges", "3", "6"]),
    ({"step_sizes": [1.0, -2.0]}, ValueError, ["step_sizes", "-2.0", "positive"]),
    ({"step_sizes": []}, ValueError, ["step_sizes"]),
    ({"targets": "q", "motion": "disentangled"}, ValueError, ["targets", "drop"]),
    ({"targets": "z"}, ValueError, ["targets", "z", "drop"]),
    ({"obs_dtype": "float16"}, ValueError, ["obs_dtype", "float16", "uint8", "float32"]),
    ({"size": 0}, ValueError, ["size", "0"]),
    ({"spacing": -1.0}, ValueError, ["spacing", "-1.0"]),
    ({"near": 1.5}, ValueError, ["near", "1.5"]),
    ({"ranges": [-1.0] * 6}, ValueError, ["ranges", "-1.0"]),
    ({"max_episode_steps": 0}, ValueError, ["max_episode_steps", "0"]),
    ({"colour": "red"}, TypeError, ["colour"]),
])
def test_a_wrong_argument_is_named_with_its_value_and_the_way_out(arguments: dict[str, Any], error: type[Exception],
                                                                  words: list[str]) -> None:
    with pytest.raises(error) as caught:
        build("RegRigid3D-v0", **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unknown_ids_and_mismatched_sources_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RegRigid4D-v0.*RegRigid3D-v0"):
        build("RegRigid4D-v0")
    with pytest.raises(ValueError, match=r"heads.*3D.*2D"):
        build("RegRigid2D-v0", source="heads")
    with pytest.raises(TypeError, match="size"):
        build(build("RegRigid2D-v0"), size=3)


def test_reward_of_an_unknown_truth_is_zero() -> None:
    core = small("RegRigid3D-v0")
    state = begun(core, [[3.0] * 6])
    blind = core.begin(replace(state.pair, known=torch.zeros(1, dtype=torch.bool)), state.pose)
    _, reward, *_ = core.step(blind, torch.tensor([1]))
    assert isinstance(core.task.reward, DistanceDecrease)
    assert reward.tolist() == [0.0]
