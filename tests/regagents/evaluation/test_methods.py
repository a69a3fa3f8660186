"""What can be evaluated: agents of every kind meet the chunk's own pairs and starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

import regenv  # noqa: F401
from regagents.agents import create
from regagents.classical import Elastix
from regagents.classical.syn import SyN
from regagents.common import checkpoints
from regagents.common.checkpoints import CheckpointError
from regagents.dsl import DSL
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.methods import (
    ClassicalField,
    ClassicalPose,
    Fine,
    Found,
    Optimiser,
    Policy,
    ValueStop,
    method_named,
    own_episodes,
)
from regagents.evaluation.pairs import Chunk, chunks
from regagents.evaluation.tuned import tuned_fields, tuned_mi, tuned_refinement
from regagents.registration.deformation import OPTIMISERS
from regenv.registry import build

ID = "RegSimilarity2D-v0"
KWARGS: dict[str, Any] = {"size": 44, "source": {"name": "phantoms", "patients": 2, "bank_spacing": 2.5}}
PAIRS, SEED = 3, 5
SAME_MM = 1e-6


def saved(path: Path, agent: str, env: str, constant: float, **env_kwargs: Any) -> str:
    """A checkpoint of an untrained agent whose heads give constants: its value is 0, whatever it sees."""
    config = {"agent": agent, "env": env, "env_kwargs": {**KWARGS, "max_episode_steps": 4, **env_kwargs},
              "algorithm": {"stop_values": [0.5, -0.5]} if agent == "A3C" else {}}
    model = create(config)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "head" in name:
                parameter.zero_()
        head = model.network.policy_head if agent == "A3C" else model.network.head
        head.bias[0] = constant
    checkpoints.save(path, model.network.state_dict(), {"name": path.stem, "algorithm": agent, "config": config})
    return str(path)


def error_after(actions: list[Any], env_id: str, seed: int, **kwargs: Any) -> float:
    env = gym.make(env_id, stop="never", **{**KWARGS, **kwargs})
    _, info = env.reset(seed=seed)
    for action in actions:
        info = env.step(action)[-1]
    return float(info["tre"])


def test_an_a3c_agent_walks_until_its_value_is_reached(tmp_path: Path) -> None:
    """Stop value 0.5 is never reached by a value of 0: four shifts; look-ahead's -0.5 is reached at once."""
    path = saved(tmp_path / "agent.safetensors", "A3C", ID, 9.0)
    plain, ahead = evaluate(ID, [path, path + "+mc"], PAIRS, SEED, KWARGS).rows
    for i, (walked, looked) in enumerate(zip(plain.errors_mm, ahead.errors_mm, strict=True)):
        assert walked == pytest.approx(error_after([0] * 4, ID, SEED + i), abs=SAME_MM)
        assert abs(looked - walked) > SAME_MM


@dataclass(frozen=True)
class At:
    """A method that finds the truth, moved by some millimetres."""

    offset: float
    name: str = "given"
    learned: ClassVar[bool] = True

    def __call__(self, chunk: Chunk) -> Found:
        poses = chunk.state.pair.truth.clone().numpy()
        poses[:, 0, 2] += self.offset
        return Found(poses)


@pytest.mark.parametrize(("agent", "rival"), [(4.0, 60.0), (60.0, 4.0)])
def test_the_fine_levels_go_on_from_the_end_where_the_images_agree(agent: float, rival: float) -> None:
    """One of two ends is 60 mm off, the other 4: refined from the nearer one, wherever it came from."""
    kwargs = {**KWARGS, "size": 96, "ranges": [10.0, 10.0, 5.0, 0.1]}
    for chunk in chunks(ID, 3, SEED, kwargs):
        method = Fine("fine", At(agent), At(rival), tuned_refinement("similarity", 2))
        for case, pose in zip(chunk.cases, method(chunk).pull_backs, strict=True):
            assert case.error(pose) < 1.0


def test_fine_levels_are_for_agents_that_find_poses() -> None:
    task = build(ID)
    method = method_named("similarity-rl+mc+fine", task)
    assert isinstance(method, Fine) and method.learned and method.name == "similarity-rl+mc+fine"
    assert isinstance(method.method, ValueStop) and method.method.lookahead is not None
    assert method.rival == method_named("mi", task)
    with pytest.raises(ValueError, match=r"mi\+fine: \+fine is for agents, and 'mi' is none"):
        method_named("mi+fine", task)
    with pytest.raises(ValueError, match=r"\+fine refines poses, but the pairs need displacements"):
        method_named("digits-spac+fine", build("RegDenseDigits-v0"))


def test_the_range_of_the_pairs_bounds_an_agent_not_that_of_its_training() -> None:
    chunk = next(chunks(ID, 2, SEED, {**KWARGS, "perturbation": "E2"}))
    core, _ = own_episodes("agent", build(ID, **KWARGS), chunk)
    assert core.task.start == chunk.core.task.start != build(ID, **KWARGS).start


def test_a_one_shot_agent_takes_one_step_on_the_discrete_ids_pairs(tmp_path: Path) -> None:
    env = "RegSimilarity2DContinuous-v0"
    path = saved(tmp_path / "agent.safetensors", "OneShot", env, 0.25, step_sizes=[45.0])
    row = evaluate(ID, [path], PAIRS, SEED, KWARGS).rows[0]
    for i, error in enumerate(row.errors_mm):
        action = np.array([0.25, 0, 0, 0], np.float32)
        assert error == pytest.approx(error_after([action], env, SEED + i, step_sizes=(45.0,), whole=True), abs=1e-3)


def test_a_recurrent_policy_keeps_its_state() -> None:
    """RecurrentPPO's contract: the state comes back with every call, episode_start is true in the first one only."""
    calls = []

    class Counter:
        def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None,
                    deterministic: bool = False) -> tuple[np.ndarray, int]:
            calls.append((state, episode_start.tolist(), deterministic))
            return np.zeros(len(observation), dtype=np.int64), (state or 0) + 1

    evaluate(ID, [Policy("counter", Counter())], 2, SEED, {**KWARGS, "max_episode_steps": 3})
    assert calls == [(None, [True] * 2, True), (1, [False] * 2, True), (2, [False] * 2, True)]


def test_agents_of_other_grids_and_transforms_are_refused() -> None:
    chunk = next(chunks(ID, 1, SEED, KWARGS))
    with pytest.raises(ValueError, match=r"late: it sees \(48, 48\) voxels"):
        own_episodes("late", build(ID, **{**KWARGS, "size": 48}), chunk)
    with pytest.raises(ValueError, match="late: it moves a Rigid, but the pairs need a Similarity"):
        own_episodes("late", build("RegRigid2D-v0", size=44, spacing=chunk.core.task.grid.spacing[0]), chunk)


def test_an_agent_plays_no_longer_than_the_pairs_allow(tmp_path: Path) -> None:
    path = saved(tmp_path / "agent.safetensors", "A3C", ID, 9.0)
    row = evaluate(ID, [path], 1, SEED, {**KWARGS, "max_episode_steps": 2}).rows[0]
    assert row.errors_mm[0] == pytest.approx(error_after([0] * 2, ID, SEED), abs=SAME_MM)


def test_an_agent_of_a_deformation_model_keeps_to_the_pairs_guard() -> None:
    chunk = next(chunks("RegSDM2D-v0", 3, SEED, {}))
    core, state = own_episodes("organs", build("RegSDM2D-v0", max_episode_steps=7), chunk)
    assert state.guard_seed is not None and chunk.state.guard_seed is not None
    assert torch.equal(state.guard_seed, chunk.state.guard_seed) and core.task.max_episode_steps == 7
    env = gym.make("RegSDM2D-v0")
    agent = DSL("DualStreamPolicy", env, policy_kwargs={"features_extractor_kwargs": {"shrink": 4}}, seed=0)
    torch.manual_seed(0)
    ended = Policy("untrained", agent, agent.task(), steps=7).played(chunk)
    assert (ended.steps == 7).all() and (ended.pose != state.pose).any(1).all()


@pytest.mark.parametrize(("env", "motion"), [(ID, "similarity"), ("RegRigid2D-v0", "rigid")])
def test_mutual_information_is_the_tuned_one(env: str, motion: str) -> None:
    assert method_named("mi", build(env)) == ClassicalPose("mi", tuned_mi(motion, 2))


def test_classical_displacements_are_the_tuned_ones() -> None:
    task = build("RegKeypoint3D-v0")
    tuned = tuned_fields(task)
    assert method_named("demons", task) == ClassicalField("demons", tuned.demons)
    assert method_named("bspline", task) == ClassicalField("bspline", tuned.bspline)
    assert method_named("convexadam", task) == Optimiser("convexadam", tuned.convexadam, masked=True)
    assert method_named("adam", build("RegDenseDigits-v0")) == Optimiser("adam", tuned.adam, masked=False)


def test_every_optimiser_of_register_is_measured_by_its_name() -> None:
    task = build("RegKeypoint3D-v0")
    for name in ("greedy:mind", "greedy:mse", "greedy:brain", "convex"):
        assert method_named(name, task) == Optimiser(name, OPTIMISERS[name].solver, masked=True)
    with pytest.raises(CheckpointError, match="greedy:labels"):      # it would be told what it is measured by
        method_named("greedy:labels", task)
    with pytest.raises(CheckpointError, match="greedy:mind"):
        method_named("greedy:mind", build("RegRigid3D-v0"))


@pytest.mark.parametrize(("name", "env", "kind"), [
    ("similarity-rl", ID, ValueStop), ("similarity-rl+mc", ID, ValueStop), ("similarity-oneshot", ID, Policy),
    ("digits-spac", "RegDenseDigits-v0", Policy),
    ("lung3d-l2o", "RegKeypoint3D-v0", Policy), ("organ2d", "RegSDM2D-v0", Policy)])
def test_every_algorithm_has_its_way_to_register(name: str, env: str, kind: type) -> None:
    method = method_named(name, build(env))
    assert isinstance(method, kind) and method.name == name and method.learned


def test_look_ahead_is_for_a3c_only() -> None:
    with pytest.raises(ValueError, match=r"only agents of A3C have a look-ahead; leave \+mc out"):
        method_named("digits-spac+mc", build("RegDenseDigits-v0"))


def test_baselines_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="SIFT needs 2D"):
        method_named("sift", build("RegRigid3D-v0"))
    monkeypatch.setattr(Elastix, "available", staticmethod(lambda: False))
    with pytest.raises(ValueError, match="pip install itk-elastix"):
        method_named("elastix", build(ID))
    monkeypatch.setattr(SyN, "available", staticmethod(lambda: False))
    with pytest.raises(ValueError, match="pip install antspyx"):
        method_named("syn", build("RegDenseDigits-v0"))


# ------------------------------------------------------------------------------------------------ random and the expert

def test_random_actions_are_those_of_the_action_space_one_after_another() -> None:
    [chunk] = chunks(ID, PAIRS, SEED, {**KWARGS, "max_episode_steps": 5})
    found = method_named("random", chunk.core.task)(chunk)
    for lane in range(PAIRS):
        space = chunk.core.task.actions.space()
        space.seed(SEED + lane)
        alone = error_after([space.sample() for _ in range(5)], ID, SEED + lane)
        assert chunk.cases[lane].error(found.pull_backs[lane]) == pytest.approx(alone, abs=SAME_MM)


def test_the_expert_goes_where_its_values_are_highest_and_keeps_the_nearest_pose() -> None:
    steps = {"size": 24, "spacing": 8.0, "max_episode_steps": 60}
    row = evaluate("RegRigid2D-v0", ["initial", "random", "expert"], PAIRS, SEED, steps)
    start, chance, best = (row.row(name).values("tre_mm") for name in ("initial", "random", "expert"))
    for lane in range(PAIRS):
        env = gym.make("RegRigid2D-v0", stop="never", privileged=True, **steps)
        _, info = env.reset(seed=SEED + lane)
        errors = [info["tre"]]
        for _ in range(60):
            info = env.step(int(np.argmax(info["q_star"])))[-1]
            errors.append(info["tre"])
        assert best[lane] == pytest.approx(min(errors), abs=SAME_MM) and min(errors) < 0.5 * start[lane]
    assert not np.allclose(start, chance) and (best < chance).all()
    with pytest.raises(ValueError, match="'expert'; it needs an id with discrete actions"):
        evaluate("RegRigid2DContinuous-v0", ["expert"], 1)


def test_random_displacements_are_measured_too() -> None:
    row = evaluate("RegDenseDigits-v0", ["initial", "random"], 2, SEED, {"max_episode_steps": 2})
    assert (row.row("random").values("dice") != row.row("initial").values("dice")).any()
