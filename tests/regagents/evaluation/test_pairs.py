"""Held-out pairs: what the environment itself gives for the same seeds, whatever is drawn together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import regenv  # noqa: F401  registers the ids
from regagents.evaluation import pairs as module
from regagents.evaluation.pairs import HELD_OUT, chunks, drawn, grid_of, task_of
from regenv.grid import Grid
from tests.regagents.toys import SHAPES, SPACINGS, image_pair

SEED = 11
ENV = "RegRigid2D-v0"
KWARGS: dict[str, Any] = {"size": 48, "spacing": 5.0, "ranges": [12, 12, 12],
                          "source": {"name": "phantoms", "patients": 2, "bank_spacing": 2.5}}
SAME_MM = 1e-6


@pytest.mark.parametrize(("env_id", "env_kwargs"), [(ENV, KWARGS), ("RegSDM2D-v0", {}), ("RegDenseDigits-v0", {}),
                                                    ("RegKeypoint2D-v0", {"size": 32})])
def test_pairs_and_starts_are_bit_for_bit_those_of_a_native_batch(env_id: str, env_kwargs: dict[str, Any]) -> None:
    env: Any = gym.make_vec(env_id, num_envs=2, **env_kwargs)
    env.reset(seed=SEED)
    theirs, mine = env.unwrapped.state, drawn(env_id, env_kwargs, 0, 2, SEED).state
    for one, other in ((mine, theirs), (mine.pair, theirs.pair)):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor) and name != "arrived":
                assert torch.equal(value.nan_to_num(), getattr(other, name).nan_to_num()), name


def test_pairs_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def starts() -> list[np.ndarray]:
        return [np.concatenate([case.fixed.array.ravel(), case.start.ravel()])
                for chunk in chunks(ENV, 3, SEED, KWARGS) for case in chunk.cases]

    whole = starts()
    monkeypatch.setattr(module, "CHUNK", 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, starts(), strict=True))


def test_a_case_measures_what_the_environment_measures() -> None:
    case = next(chunks(ENV, 1, SEED, KWARGS)).cases[0]
    linear, shift = case.start[:2, :2], case.start[:2, 2]
    assert case.error(case.start) == pytest.approx(
        np.linalg.norm(case.landmarks @ linear.T + shift - case.targets, axis=1).mean(), abs=SAME_MM)
    assert case.seed == SEED and case.fixed.array.shape == (48, 48)


@pytest.mark.parametrize("env_id", [ENV, "RegSDM2D-v0", "RegDenseDigits-v0", "RegKeypoint3D-v0"])
def test_only_the_time_limit_ends_an_episode(env_id: str) -> None:
    assert task_of(env_id, {}).endless


@pytest.mark.parametrize("ndim", [2, 3])
def test_grids_come_back_from_their_matrices(ndim: int) -> None:
    direction = np.linalg.qr(np.random.default_rng(ndim).normal(size=(ndim, ndim)))[0]
    grid = Grid.centered(SHAPES[ndim], SPACINGS[ndim], [7.0, 8.0, 9.0][:ndim], direction.ravel())
    assert np.allclose(grid_of(grid.voxel_to_world, grid.shape).voxel_to_world, grid.voxel_to_world, atol=1e-12)
    assert grid_of(grid.voxel_to_world, grid.shape).spacing == pytest.approx(grid.spacing)


def test_held_out_arguments_are_known_to_the_environment() -> None:
    for env_id, arguments in HELD_OUT.values():
        task_of(env_id, arguments)  # sources load nothing before the first pair is drawn


def test_unknown_truth_is_refused_where_a_pose_is_measured(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    source = {"name": "files", "pairs": [{"fixed": str(fixed), "moving": str(moving)}]}
    with pytest.raises(ValueError, match="unknown truth"):
        drawn(ENV, {**KWARGS, "source": source}, 0, 1, SEED)


def test_unknown_ids_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"env is 'RegNothing-v0'.*whole-head, spine"):
        task_of("RegNothing-v0", {})
    with pytest.raises(ValueError, match=r"RegSDM2D-v0 does not take these env_kwargs .*colour"):
        task_of("RegSDM2D-v0", {"colour": 1})
