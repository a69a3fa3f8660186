"""Policies of Stable-Baselines3 with this project's feature extractors, for image pairs in 2D and 3D.

SB3's own extractors flatten volumes and refuse images smaller than 36 pixels. A policy here is SB3's (or sb3-contrib's)
with :class:`CompactCNN` (:class:`DictCNN` for Dict observations), which does its own scaling:

    PPO(PairPolicy, SB3VecEnv(gym.make_vec("RegRigid3D-v0", num_envs=8, autoreset_mode="SameStep")))
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3 import TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from regagents.common.extractors import CompactCNN, DictCNN


class PairFeatures:
    """A policy whose feature extractor is CompactCNN or DictCNN, where none is given."""

    defaults: ClassVar[dict[str, Any]] = {"normalize_images": False}

    def __init__(self, observation_space: gym.Space[Any], *args: Any, **kwargs: Any) -> None:
        extractor = DictCNN if isinstance(observation_space, gym.spaces.Dict) else CompactCNN
        super().__init__(observation_space, *args,  # type: ignore[call-arg]
                         **{**self.defaults, "features_extractor_class": extractor, **kwargs})


class ActorCritic(PairFeatures):
    """Policies without orthogonal initialisation, which torch cannot do on channels-last weights."""

    defaults: ClassVar[dict[str, Any]] = {**PairFeatures.defaults, "ortho_init": False}


class PairPolicy(ActorCritic, ActorCriticPolicy):
    """Of PPO and A2C."""


class PairMaskablePolicy(ActorCritic, MaskableActorCriticPolicy):
    """Of MaskablePPO."""


class PairLstmPolicy(ActorCritic, RecurrentActorCriticPolicy):
    """Of RecurrentPPO."""


class PairQPolicy(PairFeatures, DQNPolicy):
    """Of DQN."""


class PairSACPolicy(PairFeatures, SACPolicy):
    """Of SAC."""


class PairTD3Policy(PairFeatures, TD3Policy):
    """Of TD3 and DDPG."""


class NoisyTD3(TD3):
    """TD3 that explores with normal noise on actions of any shape. Args: noise_std: of actions scaled to [-1, 1]."""

    def __init__(self, *args: Any, noise_std: float = 0.1, **kwargs: Any) -> None:
        self.noise_std = noise_std
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        shape = self.action_space.shape
        assert shape is not None
        self.action_noise = NormalActionNoise(np.zeros(shape), np.full(shape, self.noise_std))


class PairTQCPolicy(PairFeatures, TQCPolicy):
    """Of TQC."""
