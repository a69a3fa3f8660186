"""SPAC with other reinforcement learning on the plan: the comparisons of Luo et al. 2022, table 2 and figure 7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regagents.spac.plans import Proposal, squashed, unsquashed
from regagents.spac.policies import DeterministicPolicy, StateValuePolicy, look
from regagents.spac.replay import Batch
from regagents.spac.spac import SPAC, Losses

TINY = 1e-8


class DDPGModified(SPAC):
    """Deep deterministic policy gradients (Lillicrap et al. 2015) in place of soft actor-critic.

    The planner's mean is the plan, explored with noise. The planner has a target network too, and the first target
    critic gives the value of the next state. The rest, twin critics included, and the arguments are SPAC's.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": DeterministicPolicy}  # type: ignore[assignment]
    policy: DeterministicPolicy

    def _rl_loss(self, batch: Batch, state: Tensor, proposal: Proposal) -> tuple[Tensor, Losses]:
        policy = self.policy
        with torch.no_grad(), self._mixed():
            after = batch.next_state.contiguous(memory_format=policy.layout)
            ahead = policy.target_planner(after)
            field = policy.actor.coarse(squashed(ahead.mean), tuple(after.shape[2:]))
            target = batch.reward + self.gamma * (1 - batch.ended) * policy.targets[0](look(after, field))
        critic_loss = self._critic_loss(batch, state, target)
        planner_loss = -self._frozen_value(state, squashed(proposal.mean), proposal).mean()
        return critic_loss + planner_loss, {"critic_loss": critic_loss, "planner_loss": planner_loss}


@dataclass(frozen=True)
class Rated(Batch):
    """Transitions with what PPO needs: the plan's log density when it was drawn, its advantage, and the return."""

    log_prob: Tensor
    advantage: Tensor
    returns: Tensor


class PPOModified(SPAC):
    """Proximal policy optimisation (Schulman et al. 2017) in place of soft actor-critic.

    Every batch of episodes gives as many updates as SPAC makes in that time, ``updates`` for each of its steps, and is
    then dropped. The rest, and the other arguments, are SPAC's.

    Args: clip: bound of the probability ratio's distance from 1; gae_lambda: lambda of the generalised advantages.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": StateValuePolicy}  # type: ignore[assignment]

    def __init__(self, *args: Any, clip: float = 0.2, gae_lambda: float = 0.95, **kwargs: Any) -> None:
        if not clip > 0 or not 0 <= gae_lambda <= 1:
            raise ValueError(f"{type(self).__name__}: clip is {clip} and gae_lambda {gae_lambda}; they must be "
                             "positive, and in [0, 1].")
        self.clip, self.gae_lambda = clip, gae_lambda
        super().__init__(*args, **kwargs)

    def _learn_from(self, seen: Batch, first: bool, last: bool) -> Iterator[Losses]:
        self._played: list[Batch] = [*([] if first else self._played), seen]
        if last:
            rated = self._rated(self._played)
            for _ in range(self.per_step * len(self._played)):
                yield self._update(rated.rows(torch.randperm(len(rated.reward))[:self.batch_size]))

    @torch.no_grad()
    def _rated(self, played: list[Batch]) -> Rated:
        """The steps of all lanes as one batch, with their advantages and returns."""
        whole = {f.name: torch.cat([getattr(step, f.name) for step in played]) for f in fields(Batch)}
        with self._mixed():
            log_probs = [self.policy.planner(step.state).log_prob(unsquashed(step.plan)) for step in played]
        advantage, returns = self._judged(played)
        return Rated(**whole, log_prob=torch.cat(log_probs), returns=returns, advantage=advantage)

    def _judged(self, played: list[Batch]) -> tuple[Tensor, Tensor]:
        """Generalised advantages (Schulman et al. 2016), standardised, and returns (B,) of all steps."""
        values = [self._state_value(step.state) for step in played]
        nexts = [self._state_value(step.next_state) for step in played]
        ahead, advantages = torch.zeros_like(values[0]), []
        for step, value, next_value in zip(reversed(played), reversed(values), reversed(nexts), strict=True):
            td_error = step.reward + self.gamma * (1 - step.ended) * next_value - value
            ahead = td_error + self.gamma * self.gae_lambda * (1 - step.ended) * ahead
            advantages.append(ahead)
        advantage, value = torch.cat(advantages[::-1]), torch.cat(values)
        return standardised(advantage), advantage + value

    def _state_value(self, state: Tensor) -> Tensor:
        """Values (B,) of states: the mean of both critics."""
        with self._mixed():
            return torch.stack([critic(look(state)) for critic in self.policy.critics]).mean(0).float()

    def _rl_loss(self, batch: Batch, state: Tensor, proposal: Proposal) -> tuple[Tensor, Losses]:
        assert isinstance(batch, Rated)
        planner_loss = self._clipped(batch, proposal)
        critic_loss = F.mse_loss(self._state_value(state), batch.returns)
        return planner_loss + critic_loss, {"critic_loss": critic_loss, "planner_loss": planner_loss,
                                            "sigma": proposal.log_std.exp().mean()}

    def _clipped(self, batch: Rated, proposal: Proposal) -> Tensor:
        """PPO's loss of the planner, eq. 7 of Schulman et al. 2017."""
        ratio = (proposal.log_prob(unsquashed(batch.plan)) - batch.log_prob).exp()
        gain = torch.minimum(ratio * batch.advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * batch.advantage)
        return -gain.mean()


class GRPOModified(PPOModified):
    """Group relative policy optimisation (Shao et al. 2024), as MorphSeek uses it on latent plans: no critic.

    Lanes come in groups that register the same pair, each by plans of its own; a step's advantage is its discounted
    return against the mean of its group's at that step, over their deviation. The rest is PPOModified's.

    Args: group: lanes of a pair; lanes must be a multiple of it.
    """

    def __init__(self, *args: Any, group: int = 8, lanes: int = 16, **kwargs: Any) -> None:
        if group < 2 or lanes % group:
            raise ValueError(f"{type(self).__name__}: group is {group} and lanes {lanes}; lanes must be a multiple of "
                             "group, which must be at least 2.")
        self.group = group
        super().__init__(*args, lanes=lanes, **kwargs)

    def _episode_seeds(self) -> list[int]:
        """The lanes of a group draw the same pair."""
        return [seed for seed in super()._episode_seeds()[::self.group] for _ in range(self.group)]

    def _judged(self, played: list[Batch]) -> tuple[Tensor, Tensor]:
        """Advantages against the group, and returns (B,) of all steps."""
        ahead, returns = torch.zeros_like(played[0].reward), []
        for step in reversed(played):
            ahead = step.reward + self.gamma * (1 - step.ended) * ahead
            returns.append(ahead)
        return torch.cat([standardised(each.view(-1, self.group), 1).flatten() for each in returns[::-1]]), \
            torch.cat(returns[::-1])

    def _rl_loss(self, batch: Batch, state: Tensor, proposal: Proposal) -> tuple[Tensor, Losses]:
        assert isinstance(batch, Rated)
        planner_loss = self._clipped(batch, proposal)
        return planner_loss, {"planner_loss": planner_loss, "sigma": proposal.log_std.exp().mean()}


def standardised(values: Tensor, axis: int = 0) -> Tensor:
    """Values less their mean along an axis, over their deviation."""
    return (values - values.mean(axis, keepdim=True)) / (values.std(axis, keepdim=True) + TINY)
