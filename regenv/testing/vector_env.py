"""check_vector_env: the contract of a vector environment, checked from outside.

Gymnasium's ``check_env`` and Stable-Baselines3's look at single environments only. This one takes a vector environment
of any package, numpy or torch, through all autoreset modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from regenv.testing.lanes import FINAL, check_lanes, random_steps
from regenv.testing.values import (
    as_array,
    as_arrays,
    copied,
    equal,
    lane_of,
    leaves,
    require,
    require_error,
    scribble,
    share_memory,
)

EPISODE_STEPS = 4
VECTOR_ONLY = ("output",)


def check_vector_env(make: str | Callable[..., VectorEnv], num_envs: int = 3, steps: int = 11, seed: int = 7,
                     modes: Sequence[AutoresetMode] = tuple(AutoresetMode), tolerance: float = 0.0,
                     single: Callable[..., gym.Env] | None = None, skip_render: bool = False, **arguments: Any) -> None:
    """Check a vector environment against Gymnasium's contract.

    Spaces and metadata; shapes and types of all results; seeding; determinism; lane i of ``num_envs`` equal to one
    environment seeded ``seed + i``; the same info keys, with masks, at reset and at step; no memory shared between
    results or with the environment; truncation; the three autoreset modes; ``reset_mask``; rendering; closing.

    Args:
        make: an id, or a callable that takes ``num_envs``, ``autoreset_mode``, ``max_episode_steps``, ``render_mode``
            and ``arguments``, and returns the environment.
        num_envs: lanes, at least 2.
        steps: steps per run; episodes are cut after 4 steps, so at least 6.
        seed: first seed.
        modes: the autoreset modes that the environment offers.
        tolerance: largest difference of an observation from that of the single environment; 0 means bit for bit.
        single: makes the single environment that lanes are compared with; default ``gym.make`` for an id, else the
            vector environment with one lane.
        skip_render: leave rendering out.
        arguments: passed on.

    Raises:
        AssertionError: with one sentence on what does not hold.

    Example:
        >>> check_vector_env("RegRigid2D-v0", size=36)
    """
    if num_envs < 2 or steps < EPISODE_STEPS + 2:
        raise ValueError(f"check_vector_env: num_envs is {num_envs} and steps is {steps}; "
                         f"they must be at least 2 and {EPISODE_STEPS + 2}.")
    if isinstance(make, str):
        shared = {key: value for key, value in arguments.items() if key not in VECTOR_ONLY}
        single = single or partial(gym.make, make, **shared)
        make = partial(gym.make_vec, make)
    make = partial(make, num_envs=num_envs, **arguments)
    for mode in modes:
        limited = partial(make, autoreset_mode=mode, max_episode_steps=EPISODE_STEPS)
        with _open(limited) as env:
            _check_declaration(env, num_envs, mode)
            _check_seeding(env, seed)
            _check_results(env, seed, steps)
            if mode == AutoresetMode.DISABLED:
                _check_reset_mask(env, seed)
        with _open(limited) as env, _open(limited) as scribbled:
            _check_no_memory_is_shared(env, scribbled, seed, steps)
        solo = single or (partial(make, num_envs=1, autoreset_mode=mode) if mode != AutoresetMode.SAME_STEP else None)
        if solo is not None:
            with _open(limited) as env, _open(partial(solo, max_episode_steps=EPISODE_STEPS)) as alone:
                check_lanes(env, alone, seed, steps, tolerance)
        _check_render_and_close(limited, seed, skip_render)


def _check_declaration(env: VectorEnv, num_envs: int, mode: AutoresetMode) -> None:
    require(env.num_envs == num_envs, f"num_envs is {env.num_envs}, but {num_envs} lanes were asked for")
    for kind in ("observation", "action"):
        batched, alone = getattr(env, f"{kind}_space"), getattr(env, f"single_{kind}_space")
        require(batched == batch_space(alone, num_envs),
                f"{kind}_space is {batched}; it must be single_{kind}_space batched {num_envs} times")
    for where, given in (("metadata['autoreset_mode']", env.metadata.get("autoreset_mode")),
                         ("the attribute autoreset_mode", getattr(env, "autoreset_mode", None))):
        require(given == mode, f"{where} is {given!r}; it must be {mode}")


def _check_seeding(env: VectorEnv, seed: int) -> None:
    n = env.num_envs
    first, again = (_after_seed(env, seed) for _ in range(2))
    require(equal(first, again), f"two resets with seed={seed}, and the unseeded ones after them, differ")
    listed = _after_seed(env, [seed + i for i in range(n)])
    require(equal(first, listed), f"seed={seed} differs from the list [{seed}, {seed + 1}, ...]")
    shifted = _after_seed(env, seed + 1)
    require(equal(lane_of(first, 1), lane_of(shifted, 0)),
            f"lane 1 of seed={seed} differs from lane 0 of seed={seed + 1}")
    require(not equal(lane_of(first, 0), lane_of(shifted, 0)), f"seeds {seed} and {seed + 1} give the same episode")
    require_error(lambda: _after_seed(env, list(range(n + 1))), f"a list of {n + 1} seeds for {n} lanes is accepted")


def _check_results(env: VectorEnv, seed: int, steps: int) -> None:
    """Shapes, types and keys of everything; truncation exactly at the limit; determinism."""
    n, runs = env.num_envs, []
    for _ in range(2):
        env.action_space.seed(seed)
        first, infos = env.reset(seed=seed)
        _check_observation(env, first, "reset")
        _check_infos(infos, n, "reset")
        keys = set(infos) - FINAL
        run, length, cut = [copied((first, infos))], np.zeros(n, dtype=int), False
        for observation, rewards, terminated, truncated, infos, resetting in random_steps(env, first, steps):
            _check_observation(env, observation, "step")
            _check_infos({key: value for key, value in infos.items() if key not in FINAL}, n, "step")
            if "final_obs" in infos:
                _check_observation(env, infos["final_obs"], "final_obs")
                _check_infos(infos["final_info"], n, "final_info")
            require(set(infos) - FINAL == keys, f"infos have keys {sorted(set(infos) - FINAL)} at step, but "
                                                f"{sorted(keys)} at reset")
            _check_rows("rewards", rewards, n, "f")
            _check_rows("terminated", terminated, n, "b")
            _check_rows("truncated", truncated, n, "b")
            length = np.where(resetting, 0, length + 1)
            wrong = as_array(truncated) != (length == EPISODE_STEPS)
            require(not wrong.any(), f"truncated is {as_array(truncated).tolist()} after {length.tolist()} steps of "
                                     f"episodes of {EPISODE_STEPS}")
            cut |= bool(as_array(truncated).any())
            length[as_array(terminated) | as_array(truncated)] = 0
            run.append(copied((observation, rewards, terminated, truncated, infos)))
        require(cut, f"no episode was truncated in {steps} steps, though max_episode_steps is {EPISODE_STEPS}")
        runs.append(run)
    require(equal(*runs), "two runs with the same seed and the same actions differ")


def _check_reset_mask(env: VectorEnv, seed: int) -> None:
    n = env.num_envs
    mask = np.arange(n) % 2 == 0
    for given in (mask.copy(), torch.from_numpy(mask.copy())):
        before, _ = env.reset(seed=seed)
        before = copied(before)
        options = {"reset_mask": given}
        after, _ = env.reset(options=options)
        require(list(options) == ["reset_mask"] and options["reset_mask"] is given
                and np.array_equal(as_array(given), mask), "reset() changes the options that it is given")
        for lane in range(n):
            same = equal(lane_of(before, lane), lane_of(after, lane))
            require(same != mask[lane], f"reset_mask of lane {lane} is {mask[lane]}, but the lane was "
                                        f"{'not ' if same else ''}reset")
    wrong = {"is not bool": mask.astype(np.int64), "has too many lanes": np.ones(n + 1, dtype=bool),
             "has no True lane": np.zeros(n, dtype=bool)}
    for fault, given in wrong.items():
        require_error(partial(env.reset, options={"reset_mask": given}), f"a reset_mask that {fault} is accepted")


def _check_no_memory_is_shared(env: VectorEnv, scribbled: VectorEnv, seed: int, steps: int) -> None:
    """Results of one environment are overwritten as they come; it must go on as its twin does."""
    results = []
    for one in (env, scribbled):
        one.action_space.seed(seed)
        results.append(one.reset(seed=seed))
    previous = results[0]
    paths = [random_steps(one, result[0], steps) for one, result in zip((env, scribbled), results, strict=True)]
    scribble(results[1])
    for (*clean, _), (*other, _) in zip(*paths, strict=True):
        require(equal(clean, other), "an environment goes another way once its earlier results are overwritten: "
                                     "they share memory with its state")
        shared = any(share_memory(a, b) for a in leaves(previous) for b in leaves(clean))
        require(not shared, "results of successive calls share memory")
        previous = tuple(clean)  # type: ignore[assignment]
        scribble(other)


def _check_render_and_close(make: Callable[..., VectorEnv], seed: int, skip_render: bool) -> None:
    with _open(make if skip_render else partial(make, render_mode="rgb_array")) as env:
        env.reset(seed=seed)
        if not skip_render:
            frames: Any = env.render()
            require(isinstance(frames, tuple) and len(frames) == env.num_envs,
                    f"render() gives {type(frames).__name__}; it must give a tuple of {env.num_envs} frames")
            for frame in frames:
                require(isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
                        and frame.shape[-1] == 3, "render() must give numpy frames of dtype uint8 and shape (H, W, 3)")
        env.close()
        require(env.closed, "closed is False after close()")
        try:
            env.close()
        except Exception as error:
            raise AssertionError(f"check_vector_env: closing twice raises {error!r}.") from error


def _check_observation(env: VectorEnv, observation: Any, when: str) -> None:
    space = env.observation_space
    require(space.contains(as_arrays(observation)), f"the observation of {when} is not in {space}")
    if space.dtype is not None:
        require(as_array(observation).dtype == space.dtype,
                f"the observation of {when} has dtype {as_array(observation).dtype}; its space has {space.dtype}")


def _check_rows(name: str, given: Any, lanes: int, kind: str) -> None:
    array = as_array(given)
    require(array.dtype.kind == kind and array.shape == (lanes,) and bool(np.isfinite(array).all()),
            f"{name} has dtype {array.dtype} and shape {array.shape}; it must be {lanes} "
            f"{'finite floats' if kind == 'f' else 'bools'}")


def _check_infos(infos: Mapping[str, Any], lanes: int, when: str) -> None:
    for key, value in infos.items():
        if key.startswith("_"):
            require(key[1:] in infos, f"infos of {when} have the mask {key!r}, but not {key[1:]!r}")
            continue
        mask = as_array(infos.get("_" + key, ()))
        require(mask.dtype == bool and mask.shape == (lanes,), f"infos of {when}: {key!r} needs a mask '_{key}', "
                                                               f"bool of shape ({lanes},)")
        if isinstance(value, Mapping):
            _check_infos(value, lanes, when)
        else:
            array = as_array(value)
            require(array.dtype.kind in "biuf" and array.shape[:1] == (lanes,),
                    f"infos of {when}: {key!r} has dtype {array.dtype} and shape {array.shape}; "
                    f"it must be numbers, one row a lane")


def _after_seed(env: VectorEnv, seed: int | list[int]) -> Any:
    """What a seeded reset and the unseeded one after it return."""
    return copied((env.reset(seed=seed), env.reset()))  # type: ignore[arg-type]


@contextmanager
def _open(make: Callable[..., Any]) -> Iterator[Any]:
    env = make()
    try:
        yield env
    finally:
        env.close()
