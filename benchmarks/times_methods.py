"""How each method of times.py registers one pair, and how many steps or iterations it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regagents.a3c import register_until_value
from regagents.agents import load
from regagents.classical import Elastix
from regagents.classical.common import PoseMethod
from regagents.classical.convexadam import AdamInstance, Solver
from regagents.classical.syn import SyN
from regagents.common.player import played, player_of
from regagents.evaluation.dense import solved
from regagents.evaluation.methods import (
    Chain,
    ClassicalPose,
    Found,
    Optimiser,
    Policy,
    ValueStop,
    method_named,
    own_episodes,
    refined,
)
from regagents.evaluation.pairs import Chunk
from regagents.evaluation.tuned import Tuned, tuned_fields
from regagents.l2o import L2O
from regagents.l2o.policies import ITERATIONS
from regagents.registration.pipeline import AGENTS, Pipeline, run
from regenv.core import RegistrationCore
from regenv.data.io.resampling import to_sitk
from regenv.state import EpisodeState
from regenv.task import Task

REFINED = "+refined"                # ends the name of a pipeline that the local refinement follows
AUTHORS = "convexadam-package"
PACKAGES = {"elastix": "itk-elastix", "syn": "antspyx", AUTHORS: "convexadam"}
CLASSICAL = {"mi": "SimpleITK, tuned MI", "sift": "SIFT", "elastix": "elastix", "bspline": "SimpleITK, B-spline MI",
             "demons": "SimpleITK, demons", "syn": "ANTs, SyN", "adam": "Adam", "convexadam": "ConvexAdam",
             AUTHORS: "ConvexAdam of its authors"}
Counted = tuple[Found, int | None]
"""What was found for the one pair of a chunk; and an agent's steps in the environment, or an optimiser's iterations if
it reports them."""
Run = Callable[[Chunk], Counted]


def absent() -> list[str]:
    """The classical methods whose packages are not installed."""
    there = {"elastix": Elastix.available(), "syn": SyN.available(),
             AUTHORS: importlib.util.find_spec("convexAdam") is not None}
    return [name for name, found in there.items() if not found]


def method_run(name: str, task: Task, loading: Mapping[str, Any]) -> Run:
    """A classical method or an agent, by name. Args: loading: arguments of the environment that agents are loaded with.
    """
    if name == AUTHORS:
        return by_authors
    if name not in CLASSICAL and not task.transform.linear:
        return _deforming(name, task, loading)
    method = method_named(alone(name.removesuffix(REFINED)), task)
    match method:
        case ClassicalPose(method=search):
            return lambda chunk: by_search(search, chunk)
        case Chain():
            return lambda chunk: by_chain(method, name.endswith(REFINED), chunk)
        case ValueStop():
            return lambda chunk: by_value(method, chunk)
        case Policy():
            return lambda chunk: by_policy(method, chunk)
        case Optimiser():
            return lambda chunk: (method(chunk), iterations(name, tuned_fields(task)))
    return lambda chunk: (method(chunk), None)


def _deforming(name: str, task: Task, loading: Mapping[str, Any]) -> Run:
    """An agent that finds displacements."""
    agent = load(name, **loading)
    if isinstance(agent, L2O):
        return lambda chunk: by_solver(agent.policy, tuned_fields(task).masked, chunk)
    core = RegistrationCore(agent.task())
    return lambda chunk: by_steps(agent, core, chunk)


def alone(name: str) -> str | Pipeline:
    """The stage of a pipeline by itself, from one start; other names as they are."""
    for chain in AGENTS.values():
        if name in chain.stages and name not in AGENTS:
            steps = chain.steps[chain.stages.index(name):][:1]
            return replace(chain, stages=(name,), starts=1, attention=False, steps=steps)
    return name


def iterations(name: str, tuned: Tuned) -> int:
    """Of Adam, alone or after the convex search."""
    return (tuned.adam if name == "adam" else tuned.convexadam.adam).iterations


class CountingCore(RegistrationCore):
    """A core that counts its steps."""

    steps = 0

    def step(self, state: EpisodeState, action: Tensor) -> tuple[EpisodeState, Tensor, Tensor, Tensor]:
        self.steps += 1
        return super().step(state, action)


def by_search(search: PoseMethod, chunk: Chunk) -> Counted:
    """A classical search for a pose."""
    [case] = chunk.cases
    found = search.register(to_sitk(case.fixed), to_sitk(case.moving), case.start, case.center)
    return Found(found.pull_back[None]), found.iterations or None


def by_chain(method: Chain, then_refined: bool, chunk: Chunk) -> Counted:
    """A pipeline, with or without the local refinement."""
    [case] = chunk.cases
    pose, path = run(method.chain, case.fixed, case.moving, case.start, case.seed, agents=method.agents)
    found = Found(pose[None])
    return refined(chunk, found) if then_refined else found, sum(step > 0 for _, step, _ in path)


def by_value(method: ValueStop, chunk: Chunk) -> Counted:
    """An A3C agent, whose steps include those of its look-ahead."""
    core, state = own_episodes(method.name, method.agent.task(), chunk)
    counting = CountingCore(core.task)
    stop = method.agent.stop_values[method.lookahead is not None]
    ended, _ = register_until_value(method.agent.policy, counting, state, stop, core.task.max_episode_steps,
                                    method.lookahead)
    return Found.of(ended), counting.steps


def by_policy(policy: Policy, chunk: Chunk) -> Counted:
    """An agent that plays to its time limit."""
    ended = policy.played(chunk)
    return Found.of(ended), int(ended.steps)


def by_steps(agent: Any, core: RegistrationCore, chunk: Chunk) -> Counted:
    """An agent that plays on its own task to the time limit, with the same draws of the guard for every pair."""
    start = core.begin(chunk.state.pair, torch.zeros_like(chunk.state.pose))
    ended = played(player_of(agent), core, start, agent.steps_played)
    return Found.of(ended), int(ended.steps)


def by_solver(solver: Solver, masked: bool, chunk: Chunk) -> Counted:
    """A learned optimiser."""
    return Found.displaced(chunk, solved(solver, chunk.state, masked)), ITERATIONS


def by_authors(chunk: Chunk) -> Counted:
    """ConvexAdam as its authors published it."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    pair, steps = chunk.state.pair, AdamInstance().iterations
    field = convex_adam_pt(pair.fixed[0, 0], pair.moving[0, 0], selected_niter=steps, dtype=torch.float32,
                           device=torch.device("cpu"))
    return Found.displaced(chunk, torch.from_numpy(field).float().movedim(-1, 0)[None]), steps
