"""What callers give wrongly is refused with one line before any of it is used, by single environment and batch."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from regenv.inputs import checked_actions, number, whole
from regenv.registry import build
from regenv.vector import RegistrationVectorEnv
from tests.regenv.families import small

LANES = 2
DISCRETE, CONTINUOUS, FIELD = "RegRigid2D-v0", "RegRigid2DContinuous-v0", "RegDense2D-v0"
NO_NUMBERS: list[Any] = [True, 1j, "1", b"1", None, object(), {}, [0, [1]], np.array([0], dtype=object),
                         np.array(True), np.array("a"), torch.tensor(True), torch.tensor(1j), np.datetime64("2020")]


def shown(value: Any) -> str:
    """A test's name, the same in every process: without the address of an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def single(name: str = DISCRETE, **arguments: Any) -> Any:
    return gym.make(name, **{**small(name), **arguments}).unwrapped


def batch(name: str = DISCRETE, **arguments: Any) -> RegistrationVectorEnv:
    return gym.make_vec(name, **{"num_envs": LANES, **small(name), **arguments})  # type: ignore[return-value]


def refused(call: Any, words: str = "") -> None:
    """Raise AssertionError unless a call is refused with a ValueError of one line."""
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def repeated(value: Any, lanes: int = LANES) -> Any:
    """The same action for every lane."""
    if isinstance(value, torch.Tensor):
        return torch.stack([value] * lanes)
    return np.stack([value] * lanes) if isinstance(value, np.ndarray) else [value] * lanes


# --- actions --------------------------------------------------------------------------------------------------------

WRONG: dict[str, list[Any]] = {
    DISCRETE: [*NO_NUMBERS, 1.7, -0.4, 0.0, np.float32(1), np.nan, -1, 6, 2**70, np.uint64(2**63), [0], [0, 1],
               np.array([0]), np.array([[0]]), torch.tensor([0]), torch.tensor(1.0), torch.tensor(-1), [], ()],
    CONTINUOUS: [*NO_NUMBERS, 0.5, [0.5], [0.5, 0.5], [0.5] * 4, np.zeros((1, 3)), np.zeros((3, 1)), np.nan,
                 [0, np.nan, 0], [True] * 3, ["0"] * 3, np.zeros(3, complex), np.array([0.5, None, 0]),
                 torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.complex64), torch.full((3,), torch.nan),
                 torch.zeros(1), torch.zeros(2)],
    FIELD: [0.0, np.zeros((2, 1, 1)), np.zeros((36, 36)), np.zeros((1, 36, 36)), np.zeros((2, 36, 36), bool),
            np.full((2, 36, 36), np.nan), torch.zeros(2, 36, 35)]}


@pytest.mark.parametrize(("name", "action"), [(name, action) for name, wrong in WRONG.items() for action in wrong],
                         ids=shown)
def test_a_wrong_action_is_refused_and_changes_nothing(name: str, action: Any) -> None:
    alone, many = single(name), batch(name)
    alone.reset(seed=0)
    many.reset(seed=0)
    for env, given in ((alone, action), (many, repeated(action))):
        before = env.state
        refused(lambda env=env, given=given: env.step(given), "^step: actions ")
        assert env.state is before


@pytest.mark.parametrize("action", [np.zeros(1, int), np.zeros(3, int), 0, np.zeros((2, 1), int), np.zeros((1, 2), int),
                                    torch.zeros(3, dtype=torch.int64), [0], []], ids=shown)
def test_a_batch_takes_one_action_a_lane(action: Any) -> None:
    env = batch()
    env.reset(seed=0)
    refused(lambda: env.step(action), "step: actions ")


@pytest.mark.parametrize("kind", [int, np.int8, np.uint8, np.int16, np.int64, np.uint64, ">i4"])
def test_whole_numbers_of_every_type_are_actions(kind: Any) -> None:
    alone, many = single(), batch()
    alone.reset(seed=0)
    many.reset(seed=0)
    alone.step(np.array(3, kind)[()])
    many.step(np.array([3, 1], kind))
    assert torch.equal(alone.state.pose[0], many.state.pose[0])


@pytest.mark.parametrize("action", [[0.25, -1, 9], np.array([0.25, -1, 9], np.float16), torch.tensor([0.25, -1, 9.0]),
                                    np.array([0.5, -1, -2, 0, 9, 5])[::2] / 2, torch.tensor([0.25, -1, 9]).bfloat16(),
                                    np.array([0, 1, 2]), np.array([0, 1, np.inf])], ids=shown)
def test_numbers_of_every_type_are_continuous_actions_and_clipped(action: Any) -> None:
    env = single(CONTINUOUS, stop="never")
    env.reset(seed=0)
    before = env.state.pose.clone()
    env.step(action)
    expected = torch.as_tensor(action).double().clamp(-1, 1)
    torch.testing.assert_close(env.state.pose[0] - before[0], expected)


@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS, FIELD])
def test_values_that_only_a_gpu_sees_have_no_effect(name: str) -> None:
    """There, looking at values would wait for the device; the parts of actions guard themselves."""
    core = batch(name).core
    actions = core.task.actions
    if name == DISCRETE:
        moved = actions.delta(torch.tensor([-1, 2**40, 6, -2**40]), core.deltas)
        assert torch.equal(moved, torch.zeros_like(moved))
    else:
        shape = (LANES, *core.action_space.shape)
        assert actions.delta(torch.full(shape, torch.nan, device="meta"), core.deltas.to("meta")).shape[0] == LANES
    wrong = torch.zeros(LANES, 5, 7, device="meta")
    for given in (wrong, wrong.bool(), wrong.to(torch.complex64)):
        refused(lambda given=given: checked_actions(given, core.action_space, LANES, given.device), "step: actions ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_wrong_action_does_no_harm_on_a_gpu() -> None:
    env = batch(device="cuda")
    env.reset(seed=0)
    refused(lambda: env.step(np.array([0, 99])), "step: actions are")
    before = env.state.pose.clone()
    env.step(torch.tensor([-5, 10**9], device="cuda"))
    assert torch.equal(env.state.pose, before)


# --- seeds and options ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [1.5, -1, True, "1", np.float64(2), np.nan, 1j, np.array(1.0), {}, b"1"], ids=shown)
def test_a_wrong_seed_is_refused_by_both(seed: Any) -> None:
    for env in (single(), batch()):
        refused(lambda env=env: env.reset(seed=seed), "reset: seed")


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], [1, 2.0], [1, -2], [1, True], ["a", "b"], np.array([1.0, 2.0]),
                                  np.array([[1, 2]]), np.array([True, False]), []], ids=shown)
def test_a_wrong_list_of_seeds_is_refused(seed: Any) -> None:
    refused(lambda: batch().reset(seed=seed), "reset: seed")


@pytest.mark.parametrize("seed", [np.int64(3), np.array([3, 4]), [np.int64(3), 4], (3, np.uint8(4)), [3, 4],
                                  np.array([3, 4], np.uint64)], ids=shown)
def test_numpys_whole_numbers_are_seeds(seed: Any) -> None:
    given, usual = batch().reset(seed=seed)[0], batch().reset(seed=3)[0]
    assert torch.equal(given, usual)
    first = seed if np.ndim(seed) == 0 else seed[0]
    assert np.array_equal(single().reset(seed=first)[0], given[0])


OPTIONS: list[Any] = [{"dificulty": 1.0}, {1: 2}, {"difficulty": np.nan}, {"difficulty": 1.5}, {"difficulty": -0.1},
                      {"difficulty": "1"}, {"difficulty": True}, {"difficulty": None}, {"reach": 0}, {"reach": 2},
                      {"reach": np.nan}, {"reach": [0.5]}, {"same_pairs": 1}, {"same_pairs": "no"}, [], "difficulty", 3]


@pytest.mark.parametrize("options", OPTIONS, ids=shown)
def test_wrong_options_are_refused_by_both(options: Any) -> None:
    for env in (single(), batch()):
        env.reset(seed=0)
        refused(lambda env=env: env.reset(options=options), "reset: ")


MASKS: list[Any] = [[1, 0], [True], np.zeros(2, bool), np.ones((2, 1), bool), "ab", np.array([1.0, 0.0]), True,
                    torch.zeros(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)]


@pytest.mark.parametrize("mask", MASKS, ids=shown)
def test_a_wrong_mask_is_refused(mask: Any) -> None:
    env = batch()
    env.reset(seed=0)
    refused(lambda: env.reset(options={"reset_mask": mask}), "reset_mask")


def test_a_single_environment_has_no_mask() -> None:
    refused(lambda: single().reset(options={"reset_mask": np.array([True])}), "reset: options has 'reset_mask'")


@pytest.mark.parametrize("options", [*OPTIONS, {"reset_mask": np.zeros(2, bool)}], ids=shown)
def test_a_refused_reset_has_not_seeded(options: Any) -> None:
    for make in (single, batch):
        env, untouched = make(), make()
        for each in (env, untouched):
            each.reset(seed=5)
        refused(lambda env=env: env.reset(seed=77, options=options), "reset: ")
        assert np.array_equal(env.reset()[0], untouched.reset()[0])


@pytest.mark.parametrize("options", [{"same_pairs": True}, {"reset_mask": np.array([True, False])}], ids=shown)
def test_a_first_reset_that_cannot_be_has_not_seeded(options: Any) -> None:
    env = batch()
    before = [rng.bit_generator.state for rng in env._rngs]
    refused(lambda: env.reset(seed=1, options=options), "reset: the first reset must")
    assert [rng.bit_generator.state for rng in env._rngs] == before


# --- arguments ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "argument", "values"), [
    (DISCRETE, "size", [True, 0, -3, 2.5, 36.0, "36", [36], [36, 36, 36], [36, 2.5], [36, True], np.nan, None, {}]),
    (DISCRETE, "spacing", [0, -1, np.nan, np.inf, True, "1", [5.0], [5, 5, 5], [5, 0], [5, np.nan], [5, True], [], {}]),
    (FIELD, "spacing", [0, np.nan, [5.0], "1", True]),
    ("RegKeypoint2D-v0", "spacing", [0, np.nan, [5.0], "1", True]),
    ("RegSimilarity2D-v0", "spacing", [0, np.nan, [5.0, 5.0], "1", True]),
    (DISCRETE, "step_sizes", [[np.nan], [], [0], [-1], [1, np.inf], [True], ["1"], 1.0, "1", None]),
    ("RegSDM2D-v0", "step_sizes", [[np.nan], [], 1.0]),
    (DISCRETE, "ranges", [[1, 1], [1, 1, np.nan], [1, 1, -1], [1, 1, "1"], 1.0, [True] * 3]),
    (DISCRETE, "max_episode_steps", [0, -1, True, "5", np.nan]),
    (DISCRETE, "success_mm", [np.nan, -1, "1", True, np.inf]),
    (DISCRETE, "gamma", [np.nan, 2, -1, "1"]),
    (DISCRETE, "near", [np.nan, 2, -1]),
    (DISCRETE, "continuous", [1, "yes", None]),
    (DISCRETE, "whole", [1, "yes"]),
    (DISCRETE, "observation", [["pair"], 1, "pear"]),
    (DISCRETE, "obs_dtype", ["float64", 8, ["uint8"], ""]),
    (FIELD, "max_displacement", [0, -1, np.nan, np.inf, True, "3"]),
    (FIELD, "reward_scale", [np.nan, np.inf, "1"]),
    (FIELD, "terminal_bonus", [np.nan, "1"]),
    (FIELD, "clusters", [1, 2.5, True, np.nan]),
    (FIELD, "control_grid", [[8], [8, 8.0], [8, 3], [True, 8], 8, "88"]),
    ("RegKeypoint2D-v0", "max_displacement", [0, np.nan, True]),
    ("RegSDM2D-v0", "increment", [0, np.nan, np.inf, True]),
    ("RegSDM2D-v0", "k", [0, np.nan, True]),
    ("RegSDM2D-v0", "fuzzy", [1, "no"]),
])
def test_wrong_arguments_of_an_id_are_refused_by_name(name: str, argument: str, values: list[Any]) -> None:
    for value in values:
        if value is not None or argument not in ("size", "max_episode_steps", "step_sizes", "continuous"):
            refused(lambda value=value: build(name, **{**small(name), argument: value}), argument)


@pytest.mark.parametrize("limit", [0, 2.5, True, "3", np.nan, -1])
def test_a_time_limit_is_a_whole_number(limit: Any) -> None:
    refused(lambda: batch(max_episode_steps=limit), "max_episode_steps is")
    refused(lambda: RegistrationVectorEnv(DISCRETE, 1, max_episode_steps=limit), "max_episode_steps is")


@pytest.mark.parametrize("lanes", [0, -1, 2.0, True, "2", np.nan])
def test_a_number_of_lanes_is_a_whole_number(lanes: Any) -> None:
    refused(lambda: RegistrationVectorEnv(DISCRETE, lanes), "num_envs is")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", "meta", 1.5, None, "cpu:-2"] + (
    [] if torch.cuda.is_available() else ["cuda", "cuda:0", torch.device("cuda")]), ids=shown)
def test_a_device_that_is_not_there_is_refused_by_name(device: Any) -> None:
    for make in (single, batch):
        refused(lambda make=make: make(device=device), f"device is .*{re.escape(str(device))}")


def test_numpys_numbers_are_numbers() -> None:
    assert whole("n", np.int16(3)) == 3
    assert number("x", np.float32(0.5), 0, 1) == 0.5
    task = build(DISCRETE, size=np.array([36, 40]), spacing=np.array([2.0, 3.0]), max_episode_steps=np.int64(4))
    assert task.grid.shape == (36, 40)
    assert task.grid.spacing == (2.0, 3.0)
