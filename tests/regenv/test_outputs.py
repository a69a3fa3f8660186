"""Tensors that are given out: torch's code sees tensors, NumPy's and Gymnasium's wrappers see arrays."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import vector as wrappers
from torch import Tensor

from regenv.outputs import OutputArray, OutputTensor, as_information, as_tensor

MODES = ("NextStep", "SameStep", "Disabled")
LIMIT = 3


def batch(**arguments: Any) -> Any:
    return gym.make_vec("RegRigid2D-v0", num_envs=3, size=24, spacing=10.0, max_episode_steps=LIMIT, **arguments)


def played(env: Any, steps: int = 2 * LIMIT + 2) -> list[Any]:
    """What a seeded run gives; lanes that end are reset where the mode asks for it."""
    env.action_space.seed(0)
    results = [env.reset(seed=0)]
    for _ in range(steps):
        result = env.step(env.action_space.sample())
        results.append(result)
        if env.unwrapped.autoreset_mode.value == "Disabled" and np.logical_or(*result[2:4]).any():
            env.reset(options={"reset_mask": np.logical_or(*result[2:4])})
    return results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrapper", [wrappers.RecordEpisodeStatistics, wrappers.NormalizeReward,
                                     wrappers.NormalizeObservation, wrappers.DictInfoToList])
def test_gymnasiums_wrappers_make_of_tensors_what_they_make_of_arrays(wrapper: type, mode: str) -> None:
    if wrapper is wrappers.NormalizeObservation and mode != "NextStep":
        pytest.skip("Gymnasium's wrapper takes no other mode")
    ours, theirs = (played(wrapper(batch(output=output, autoreset_mode=mode))) for output in ("torch", "numpy"))
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine[:-1], other[:-1], strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
        same(mine[-1], other[-1])


def same(a: Any, b: Any) -> None:
    """Raise unless two infos are equal; the seconds of an episode are not asked for."""
    if isinstance(b, list):
        for left, right in zip(a, b, strict=True):
            same(left, right)
    elif isinstance(b, dict):
        assert set(a) == set(b)
        for key in set(b) - {"t"}:
            same(a[key], b[key])
    else:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_episode_statistics_count_every_step_when_lanes_restart_within_a_step(output: str) -> None:
    """Gymnasium before 1.4 loses a step of every episode but the first."""
    env = wrappers.RecordEpisodeStatistics(batch(output=output, autoreset_mode="SameStep"))
    lengths = [int(length) for *_, infos in played(env)[1:] if "episode" in infos
               for length in infos["episode"]["l"][infos["_episode"]]]
    assert lengths == [LIMIT] * 6


def test_torch_makes_plain_tensors_and_numpy_arrays_of_what_is_given_out() -> None:
    given, plain = as_tensor(torch.arange(4.0)), torch.arange(4.0)
    assert isinstance(given, OutputTensor) and torch.equal(given, plain)
    for made in (given + 1, plain * given, given[0], given[plain > 1], given.sum(), torch.stack([given] * 2), -given):
        assert type(made) is Tensor
    array = np.arange(4.0)
    for made in (given - array, array - given, np.mean(given, axis=0), np.where(given > 1, given, 0),
                 np.logical_or(given, given), given[array > 1], given[np.array([0, 1])]):
        assert isinstance(made, (np.ndarray, np.floating)) and not isinstance(made, Tensor)
    array += given
    assert array.tolist() == [0, 2, 4, 6]


def test_torch_takes_infos_for_tensors() -> None:
    told, plain = as_information(torch.arange(4.0)), torch.arange(4.0)
    assert isinstance(told, OutputArray) and isinstance(told, np.ndarray)
    for made in (torch.where(told > 1, told, 0.0), plain - told, told - plain, told.float(), told.cpu(), told.to("cpu"),
                 torch.stack([told, told]), told.unsqueeze(0)):
        assert type(made) is Tensor
    assert told.argmax() == 3
    assert not hasattr(told, "__cuda_array_interface__") and not hasattr(told, "no_such_method")


@pytest.mark.parametrize("remade", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("given", [as_tensor, as_information])
def test_what_is_given_out_can_be_copied_and_pickled(given: Any, remade: Any) -> None:
    value = given(torch.arange(3.0))
    again = remade(value)
    assert type(again) is type(value)
    assert again.tolist() == value.tolist()


def test_a_tensor_on_a_gpu_tells_numpy_the_way_out() -> None:
    far = as_tensor(torch.zeros(2, device="meta"))
    for call in (lambda: np.mean(far, axis=0), lambda: np.ones(2) - far, lambda: far[np.array([True, False])]):
        with pytest.raises(TypeError, match=r'tensor on meta is given to NumPy.*output="numpy"'):
            call()
