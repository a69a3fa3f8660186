"""What is true of actions: what they change, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regenv.parts.action import ContinuousSteps, DiscreteSteps
from tests.regenv.families import begun, core_of


@pytest.mark.parametrize("parameters", [3, 6])
def test_pairs_of_actions_raise_and_lower_one_parameter(parameters: int) -> None:
    sizes = (1.0, 4.0, 16.0)
    deltas = DiscreteSteps((1.0,) * parameters, sizes).deltas
    assert deltas.shape == (len(sizes) * 2 * parameters, parameters)
    for k, size in enumerate(sizes):
        for i in range(parameters):
            up = 2 * parameters * k + 2 * i
            assert np.array_equal(deltas[up], size * np.eye(parameters)[i])
            assert np.array_equal(deltas[up + 1], -deltas[up])


@pytest.mark.parametrize("name", ["RegRigid2D-v0", "RegRigid3D-v0"])
def test_action_2i_raises_parameter_i_by_exactly_one_unit(name: str) -> None:
    core = core_of(name, stop="never")
    p = len(core.task.transform.names)
    pose = [[3.0, -7.0, 11.0, 2.0, -5.0, 13.0][:p]] * 2 * p
    state = begun(core, pose)
    after, *_ = core.step(state, torch.arange(2 * p))
    for i in range(p):
        unit = torch.eye(p, dtype=torch.float64)[i]
        assert torch.equal(after.pose[2 * i] - state.pose[2 * i], unit)
        assert torch.equal(after.pose[2 * i + 1] - state.pose[2 * i + 1], -unit)


def test_geometric_actions_move_by_each_step_size() -> None:
    core = core_of("RegRigid3DGeometric-v0", stop="never")
    assert core.task.actions.space().n == 36
    state = begun(core, [[5.0, -6.0, 7.0, 0, 0, 0]] * 36)
    after, *_ = core.step(state, torch.arange(36))
    change = after.pose - state.pose
    for k, size in enumerate((1.0, 4.0, 16.0)):
        for i in range(6):
            for sign in (1, -1):
                expected = sign * size * torch.eye(6, dtype=torch.float64)[i]
                torch.testing.assert_close(change[12 * k + 2 * i + (sign < 0)], expected, rtol=0, atol=1e-12)


def test_continuous_action_changes_all_parameters_by_at_most_a_unit() -> None:
    steps = ContinuousSteps((1.0,) * 3)
    table = torch.from_numpy(steps.deltas)
    assert steps.space().shape == (3,)
    given = torch.tensor([[0.25, -1.0, 1.0], [7.0, -7.0, 0.0]])
    expected = torch.tensor([[0.25, -1, 1], [1, -1, 0]], dtype=torch.float64)
    assert torch.equal(steps.delta(given, table), expected)
    sized = ContinuousSteps((1.0, 2.0, 0.05), (1.0, 4.0))
    units = torch.tensor([1.0, 2.0, 0.05], dtype=torch.float64)
    torch.testing.assert_close(sized.delta(given, torch.from_numpy(sized.deltas)), 4 * units * expected)
