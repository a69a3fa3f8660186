"""Deep supervised learning: regress the Q of the greedy path from fresh random poses (Liao et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor

from regagents.common.curriculum import Curriculum
from regagents.common.precision import mixed
from regagents.common.supervised import FreshPoses
from regagents.dsl.policies import DSLPolicy, DualStreamPolicy, LiaoPolicy


class DSL(FreshPoses, DQN):
    """Deep supervised learning on SB3's DQN frame.

    ``learn`` draws batches of fresh poses from a native vector environment of the same id and regresses
    ``info["q_star"]`` for all actions (eq. 5): no exploration, no replay. ``finetune`` is DQN on the learned Q, the
    paper's outlook. ``predict``, ``save``, ``load``, callbacks and logging are SB3's.

    Args:
        policy: "CompactPolicy" (default network), "LiaoPolicy" (Liao et al.), "DualStreamPolicy" (Krebs et al.), or a
            DSLPolicy subclass.
        env: id or environment; its spec is what the training batches are drawn from.
        learning_rate: its peak; 6e-5 with the schedule "liao".
        batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs: see FreshPoses.
        gamma, buffer_size, exploration_initial_eps, sb3: SB3's DQN arguments, used by ``finetune`` only; the buffer is
            allocated there.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CompactPolicy": DSLPolicy, "CnnPolicy": DSLPolicy,
                                                 "LiaoPolicy": LiaoPolicy, "DualStreamPolicy": DualStreamPolicy}  # type: ignore[assignment]
    policy: DSLPolicy

    def __init__(self, policy: str | type[DSLPolicy] = "CompactPolicy", env: Any = None, learning_rate: float = 1e-3,
                 batch_size: int = 48, schedule: str = "cosine", poses_per_image: int = 4,
                 curriculum: Curriculum | None = None, amp: bool = False,
                 sampler_kwargs: dict[str, Any] | None = None, gamma: float = 0.9, buffer_size: int = 2_000,
                 exploration_initial_eps: float = 0.2, **sb3: Any) -> None:
        self.settings(batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs)
        DQN.__init__(self, policy, env, learning_rate=learning_rate, batch_size=batch_size, gamma=gamma,
                     buffer_size=buffer_size, exploration_initial_eps=exploration_initial_eps, **sb3)

    def _setup_model(self) -> None:
        wanted, self.buffer_size = self.buffer_size, 1
        DQN._setup_model(self)
        self.buffer_size, self.replay_buffer = wanted, None
        if self.env is not None:
            task = self.task()
            if task.expert is None:
                raise ValueError(f"{type(self).__name__}: the environment has no expert, whose values it could learn; "
                                 "use an id with one.")
            self.action_weights = task.expert.weights(task.actions.deltas)
        self.policy.weigh(self.action_weights)
        self.begin_training()

    def learn(self, *args: Any, **kwargs: Any) -> Self:
        """See :meth:`regagents.common.algorithm.Algorithm.learn`."""
        super().learn(*args, **kwargs)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        return self

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False,
                action_masks: NDArray[np.bool_] | None = None) -> tuple[NDArray[Any], Any]:
        """SB3's ``predict`` with sb3-contrib's ``action_masks`` (A,) or (B, A), False for actions not to take."""
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        self.policy.set_training_mode(False)
        tensor, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(tensor, Tensor)
        allowed = torch.as_tensor(action_masks, device=self.device).bool().reshape(len(tensor), -1)
        with torch.inference_mode():
            actions = self.policy._predict(tensor, deterministic, allowed).cpu().numpy()
        return (actions if vectorized else actions[0]), state

    def finetune(self, total_timesteps: int, **kwargs: Any) -> Self:
        """DQN on the learned values, with exploration and replay (the paper's outlook). Takes SB3's ``learn``
        arguments. Also where targets were per unit of the step, rewards are compared with whole values.
        """
        self.replay_buffer = ReplayBuffer(self.buffer_size, self.observation_space, self.action_space, self.device,
                                          n_envs=self.n_envs, **self.replay_buffer_kwargs)
        DQN.learn(self, total_timesteps, **kwargs)
        return self

    @property
    def network(self) -> torch.nn.Module:
        return self.q_net

    def loss(self, observations: Tensor, infos: dict[str, Tensor]) -> Tensor:
        """Eq. 5, over all actions."""
        with mixed(self.device, self.amp):
            outputs = self.policy.q_net.outputs(observations)
        return F.mse_loss(outputs.float(), infos["q_star"].to(torch.float32))

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """Take over a checkpoint's weights. Raises CheckpointError where they do not fit."""
        super().adopt(tensors, path)
        self.q_net_target.load_state_dict(self.q_net.state_dict())

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "optimizer"], []
