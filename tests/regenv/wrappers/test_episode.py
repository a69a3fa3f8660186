"""Episodes as pages: what they hold is what the environment said, for every kind of id."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from regenv.ops.warp import warp_dense
from regenv.wrappers.episode import RecordEpisode

KINDS = {"RegRigid2D-v0": {"size": 32}, "RegRigid3D-v0": {"size": 16},
         "RegDense2D-v0": {"size": 32, "source": "deformed"},
         "RegKeypoint3D-v0": {"size": 16}, "RegSDM2D-v0": {}}


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def played(env: gym.Env[Any, Any], steps: int) -> list[tuple[float, dict[str, Any]]]:
    _, info = env.reset(seed=4)
    env.action_space.seed(4)
    told = [(0.0, info)]
    for _ in range(steps):
        _, reward, _, _, info = env.step(env.action_space.sample())
        told.append((float(reward), info))
    return told


@pytest.mark.parametrize("name", KINDS)
def test_a_page_holds_every_step(name: str, tmp_path: Path) -> None:
    env = RecordEpisode(gym.make(name, max_episode_steps=3, **KINDS[name]), tmp_path)
    told = played(env, 3)
    state = env.unwrapped.state
    env.close()
    page, = tmp_path.iterdir()
    assert page.name == "episode-0.html" and page.stat().st_size < 10_000_000
    data = data_of(page.read_text())
    steps = data["film"]["steps"]
    assert data["opens"] == "path" and [step["step"] for step in steps] == [0, 1, 2, 3]
    for step, (reward, info) in zip(steps[1:], told[1:], strict=True):
        assert step["numbers"]["reward"] == pytest.approx(reward) and step["action"]
        if "tre" in info and np.isfinite(info["tre"]):
            assert step["numbers"]["TRE, mm"] == pytest.approx(info["tre"])
    assert steps[-1]["numbers"]["return"] == pytest.approx(sum(reward for reward, _ in told))
    assert (steps[-1]["displacement"] is None) == (state.displacement is None)


def test_the_displacement_of_a_step_is_the_environments(tmp_path: Path) -> None:
    """Warped by what the page holds, the moving image is what the environment shows."""
    env = RecordEpisode(gym.make("RegSDM2D-v0", max_episode_steps=50), None)
    played(env, 2)
    state, grid = env.unwrapped.state, env.unwrapped.core.task.grid
    told = env.page().film.steps[-1].data()["displacement"]["vectors"]
    height, width = told["shape"][1:]
    vectors = np.frombuffer(gzip.decompress(base64.b64decode(told["voxels"])), "<i2").reshape(3, height, width)
    millimetres = vectors[:2] * told["largest"] / 32767
    assert state.displacement is not None
    voxels = state.displacement[0].numpy()
    scale = np.array(grid.spacing)[:, None, None]
    coarse = (voxels[::-1] * scale)[:, ::max(1, voxels.shape[1] // height), ::max(1, voxels.shape[2] // width)]
    assert np.abs(millimetres).max() == pytest.approx(np.abs(coarse).max(), rel=0.15)
    assert np.corrcoef(millimetres.mean((1, 2)), coarse.mean((1, 2)))[0, 1] > 0.99
    assert warp_dense(state.pair.moving, state.displacement).shape == state.warped.shape


def test_episodes_are_chosen_numbered_and_written_when_they_end(tmp_path: Path) -> None:
    env = RecordEpisode(gym.make("RegRigid2D-v0", size=16, max_episode_steps=2), tmp_path / "new",
                        trigger=lambda number: number != 1, prefix="run")
    for _ in range(3):
        played(env, 2)
    env.reset(seed=0)
    env.step(0)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["run-0.html", "run-2.html"]
    env.close()
    assert (tmp_path / "new" / "run-3.html").is_file()


def test_thoughts_stand_at_the_step_before_the_action() -> None:
    env = RecordEpisode(gym.make("RegRigid2D-v0", size=16), None)
    env.reset(seed=0)
    env.note("Probability of each action", [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], taken=0, value=2.0)
    env.step(0)
    film = env.page().film.data()
    assert film["choices"] == "Probability of each action" and "value" in film["numbers"]
    assert film["steps"][0]["choices"][0] == {"name": "tx +1", "value": 0.5, "taken": True}
    assert film["steps"][1]["choices"] == []


def test_another_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="it must be one of regenv"):
        RecordEpisode(gym.make("CartPole-v1"), "nowhere")
