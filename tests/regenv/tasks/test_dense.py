"""What is true of the dense family: composed displacements, pseudo-label rewards, control grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC

import regenv  # noqa: F401
from regenv.core import RegistrationCore
from regenv.data.catalogue import source_named
from regenv.data.sources.clustered import Clustered
from regenv.data.sources.deformed import Deformed
from regenv.grid import Grid
from regenv.ops import bspline, overlap
from regenv.ops.kmeans import kmeans
from regenv.ops.warp import compose, warp_dense
from regenv.registry import build

SHAPES = {2: (40, 36), 3: (18, 16, 14)}
EXACT = 1e-5
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def core_of(ndim: int, **arguments: Any) -> RegistrationCore:
    return RegistrationCore(build(f"RegDense{ndim}D-v0", **{"size": SHAPES[ndim], "spacing": 6.0, **arguments}))


def smooth(ndim: int, lanes: int, amplitude: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coefficients = (torch.rand(lanes, ndim, *(6,) * ndim, generator=generator) * 2 - 1) * amplitude
    return bspline.displacement(coefficients, SHAPES[ndim])


# --- the transition -------------------------------------------------------------------------------------------------

@NDIM
def test_composition_is_two_explicit_warps(ndim: int) -> None:
    """The original warped once by what has accumulated is the seen image warped by the action, to 1 % of its spread."""
    axes = torch.meshgrid(*(torch.linspace(0, 2.5, n) for n in SHAPES[ndim]), indexing="ij")
    image = sum(torch.sin(a + i) for i, a in enumerate(axes))[None, None].expand(2, -1, *SHAPES[ndim])
    first, second = smooth(ndim, 2, 1.5), smooth(ndim, 2, 1.5, seed=1)
    twice = warp_dense(warp_dense(image, first, "border"), second, "border")
    once = warp_dense(image, compose(first, second), "border")
    inner = (slice(None), slice(None), *(slice(4, -4),) * ndim)
    assert (once - twice)[inner].abs().mean() < 0.01 * image.std()
    wrong = warp_dense(image, first + warp_dense(second, first, "border"), "border")  # the paper's eq. 3 as printed
    assert (wrong - twice)[inner].abs().mean() > 1.5 * (once - twice)[inner].abs().mean()


@NDIM
def test_steps_accumulate_and_warp_the_original_once(ndim: int) -> None:
    core = core_of(ndim)
    state = core.reset(generators(2))
    total = torch.zeros(2, ndim, *SHAPES[ndim])
    for step in range(3):
        action = smooth(ndim, 2, 2.0, seed=step)
        total = compose(total, action.clamp(-3, 3))
        state, _, terminated, truncated = core.step(state, action)
        torch.testing.assert_close(state.displacement, total)
        torch.testing.assert_close(state.warped, warp_dense(state.pair.moving, total), rtol=0, atol=1e-5)
        assert not terminated.any() and not truncated.any()


@NDIM
def test_actions_are_clipped_to_the_bound(ndim: int) -> None:
    core = core_of(ndim, max_displacement=0.5)
    state = core.step(core.reset(generators(1)), torch.full((1, ndim, *SHAPES[ndim]), 9.0))[0]
    assert state.displacement.amax() == 0.5


@NDIM
def test_a_control_grid_is_a_b_spline(ndim: int) -> None:
    control = (5, 6, 4)[:ndim]
    core = core_of(ndim, control_grid=control, max_displacement=2.0)
    assert core.task.actions.space() == gym.spaces.Box(-1, 1, (ndim, *control), np.float32)
    action = torch.rand(2, ndim, *control) * 2 - 1
    state = core.step(core.reset(generators(2)), action)[0]
    torch.testing.assert_close(state.displacement, bspline.displacement(2 * action, SHAPES[ndim]))
    with pytest.raises(ValueError, match=r"control_grid is \(3, 3"):
        core_of(ndim, control_grid=(3,) * ndim)


# --- rewards --------------------------------------------------------------------------------------------------------

@NDIM
def test_the_reward_is_the_gain_of_the_clusters_dice(ndim: int) -> None:
    core = core_of(ndim, reward_scale=100.0)
    state = core.reset(generators(2))
    pair = state.pair
    after, reward, *_ = core.step(state, smooth(ndim, 2, 2.0))
    for lane in range(2):
        scores = []
        for image in (state, after):
            warped = image.resample(pair.moving_clusters, "nearest")[lane:lane + 1]
            scores.append(overlap.dice(pair.fixed_clusters[lane:lane + 1], warped, [1, 2, 3]).nanmean().item())
        assert reward[lane].item() == pytest.approx(100 * (scores[1] - scores[0]), abs=1e-3)
    still = core.step(state, torch.zeros(2, ndim, *SHAPES[ndim]))[1]
    assert (still == 0).all()


def test_clusters_come_from_the_images_alone() -> None:
    pair = Clustered(source_named("deformed", 2)).draw(generators(2), Grid.centered((30, 30), 6.0), torch.device("cpu"))
    assert torch.equal(pair.fixed_clusters, kmeans(pair.fixed)[0])
    assert torch.equal(pair.moving_clusters, kmeans(pair.moving)[0])


def test_a_bonus_ends_the_episode_on_arrival() -> None:
    class Same(Deformed):
        def draw(self, rngs: Any, grid: Grid, device: torch.device, difficulty: float = 1.0) -> Any:
            pair = super().draw(rngs, grid, device, difficulty)
            return replace(pair, moving=pair.fixed)

    core = core_of(2, source=Same(source_named("phantoms", 2)), terminal_bonus=10.0)
    state = core.reset(generators(1))
    _, reward, terminated, _ = core.step(state, torch.zeros(1, 2, *SHAPES[2]))
    assert terminated.all() and reward.item() == pytest.approx(10.0, abs=0.05)


@NDIM
def test_the_known_deformation_undoes_the_source(ndim: int) -> None:
    """Deformed: landmarks' targets follow from the deformation itself; its inverse brings the error down."""
    grid = Grid.centered(SHAPES[ndim], 6.0)
    source = Deformed(source_named("phantoms", ndim), amplitude=10.0)
    core = core_of(ndim, source=source, reward="lncc", max_displacement=30.0)
    state = core.reset(generators(2))
    pair = state.pair
    plain = Deformed(source_named("phantoms", ndim), amplitude=0.0).draw(generators(2), grid, torch.device("cpu"))
    points = torch.from_numpy(np.stack([grid.to_voxel(p) for p in pair.targets.numpy()])).float()
    start = torch.from_numpy(np.stack([grid.to_voxel(p) for p in pair.landmarks.numpy()])).float()
    assert (points - start).abs().max() > 0.3
    from regenv.ops.warp import sample
    view = (2, *(1,) * (ndim - 1), -1, ndim)
    here = sample(plain.moving, start.view(view))
    there = sample(pair.moving, points.view(view))
    assert (here - there).abs().mean() < 0.3 * (here - sample(pair.moving, start.view(view))).abs().mean() + 0.01


# --- surfaces -------------------------------------------------------------------------------------------------------

@NDIM
def test_everything_is_a_dict(ndim: int) -> None:
    arguments = {"size": SHAPES[ndim], "spacing": 6.0, "observation": "dict", "obs_dtype": "float32"}
    env = gym.make(f"RegDense{ndim}D-v0", **arguments)
    observation, _ = env.reset(seed=3)
    assert set(observation) == {"fixed", "moving", "warped", "displacement"}
    assert env.observation_space.contains(observation)
    batch = gym.make_vec(f"RegDense{ndim}D-v0", num_envs=2, output="numpy", **arguments)
    lanes, _ = batch.reset(seed=3)
    for key, value in observation.items():
        np.testing.assert_array_equal(lanes[key][0], value)


def test_off_the_shelf_agents_take_the_control_grid() -> None:
    arguments = {"size": 36, "spacing": 6.0, "control_grid": (4, 4), "max_episode_steps": 5}
    PPO("CnnPolicy", gym.make("RegDense2D-v0", **arguments), n_steps=16, batch_size=8, n_epochs=1).learn(16)
    SAC("CnnPolicy", gym.make("RegDense2D-v0", **arguments), buffer_size=50, learning_starts=8, device="cpu").learn(12)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"max_displacement": 0.0}, "max_displacement is 0.0"), ({"reward": "praise"}, "reward is 'praise'"),
    ({"clusters": 1}, "clusters is 1"), ({"observation": "smell"}, "observation is 'smell'"),
    ({"source": {"name": "deformed", "amplitude": -1.0}}, "amplitude is -1.0")])
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("RegDense2D-v0", **arguments)


@pytest.mark.parametrize("arguments", [{}, {"control_grid": (4, 4)}], ids=["field", "control-grid"])
def test_an_action_that_is_not_a_number_is_named(arguments: dict[str, Any]) -> None:
    batch = gym.make_vec("RegDense2D-v0", num_envs=3, size=16, spacing=12.0, **arguments)
    batch.reset(seed=0)
    actions = np.zeros(batch.action_space.shape, dtype=np.float32)  # type: ignore[arg-type]
    actions[1, 0, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"step: actions of lanes \[1\] are NaN"):
        batch.step(actions)
