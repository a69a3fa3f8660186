"""The catalogue of agents: one row an algorithm, and the ways to make an agent of it or to load one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.common import checkpoints
from regagents.common.algorithm import Algorithm
from regagents.common.checkpoints import CheckpointError
from regagents.common.curriculum import Curriculum
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.oneshot import OneShot
from regagents.spac import SPAC, DDPGModified, PPOModified

WEIGHTS = Path(__file__).parent / "weights"
HYPERPARAMS = Path(__file__).parent / "hyperparams"
Agent = TypeVar("Agent", bound=Algorithm)


@dataclass(frozen=True)
class Row:
    """An algorithm of this package.

    Attributes:
        algorithm: its class.
        policy: alias of the policy where a preset names none.
        moves: "pose" (parameters of a transform) or "field" (a displacement of every voxel).
        hyperparams: YAML file of tuned settings by id; the file's name without suffix is the algorithm's name in the
            zoo. None: the zoo does not know it.
    """

    algorithm: type[Algorithm]
    policy: str
    moves: str
    hyperparams: Path | None = None


ALGORITHMS: dict[str, Row] = {
    "DSL": Row(DSL, "CompactPolicy", "pose", HYPERPARAMS / "dsl.yml"),
    "OneShot": Row(OneShot, "CnnPolicy", "pose"),
    "A3C": Row(A3C, "CnnLstmPolicy", "pose", HYPERPARAMS / "a3c.yml"),
    "SPAC": Row(SPAC, "CnnPolicy", "field", HYPERPARAMS / "spac.yml"),
    "PPOModified": Row(PPOModified, "CnnPolicy", "field"),
    "DDPGModified": Row(DDPGModified, "CnnPolicy", "field"),
    "L2O": Row(L2O, "MultiInputPolicy", "field", HYPERPARAMS / "l2o.yml"),
}


def algorithm_of(config: Mapping[str, Any]) -> str:
    """The name of a preset's algorithm."""
    return config.get("agent", "DSL")


def create(config: Mapping[str, Any], seed: int = 0, device: str = "cpu", **algorithm: Any) -> Any:
    """An untrained agent of a preset, or of a card's ``config``.

    Args: algorithm: arguments of the algorithm that replace the preset's.
    """
    env = gym.make(config["env"], **config["env_kwargs"])
    rise = config.get("curriculum")
    curriculum = None if rise is None else Curriculum(rise["start"], rise["end"], tuple(rise["difficulty"]),
                                                      tuple(rise["reach"]))
    row = ALGORITHMS[algorithm_of(config)]
    arguments = {"curriculum": curriculum, **config.get("algorithm", {}), **algorithm}
    return row.algorithm(config.get("policy", row.policy), env, seed=seed, device=device,
                         policy_kwargs=config.get("policy_kwargs"), **arguments)


def load(path: str | Path, device: str = "cpu", **env_kwargs: Any) -> Any:
    """A trained agent from its checkpoint, whose card names the algorithm. The agent keeps the card as ``card``.

    Args:
        path: of the weights, or the name of shipped ones.
        env_kwargs: arguments of the environment that replace the card's.
    Raises: CheckpointError: the file is missing, damaged, or does not fit.
    """
    return load_as(Algorithm, path, device, **env_kwargs)


def load_as(kind: type[Agent], path: str | Path, device: str = "cpu", **env_kwargs: Any) -> Agent:
    """As :func:`load`, for callers that need an algorithm of one class. Raises CheckpointError for another one's."""
    path = resolve(path)
    tensors, card = checkpoints.load(path)
    name = card.get("algorithm")
    if name not in ALGORITHMS:
        raise CheckpointError(f"{path}: algorithm is {name!r}; it must be one of {', '.join(ALGORITHMS)}.")
    if not issubclass(ALGORITHMS[name].algorithm, kind):
        raise CheckpointError(f"{path}: algorithm is {name!r}; {kind.__name__} is needed.")
    try:
        config = {**card["config"], "agent": name}
        config["env_kwargs"] = {**config["env_kwargs"], **env_kwargs}
        agent = create(config, device=device)
    except (KeyError, TypeError, ValueError, gym.error.Error) as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: config does not describe an agent "
                              f"({type(error).__name__}: {error}).") from None
    agent.card = card
    agent.adopt(tensors, path)
    agent.policy.set_training_mode(False)
    return agent


def resolve(path: str | Path) -> Path:
    """A checkpoint's file: the path itself, or shipped weights of that name."""
    path_shipped = WEIGHTS / f"{path}.safetensors"
    return path_shipped if path_shipped.is_file() else Path(path)


def shipped() -> list[tuple[Path, dict[str, Any]]]:
    """Weights that come with the package, and their cards."""
    return [(path, checkpoints.load(path)[1]) for path in sorted(WEIGHTS.glob("*.safetensors"))]
