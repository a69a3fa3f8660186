"""Search spaces of ``python -m regagents.training.zoo train -optimize`` for algorithms that rl-zoo3 does not know."""

from __future__ import annotations

from typing import Any

from optuna import Trial


def dsl(trial: Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, batch size, and batches of fresh poses on the same images."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [16, 32, 48, 64, 96]),
            "poses_per_image": trial.suggest_int("poses_per_image", 1, 8)}


def a3c(trial: Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, entropy, bootstrapping length and discount."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True),
            "ent_coef": trial.suggest_float("ent_coef", 1e-5, 1e-1, log=True),
            "n_steps": trial.suggest_int("n_steps", 5, 50),
            "gamma": 1 - trial.suggest_float("one_minus_gamma", 1e-3, 0.3, log=True)}


def spac(trial: Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Learning rates, smoothness of the field and of the step, and the discount."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
            "critic_lr": trial.suggest_float("critic_lr", 1e-5, 3e-3, log=True),
            "smooth": trial.suggest_float("smooth", 1e-3, 1.0, log=True),
            "smooth_step": trial.suggest_float("smooth_step", 1e-2, 3.0, log=True),
            "gamma": 1 - trial.suggest_float("one_minus_gamma", 1e-3, 0.3, log=True)}


def l2o(trial: Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Learning rate and its decay, pairs an update, and key-points of each."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
            "halvings": trial.suggest_int("halvings", 0, 8),
            "accumulate": trial.suggest_int("accumulate", 1, 6),
            "keypoints": trial.suggest_categorical("keypoints", [128, 256, 512, 1024])}


SEARCH_SPACES = {"dsl": dsl, "a3c": a3c, "spac": spac, "l2o": l2o}


def register() -> None:
    """Add them to rl-zoo3's search spaces, and PPO's for its two variants."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    ppo = HYPERPARAMS_SAMPLER["ppo"]
    HYPERPARAMS_SAMPLER.update({**SEARCH_SPACES, "recurrent_ppo": ppo, "maskable_ppo": ppo})
