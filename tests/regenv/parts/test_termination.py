"""What is true of the stopping rules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.parts.action import DiscreteSteps
from regenv.parts.start import UniformStart
from regenv.parts.termination import Arrived, Never
from regenv.transforms.rigid import Rigid, RigidMotion

UNITS = torch.from_numpy(DiscreteSteps((1.0,) * 6).deltas)


def at(pose: torch.Tensor, known: torch.Tensor) -> Any:
    """What a stopping rule reads of a state."""
    return SimpleNamespace(pose=pose, pair=SimpleNamespace(known=known))


def arrived(pose: Tensor, transform: Rigid | None = None) -> Tensor:
    transform = transform or Rigid(3)
    return Arrived()(transform, transform.distance, at(pose, torch.ones(len(pose), dtype=torch.bool)), UNITS)


def test_the_papers_rule_alone_stops_8_percent_of_the_episodes(rng: np.random.Generator) -> None:
    """Unit steps end at v - round(v); D <= 0.5 holds there with probability (pi^3 / 6) 0.5^6 = 8 %."""
    start = torch.from_numpy(UniformStart((30.0,) * 6).draw([rng] * 20_000))
    ends = start - start.round()
    within = (torch.linalg.vector_norm(ends, dim=1) <= 0.5).double().mean()
    assert float(within) == pytest.approx(math.pi**3 / 6 * 0.5**6, abs=0.006)
    assert arrived(ends).all()


def test_arrival_in_unit_steps_means_every_parameter_within_half(rng: np.random.Generator) -> None:
    pose = torch.from_numpy(rng.uniform(-1, 1, (5000, 6)))
    assert torch.equal(arrived(pose), (pose.abs() <= 0.5).all(1))


def test_arrival_is_within_half_a_unit_for_any_transform() -> None:
    pose = torch.tensor([[0.3, 0, 0, 0, 0.3, 0], [0.9, 0, 0, 0, 0, 0], [0, 0, 0, 0.2, 0.2, 0.2]], dtype=torch.float64)
    assert arrived(pose, RigidMotion(3)).tolist() == [True, False, True]


def test_unknown_truth_never_arrives_and_never_stops_never() -> None:
    pose = torch.zeros(2, 6, dtype=torch.float64)
    known = torch.tensor([True, False])
    assert Arrived()(Rigid(3), Rigid(3).distance, at(pose, known), UNITS).tolist() == [True, False]
    assert Never()(Rigid(3), Rigid(3).distance, at(pose, known), UNITS).tolist() == [False, False]
