"""Networks of the DSL agent."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor

from regagents.common.extractors import CompactCNN, DualStreamCNN, LiaoCNN

REJECTED = -1e9  # in place of the value of an action that fuzzy control rejects (Krebs et al. 2017, section 2.2)


class DSLPolicy(DQNPolicy):
    """SB3's DQN policy over an image extractor: features, one linear layer, one output per action.

    ``best_odds`` turns on the paper's randomisation at test time: one of the best actions is taken with these
    probabilities (best first). ``action_weights`` (A,) turn outputs into values: of an expert whose targets are per
    unit of the step (DistanceDrop), step size times output is the whole decrease that an action brings.
    """

    action_weights: Tensor

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, net_arch: list[int] | None = None,
                 features_extractor_class: Any = CompactCNN, best_odds: tuple[float, ...] = (1.0,),
                 **kwargs: Any) -> None:
        if abs(sum(best_odds) - 1) > 1e-6 or min(best_odds) < 0 or len(best_odds) > action_space.n:
            raise ValueError(f"DSLPolicy: best_odds is {best_odds}; it needs probabilities that sum to 1, at most one "
                             f"for each of the {action_space.n} actions.")
        self.best_odds = best_odds
        kwargs["normalize_images"] = False
        super().__init__(observation_space, action_space, lr_schedule, net_arch=net_arch or [],
                         features_extractor_class=features_extractor_class, **kwargs)
        self.register_buffer("action_weights", torch.ones(int(action_space.n)), persistent=False)

    def _predict(self, obs: Any, deterministic: bool = True, allowed: Tensor | None = None) -> Tensor:
        """Actions (B,). Args: allowed (B, A) bool: actions that may be taken; in a lane without any, all may be."""
        values = self.q_net(obs) * self.action_weights
        if allowed is not None:
            values = values.masked_fill(~allowed & allowed.any(1, keepdim=True), REJECTED)
        if len(self.best_odds) == 1:
            return values.argmax(dim=1)
        odds = torch.tensor(self.best_odds, device=values.device).expand(values.shape[0], -1)
        rank = torch.multinomial(odds, 1)
        return values.topk(odds.shape[1], dim=1).indices.gather(1, rank).squeeze(1)

    def play(self, observation: Any, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the best allowed action, or one of them by ``best_odds``."""
        return self._predict(observation, True, allowed), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"best_odds": self.best_odds}


class DualStreamPolicy(DSLPolicy):
    """The network of Krebs et al. 2017, for deformations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", DualStreamCNN)
        super().__init__(*args, **kwargs)


class LiaoPolicy(DSLPolicy):
    """The network of Liao et al. 2017."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", LiaoCNN)
        super().__init__(*args, **kwargs)
