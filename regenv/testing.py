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
from torch import Tensor

EPISODE_STEPS = 4
REWARD_TOLERANCE = 1e-6
FINAL = {"final_obs", "final_info", "_final_obs", "_final_info"}
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
                _check_lanes(env, alone, seed, steps, tolerance)
        _check_render_and_close(limited, seed, skip_render)


# --- what is checked ------------------------------------------------------------------------------------------------

def _check_declaration(env: VectorEnv, num_envs: int, mode: AutoresetMode) -> None:
    _require(env.num_envs == num_envs, f"num_envs is {env.num_envs}, but {num_envs} lanes were asked for")
    for kind in ("observation", "action"):
        batched, alone = getattr(env, f"{kind}_space"), getattr(env, f"single_{kind}_space")
        _require(batched == batch_space(alone, num_envs),
                 f"{kind}_space is {batched}; it must be single_{kind}_space batched {num_envs} times")
    for where, given in (("metadata['autoreset_mode']", env.metadata.get("autoreset_mode")),
                         ("the attribute autoreset_mode", getattr(env, "autoreset_mode", None))):
        _require(given == mode, f"{where} is {given!r}; it must be {mode}")


def _check_seeding(env: VectorEnv, seed: int) -> None:
    n = env.num_envs
    first, again = (_after_seed(env, seed) for _ in range(2))
    _require(_same(first, again), f"two resets with seed={seed}, and the unseeded ones after them, differ")
    listed = _after_seed(env, [seed + i for i in range(n)])
    _require(_same(first, listed), f"seed={seed} differs from the list [{seed}, {seed + 1}, ...]")
    shifted = _after_seed(env, seed + 1)
    _require(_same(_lane(first, 1), _lane(shifted, 0)), f"lane 1 of seed={seed} differs from lane 0 of seed={seed + 1}")
    _require(not _same(_lane(first, 0), _lane(shifted, 0)), f"seeds {seed} and {seed + 1} give the same episode")
    _require_error(lambda: _after_seed(env, list(range(n + 1))), f"a list of {n + 1} seeds for {n} lanes is accepted")


def _check_results(env: VectorEnv, seed: int, steps: int) -> None:
    """Shapes, types and keys of everything; truncation exactly at the limit; determinism."""
    n, runs = env.num_envs, []
    for _ in range(2):
        env.action_space.seed(seed)
        first, infos = env.reset(seed=seed)
        _check_observation(env, first, "reset")
        _check_infos(infos, n, "reset")
        keys = set(infos) - FINAL
        run, length, cut = [_copy((first, infos))], np.zeros(n, dtype=int), False
        for observation, rewards, terminated, truncated, infos, resetting in _steps(env, first, steps):
            _check_observation(env, observation, "step")
            _check_infos({key: value for key, value in infos.items() if key not in FINAL}, n, "step")
            if "final_obs" in infos:
                _check_observation(env, infos["final_obs"], "final_obs")
                _check_infos(infos["final_info"], n, "final_info")
            _require(set(infos) - FINAL == keys, f"infos have keys {sorted(set(infos) - FINAL)} at step, but "
                                                 f"{sorted(keys)} at reset")
            _check_rows("rewards", rewards, n, "f")
            _check_rows("terminated", terminated, n, "b")
            _check_rows("truncated", truncated, n, "b")
            length = np.where(resetting, 0, length + 1)
            wrong = _array(truncated) != (length == EPISODE_STEPS)
            _require(not wrong.any(), f"truncated is {_array(truncated).tolist()} after {length.tolist()} steps of "
                                      f"episodes of {EPISODE_STEPS}")
            cut |= bool(_array(truncated).any())
            length[_array(terminated) | _array(truncated)] = 0
            run.append(_copy((observation, rewards, terminated, truncated, infos)))
        _require(cut, f"no episode was truncated in {steps} steps, though max_episode_steps is {EPISODE_STEPS}")
        runs.append(run)
    _require(_same(*runs), "two runs with the same seed and the same actions differ")


def _check_lanes(env: VectorEnv, alone: gym.Env | VectorEnv, seed: int, steps: int, tolerance: float) -> None:
    """Every lane against one environment that is reset by hand: this fixes what each autoreset mode must return."""
    env.action_space.seed(seed)
    observation, infos = env.reset(seed=seed)
    record: list[Any] = [_copy((observation, infos))]
    actions: list[Any] = []
    for *result, resetting in _steps(env, observation, steps, actions):
        record.append((*_copy(tuple(result)), resetting))
    for lane in range(env.num_envs):
        solo = _Solo(alone)
        expected, expected_info = solo.reset(seed + lane)
        _compare(lane, "reset", record[0][0], expected, record[0][1], expected_info, tolerance)
        ended = False
        for step, (observation, rewards, terminated, truncated, infos, _) in enumerate(record[1:]):
            when = f"step {step}"
            if ended and env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
                expected, expected_info = solo.reset(None)
                reward, ended = 0.0, False
                flags = (False, False)
                when += ", which resets the lane and ignores its action"
            else:
                if ended:
                    solo.reset(None)
                expected, reward, *flags, expected_info = solo.step(actions[step], lane)  # type: ignore[assignment]
                ended = any(flags)
            _require(abs(float(rewards[lane]) - reward) <= REWARD_TOLERANCE * max(1.0, abs(reward)),
                     f"lane {lane} earns {float(rewards[lane])} at {when}; the single environment earns {reward}")
            _require((bool(terminated[lane]), bool(truncated[lane])) == tuple(flags),
                     f"terminated, truncated of lane {lane} are {bool(terminated[lane])}, {bool(truncated[lane])} at "
                     f"{when}; the single environment says {flags[0]}, {flags[1]}")
            if env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
                _check_final(lane, when, infos, ended, expected, expected_info, tolerance)
                if ended:
                    expected, expected_info = solo.reset(None)
                    ended = False
                    when += ", after the reset"
            _compare(lane, when, observation, expected, infos, expected_info, tolerance)


def _check_final(lane: int, when: str, infos: Mapping[str, Any], ended: bool, expected: Any,
                 expected_info: Mapping[str, Any], tolerance: float) -> None:
    for key in ("_final_obs", "_final_info"):
        given = key in infos and bool(infos[key][lane])
        _require(given == ended, f"infos[{key!r}] of lane {lane} is {given} at {when}; the lane has "
                                 f"{'ended' if ended else 'not ended'}")
    if ended:
        final = {key: value for key, value in infos["final_info"].items() if not key.startswith("_")}
        _compare(lane, f"{when}, in final_obs and final_info", infos["final_obs"], expected, final, expected_info,
                 tolerance)


def _check_reset_mask(env: VectorEnv, seed: int) -> None:
    n = env.num_envs
    mask = np.arange(n) % 2 == 0
    for given in (mask.copy(), torch.from_numpy(mask.copy())):
        before, _ = env.reset(seed=seed)
        before = _copy(before)
        options = {"reset_mask": given}
        after, _ = env.reset(options=options)
        _require(list(options) == ["reset_mask"] and options["reset_mask"] is given
                 and np.array_equal(_array(given), mask), "reset() changes the options that it is given")
        for lane in range(n):
            same = _same(_lane(before, lane), _lane(after, lane))
            _require(same != mask[lane], f"reset_mask of lane {lane} is {mask[lane]}, but the lane was "
                                         f"{'not ' if same else ''}reset")
    wrong = {"is not bool": mask.astype(np.int64), "has too many lanes": np.ones(n + 1, dtype=bool),
             "has no True lane": np.zeros(n, dtype=bool)}
    for fault, given in wrong.items():
        _require_error(partial(env.reset, options={"reset_mask": given}), f"a reset_mask that {fault} is accepted")


def _check_no_memory_is_shared(env: VectorEnv, scribbled: VectorEnv, seed: int, steps: int) -> None:
    """Results of one environment are overwritten as they come; it must go on as its twin does."""
    results = []
    for one in (env, scribbled):
        one.action_space.seed(seed)
        results.append(one.reset(seed=seed))
    previous = results[0]
    paths = [_steps(one, result[0], steps) for one, result in zip((env, scribbled), results, strict=True)]
    _scribble(results[1])
    for (*clean, _), (*other, _) in zip(*paths, strict=True):
        _require(_same(clean, other), "an environment goes another way once its earlier results are overwritten: "
                                      "they share memory with its state")
        shared = any(_overlap(a, b) for a in _leaves(previous) for b in _leaves(clean))
        _require(not shared, "results of successive calls share memory")
        previous = tuple(clean)  # type: ignore[assignment]
        _scribble(other)


def _check_render_and_close(make: Callable[..., VectorEnv], seed: int, skip_render: bool) -> None:
    with _open(make if skip_render else partial(make, render_mode="rgb_array")) as env:
        env.reset(seed=seed)
        if not skip_render:
            frames: Any = env.render()
            _require(isinstance(frames, tuple) and len(frames) == env.num_envs,
                     f"render() gives {type(frames).__name__}; it must give a tuple of {env.num_envs} frames")
            for frame in frames:
                _require(isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
                         and frame.shape[-1] == 3, "render() must give numpy frames of dtype uint8 and shape (H, W, 3)")
        env.close()
        _require(env.closed, "closed is False after close()")
        try:
            env.close()
        except Exception as error:
            raise AssertionError(f"check_vector_env: closing twice raises {error!r}.") from error


def _check_observation(env: VectorEnv, observation: Any, when: str) -> None:
    space = env.observation_space
    _require(space.contains(_arrays(observation)), f"the observation of {when} is not in {space}")
    if space.dtype is not None:
        _require(_array(observation).dtype == space.dtype,
                 f"the observation of {when} has dtype {_array(observation).dtype}; its space has {space.dtype}")


def _check_rows(name: str, given: Any, lanes: int, kind: str) -> None:
    array = _array(given)
    _require(array.dtype.kind == kind and array.shape == (lanes,) and bool(np.isfinite(array).all()),
             f"{name} has dtype {array.dtype} and shape {array.shape}; it must be {lanes} "
             f"{'finite floats' if kind == 'f' else 'bools'}")


def _check_infos(infos: Mapping[str, Any], lanes: int, when: str) -> None:
    for key, value in infos.items():
        if key.startswith("_"):
            _require(key[1:] in infos, f"infos of {when} have the mask {key!r}, but not {key[1:]!r}")
            continue
        mask = _array(infos.get("_" + key, ()))
        _require(mask.dtype == bool and mask.shape == (lanes,), f"infos of {when}: {key!r} needs a mask '_{key}', "
                                                                f"bool of shape ({lanes},)")
        if isinstance(value, Mapping):
            _check_infos(value, lanes, when)
        else:
            array = _array(value)
            _require(array.dtype.kind in "biuf" and array.shape[:1] == (lanes,),
                     f"infos of {when}: {key!r} has dtype {array.dtype} and shape {array.shape}; "
                     f"it must be numbers, one row a lane")


# --- how ------------------------------------------------------------------------------------------------------------

class _Solo:
    """One environment, single or of one lane, reset by hand."""

    def __init__(self, env: gym.Env | VectorEnv) -> None:
        self.env = env
        self.batched = isinstance(env, VectorEnv)

    def reset(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed)
        return self._one(observation), self._information(info)

    def step(self, actions: Any, lane: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        action = actions[lane:lane + 1] if self.batched else _arrays(actions)[lane]
        observation, reward, terminated, truncated, info = self.env.step(action)
        return (self._one(observation), float(self._one(reward)), bool(self._one(terminated)),
                bool(self._one(truncated)), self._information(info))

    def _one(self, value: Any) -> Any:
        return _lane(value, 0) if self.batched else value

    def _information(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._one(value) for key, value in info.items() if not key.startswith("_") and key not in FINAL}


def _steps(env: VectorEnv, observation: Any, steps: int, actions: list[Any] | None = None) -> Iterator[tuple[Any, ...]]:
    """Random actions; yields results and the lanes that a step only reset. Resets ended lanes if the mode does not."""
    mode = env.metadata["autoreset_mode"]
    done = np.zeros(env.num_envs, dtype=bool)
    tensors = isinstance(observation, Tensor)
    for step in range(steps):
        if mode == AutoresetMode.DISABLED and done.any():
            env.reset(options={"reset_mask": torch.from_numpy(done) if step % 2 else done})
            done = np.zeros_like(done)
        action = env.action_space.sample()
        given = torch.from_numpy(action).to(observation.device) if tensors else action
        if actions is not None:
            actions.append(given)
        result = env.step(given)
        resetting = done if mode == AutoresetMode.NEXT_STEP else np.zeros_like(done)
        done = _array(result[2]) | _array(result[3])
        yield (*result, resetting)


def _after_seed(env: VectorEnv, seed: int | list[int]) -> Any:
    """What a seeded reset and the unseeded one after it return."""
    return _copy((env.reset(seed=seed), env.reset()))  # type: ignore[arg-type]


def _compare(lane: int, when: str, observation: Any, expected: Any, infos: Mapping[str, Any],
             expected_info: Mapping[str, Any], tolerance: float) -> None:
    for mine, theirs in zip(_leaves(_lane(observation, lane)), _leaves(expected), strict=True):
        difference = np.abs(_array(mine).astype(np.float64) - _array(theirs).astype(np.float64)).max()
        _require(difference <= tolerance,
                 f"the observation of lane {lane} at {when} differs by {difference:.3g} from the single environment's")
    for key, theirs in expected_info.items():
        _require(key in infos, f"infos of {when} have no {key!r}, the single environment's info has")
        close = all(np.allclose(_array(a), _array(b), rtol=REWARD_TOLERANCE, atol=REWARD_TOLERANCE, equal_nan=True)
                    for a, b in zip(_leaves(_lane(infos[key], lane)), _leaves(theirs), strict=True))
        _require(close, f"infos[{key!r}] of lane {lane} at {when} differs from the single environment's")


@contextmanager
def _open(make: Callable[..., Any]) -> Iterator[Any]:
    env = make()
    try:
        yield env
    finally:
        env.close()


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(f"check_vector_env: {sentence}.")


def _require_error(call: Callable[[], Any], sentence: str) -> None:
    try:
        call()
    except Exception:
        return
    raise AssertionError(f"check_vector_env: {sentence}.")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value) for leaf in _leaves(value[key])]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(function, item) for item in value)
    return function(value)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _arrays(value: Any) -> Any:
    return _mapped(_array, value)


def _copy(value: Any) -> Any:
    return _mapped(lambda leaf: _array(leaf).copy(), value)


def _lane(value: Any, lane: int) -> Any:
    return _mapped(lambda leaf: leaf[lane], value)


def _same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN equal to NaN."""
    ours, theirs = ([_array(leaf) for leaf in _leaves(value)] for value in (a, b))
    return len(ours) == len(theirs) and all(
        x.shape == y.shape and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(ours, theirs, strict=True))


def _overlap(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.device.type != "cpu":
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return isinstance(a, (Tensor, np.ndarray)) and isinstance(b, (Tensor, np.ndarray)) and np.shares_memory(
        _array(a), _array(b))


def _scribble(value: Any) -> None:
    """Overwrite every array that can be written to."""
    for leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            leaf.copy_(~leaf if leaf.dtype == torch.bool else torch.full_like(leaf, 77))
        elif isinstance(leaf, np.ndarray) and leaf.flags.writeable:
            leaf[...] = ~leaf if leaf.dtype == bool else 77
