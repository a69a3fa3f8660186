"""SPAC with other reinforcement learning on the plan: the comparisons of Luo et al. 2022, table 2 and figure 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regagents.spac.policies import DeterministicPolicy, StateValuePolicy, log_prob_of
from regagents.spac.replay import Batch
from regagents.spac.spac import SPAC, Losses
from regenv.ops.warp import warp_dense


class DDPGModified(SPAC):
    """Deep deterministic policy gradients (Lillicrap et al. 2015) in place of soft actor-critic.

    The planner's mean is the plan, explored with noise. The planner has a target network too, and the first target
    critic gives the value of the next state. The rest, twin critics included, and the arguments are SPAC's.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": DeterministicPolicy}  # type: ignore[assignment]
    policy: DeterministicPolicy
    draws: ClassVar[bool] = False

    def _rl_loss(self, batch: Batch, state: Tensor, plan: Tensor, log_prob: Tensor,
                  field: Tensor) -> tuple[Tensor, Losses]:
        policy = self.policy
        with torch.no_grad(), self._mixed():
            after = torch.cat([batch.fixed, warp_dense(batch.moving, batch.after)], 1)
            next_value = policy.targets[0](after, policy.target_planner(after)[0])
            target = batch.reward + self.gamma * (1 - batch.ended) * next_value
        critic_loss = self._critic_loss(state, batch.plan, target)
        planner_loss = -self._lowest_value(state, plan, field).mean()
        return critic_loss + planner_loss, {"critic_loss": critic_loss, "planner_loss": planner_loss}


@dataclass(frozen=True)
class Rated(Batch):
    """Transitions with what PPO needs: the plan's log density when it was drawn, its advantage, and the return."""

    log_prob: Tensor
    advantage: Tensor
    returns: Tensor


class PPOModified(SPAC):
    """Proximal policy optimisation (Schulman et al. 2017) in place of soft actor-critic.

    Every batch of episodes is used for some epochs and then dropped. The rest, and the other arguments, are SPAC's.

    Args: epochs: over a batch of episodes; clip: bound of the probability ratio's distance from 1; gae_lambda: lambda
    of the generalised advantages.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": StateValuePolicy}  # type: ignore[assignment]

    def __init__(self, *args: Any, epochs: int = 2, clip: float = 0.2, gae_lambda: float = 0.95,
                 **kwargs: Any) -> None:
        if epochs < 1 or not clip > 0 or not 0 <= gae_lambda <= 1:
            raise ValueError(f"{type(self).__name__}: epochs is {epochs}, clip {clip} and gae_lambda {gae_lambda}; "
                             "they must be at least 1, positive, and in [0, 1].")
        self.epochs, self.clip, self.gae_lambda = epochs, clip, gae_lambda
        super().__init__(*args, **kwargs)

    def _learn_from(self, seen: Batch, first: bool, last: bool) -> Iterator[Losses]:
        self._played: list[Batch] = [*([] if first else self._played), seen]
        if last:
            rated = self._rated(self._played)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(rated.reward)).split(self.batch_size):
                    yield self._update(rated.rows(rows))

    @torch.no_grad()
    def _rated(self, played: list[Batch]) -> Rated:
        """The steps of all lanes as one batch, with generalised advantages (Schulman et al. 2016)."""
        log_probs, values, nexts = [], [], []
        for step in played:
            with self._mixed():
                state = torch.cat([step.fixed, warp_dense(step.moving, step.before)], 1)
                after = torch.cat([step.fixed, warp_dense(step.moving, step.after)], 1)
                mean, log_std, _ = self.policy.planner(state)
                values.append(self._state_value(state))
                nexts.append(self._state_value(after))
            log_probs.append(log_prob_of(step.plan, mean.float(), log_std.float()))
        ahead, advantages = torch.zeros_like(values[0]), []
        for step, value, next_value in zip(reversed(played), reversed(values), reversed(nexts), strict=True):
            td_error = step.reward + self.gamma * (1 - step.ended) * next_value - value
            ahead = td_error + self.gamma * self.gae_lambda * (1 - step.ended) * ahead
            advantages.append(ahead)
        advantage, value = torch.cat(advantages[::-1]), torch.cat(values)
        whole = {f.name: torch.cat([getattr(step, f.name) for step in played]) for f in fields(Batch)}
        return Rated(**whole, log_prob=torch.cat(log_probs), returns=advantage + value,
                     advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-8))

    def _state_value(self, state: Tensor) -> Tensor:
        """Values (B,) of states: the mean of both critics."""
        return torch.stack([critic(state, state) for critic in self.policy.critics]).mean(0).float()

    def _rl_loss(self, batch: Batch, state: Tensor, plan: Tensor, log_prob: Tensor,
                  field: Tensor) -> tuple[Tensor, Losses]:
        assert isinstance(batch, Rated)
        with self._mixed():
            mean, log_std, _ = self.policy.planner(state)
            value = self._state_value(state)
        ratio = (log_prob_of(batch.plan, mean.float(), log_std.float()) - batch.log_prob).exp()
        gain = torch.minimum(ratio * batch.advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * batch.advantage)
        planner_loss, critic_loss = -gain.mean(), F.mse_loss(value, batch.returns)
        return planner_loss + critic_loss, {"critic_loss": critic_loss, "planner_loss": planner_loss}
