"""The catalogue of agents: which algorithms there are, and how a checkpoint becomes an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

from regagents.a3c import A3C
from regagents.common import checkpoints
from regagents.common.curriculum import Curriculum
from regagents.dsl import DSL
from regagents.l2o import L2O
from regagents.oneshot import OneShot
from regagents.spac import SPAC, DDPGModified, PPOModified

WEIGHTS = Path(__file__).parent / "weights"
ALGORITHMS: dict[str, tuple[type[Any], str]] = {"DSL": (DSL, "CompactPolicy"), "OneShot": (OneShot, "CnnPolicy"),
                                                "A3C": (A3C, "CnnLstmPolicy"), "SPAC": (SPAC, "CnnPolicy"),
                                                "PPOModified": (PPOModified, "CnnPolicy"),
                                                "DDPGModified": (DDPGModified, "CnnPolicy"),
                                                "L2O": (L2O, "MultiInputPolicy")}


def create(config: dict[str, Any], seed: int = 0, device: str = "cpu", **algorithm: Any) -> Any:
    """An untrained agent of a preset (or of a card's ``config``)."""
    env = gym.make(config["env"], **config["env_kwargs"])
    rise = config.get("curriculum")
    curriculum = None if rise is None else Curriculum(rise["start"], rise["end"], tuple(rise["difficulty"]),
                                                      tuple(rise["reach"]))
    kind, policy = ALGORITHMS[config.get("agent", "DSL")]
    return kind(config.get("policy", policy), env, seed=seed, device=device, policy_kwargs=config.get("policy_kwargs"),
                curriculum=curriculum, **{**config.get("algorithm", {}), **algorithm})


def load(path: str | Path, device: str = "cpu", algorithm: str = "DSL", **env_kwargs: Any) -> Any:
    """A trained agent from its checkpoint (a path, or the name of shipped weights).

    Raises CheckpointError for missing, damaged or misfitting files, and for those of another algorithm.
    """
    path = resolve(path)
    tensors, card = checkpoints.load(path)
    if card.get("algorithm") != algorithm:
        raise checkpoints.CheckpointError(f"{path}: algorithm is {card.get('algorithm')!r}; {algorithm} is needed.")
    try:
        config = dict(card["config"])
        config["env_kwargs"] = {**config["env_kwargs"], **env_kwargs}
        agent = create(config, device=device)
    except (KeyError, TypeError, ValueError, gym.error.Error) as error:
        raise checkpoints.CheckpointError(f"{path.with_suffix('.json')}: config does not describe an agent "
                                          f"({type(error).__name__}: {error}).") from None
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
