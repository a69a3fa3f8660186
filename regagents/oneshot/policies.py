"""The network of the one-shot agent."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from regagents.common.extractors import SunCNN


class OneShotPolicy(BasePolicy):
    """Image features, then one linear layer: an action (B, P) in [-1, 1], the whole correction at once."""

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any = None,
                 features_extractor_class: Any = SunCNN,
                 features_extractor_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(observation_space, action_space, features_extractor_class, features_extractor_kwargs,
                         normalize_images=False, squash_output=True)
        self.features_extractor = self.make_features_extractor()
        self.head = nn.Linear(self.features_extractor.features_dim, action_space.shape[0])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(self.features_extractor(observations))

    def _predict(self, observation: Any, deterministic: bool = True) -> Tensor:
        return self(observation).clamp(-1, 1)

    def play(self, observation: Tensor, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the clipped action, in the bounds of the action space."""
        action = self._predict(observation)
        return torch.from_numpy(self.unscale_action(action.detach().cpu().numpy())).to(action.device), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "lr_schedule": None, "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs}


def scaled(outputs: Tensor, table: Tensor) -> Tensor:
    """Changes of the parameters (B, P) float64 by unclipped outputs (B, P). Args: table (A, P): unit steps."""
    return outputs.to(torch.float64) * table.amax(0)
