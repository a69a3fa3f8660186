"""The combined policy and value network of the A3C agent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from regagents.common.extractors import SunCNN

Memory = tuple[Tensor, Tensor]
"""The LSTM's hidden and cell state, each (B, hidden)."""
FEEDFORWARD = 128  # width of the dense layer that stands in for the LSTM ("CNN-LME")


class A3CPolicy(BasePolicy):
    """Sun et al. 2018, table 1: convolutions, FC256, LSTM256, and two heads: policy (A) and value (1).

    Args:
        recurrent: False puts a dense layer of 128 with ELU in place of the LSTM (the paper's CNN-LME).
        value_hidden: width of a layer with ELU between features and memory together and the value; None is the paper's
            value, linear in the memory.
    """

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any = None, hidden: int = 256,
                 recurrent: bool = True, value_hidden: int | None = None, features_extractor_class: Any = SunCNN,
                 features_extractor_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(observation_space, action_space, features_extractor_class, features_extractor_kwargs,
                         normalize_images=False)
        self.recurrent, self.value_hidden = recurrent, value_hidden
        self.hidden = hidden if recurrent else FEEDFORWARD
        self.features_extractor = self.make_features_extractor()
        width = self.features_extractor.features_dim
        self.core: nn.Module = nn.LSTMCell(width, hidden) if recurrent else nn.Linear(width, FEEDFORWARD)
        self.policy_head = nn.Linear(self.hidden, int(action_space.n))
        self.value_head: nn.Module = nn.Linear(self.hidden, 1) if value_hidden is None else nn.Sequential(
            nn.Linear(width + self.hidden, value_hidden), nn.ELU(), nn.Linear(value_hidden, 1))
        nn.init.normal_(self.policy_head.weight, std=0.01)
        nn.init.zeros_(self.policy_head.bias)

    def begin(self, lanes: int) -> Memory:
        """Memory of fresh episodes: two (B, hidden)."""
        return torch.zeros(lanes, self.hidden), torch.zeros(lanes, self.hidden)

    def forward(self, observations: Tensor, memory: Memory, starts: Tensor | None = None
                ) -> tuple[Tensor, Tensor, Memory]:
        """Logits (B, A), values (B,) and the next memory. Args: starts: (B,) bool, where an episode begins."""
        hidden, judged, memory = self.encode(observations, memory, starts)
        return self.policy_head(hidden), self.value_head(judged).squeeze(1), memory

    def encode(self, observations: Tensor, memory: Memory,
               starts: Tensor | None = None) -> tuple[Tensor, Tensor, Memory]:
        """What the policy head and what the value head takes, and the next memory."""
        features = self.features_extractor(observations)
        if not self.recurrent:
            hidden = F.elu(self.core(features))
        else:
            if starts is not None:
                kept = (~starts).to(features.dtype).unsqueeze(1)
                memory = memory[0] * kept, memory[1] * kept
            memory = self.core(features, memory)
            hidden = memory[0]
        return hidden, hidden if self.value_hidden is None else torch.cat([features, hidden], 1), memory

    def play(self, observation: Tensor, allowed: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """See :class:`regagents.common.player.Player`: the most probable action, whether it is allowed or not."""
        logits, _, memory = self(observation, self.begin(len(observation)) if memory is None else memory)
        return chosen(logits, True), memory

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        logits, _, _ = self(observation, self.begin(len(observation)))
        return chosen(logits, deterministic)

    def predict(self, observation: Any, state: tuple[NDArray[Any], ...] | None = None,
                episode_start: NDArray[np.bool_] | None = None, deterministic: bool = False
                ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """SB3's recurrent ``predict``: state is (h, c), each (n_envs, hidden)."""
        self.set_training_mode(False)
        tensor, vectorized = self.obs_to_tensor(observation)
        memory = self.begin(len(tensor)) if state is None else tuple(map(torch.as_tensor, state))  # type: ignore[arg-type]
        starts = None if episode_start is None else torch.as_tensor(np.asarray(episode_start)).bool().reshape(-1)
        with torch.inference_mode():
            logits, _, memory = self(tensor, memory, starts)
            actions = chosen(logits, deterministic).numpy()
        return (actions if vectorized else actions[0]), tuple(part.numpy() for part in memory)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "hidden": self.hidden if self.recurrent else 256, "recurrent": self.recurrent,
            "value_hidden": self.value_hidden, "lr_schedule": None}


def chosen(logits: Tensor, deterministic: bool, generator: torch.Generator | None = None) -> Tensor:
    """Actions (B,) of logits (B, A): the most probable ones, or drawn by their probabilities."""
    if deterministic:
        return logits.argmax(1)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
