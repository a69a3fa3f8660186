"""Presets, of shipped agents and of others: ``regagents train NAME`` trains one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REAL_HEADS: dict[str, Any] = {"name": "heads", "subjects": ["mni152", "mni2009c", "csi1", "csi2"]}
HEAD_GRID: dict[str, Any] = {"size": 32, "spacing": 6.5, "observation": "pair"}
RISE: dict[str, Any] = {"start": 0.1, "end": 0.5, "difficulty": [0.0, 1.0], "reach": [0.35, 1.0]}
SLICES: dict[str, Any] = {"name": "slices", "subjects": ["mni2009c", "csi1", "csi2"]}
REFINED: dict[str, Any] = {"learning_rate": 2e-5, "ent_coef": 0.0, "vf_coef": 0.1, "max_grad_norm": 1.0,
                           "value_first": 0.15}


def similarity(init: str, steps: int, reward: str, limit: int = 500, **algorithm: Any) -> dict[str, Any]:
    """An A3C agent of Sun et al. 2018, table 2. Rewards and the weight of the entropy (0.1) are divided by 100."""
    limited = {"max_episode_steps": limit} if limit < 500 else {}
    return {"agent": "A3C", "env": "RegSimilarity2D-v0",
            "env_kwargs": {"source": SLICES, "near": 0.4, "near_scale": 0.2, "reward": reward, **limited},
            "algorithm": {"n_workers": 8, "lanes": 4, "episodes_per_pair": 8, "reward_scale": 0.01, "ent_coef": 0.001,
                          **algorithm},
            "init": init, "steps": steps}


def organs(env: str, shrink: int | list[int], steps: int, turn: float = 0.0, **algorithm: Any) -> dict[str, Any]:
    """A DSL agent of Krebs et al. 2017."""
    source = {"name": "organs", "composition": "dense", **({"turn": turn} if turn else {})}
    return {"env": env, "env_kwargs": {"source": source, "targets": "unit"},
            "policy": "DualStreamPolicy", "policy_kwargs": {"features_extractor_kwargs": {"shrink": shrink}},
            "algorithm": {"sampler_kwargs": {"wander": 0.8}, "batch_size": 65, **algorithm}, "steps": steps}


LUO_SIZE: dict[int, dict[str, Any]] = {  # networks of Luo et al.'s size within 3 %: 107 K in 2D, 458 K in 3D
    2: {"widths": [16, 32, 35], "sigma": 0.2}, 3: {"widths": [16, 32, 32, 36, 32], "sigma": 0.2}}


@dataclass(frozen=True)
class Variant:
    """How an agent differs from SPAC: its algorithm, and arguments of the algorithm, the policy and the environment."""

    agent: str = "SPAC"
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


SPAC_VARIANTS = {
    "spac": Variant(),
    "oneshot": Variant(algorithm={"rl": False}, env_kwargs={"max_episode_steps": 1}),
    "spac-norl": Variant(algorithm={"rl": False}),
    "spac-unsteered": Variant(algorithm={"steer": 0.0}),    # the same noise and critics, which only watch
    "spac-noreg": Variant(algorithm={"reg_coef": 0.0}, policy={"critic_on": "action"}),  # or the actor has no gradient
    "spac-action": Variant(policy={"critic_on": "action"}),
    "spac-ssim": Variant(env_kwargs={"reward": "ssim"}),
    "ppo": Variant("PPOModified"),
    "ddpg": Variant("DDPGModified"),
    "grpo": Variant("GRPOModified"),
}


def dense(name: str, env: str, steps: int, policy: dict[str, Any] | None = None,
          algorithm: dict[str, Any] | None = None, **env_kwargs: Any) -> dict[str, dict[str, Any]]:
    """A SPAC agent of Luo et al. 2022 and the agents that it is compared with, by name."""
    return {f"{name}-{suffix}": {"agent": variant.agent, "env": env, "env_kwargs": {**env_kwargs, **variant.env_kwargs},
                                 "steps": steps, "policy_kwargs": {**(policy or {}), **variant.policy},
                                 "algorithm": {**(algorithm or {}), **variant.algorithm}}
            for suffix, variant in SPAC_VARIANTS.items()}


def stage(name: str) -> str:
    """Where ``regagents train NAME`` writes the weights of a preset that are not shipped."""
    return f"runs/{name}/{name}.safetensors"


LUNGS = {"size": 48, "spacing": 5.0, "observation": "dict"}

PRESETS: dict[str, dict[str, Any]] = {
    "head-geometric": {
        "env": "RegRigid3DGeometric-v0",
        "env_kwargs": {**HEAD_GRID, "source": REAL_HEADS, "ranges": [60, 60, 60, 90, 90, 90]},
        "algorithm": {"sampler_kwargs": {"near": 0.35, "near_scale": 0.2}},
        "curriculum": RISE,
        "steps": 1_000_000,
    },
    "head-unit": {
        "env": "RegRigid3D-v0",
        "env_kwargs": {**HEAD_GRID, "source": REAL_HEADS, "targets": "drop"},
        "algorithm": {"sampler_kwargs": {"near": 0.4, "near_scale": 0.2}},
        "curriculum": {**RISE, "reach": [0.6, 1.0]},
        "steps": 1_000_000,
    },
    "spine-coarse": {
        "env": "RegRigid3D-v0",
        "env_kwargs": {"size": [48, 24, 24], "spacing": 8.0, "observation": "pair", "source": {"name": "spine"},
                       "targets": "drop"},
        "algorithm": {"sampler_kwargs": {"near": 0.3, "near_scale": 0.2}},
        "curriculum": {**RISE, "reach": [0.25, 1.0]},
        "steps": 600_000,
    },
    "spine-fine": {
        "env": "RegRigid3D-v0",
        "env_kwargs": {"size": 32, "spacing": 3.0, "observation": "pair", "targets": "drop",
                       "source": {"name": "spine", "moving_extent_mm": [150.0, 150.0, 150.0], "placement_mm": 80.0,
                                  "lateral_mm": 30.0},
                       "ranges": [12, 12, 12, 8, 8, 8]},
        "algorithm": {"sampler_kwargs": {"near": 0.3, "near_scale": 0.3}},
        "curriculum": {**RISE, "reach": [1.0, 1.0]},
        "steps": 150_000,
    },
    "rigid2d": {
        "env": "RegRigid2D-v0",
        "env_kwargs": {"observation": "pair", "targets": "drop"},
        "algorithm": {"sampler_kwargs": {"near": 0.4, "near_scale": 0.2}},
        "curriculum": {**RISE, "reach": [0.6, 1.0]},
        "policy_kwargs": {"features_extractor_kwargs": {"widths": [16, 32, 48, 64, 64], "strides": [2, 2, 2, 2, 2]}},
        "steps": 150_000,
    },
    "similarity-oneshot": {
        "agent": "OneShot",
        "env": "RegSimilarity2DContinuous-v0",
        "env_kwargs": {"source": SLICES, "step_sizes": [45.0]},
        "algorithm": {"poses_per_image": 8},
        "curriculum": {"start": 0.0, "end": 0.3, "difficulty": [0.3, 1.0], "reach": [0.5, 1.0]},
        "steps": 1_500_000,
    },
    "similarity-sl": similarity("similarity-oneshot", 1_500_000, "landmarks", supervised=True, learning_rate=5e-4),
    "similarity-sl-matrix": similarity("similarity-sl", 500_000, "matrix", supervised=True, learning_rate=5e-4),
    "similarity-rl": similarity("similarity-sl", 300_000, "landmarks", limit=150, **REFINED),
    "similarity-value": {**similarity("similarity-rl", 1_000, "landmarks", limit=150,  # the policy stays as it is
                                      **{**REFINED, "value_first": 1.0}, n_workers=1, value_pairs=2_400),
                         "policy_kwargs": {"value_hidden": 256}},
    "similarity-rl-matrix": similarity("similarity-sl-matrix", 300_000, "matrix", limit=150,
                                       **{**REFINED, "learning_rate": 3e-4}),
    "similarity-cnn": {**similarity("similarity-sl", 300_000, "landmarks", limit=150,
                                    **{**REFINED, "learning_rate": 3e-4}), "policy": "CnnPolicy"},
    "similarity-cnn-matrix": {**similarity("similarity-sl-matrix", 300_000, "matrix", limit=150,
                                           **{**REFINED, "learning_rate": 3e-4}), "policy": "CnnPolicy"},
    **dense("digits", "RegDenseDigits-v0", 20_000, None, {"batch_size": 16, "learning_starts": 320}),
    **dense("brain2d", "RegDense2D-v0", 16_000, LUO_SIZE[2], {"lanes": 8, "batch_size": 8, "buffer_size": 2_000,
                                                                "learning_starts": 160},
            source={"name": "brains"}, spacing=1.5),
    **dense("liver3d", "RegDense3D-v0", 20_000, LUO_SIZE[3], {"lanes": 4, "batch_size": 4, "buffer_size": 800,
                                                                "learning_starts": 160},
            source={"name": "livers"}),
    **dense("liver32", "RegDense3D-v0", 8_000, {"widths": [16, 32, 32], "sigma": 0.2}, {"lanes": 4, "batch_size": 4,
                                                                         "buffer_size": 800, "learning_starts": 160},
            source={"name": "livers"}, size=32, spacing=8.0),
    "liver3d-release": {  # as the released 3D code trains
        "agent": "SPAC", "env": "RegDense3D-v0", "steps": 2_000_000,
        "env_kwargs": {"source": {"name": "livers"}, "reward": "dice", "reward_scale": 100.0, "terminal_bonus": 10.0,
                       "max_displacement": 1.0},
        "policy_kwargs": {"widths": [16, 32, 32, 64, 64]},
        "algorithm": {"learning_rate": 4e-5, "critic_lr": 8e-6, "lanes": 1, "batch_size": 4, "buffer_size": 800,
                      "smooth": 0.0, "smooth_step": 1.0, "decay": False}},
    "brain3d-oneshot": {
        "agent": "DenseOneShot", "env": "RegDense3D-v0", "steps": 6_000,
        "env_kwargs": {"source": {"name": "brains3d"}, "size": [64, 80, 64], "spacing": 2.5, "reward": "dice",
                       "max_displacement": 8.0, "max_episode_steps": 3},
        "policy_kwargs": {"widths": [12, 24, 24, 24]}, "algorithm": {"lanes": 2}},
    "lung2d-l2o": {
        "agent": "L2O", "env": "RegKeypoint2D-v0", "steps": 48_000, "env_kwargs": {"size": 64, "observation": "dict"},
        "algorithm": {"lanes": 4, "accumulate": 1}},
    "lung3d-l2o-first": {  # on crops; the whole image is registered later
        "agent": "L2O", "env": "RegKeypoint3D-v0", "steps": 64_000, "env_kwargs": LUNGS,
        "algorithm": {"accumulate": 2, "gradient_checkpointing": False}, "policy_kwargs": {"pools": 3}},
    "lung3d-l2o-second": {
        "agent": "L2O", "env": "RegKeypoint3D-v0", "steps": 80_000, "init": stage("lung3d-l2o-first"),
        "env_kwargs": {**LUNGS, "source": {"name": "lungs", "patients": 48}},
        "algorithm": {"accumulate": 2, "gradient_checkpointing": False, "learning_rate": 5e-4, "halvings": 3},
        "policy_kwargs": {"pools": 3}},
    "lung3d-l2o-third": {  # on whole images: instance normalisation depends on the share of lung
        "agent": "L2O", "env": "RegKeypoint3D-v0", "steps": 14_400, "init": stage("lung3d-l2o-second"),
        "env_kwargs": {**LUNGS, "size": 64, "source": {"name": "lungs", "patients": 48}},
        "algorithm": {"accumulate": 2, "gradient_checkpointing": False, "learning_rate": 2.5e-4, "halvings": 4},
        "policy_kwargs": {"pools": 3}},
    "lung3d-l2o-fourth": {  # trained not to drift after convergence
        "agent": "L2O", "env": "RegKeypoint3D-v0", "steps": 4_800, "init": stage("lung3d-l2o-third"),
        "env_kwargs": {**LUNGS, "size": 64, "source": {"name": "lungs", "patients": 48}},
        "algorithm": {"accumulate": 2, "gradient_checkpointing": False, "learning_rate": 1e-4, "halvings": 3,
                      "settle": 1.0},
        "policy_kwargs": {"pools": 3}},
    "lung3d-l2o": {  # on longer episodes, and from a coupled convex search, too
        "agent": "L2O", "env": "RegKeypoint3D-v0", "steps": 14_400, "init": stage("lung3d-l2o-fourth"),
        "env_kwargs": {**LUNGS, "size": 64, "source": {"name": "lungs", "patients": 48}, "max_episode_steps": 12},
        "algorithm": {"accumulate": 2, "gradient_checkpointing": False, "learning_rate": 2e-4, "halvings": 4,
                      "settle": 1.0},
        "policy_kwargs": {"pools": 3}},
    "lung3d-oneshot": {  # what lung3d-l2o is compared with: learns without key-points
        "agent": "SPAC", "env": "RegDense3D-v0", "steps": 6_000,
        "env_kwargs": {"size": 48, "spacing": 5.0, "source": {"name": "lungs"}, "max_episode_steps": 1},
        "policy_kwargs": {"widths": [16, 32, 32]},
        "algorithm": {"rl": False, "lanes": 2, "batch_size": 2, "buffer_size": 400,
                      "learning_starts": 20}},
    "organ2d": organs("RegSDM2D-v0", 2, 600_000),
    "organ3d-straight": organs("RegSDM3D-v0", [2, 3, 3], 300_000, poses_per_image=8),
    "organ3d": {**organs("RegSDM3D-v0", [2, 3, 3], 150_000, turn=7.0, poses_per_image=8, learning_rate=5e-4,
                         sampler_kwargs={"wander": 0.8, "stray": 1.0}),
                "policy_kwargs": {"features_extractor_kwargs": {"shrink": [2, 3, 3]}, "best_odds": [0.6, 0.3, 0.1]},
                "init": stage("organ3d-straight")},
}
