"""The loss of asynchronous advantage actor-critic, and of its supervised twin (Sun et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def a3c_loss(steps: list[dict[str, Tensor]], ahead: Tensor, gamma: float, ent_coef: float, vf_coef: float,
             supervised: bool = False) -> tuple[Tensor, list[float]]:
    """Sun et al. 2018, eq. 1 and 2 (or cross entropy on the action, where supervised), mean over lanes and steps.

    Args:
        steps: per step ``logits`` (B, A), ``value``, ``action``, ``reward``, ``done`` (B,).
        ahead: values (B,) of the states after the last step.
        gamma: discount. ent_coef, vf_coef: weights of the entropy and of the squared value error.
        supervised: learn the action by cross entropy.
    Returns: the loss; policy loss, value loss and entropy as numbers.
    """
    returns, follow = [], ahead
    for step in reversed(steps):
        follow = step["reward"] + gamma * follow * ~step["done"]
        returns.append(follow)
    target = torch.stack(returns[::-1])
    logits, value, action = (torch.stack([step[key] for step in steps]) for key in ("logits", "value", "action"))
    chances = logits.log_softmax(-1)
    taken = chances.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    entropy = -(chances.exp() * chances).sum(-1).mean()
    if supervised:
        policy_loss = -taken.mean()
    else:
        policy_loss = -(taken * (target - value.detach())).mean()
    value_loss = F.mse_loss(value, target)
    loss = policy_loss + vf_coef * value_loss
    if not supervised:
        loss = loss - ent_coef * entropy
    return loss, [policy_loss.item(), value_loss.item(), entropy.item()]
