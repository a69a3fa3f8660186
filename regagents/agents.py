"""The catalogue of agents: one row an algorithm, and the ways to make an agent of it or to load one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import torch
from torch import Tensor

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.common import cards, checkpoints
from regagents.common.algorithm import Algorithm
from regagents.common.checkpoints import CheckpointError
from regagents.common.curriculum import Curriculum
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.oneshot import DenseOneShot, OneShot
from regagents.spac import SPAC, DDPGModified, GRPOModified, PPOModified
from regenv.data.banks.downloads import DatasetError
from regenv.registry import build

WEIGHTS = Path(__file__).parent / "weights"
HYPERPARAMS = Path(__file__).parent / "hyperparams"
COPIES = 4              # of a network's parts that a policy may hold beside what a checkpoint stores: targets, twins
HARMLESS = 1 << 24      # numbers of a network that may be built before its weights are found not to fit
Agent = TypeVar("Agent", bound=Algorithm)


@dataclass(frozen=True)
class Row:
    """An algorithm of this package.

    Attributes:
        algorithm: its class.
        policy: alias of the policy where a preset names none.
        moves: "pose" (parameters of a transform) or "field" (a displacement of every voxel).
        learns_from: what teaches it: the "truth" (poses or key-points that only training pairs have), the "gradient" of
            a loss that needs no truth, or the "reward" alone; several, where it learns from several.
        hyperparams: YAML file of tuned settings by id; the file's name without suffix is the algorithm's name in the
            zoo. None: the zoo does not know it.
    """

    algorithm: type[Algorithm]
    policy: str
    moves: str
    learns_from: str
    hyperparams: Path | None = None


ALGORITHMS: dict[str, Row] = {
    "DSL": Row(DSL, "CompactPolicy", "pose", "truth", HYPERPARAMS / "dsl.yml"),
    "OneShot": Row(OneShot, "CnnPolicy", "pose", "truth"),
    "A3C": Row(A3C, "CnnLstmPolicy", "pose", "truth, reward", HYPERPARAMS / "a3c.yml"),
    "SPAC": Row(SPAC, "CnnPolicy", "field", "gradient, reward", HYPERPARAMS / "spac.yml"),
    "PPOModified": Row(PPOModified, "CnnPolicy", "field", "gradient, reward"),
    "DDPGModified": Row(DDPGModified, "CnnPolicy", "field", "gradient, reward"),
    "GRPOModified": Row(GRPOModified, "CnnPolicy", "field", "gradient, reward"),
    "DenseOneShot": Row(DenseOneShot, "CnnPolicy", "field", "gradient"),
    "L2O": Row(L2O, "MultiInputPolicy", "field", "truth", HYPERPARAMS / "l2o.yml"),
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
    beside = path.with_suffix(".json")
    name = card.get("algorithm")
    if name not in ALGORITHMS:
        raise CheckpointError(f"{path}: algorithm is {name!r}; it must be one of {', '.join(ALGORITHMS)}.")
    if not issubclass(ALGORITHMS[name].algorithm, kind):
        raise CheckpointError(f"{path}: algorithm is {name!r}; {kind.__name__} is needed.")
    try:
        config = _checked(card, name, env_kwargs)
        _check_size(config, tensors)
        agent = create(config, device=device)
    except DatasetError:
        raise
    except Exception as error:  # a card may hold anything that the schema allows
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{beside}: config does not describe an agent ({told})") from None
    agent.card = card
    agent.adopt(tensors, path)
    agent.policy.set_training_mode(False)
    return agent


def _checked(card: Mapping[str, Any], name: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a card, with arguments of the environment that the caller gives.

    Raises ValueError unless it describes an agent of the card's algorithm and environment.
    """
    row, config = ALGORITHMS[name], card.get("config", {})
    cards.check_config(config, row.algorithm, row.policy, "config", list(env_kwargs))
    for field, own, stated in (("env", config["env"], card.get("env")), ("agent", name, config.get("agent"))):
        if stated not in (None, own):
            raise ValueError(f"{field} is {stated!r} in one place and {own!r} in another; they must agree.")
    return {**config, "agent": name, "env_kwargs": {**config.get("env_kwargs", {}), **env_kwargs}}


def _check_size(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a config's network has far more numbers than its weights: before it takes any memory."""
    row, task = ALGORITHMS[config["agent"]], build(config["env"], **config["env_kwargs"])
    policy = row.algorithm.policy_aliases[config.get("policy", row.policy)]
    with torch.device("meta"):
        network = policy(task.observation.space(task.grid.shape), task.actions.space(), lambda _: 0.0,
                         **(config.get("policy_kwargs") or {}))
    numbers, stored = (sum(tensor.numel() for tensor in held.values()) for held in (network.state_dict(), tensors))
    if numbers > COPIES * stored + HARMLESS:
        raise ValueError(f"the network has {numbers:,} numbers and its weights have {stored:,}")


def resolve(path: str | Path) -> Path:
    """A checkpoint's file: the path itself, or shipped weights of that name."""
    path_shipped = WEIGHTS / f"{path}.safetensors"
    return path_shipped if path_shipped.is_file() else Path(path)


def shipped() -> list[tuple[Path, dict[str, Any]]]:
    """Weights that come with the package, and their cards."""
    return [(path, checkpoints.load_card(path)) for path in sorted(WEIGHTS.glob("*.safetensors"))]
