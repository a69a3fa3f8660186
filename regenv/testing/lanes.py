"""The comparison of every lane of a vector environment with one environment that is reset by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from regenv.testing.values import as_array, as_arrays, copied, lane_of, leaves, require

REWARD_TOLERANCE = 1e-6
FINAL = {"final_obs", "final_info", "_final_obs", "_final_info"}


def check_lanes(env: VectorEnv, alone: gym.Env | VectorEnv, seed: int, steps: int, tolerance: float) -> None:
    """Compare every lane with one environment that is reset by hand: this fixes what each autoreset mode returns."""
    env.action_space.seed(seed)
    observation, infos = env.reset(seed=seed)
    record: list[Any] = [copied((observation, infos))]
    actions: list[Any] = []
    for *result, resetting in random_steps(env, observation, steps, actions):
        record.append((*copied(tuple(result)), resetting))
    for lane in range(env.num_envs):
        solo = Solo(alone)
        expected, expected_info = solo.reset(seed + lane)
        compare(lane, "reset", record[0][0], expected, record[0][1], expected_info, tolerance)
        ended = False
        for step, (observation, rewards, terminated, truncated, infos, _) in enumerate(record[1:]):
            when = f"step {step}"
            if ended and env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
                expected, expected_info = solo.reset(None)
                reward, ended = 0.0, False
                flags = (False, False)
                when += ", which resets the lane and ignores its action"
            else:
                if ended:
                    solo.reset(None)
                expected, reward, *flags, expected_info = solo.step(actions[step], lane)  # type: ignore[assignment]
                ended = any(flags)
            require(abs(float(rewards[lane]) - reward) <= REWARD_TOLERANCE * max(1.0, abs(reward)),
                    f"lane {lane} earns {float(rewards[lane])} at {when}; the single environment earns {reward}")
            require((bool(terminated[lane]), bool(truncated[lane])) == tuple(flags),
                    f"terminated, truncated of lane {lane} are {bool(terminated[lane])}, {bool(truncated[lane])} at "
                    f"{when}; the single environment says {flags[0]}, {flags[1]}")
            if env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
                _check_final(lane, when, infos, ended, expected, expected_info, tolerance)
                if ended:
                    expected, expected_info = solo.reset(None)
                    ended = False
                    when += ", after the reset"
            compare(lane, when, observation, expected, infos, expected_info, tolerance)


def _check_final(lane: int, when: str, infos: Mapping[str, Any], ended: bool, expected: Any,
                 expected_info: Mapping[str, Any], tolerance: float) -> None:
    for key in ("_final_obs", "_final_info"):
        given = key in infos and bool(infos[key][lane])
        require(given == ended, f"infos[{key!r}] of lane {lane} is {given} at {when}; the lane has "
                                f"{'ended' if ended else 'not ended'}")
    if ended:
        final = {key: value for key, value in infos["final_info"].items() if not key.startswith("_")}
        compare(lane, f"{when}, in final_obs and final_info", infos["final_obs"], expected, final, expected_info,
                tolerance)


def random_steps(env: VectorEnv, observation: Any, steps: int,
                 actions: list[Any] | None = None) -> Iterator[tuple[Any, ...]]:
    """Take random actions; yield the results and which lanes the step only reset. Reset ended lanes if the mode does
    not."""
    mode = env.metadata["autoreset_mode"]
    done = np.zeros(env.num_envs, dtype=bool)
    tensors = isinstance(observation, Tensor)
    for step in range(steps):
        if mode == AutoresetMode.DISABLED and done.any():
            env.reset(options={"reset_mask": torch.from_numpy(done) if step % 2 else done})
            done = np.zeros_like(done)
        action = env.action_space.sample()
        given = torch.from_numpy(action).to(observation.device) if tensors else action
        if actions is not None:
            actions.append(given)
        result = env.step(given)
        resetting = done if mode == AutoresetMode.NEXT_STEP else np.zeros_like(done)
        done = as_array(result[2]) | as_array(result[3])
        yield (*result, resetting)


class Solo:
    """One environment, single or of one lane, reset by hand."""

    def __init__(self, env: gym.Env | VectorEnv) -> None:
        self.env = env
        self.batched = isinstance(env, VectorEnv)

    def reset(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed)
        return self._one(observation), self._information(info)

    def step(self, actions: Any, lane: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = actions[lane:lane + 1] if self.batched else as_arrays(actions)[lane]
        observation, reward, terminated, truncated, info = self.env.step(action)
        return (self._one(observation), float(self._one(reward)), bool(self._one(terminated)),
                bool(self._one(truncated)), self._information(info))

    def _one(self, value: Any) -> Any:
        return lane_of(value, 0) if self.batched else value

    def _information(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._one(value) for key, value in info.items() if not key.startswith("_") and key not in FINAL}


def compare(lane: int, when: str, observation: Any, expected: Any, infos: Mapping[str, Any],
            expected_info: Mapping[str, Any], tolerance: float) -> None:
    """Raise AssertionError unless a lane's observation and infos are those of the single environment."""
    for mine, theirs in zip(leaves(lane_of(observation, lane)), leaves(expected), strict=True):
        difference = np.abs(as_array(mine).astype(np.float64) - as_array(theirs).astype(np.float64)).max()
        require(difference <= tolerance,
                f"the observation of lane {lane} at {when} differs by {difference:.3g} from the single environment's")
    for key, theirs in expected_info.items():
        require(key in infos, f"infos of {when} have no {key!r}, the single environment's info has")
        close = all(np.allclose(as_array(a), as_array(b), rtol=REWARD_TOLERANCE, atol=REWARD_TOLERANCE, equal_nan=True)
                    for a, b in zip(leaves(lane_of(infos[key], lane)), leaves(theirs), strict=True))
        require(close, f"infos[{key!r}] of lane {lane} at {when} differs from the single environment's")
