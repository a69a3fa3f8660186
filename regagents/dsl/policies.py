"""Networks of the DSL agent."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor

from regagents.common.extractors import CompactCNN, DualStreamCNN, LiaoCNN

REJECTED = -torch.inf  # in place of the value of an action that fuzzy control rejects (Krebs et al. 2017, section 2.2)


class ValueNetwork(QNetwork):
    """SB3's network of the actions' values (B, A): its outputs times ``action_weights`` (A,).

    Of an expert whose targets are per unit of the step (DistanceDrop), the outputs are per unit too, and step size
    times output is the whole decrease that an action brings. Whatever compares actions, or values with rewards, takes
    values; only supervised learning takes outputs.
    """

    action_weights: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("action_weights", torch.ones(int(self.action_space.n)), persistent=False)

    def outputs(self, obs: Any) -> Tensor:
        """What supervised targets are regressed by, (B, A)."""
        return super().forward(obs)

    def forward(self, obs: Any) -> Tensor:
        return self.outputs(obs) * self.action_weights


class DSLPolicy(DQNPolicy):
    """SB3's DQN policy over an image extractor: features, one linear layer, one output per action.

    ``best_odds`` turns on the paper's randomisation at test time: one of the best actions is taken with these
    probabilities (best first); where fewer actions are allowed, their probabilities rise in proportion. No action that
    fuzzy control rejects is taken while another one is allowed.
    """

    q_net: ValueNetwork
    q_net_target: ValueNetwork
    extractor: ClassVar[type[BaseFeaturesExtractor]] = CompactCNN
    """Where ``features_extractor_class`` is not given."""

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, net_arch: list[int] | None = None,
                 features_extractor_class: Any = None, best_odds: tuple[float, ...] = (1.0,), **kwargs: Any) -> None:
        if abs(sum(best_odds) - 1) > 1e-6 or min(best_odds) < 0 or len(best_odds) > action_space.n:
            raise ValueError(f"DSLPolicy: best_odds is {best_odds}; it needs probabilities that sum to 1, at most one "
                             f"for each of the {action_space.n} actions.")
        self.best_odds = best_odds
        kwargs["normalize_images"] = False
        super().__init__(observation_space, action_space, lr_schedule, net_arch=net_arch or [],
                         features_extractor_class=features_extractor_class or self.extractor, **kwargs)

    def weigh(self, action_weights: Any) -> None:
        """Set the factors (A,) from outputs to values of both networks."""
        for network in (self.q_net, self.q_net_target):
            network.action_weights.copy_(torch.as_tensor(action_weights))

    def _build(self, lr_schedule: Any) -> None:
        """As SB3's, without the optimizer."""
        self.first_rate = lr_schedule(1)
        self.q_net, self.q_net_target = self.make_q_net(), self.make_q_net()
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.set_training_mode(False)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:  # type: ignore[override]
        """SB3's optimizer, of DQN, made where that first asks for it: torch then loads its compiler, for seconds."""
        return self.optimizer_class(self.q_net.parameters(), lr=self.first_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_q_net(self) -> ValueNetwork:
        """As SB3's, on the device that torch chooses for new tensors; the algorithm moves the whole policy."""
        return ValueNetwork(**self._update_features_extractor(self.net_args, features_extractor=None))

    def _predict(self, obs: Any, deterministic: bool = True, allowed: Tensor | None = None) -> Tensor:
        """Actions (B,). Args: allowed (B, A) bool: actions that may be taken; in a lane without any, all may be."""
        values = self.q_net(obs)
        if allowed is not None:
            values = values.masked_fill(~allowed & allowed.any(1, keepdim=True), REJECTED)
        if len(self.best_odds) == 1:
            return values.argmax(dim=1)
        best = values.topk(len(self.best_odds), dim=1)
        odds = torch.tensor(self.best_odds, device=values.device) * (best.values > REJECTED)
        odds[:, 0] += odds.sum(1) == 0  # the odds of all that may be taken are 0: the best of them is taken
        return best.indices.gather(1, torch.multinomial(odds, 1)).squeeze(1)

    def play(self, observation: Any, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the best allowed action, or one of them by ``best_odds``."""
        return self._predict(observation, True, allowed), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"best_odds": self.best_odds}


class DualStreamPolicy(DSLPolicy):
    """The network of Krebs et al. 2017, for deformations."""

    extractor = DualStreamCNN


class LiaoPolicy(DSLPolicy):
    """The network of Liao et al. 2017."""

    extractor = LiaoCNN
