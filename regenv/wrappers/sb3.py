"""The native batch as a vector environment of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment for agents of Stable-Baselines3, many times as fast as its DummyVecEnv:

        PPO("CnnPolicy", SB3VecEnv(gym.make_vec("RegRigid2D-v0", num_envs=16, autoreset_mode="SameStep")))

    Every array is copied to the host once per step. Infos are filled only for lanes that end, with copies:
    ``final_info``'s numbers, ``terminal_observation``, ``TimeLimit.truncated``, ``episode`` (return, length and
    seconds, as of SB3's Monitor) and, where the environment has it, ``is_success``. ``seed(s)`` seeds lane i by s + i.

    There is one environment for all lanes: ``get_attr`` gives its attribute for each of them, ``set_attr`` takes all
    lanes, and ``env_method`` calls it once; a result with one row per lane is split by lanes.

    Args: env: with ``autoreset_mode="SameStep"``.
    Raises ValueError: it resets in another mode; or later, lanes are to be treated differently.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f'SB3VecEnv: autoreset_mode is {mode}; make the environment with "SameStep".')
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata
        self._actions: Any = None
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._begun = time.time()

    def reset(self) -> Any:
        options = [option for option in self._options if option != self._options[0]]
        if options:
            raise ValueError(f"SB3VecEnv: options of lane 0 are {self._options[0]} but there are also {options[0]}; "
                             "all lanes must have the same.")
        seeds = list(self._seeds) if any(seed is not None for seed in self._seeds) else None
        observations, infos = self.env.reset(seed=seeds, options=self._options[0] or None)  # type: ignore[arg-type]
        numbers = host(infos)
        self.reset_infos = [of_lane(numbers, lane) for lane in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        return host(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, given = self.env.step(self._actions)
        rewards, terminated, truncated = host(rewards), host(terminated), host(truncated)
        ended = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            last, final = host(given["final_obs"]), host(given["final_info"])
            fresh = host({key: value for key, value in given.items() if "final" not in key})
            for lane in np.flatnonzero(ended).tolist():
                infos[lane] = {**of_lane(final, lane), "terminal_observation": row(last, lane),
                               "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
                               "episode": {"r": round(float(self._returns[lane]), 6), "l": int(self._lengths[lane]),
                                           "t": round(time.time() - self._begun, 6)}}
                self.reset_infos[lane] = of_lane(fresh, lane)
            self._returns[ended], self._lengths[ended] = 0, 0
        return host(observations), rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A frame of every lane, None where the environment has no ``render_mode``."""
        frames: Any = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self._all(f"set_attr of {attr_name!r}", indices)
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        result = host(getattr(self.env, method_name)(*args, **kwargs))
        by_lane = isinstance(result, (np.ndarray, list, tuple)) and len(result) == self.num_envs
        return [result[lane] if by_lane else result for lane in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Whether the lanes provide what a wrapper does: they provide the Monitor's statistics."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _all(self, what: str, indices: Any) -> None:
        chosen: Iterable[int] = self._get_indices(indices)
        if sorted(chosen) != list(range(self.num_envs)):
            raise ValueError(f"SB3VecEnv: {what} is for lanes {indices}, but all {self.num_envs} lanes have one "
                             "environment.")


def host(value: Any) -> Any:
    """Tensors as arrays, also inside dictionaries."""
    if isinstance(value, dict):
        return {key: host(part) for key, part in value.items()}
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def row(value: Any, lane: int) -> Any:
    """A lane's part of a batch, copied."""
    if isinstance(value, dict):
        return {key: row(part, lane) for key, part in value.items()}
    return np.array(value[lane]) if not isinstance(value[lane], dict) else dict(value[lane])


def of_lane(infos: dict[str, Any], lane: int) -> dict[str, Any]:
    """A lane's info from a vector environment's infos: the keys that its masks mark, numbers as Python's."""
    found = {}
    for key, value in infos.items():
        if not key.startswith("_") and infos.get(f"_{key}", np.ones(lane + 1, dtype=bool))[lane]:
            part = row(value, lane)
            found[key] = part.item() if isinstance(part, np.ndarray) and part.ndim == 0 else part
    return found
