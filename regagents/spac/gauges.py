"""Whether plans and critics do something: what an agent loses without its plans, and whether values rank plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import nan

import torch
from torch import Tensor

from regagents.common.player import rollout
from regagents.spac.plans import squashed
from regagents.spac.policies import SPACPolicy
from regenv.core import RegistrationCore
from regenv.state import EpisodeState

PLANS = 8               # drawn in a state
BEFORE = 2              # first states of an episode in which plans are weighed
NO_MORE = 0.01          # discount below which a return is complete
COSTS = 0.05            # what a plan is worth at least: score that a shuffled one loses
SPREAD = 0.2            # share of the values' deviation over states that they have over plans, at least
RANKS = 0.4             # correlation of values with returns, at least


@dataclass(frozen=True)
class Gauges:
    """What :func:`gauged` finds.

    Attributes: score, score_shuffled, score_zero: mean score after an episode of mean plans, of the plans of another
    pair, and of plans that are zero; q_return: correlation of values with realised returns, over all plans of all
    states; q_return_within: the same, of what is left when each state's mean is taken away: whether plans are told
    apart; q_plans_over_states: deviation of values over the plans of a state, over that of the states' means. Without
    critics of plans the last three are NaN.
    """

    score: float
    score_shuffled: float
    score_zero: float
    q_return: float
    q_return_within: float
    q_plans_over_states: float

    @property
    def lacking(self) -> list[str]:
        """What is less than it should be: the plan's weight, or what critics know of plans."""
        asked = {f"a shuffled plan costs less than {COSTS}": self.score - self.score_shuffled >= COSTS,
                 f"q_return is below {RANKS}": self.q_return >= RANKS,
                 f"q_plans_over_states is below {SPREAD}": self.q_plans_over_states >= SPREAD}
        return [text for text, met in asked.items() if not met]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value:.3f}" for name, value in asdict(self).items())
        return (f"plan and critics {'work' if not self.lacking else 'do not work: ' + ' and '.join(self.lacking)} "
                f"({told})")


@dataclass(frozen=True)
class Replaced:
    """A player whose plans are replaced. Attributes: change: of plans (B, D, *lattice)."""

    policy: SPACPolicy
    change: Callable[[Tensor], Tensor]

    def play(self, observation: Tensor, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`."""
        image = self.policy.scaled(observation)
        proposal = self.policy.planner(image)
        return self.policy.actor(self.change(squashed(proposal.mean)), image, proposal.features), None


@torch.inference_mode()
def gauged(policy: SPACPolicy, core: RegistrationCore, start: EpisodeState, gamma: float) -> Gauges:
    """Gauges of a policy on episodes that begin at ``start``. Args: gamma: discount of the returns."""
    own = [start, *rollout(Replaced(policy, torch.clone), core, start)]
    shuffled, zero = (list(rollout(Replaced(policy, change), core, start))[-1]
                      for change in (lambda plan: plan.roll(1, 0), torch.zeros_like))
    scores = (_score(core, own[-1]), _score(core, shuffled), _score(core, zero))
    if policy.critic_on != "plan":
        return Gauges(*scores, nan, nan, nan)
    found = [_ranked(policy, core, state, gamma) for state in own[:-1][:BEFORE]]
    values, returns = (torch.cat(each, 1) for each in zip(*found, strict=True))
    return Gauges(*scores, correlation(values, returns),
                  correlation(values - values.mean(0), returns - returns.mean(0)),
                  (values.std(0).square().mean().sqrt() / values.mean(0).std()).item())


def _score(core: RegistrationCore, state: EpisodeState) -> float:
    info = core.info(state)
    return info.get("dice", info["score"]).nan_to_num().mean().item()


def _ranked(policy: SPACPolicy, core: RegistrationCore, state: EpisodeState, gamma: float) -> tuple[Tensor, Tensor]:
    """Values and realised returns (plans, states) of drawn plans: a plan's step, then mean plans while it counts."""
    lanes = torch.arange(state.lanes, device=state.pose.device).repeat(PLANS)
    image = policy.scaled(core.observe(state))  # type: ignore[arg-type]
    plans = policy.proposed(policy.planner(image), PLANS + 1)[1:]
    values = torch.stack([policy.weighed(image, plan) for plan in plans])
    many, image = state.select(lanes), image[lanes]
    field = policy.actor(plans.flatten(0, 1), image, policy.planner(image).features)
    player, discount = Replaced(policy, torch.clone), 1.0
    returns = torch.zeros(len(lanes), dtype=torch.float64, device=lanes.device)
    for _ in range(core.task.max_episode_steps - int(state.steps.max())):
        many, reward, _, _ = core.step(many, field)
        returns, discount = returns + discount * reward, discount * gamma
        if discount < NO_MORE:
            break
        field = player.play(core.observe(many), None, None)[0]  # type: ignore[arg-type]
    return values.double(), returns.view(PLANS, -1)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of all numbers of two tensors; 0 where one of them does not vary."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).item()
