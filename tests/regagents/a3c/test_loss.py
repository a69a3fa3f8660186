"""A3C's loss is the papers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regagents.a3c.loss import a3c_loss


@pytest.mark.parametrize("supervised", [False, True])
def test_loss_is_the_papers_by_hand(supervised: bool, rng: np.random.Generator) -> None:
    """Eq. 1 and 2 (and the supervised pair of losses), every return summed term by term in numpy."""
    t, b, a, gamma = 5, 3, 4, 0.9
    logits, value, reward = rng.normal(size=(t, b, a)), rng.normal(size=(t, b)), rng.normal(size=(t, b))
    action, done, ahead = rng.integers(0, a, (t, b)), rng.random((t, b)) < 0.3, rng.normal(size=b)
    steps = [{"logits": torch.tensor(logits[i]), "value": torch.tensor(value[i]), "action": torch.tensor(action[i]),
              "reward": torch.tensor(reward[i]), "done": torch.tensor(done[i])} for i in range(t)]
    loss, _ = a3c_loss(steps, torch.tensor(ahead), gamma, ent_coef=0.1, vf_coef=0.5, supervised=supervised)
    expected = 0.0
    for i in range(t):
        for lane in range(b):
            target, discount, ended = 0.0, 1.0, False
            for j in range(i, t):
                target += discount * reward[j, lane]
                discount *= gamma
                if done[j, lane]:
                    ended = True
                    break
            target += 0.0 if ended else discount * ahead[lane]
            chances = np.exp(logits[i, lane]) / np.exp(logits[i, lane]).sum()
            log_taken = np.log(chances[action[i, lane]])
            squared = (target - value[i, lane]) ** 2
            entropy = -(chances * np.log(chances)).sum()
            expected += -log_taken + 0.5 * squared if supervised else (
                -log_taken * (target - value[i, lane]) + 0.5 * squared - 0.1 * entropy)
    assert loss.item() == pytest.approx(expected / (t * b), abs=1e-9)
