"""check_truths: what a registration environment says of errors and success is true of its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from regenv.core import RegistrationCore
from regenv.ops.affine import invert_affine, transform_points
from regenv.ops.similarity import mi
from regenv.ops.thin_plate import thin_plate
from regenv.state import EpisodeState
from regenv.task import is_linear
from regenv.testing import values
from regenv.vector import RegistrationVectorEnv

require = partial(values.require, check="check_truths")
LEAST_DICE = 0.8    # of a success
FARTHEST = 1.0      # voxels: larger errors can be seen


def check_truths(make: str | Callable[..., Any], num_envs: int = 4, seeds: Sequence[int] = (0, 1000), steps: int = 120,
                 **arguments: Any) -> None:
    """Check that a registration environment's "tre", "is_success" and "score" are true.

    At every reset and step "is_success" means an error of at most ``task.success_mm``, and it is masked where the error
    is unknown. No episode begins with a success that has a Dice below 0.8 or an error of more than a voxel. The error
    falls in the mean when the expert, or else the true deformation, is played by actions, and in every lane when the
    truth is taken for the pose; then the images are more alike, too.

    Args:
        make: an id, or a callable that takes ``num_envs``, ``output``, ``autoreset_mode`` and ``arguments``, and
            returns a RegistrationVectorEnv.
        num_envs: lanes.
        seeds: a reset each.
        steps: that the expert plays at most.
        arguments: passed on.

    Raises:
        AssertionError: with one sentence on what does not hold.

    Example:
        >>> check_truths("RegRigid2D-v0", size=36)
    """
    make = partial(gym.make_vec, make) if isinstance(make, str) else make
    env: Any = make(num_envs=num_envs, output="torch", autoreset_mode=AutoresetMode.DISABLED, **arguments)
    plain: RegistrationVectorEnv = env.unwrapped
    try:
        for seed in seeds:
            _, infos = env.reset(seed=seed)
            check_told(plain, infos, f"reset with seed {seed}")
            check_start(plain, infos, f"reset with seed {seed}")
            check_true_pose(plain.core, plain.state, f"seed {seed}")
            check_expert(plain.core, plain.state, steps, f"seed {seed}")
            check_told(plain, env.step(env.action_space.sample())[4], f"a step after seed {seed}")
    finally:
        env.close()


def check_told(env: RegistrationVectorEnv, infos: dict[str, Any], when: str) -> None:
    """Raise AssertionError unless "is_success" follows from "tre" and the task's threshold, where "tre" is known."""
    require("score" in infos, f"infos of {when} have no 'score', what the reward is made of")
    if "tre" not in infos:
        require("is_success" not in infos, f"infos of {when} have 'is_success' without an error 'tre'")
        return
    error, limit = torch.as_tensor(infos["tre"]), env.core.task.success_mm
    success, told = torch.as_tensor(infos["is_success"]), torch.as_tensor(infos["_is_success"])
    require(bool((told == ~error.isnan()).all()),
            f"infos of {when} have '_is_success' {told.tolist()} for errors of {error.tolist()} mm; it must be False "
            "where the error is unknown")
    require(bool((success == (error <= limit)).all()),
            f"infos of {when} have 'is_success' {success.tolist()} for errors of {error.tolist()} mm and a threshold "
            f"of {limit} mm")


def check_start(env: RegistrationVectorEnv, infos: dict[str, Any], when: str) -> None:
    """Raise AssertionError if an episode begins with a success that is none to the eye."""
    success = torch.as_tensor(infos.get("is_success", False))
    visible = FARTHEST * max(env.core.task.grid.spacing)
    for key, wrong in (("dice", lambda value: value < LEAST_DICE), ("tre", lambda value: value > visible)):
        if key in infos:
            values = torch.as_tensor(infos[key])
            require(not bool((success & wrong(values)).any()),
                    f"an episode begins with a success at {when}, though 'is_success' is {success.tolist()} for {key} "
                    f"{values.tolist()}; set success_mm below the errors of the starts")


def check_true_pose(core: RegistrationCore, state: EpisodeState, when: str) -> None:
    """Raise AssertionError unless the error falls and the images agree more at the true pose, where that is known."""
    truth = true_pose(core, state)
    if truth is None:
        return
    end = core.begin(state.pair, truth, state.anchor, state.guard_seed)
    off = state.tre > FARTHEST * max(core.task.grid.spacing)
    require(bool((end.tre < state.tre)[off].all()), f"the errors of {when} are {state.tre.tolist()} mm, but "
                                                    f"{end.tre.tolist()} mm at the true pose; they must fall")
    if off.any():
        before, after = (mi(each.pair.fixed, each.warped)[off].mean() for each in (state, end))
        require(bool(after > before), f"the mutual information of {when} is {before:.4g}, but {after:.4g} at the true "
                                      "pose; the truth must align the images")


def check_expert(core: RegistrationCore, state: EpisodeState, steps: int, when: str) -> None:
    """Raise AssertionError unless the error falls in the mean while the expert, or else the truth, is played."""
    goal = true_pose(core, state) if core.task.expert is None else None
    start = end = state.tre
    if core.task.expert is None:
        known = ~start.isnan() & (goal is not None)
    else:
        known = ~start.isnan() & ~_values(core, state).isnan().any(1)
    over = torch.zeros_like(known)
    for _ in range(steps):
        if bool((over | ~known).all()):
            break
        action = expert_action(core, state) if goal is None else _towards(core, goal, state)
        state, _, terminated, _ = core.step(state, action)
        end = torch.where(over, end, state.tre)
        over |= terminated
    require(not known.any() or bool(end[known].mean() < start[known].mean()),
            f"the errors of {when} go from {start.tolist()} to {end.tolist()} mm while the expert is played; their "
            "mean must fall")


def expert_action(core: RegistrationCore, state: EpisodeState) -> Tensor:
    """The action of the highest value among those that have an effect; for continuous steps that unit step alone."""
    values = _values(core, state)
    mask = core.action_mask(state)
    best = (values if mask is None else values.masked_fill(~mask, -torch.inf)).argmax(1)
    if isinstance(core.task.actions.space(), gym.spaces.Discrete):
        return best
    return (core.deltas[best] / core.deltas.amax(0)).to(torch.float32)


def _values(core: RegistrationCore, state: EpisodeState) -> Tensor:
    """The expert's values (B, A) of all actions; NaN where the truth is unknown."""
    assert core.task.expert is not None
    weights = torch.from_numpy(core.task.expert.weights(core.deltas.cpu().numpy())).to(state.pose.device)
    return core.task.expert(core.task.transform, core.measure(state.pair), state.pose, core.deltas) * weights


def true_pose(core: RegistrationCore, state: EpisodeState) -> Tensor | None:
    """Poses (B, ...) at which the landmarks lie where they belong, as near as a pose can: from the pairs' known truth,
    or a thin-plate spline through the targets for dense poses. None where nothing is known."""
    pair, transform, shape = state.pair, core.task.transform, core.task.grid.shape
    if pair.target_pose is not None:
        return pair.target_pose
    if is_linear(transform):
        still = torch.eye(pair.ndim + 1, dtype=torch.float64, device=state.pose.device)
        return transform.parameters(still.expand(state.lanes, -1, -1)) if pair.known.all() else None
    if pair.landmarks is None or pair.targets is None or state.pose.shape[1:] != (pair.ndim, *shape):
        return None
    to_voxel = invert_affine(pair.fixed_to_world)
    points, targets = (transform_points(to_voxel, each).cpu().numpy() for each in (pair.landmarks, pair.targets))
    fields = [thin_plate(a, b - a, shape, spacing=1 if pair.ndim == 2 else 2, smoothing=0.0)
              for a, b in zip(points, targets, strict=True)]
    return torch.stack([torch.from_numpy(field) for field in fields]).to(state.pose)


def _towards(core: RegistrationCore, goal: Tensor, state: EpisodeState) -> Tensor:
    """The dense action that brings the displacement to ``goal``: all of it, or what is left."""
    space = core.task.actions.space()
    action = goal if getattr(core.task.transform, "update", "compose") == "replace" else goal - state.pose
    if not isinstance(space, gym.spaces.Box) or action.shape[1:] != space.shape:
        raise ValueError(f"check_truths: the actions are {space}; without an expert they must be fields.")
    return action.clamp(float(space.low.min()), float(space.high.max())).to(torch.float32)
