"""How an A3C agent registers: value thresholds and Monte Carlo look-ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regagents.a3c import Lookahead, register_until_value
from regagents.a3c.lookahead import LEFT, best_threshold, weighted_mean
from regenv.transforms.similarity import Similarity
from tests.regagents.a3c.agents import Puppet, started


def test_registration_stops_at_the_threshold_or_the_limit() -> None:
    core, state = started(3)
    pixel = core.task.grid.spacing[0]
    ended, reached = register_until_value(Puppet(0), core, state, threshold=4.0, steps=10)  # type: ignore[arg-type]
    assert reached.all()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 3 * pixel, dtype=torch.float64))
    ended, reached = register_until_value(Puppet(0), core, state, threshold=99.0, steps=10)  # type: ignore[arg-type]
    assert not reached.any()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 10 * pixel, dtype=torch.float64))


@pytest.mark.parametrize("argument", [{"rollouts": 0}, {"depth": 0}, {"settle": -1}])
def test_lookahead_refuses_what_it_cannot_do(argument: dict[str, int]) -> None:
    (name, value), = argument.items()
    with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
        Lookahead(**argument)


@pytest.mark.parametrize(("threshold", "steps", "settled"), [(4.0, 10, 3 + 6), (99.0, 10, 10)])
def test_lookahead_begins_after_the_policy_has_settled(threshold: float, steps: int, settled: int) -> None:
    """The puppet's value counts its steps: 3 of them to the threshold, then 6; or all that there are."""
    core, state = started(3)
    look = Lookahead(rollouts=4, depth=2, settle=6, seed=1)
    ended, reached = register_until_value(Puppet(0), core, state, threshold, steps, look)  # type: ignore[arg-type]
    assert reached.tolist() == [threshold == 4.0] * 3
    memory = Puppet(0).begin(3)
    for _ in range(settled):
        memory = Puppet(0)(core.observe(state), memory)[2]
        state = core.step(state, torch.zeros(3, dtype=torch.int64))[0]
    expected = look(Puppet(0), core, state, memory)  # type: ignore[arg-type]
    torch.testing.assert_close(ended.pose, expected)


def test_the_best_threshold_ends_where_the_error_is_smallest() -> None:
    """The puppet shifts by a pixel a step and its value counts the steps: brute force over every step to end at."""
    core, state = started(4)
    threshold = best_threshold(Puppet(0), core, state, 30)  # type: ignore[arg-type]
    means = [register_until_value(Puppet(0), core, state, step + 1.0, 30)[0].distance.mean().item()  # type: ignore[arg-type]
             for step in range(31)]
    ended = register_until_value(Puppet(0), core, state, threshold, 30)[0].distance.mean().item()  # type: ignore[arg-type]
    assert ended == pytest.approx(min(means), rel=0.02)
    assert min(means) < 0.98 * means[0] or min(means) == means[0]


def test_the_threshold_with_lookahead_lies_some_steps_before_the_nearest_pose() -> None:
    """The puppet's value counts its steps: of the thresholds tried none ends nearer, by playing each of them."""
    core, state = started(6)
    look = Lookahead(rollouts=5, depth=2, settle=3, seed=1)
    threshold = best_threshold(Puppet(1), core, state, 30, look)  # type: ignore[arg-type]
    walk, errors = state, []
    for _ in range(31):
        errors.append(walk.distance)
        walk = core.step(walk, torch.full((6,), 1))[0]
    nearest = torch.stack(errors).argmin(0)
    tried = [float((nearest - left).clamp(min=0).median()) + 1 for left in LEFT]
    assert threshold in tried
    ends = {each: register_until_value(Puppet(1), core, state, each, 30, look)[0].distance.mean().item()  # type: ignore[arg-type]
            for each in tried}
    assert ends[threshold] == min(ends.values())


def test_weighted_mean_is_equation_5(rng: np.random.Generator) -> None:
    """tx, ty, s, cos and sin averaged with the weights, the angle from the last two."""
    poses = rng.uniform([-5, -5, -20, 0.8], [5, 5, 20, 1.2], (4, 6, 4))
    weight = rng.dirichlet(np.ones(6), 4)
    mean = weighted_mean(Similarity(2).matrix(torch.from_numpy(poses)), torch.from_numpy(weight))
    found = Similarity(2).parameters(mean).numpy()
    angles = np.deg2rad(poses[..., 2])
    turned = np.arctan2((weight * np.sin(angles)).sum(1), (weight * np.cos(angles)).sum(1))
    expected = np.stack([(weight * poses[..., i]).sum(1) for i in (0, 1, 3)], 1)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], np.rad2deg(turned), atol=1e-9)


def test_lookahead_is_one_uniform_step_and_then_the_policy() -> None:
    """Brute force for the puppet: its trajectories are one random action and nine shifts, all of one weight."""
    core, state = started(2)
    ahead = Lookahead(rollouts=20, depth=10, seed=3)(Puppet(0), core, state, Puppet(0).begin(2))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    first = torch.multinomial(torch.ones(40, 8) / 8, 1, generator=generator).flatten()
    deltas = torch.from_numpy(core.task.actions.deltas)
    transform = core.task.transform
    for lane in range(2):
        passed = []
        for action in first[20 * lane:20 * lane + 20].tolist():
            pose, here = state.pose[lane], transform.matrix(state.pose[lane]).inverse()
            for step in range(10):
                pose = transform.apply(pose, deltas[0 if step else action])
                passed.append(transform.parameters((transform.matrix(pose).inverse() @ here.inverse()).inverse()))
        mean = torch.stack(passed).mean(0)
        angles = torch.deg2rad(torch.stack(passed)[:, 2])
        mean[2] = torch.rad2deg(torch.atan2(angles.sin().mean(), angles.cos().mean()))
        pushed = transform.matrix(mean).inverse() @ transform.matrix(state.pose[lane]).inverse()
        torch.testing.assert_close(ahead[lane], transform.parameters(pushed.inverse()), rtol=0, atol=1e-8)
