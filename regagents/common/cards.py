"""What a checkpoint's card may say. It is checked against a schema before anything is built from it.

A card comes from anywhere, so it names only what this package knows: ids of regenv's catalogue, algorithms and policies
of a row, arguments that their constructors take, sources of pairs that read no files. The signatures of builders,
algorithms, policies and sources are the schema; their annotations say of which type a value must be.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from regenv.data.catalogue import CLASSES
from regenv.registry import CATALOGUE


class Rise(TypedDict):
    start: float
    end: float
    difficulty: tuple[float, float]
    reach: tuple[float, float]
"""A curriculum in JSON."""


class Config(TypedDict, total=False):
    """What an agent is made of: a preset, too, is one."""

    agent: str
    env: str
    env_kwargs: dict[str, Any]
    policy: str
    policy_kwargs: dict[str, Any] | None
    algorithm: dict[str, Any]
    curriculum: Rise | None
    init: str | None
    steps: int


class Card(TypedDict, total=False):
    """What stands beside an agent's tensors."""

    card_version: int
    name: str
    algorithm: str
    env: str
    config: Config
    command: str
    seed: int
    init: str | None
    steps: int
    samples: int
    updates: int
    seconds: int
    machine: str
    summary: str
    licence: str
    sha256: str


LARGEST = 10**12                # of any number
LONGEST = 1024                  # of any list; texts may be four times as long
VOXELS = 2**25                  # of an environment's images
WIDEST = 4096                   # of any number in a network's description
LIMITS: Mapping[str, tuple[float, float]] = {
    "size": (1, VOXELS), "control_grid": (1, VOXELS), "spacing": (1e-3, 1e3), "bank_spacing": (0.25, 100.0),
    "patients": (1, 10_000), "margin": (1.0, 4.0), "clusters": (1, 64), "max_episode_steps": (1, 10**6),
    "knots": (1.0, 1e3), "control": (1.0, 1e3), "samples": (0, LARGEST), "updates": (0, LARGEST),
    "seconds": (0, LARGEST), "steps": (1, LARGEST), "lanes": (1, 4096), "n_workers": (1, 1024),
    "batch_size": (1, 10**6), "buffer_size": (1, 10**8)}
"""Smallest and largest numbers of arguments and fields by name."""
OPEN_FILES = ("files", "test_files", "folder", "pairs", "model")
"""Arguments of builders and sources that name files: a caller may give them, a card may not."""
NOT_IN_CARDS = {"self", "args", "kwargs", "sb3", "policy", "env", "seed", "device", "policy_kwargs", "curriculum",
                "tensorboard_log", "verbose", "_init_setup_model", "replay_buffer_class", "replay_buffer_kwargs",
                "support_multi_env", "monitor_wrapper", "supported_action_spaces", "observation_space", "action_space",
                "lr_schedule", "features_extractor_class", "features_extractor", "activation_fn", "optimizer_class",
                "optimizer_kwargs", "normalize_images", "squash_output", "init_weights", "ndim", "source"}
"""Arguments that a card cannot give: what is given elsewhere, what writes files, what is code."""


# ------------------------------------------------------------------------------------------------------------- values

def check(value: Any, hint: Any, where: str) -> None:
    """Raise ValueError unless a value of JSON is of an annotation's type, finite and of sensible size."""
    if is_typeddict(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r:.80}; it must be a JSON object.")
        hints = get_type_hints(hint)
        for name, part in value.items():
            if name not in hints:
                raise ValueError(f"{where} has {name!r:.80}; it may have {', '.join(hints)}.")
            check(part, hints[name], f"{where}.{name}")
        missing = sorted(hint.__required_keys__ - set(value))  # type: ignore[attr-defined]
        if missing:
            raise ValueError(f"{where} has no {missing[0]!r}; it needs {', '.join(hints)}.")
    elif get_origin(hint) in (Union, types.UnionType) and isinstance(value, Mapping):
        for part in get_args(hint):
            if is_typeddict(part):
                return check(value, part, where)
    if not _fits(value, hint):
        raise ValueError(f"{where} is {value!r:.80}; it must be {_words(hint) or 'left out'}.")
    low, high = LIMITS.get(where.rpartition(".")[2], (-LARGEST, LARGEST))
    for number in _numbers(value):
        if not low <= number <= high:
            raise ValueError(f"{where} is {value!r:.80}; numbers there must be from {low:g} to {high:g}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (None, types.NoneType):
        return value is None
    if origin is str:
        return isinstance(value, str) and len(value) <= 4 * LONGEST
    if origin is bool or origin is int:
        return type(value) is origin
    if origin is float:
        return type(value) in (int, float) and math.isfinite(value)
    if is_typeddict(origin):
        return isinstance(value, Mapping)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return _is_list(value) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _is_list(value) and all(_fits(part, parts[0] if parts else Any) for part in value)
    return False


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= LONGEST


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        told = [_words(part) for part in parts]
        return " or ".join(word for word in dict.fromkeys(told) if word)
    plain = {int: "a whole number", float: "a finite number", str: "a short text", bool: "true or false",
             types.NoneType: "null", None: "null"}
    if origin in plain:
        return plain[origin]
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)}: {', '.join(_words(part) for part in parts)}"
    if is_typeddict(origin) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a JSON object"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list (each {_words(parts[0]) if parts else 'any value'})"
    return "" if isinstance(hint, type) else "a value of JSON"


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value of JSON."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


# ---------------------------------------------------------------------------------------------------------- arguments

def parameters(*functions: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that functions take, and the annotation (or the default's type) of each; first ones count."""
    found: dict[str, Any] = {}
    for function in functions:
        taken = {name: parameter for name, parameter in inspect.signature(function).parameters.items()
                 if name not in NOT_IN_CARDS}
        stated = types.SimpleNamespace(__annotations__={name: parameter.annotation for name, parameter in taken.items()
                                                        if parameter.annotation is not parameter.empty})
        hints = get_type_hints(stated, getattr(function, "__globals__", {}))
        for name, parameter in taken.items():
            implied = Any if parameter.default in (parameter.empty, None) else type(parameter.default)
            found.setdefault(name, hints.get(name, implied))
    return found


def constructors(owner: type) -> list[Callable[..., Any]]:
    """The ``__init__`` of a class and of those that it inherits from."""
    return [base.__dict__["__init__"] for base in owner.__mro__
            if base is not object and "__init__" in base.__dict__ and not base.__module__.startswith("torch.")]


def check_arguments(given: Any, known: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an argument that is not known, or not of its annotation's type."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r:.80}; it must be a JSON object.")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{where} has {name!r:.80}; it may have {', '.join(known)}.")
        check(value, known[name], f"{where}.{name}")


def check_environment(env_id: Any, env_kwargs: Any, where: str, files: bool = False) -> None:
    """Raise ValueError unless an id and arguments describe an environment of the catalogue.

    Args: files: whether arguments may name files, as those that a user gives may.
    """
    if not isinstance(env_id, str) or env_id not in CATALOGUE:
        raise ValueError(f"{where}.env is {env_id!r:.80}; it must be one of {', '.join(CATALOGUE)}.")
    where = f"{where}.env_kwargs"
    known = parameters(CATALOGUE[env_id].builder)
    plain = {name: value for name, value in env_kwargs.items() if name != "source"} \
        if isinstance(env_kwargs, Mapping) else env_kwargs
    check_arguments(plain, {**known, "privileged": bool}, where)
    _refuse_files(plain, where, files)
    ndim = CATALOGUE[env_id].arguments["ndim"]
    for name in ("size", "control_grid"):
        shape = plain.get(name) or 1
        voxels = math.prod(shape) if isinstance(shape, list | tuple) else shape**ndim
        if voxels > VOXELS:
            raise ValueError(f"{where}.{name} is {shape}; at most {VOXELS:,} voxels in all are allowed.")
    if env_kwargs.get("source") is not None:
        _check_source(env_kwargs["source"], f"{where}.source", files)


def _check_source(source: Any, where: str, files: bool) -> None:
    given = {"name": source} if isinstance(source, str) else source
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or given["name"] not in CLASSES:
        raise ValueError(f"{where} is {source!r:.80}; it must be, or its name must be, one of {', '.join(CLASSES)}.")
    inner = {name: value for name, value in given.items() if name not in ("name", "source", "appearance")}
    known = parameters(*constructors(CLASSES[given["name"]]))
    check_arguments(inner, known, where)
    _refuse_files(inner, where, files)
    if "source" in given:
        _check_source(given["source"], f"{where}.source", files)
    if "appearance" in given:
        check_arguments(given["appearance"], parameters(*constructors(known["appearance"])), f"{where}.appearance")


def _refuse_files(given: Mapping[str, Any], where: str, files: bool) -> None:
    for name in OPEN_FILES if not files else ():
        if given.get(name) is not None:
            raise ValueError(f"{where}.{name} is {given[name]!r:.80}; a card may not name files. Give them where the "
                             "agent is loaded: load(PATH, source=...).")


def _extractor(policy: type) -> type | None:
    """The class of a policy's feature extractor; None for a policy without one."""
    defaults = [inspect.signature(function).parameters.get("features_extractor_class")
                for function in constructors(policy)]
    return getattr(policy, "extractor", None) or next((found.default for found in defaults if found is not None), None)


# -------------------------------------------------------------------------------------------------------------- cards

def check_config(config: Mapping[str, Any], algorithm: type, policy: str, where: str, trusted: Sequence[str] = ()
                 ) -> None:
    """Raise ValueError unless a card's config describes an agent of an algorithm.

    Args:
        algorithm: its class, with ``policy_aliases``.
        policy: the name that counts where the config has none.
        where: the config's name in messages.
        trusted: arguments of the environment that the caller gives in place of the config's.
    """
    check(config, Config, where)
    kept = {name: value for name, value in config.get("env_kwargs", {}).items() if name not in trusted}
    check_environment(config.get("env"), kept, where)
    arguments = dict(config.get("algorithm", {}))
    sampled = arguments.pop("sampler_kwargs", None)
    check_arguments(arguments, parameters(*constructors(algorithm)), f"{where}.algorithm")
    if sampled is not None:
        check_environment(config["env"], sampled, f"{where}.algorithm.sampler_kwargs")
    aliases: Mapping[str, type] = algorithm.policy_aliases  # type: ignore[attr-defined]
    name = config.get("policy", policy)
    if name not in aliases:
        raise ValueError(f"{where}.policy is {name!r:.80}; it must be one of {', '.join(aliases)}.")
    _check_policy(dict(config.get("policy_kwargs") or {}), aliases[name], f"{where}.policy_kwargs")


def _check_policy(given: dict[str, Any], policy: type, where: str) -> None:
    known = parameters(*constructors(policy))
    extractor = given.pop("features_extractor_kwargs", None)
    check_arguments(given, known, where)
    if extractor is not None:
        maker = _extractor(policy)
        if maker is None:
            raise ValueError(f"{where} has 'features_extractor_kwargs', which {policy.__name__} does not take.")
        check_arguments(extractor, parameters(*constructors(maker)), f"{where}.features_extractor_kwargs")
    for number in _numbers({**given, "extractor": extractor}):
        if abs(number) > WIDEST:
            raise ValueError(f"{where} has the number {number:g}; {WIDEST} is the largest of a network.")
