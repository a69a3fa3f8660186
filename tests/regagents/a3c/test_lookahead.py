"""How an A3C agent registers: value thresholds and Monte Carlo look-ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from regagents.a3c import Lookahead, register_until_value
from regagents.a3c.lookahead import (
    DOUBTFUL,
    LEFT,
    TEMPERATURES,
    best_temperature,
    best_threshold,
    weighted_mean,
    within_reach,
)
from regagents.agents import load
from regagents.evaluation.methods import ValueStop
from regagents.evaluation.pairs import chunks
from regenv.core import RegistrationCore
from regenv.data.banks import downloads
from regenv.registry import build
from regenv.state import EpisodeState
from regenv.transforms.similarity import Similarity
from tests.regagents.a3c.agents import Puppet, started

needs_heads = pytest.mark.skipif(any(downloads.paths(name) is None for name in ("mni2009c", "colin27", "bold5000")),
                                 reason="needs: regenv data get mni2009c colin27 bold5000")
HELD_OUT = {"source": {"name": "slices", "subjects": ["mni2009c", "colin27", "csi3"], "split": "test"},
            "perturbation": "E2", "max_episode_steps": 150}


def test_registration_stops_at_the_threshold_or_the_limit() -> None:
    core, state = started(3)
    pixel = core.task.grid.spacing[0]
    ended, reached = register_until_value(Puppet(0), core, state, threshold=4.0, steps=10)  # type: ignore[arg-type]
    assert reached.all()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 3 * pixel, dtype=torch.float64))
    ended, reached = register_until_value(Puppet(0), core, state, threshold=99.0, steps=10)  # type: ignore[arg-type]
    assert not reached.any()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 10 * pixel, dtype=torch.float64))


@pytest.mark.parametrize("argument", [{"rollouts": 0}, {"depth": 0}, {"settle": -1}, {"attempts": 0},
                                      {"temperature": 0.0}])
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
    expected, _ = look(Puppet(0), core, state, memory)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_lookahead_is_one_uniform_step_and_then_the_policy(temperature: float | None) -> None:
    """Brute force for the puppet: its trajectories are one random action and nine shifts. Its values count the steps,
    2 to 11: with a temperature later poses weigh more, by their own softmax, without one all weigh the same."""
    core, state = started(2)
    look = Lookahead(rollouts=20, depth=10, temperature=temperature, seed=3)
    ahead, value = look(Puppet(0), core, state, Puppet(0).begin(2))  # type: ignore[arg-type]
    assert value.tolist() == pytest.approx([np.arange(2, 12).mean()] * 2)
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
        values = np.tile(np.arange(2.0, 12.0), 20)
        raw = np.ones(200) if temperature is None else np.exp(values / temperature)
        weight = torch.from_numpy(raw / raw.sum())
        mean = (weight[:, None] * torch.stack(passed)).sum(0)
        angles = torch.deg2rad(torch.stack(passed)[:, 2])
        mean[2] = torch.rad2deg(torch.atan2((weight * angles.sin()).sum(), (weight * angles.cos()).sum()))
        pushed = transform.matrix(mean).inverse() @ transform.matrix(state.pose[lane]).inverse()
        torch.testing.assert_close(ahead[lane], transform.parameters(pushed.inverse()), rtol=0, atol=1e-8)


class Judge(Puppet):
    """A puppet whose value is minus the distance of its own pose from alignment, or any other function of the state."""

    def __init__(self, core: RegistrationCore, judged: Callable[[EpisodeState], torch.Tensor]) -> None:
        super().__init__(0)
        self.core, self.judged, self.observe = core, judged, core.observe
        core.observe = self._looked  # type: ignore[method-assign]

    def _looked(self, state: EpisodeState) -> Any:
        self.state = state
        return self.observe(state)

    def __call__(self, observations: torch.Tensor, memory: Any, starts: Any = None) -> Any:
        logits, _, memory = super().__call__(observations, memory, starts)
        return torch.zeros_like(logits), self.judged(self.state), memory


def test_values_that_know_the_distance_bring_the_mean_nearer_and_a_temperature_is_chosen() -> None:
    """Roll-outs of a policy that acts at random scatter about where they begin, 3 to 5 pixels from alignment."""
    core, state = started(8)
    state = core.begin(state.pair, state.pose * torch.tensor([0.2, 0.2, 0.2, 0.0]) + torch.tensor([0.0, 0.0, 0.0, 1.0]))
    knowing, blind = Judge(core, lambda state: -state.distance), Puppet(0)
    plain, sharp = (Lookahead(temperature=temperature)(knowing, core, state, blind.begin(8))[0]  # type: ignore[arg-type]
                    for temperature in (None, 0.4))
    measure = core.measure(state.pair)
    assert (measure(sharp) < measure(plain)).all() and measure(sharp).mean() < 0.8 * measure(plain).mean()
    assert best_temperature(knowing, core, [state], 0.0, 0) in TEMPERATURES  # type: ignore[arg-type]
    misled = Judge(core, lambda state: state.distance)
    assert best_temperature(misled, core, [state], -99.0, 0) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["RegSimilarity2D-v0", "RegSimilarity3D-v0"])
def test_the_solution_is_within_reach_of_every_start_and_what_lies_beyond_is_not(name: str) -> None:
    """At alignment nearly every action is allowed, from where the range is left; further out than it one turns back."""
    core = RegistrationCore(build(name, size=44, stop="never"))
    state = core.reset([np.random.default_rng(i) for i in range(12)])
    solution = core.task.transform.parameters(torch.eye(core.task.grid.ndim + 1).double()).expand(12, -1)
    assert within_reach(core, state.pose, solution).float().mean() > 0.97
    axis = core.task.transform.names.index("alpha" if "alpha" in core.task.transform.names else "rx")
    widest = solution.clone()
    widest[:, axis] = 31.0
    allowed = within_reach(core, solution, widest)
    assert not allowed[:, 2 * axis].any() and allowed[:, 2 * axis + 1].all()


@pytest.mark.parametrize("action", range(8))
def test_a_registration_ends_within_reach_whatever_the_policy_wants(action: int) -> None:
    """The puppet wants one action for ever: unbounded, it would end 100 pixels, 100 degrees or a scale of 5 away."""
    core, state = started(3)
    ended, _ = register_until_value(Puppet(action), core, state, threshold=999.0, steps=100)  # type: ignore[arg-type]
    transform = core.task.transform
    moved = transform.parameters(transform.matrix(ended.pose).inverse() @ transform.matrix(state.pose))
    limit = torch.tensor(core.task.start.ranges) + core.deltas.abs().amax(0)  # type: ignore[attr-defined]
    assert ((moved - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs() <= limit + 1e-9).all()
    assert (ended.pose != state.pose).any(1).all()


def test_lanes_that_have_gone_astray_play_again_and_the_best_end_counts() -> None:
    """The puppet shifts by a pixel a step. Lane 0 is sure from the beginning; lane 1 never, so its best attempt is
    the one whose end the values like most."""
    core, state = started(2)
    mark = state.pair.fixed[0]

    def judged(state: EpisodeState) -> torch.Tensor:
        sure = (state.pair.fixed == mark).flatten(1).all(1)
        return torch.where(sure, 0.0, DOUBTFUL - state.distance).float()

    def ends(attempts: int) -> EpisodeState:
        look = Lookahead(rollouts=4, depth=2, settle=0, attempts=attempts)
        return register_until_value(Judge(core, judged), core, state, 99.0, 5, look)[0]  # type: ignore[arg-type]

    once, often = ends(1), ends(6)
    assert torch.equal(once.pose[0], often.pose[0])
    assert often.distance[1] < once.distance[1] - 1


@pytest.mark.slow
@needs_heads
def test_removing_the_look_aheads_values_or_the_memory_costs_the_shipped_agent() -> None:
    """48 held-out pairs of E2: the mean error grows without the values' weights, and without the LSTM's memory. With
    intervals: benchmarks/parts.py."""
    agent = load("similarity-value")
    plain = replace(agent.lookahead(), temperature=None)
    forgetful = load("similarity-value")
    forgetful.policy.core = Forgetful(forgetful.policy.core)
    methods = {"whole": ValueStop("whole", agent, agent.lookahead()), "no values": ValueStop("no values", agent, plain),
               "no memory": ValueStop("no memory", forgetful, agent.lookahead())}
    errors: dict[str, list[float]] = {name: [] for name in methods}
    for chunk in chunks("RegSimilarity2D-v0", 48, 700_000, HELD_OUT):
        for name, method in methods.items():
            found = method(chunk).pull_backs
            errors[name] += [case.error(pose) for case, pose in zip(chunk.cases, found, strict=True)]
    whole = np.array(errors["whole"])
    for name in ("no values", "no memory"):
        assert np.mean(errors[name]) > 1.04 * whole.mean(), name


class Forgetful(torch.nn.Module):
    """An LSTM whose memory is zero at every step."""

    def __init__(self, cell: torch.nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, features: torch.Tensor, memory: Any) -> Any:
        return self.cell(features)
