"""The native batch as an environment of TorchRL, tensors from end to end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


class TorchRLEnv(EnvBase):
    """A native vector environment for TorchRL: nothing leaves the device, as it does with TorchRL's GymWrapper.

        TorchRLEnv(gym.make_vec("RegRigid3D-v0", num_envs=64, device="cuda", autoreset_mode="Disabled"))

    TorchRL itself resets lanes that end (its ``_reset`` mask becomes Gymnasium's ``reset_mask``). Observations lie
    under "observation", or under their own names where they are a dictionary.

    Args: env: of tensors (``output="torch"``), with ``autoreset_mode="Disabled"``.
    Raises ValueError: another mode or output.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        mode, output = env.metadata.get("autoreset_mode"), getattr(env.unwrapped, "output", None)
        if mode != AutoresetMode.DISABLED or output != "torch":
            raise ValueError(f'TorchRLEnv: autoreset_mode is {mode} and output {output!r}; make the environment with '
                             '"Disabled" and "torch".')
        super().__init__(device=env.unwrapped.device, batch_size=torch.Size([env.num_envs]))  # type: ignore[attr-defined]
        self.env = env
        single = env.single_observation_space
        named = single.spaces if isinstance(single, gym.spaces.Dict) else {"observation": single}
        self.observation_spec = Composite({name: self._spec(space) for name, space in named.items()},
                                          shape=self.batch_size)
        self.action_spec = self._spec(env.single_action_space)
        self.reward_spec = Unbounded((env.num_envs, 1), device=self.device)
        flag = Categorical(2, shape=(env.num_envs, 1), dtype=torch.bool, device=self.device)
        self.full_done_spec = Composite({name: flag.clone() for name in ("done", "terminated", "truncated")},
                                        shape=self.batch_size)

    def _spec(self, space: gym.Space[Any]) -> Any:
        """TorchRL's counterpart of a space, for all lanes."""
        if isinstance(space, gym.spaces.Discrete):
            return Categorical(int(space.n), shape=self.batch_size, dtype=torch.int64, device=self.device)
        assert isinstance(space, gym.spaces.Box)
        low, high = (torch.from_numpy(np.broadcast_to(bound, (*self.batch_size, *space.shape)).copy())
                     for bound in (space.low, space.high))
        return Bounded(low=low, high=high, dtype=low.dtype, device=self.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        options = {} if mask is None else {"reset_mask": mask.view(-1)}
        seed, self._next_seed = self._next_seed, None
        observations, _ = self.env.reset(seed=seed, options=options)
        nothing = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        return self._result(observations, nothing, nothing)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observations, rewards, terminated, truncated, _ = self.env.step(tensordict.get("action"))
        result = self._result(observations, terminated.unsqueeze(-1), truncated.unsqueeze(-1))
        return result.set("reward", rewards.unsqueeze(-1))

    def _result(self, observations: Any, terminated: Tensor, truncated: Tensor) -> TensorDictBase:
        """Observations and flags as TorchRL expects them."""
        named = observations if isinstance(observations, dict) else {"observation": observations}
        return TensorDict({**named, "terminated": terminated.clone(), "truncated": truncated.clone(),
                           "done": terminated | truncated}, batch_size=self.batch_size, device=self.device)

    _next_seed: int | None = None

    def _set_seed(self, seed: int | None) -> None:
        self._next_seed = seed
