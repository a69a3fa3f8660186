"""One-shot regression: a network states the whole correction at once ("pure SL", Sun et al. 2018, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from regagents.common import checkpoints
from regagents.common.curriculum import Curriculum
from regagents.common.precision import mixed
from regagents.common.supervised import FreshPoses
from regagents.oneshot.policies import OneShotPolicy, scaled


class OneShot(FreshPoses, BaseAlgorithm):
    """Supervised regression of one action that aligns the images, on SB3's frame.

    Made for the Continuous ids with ``step_sizes`` that cover the starting range (``step_sizes=(45,)``): one step of
    the environment is then the whole registration, and more steps correct what is left. ``learn`` minimises the
    distance D that is left after the action, from fresh random poses; D is the environment's own (for the similarity
    ids the mean landmark error in pixels), so no weights between millimetres, degrees and scale have to be chosen.

    Args:
        policy: "CnnPolicy", or an OneShotPolicy subclass.
        env: id or environment with continuous actions.
        learning_rate: peak rate.
        batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs: see FreshPoses.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": OneShotPolicy}  # type: ignore[assignment]
    policy: OneShotPolicy

    def __init__(self, policy: str | type[OneShotPolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 1e-3,
                 batch_size: int = 64, schedule: str = "cosine", poses_per_image: int = 4, curriculum: Curriculum | None = None,
                 amp: bool = False, sampler_kwargs: dict[str, Any] | None = None,
                 policy_kwargs: dict[str, Any] | None = None, stats_window_size: int = 100,
                 tensorboard_log: str | None = None, verbose: int = 0, seed: int | None = None, device: str = "cpu",
                 _init_setup_model: bool = True) -> None:
        self.settings(batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs)
        BaseAlgorithm.__init__(self, policy, env, learning_rate, policy_kwargs=policy_kwargs,
                               stats_window_size=stats_window_size, tensorboard_log=tensorboard_log, verbose=verbose,
                               device=device, seed=seed, support_multi_env=True,
                               supported_action_spaces=(gym.spaces.Box,))
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,  # type: ignore[assignment]
                                        **self.policy_kwargs).to(self.device)
        self.make_optimizer()

    @property
    def network(self) -> torch.nn.Module:
        return self.policy

    def loss(self, observations: Tensor, infos: dict[str, Tensor]) -> Tensor:
        """Mean D that is left after the action."""
        with mixed(self.device, self.amp):
            outputs = self.policy(observations).float()
        env: Any = self.sampler().unwrapped
        core, state = env.core, env.state
        moved = core.task.transform.apply(infos["target"], scaled(outputs, core.deltas))
        return core.measure(state.pair)(moved).mean()

    def adopt(self, tensors: Mapping[str, Tensor], path: str | Path) -> None:
        """Take over a checkpoint's weights. Raises CheckpointError where they do not fit."""
        checkpoints.fit(self.policy, tensors, path)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []
