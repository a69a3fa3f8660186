"""Classical deformable rows on deformations that are known, and what is measured of a registration."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import regenv  # noqa: F401  registers the ids
from regagents.classical.common import to_sitk
from regagents.classical.convexadam import ConvexAdam
from regagents.classical.deformable import Demons, FreeForm, displacement_of
from regagents.classical.syn import SyN
from regagents.dsl import DSL
from regagents.evaluation.dense import Metrics, deform, searched
from regenv.core import RegistrationCore
from regenv.grid import Grid
from regenv.ops.warp import warp_dense
from regenv.registry import build
from regenv.state import EpisodeState

SHAPES = pytest.mark.parametrize("shape", [(64, 72), (24, 40, 36)])
SYN = pytest.param(SyN(), marks=pytest.mark.skipif(not SyN.available(), reason="antspyx is not installed"), id="syn")
METHODS = [pytest.param(FreeForm(8.0), id="ffd"), pytest.param(Demons(smoothing=1.0), id="demons"), SYN]
SEARCHES = pytest.mark.parametrize("search", METHODS)
EVERY_SEARCH = pytest.mark.parametrize("search", [*METHODS, pytest.param(ConvexAdam(), id="convex-adam")])


def bump(shape: tuple[int, ...], size: float) -> torch.Tensor:
    """A smooth displacement (1, D, *shape) of ``size`` voxels in the middle, along every axis."""
    axes = torch.meshgrid(*(torch.linspace(-2, 2, n) for n in shape), indexing="ij")
    hill = torch.exp(-sum(a.square() for a in axes))  # type: ignore[arg-type]
    return size * hill.expand(1, len(shape), *shape)


def blobs(shape: tuple[int, ...]) -> torch.Tensor:
    """A smooth image (1, 1, *shape) with structure everywhere, in [0, 1]."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.rand(1, 1, *(n // 5 for n in shape), generator=generator)
    return torch.nn.functional.interpolate(noise, shape, mode="bilinear" if len(shape) == 2 else "trilinear")


@SHAPES
@SEARCHES
def test_a_known_deformation_is_found(shape: tuple[int, ...], search: Any) -> None:
    moving, field = blobs(shape), bump(shape, 2.0)
    fixed = warp_dense(moving, field, "border")
    grid = Grid.centered(shape, (1.5, 1.0, 2.0)[:len(shape)])
    found = torch.from_numpy(search.register(to_sitk(fixed[0, 0], grid), to_sitk(moving[0, 0], grid)))[None]
    inner = (..., *(slice(6, n - 6) for n in shape))
    assert (found - field)[inner].norm(dim=1).mean() < 0.3 * field[inner].norm(dim=1).mean()
    after = (warp_dense(moving, found, "border") - fixed)[inner].abs().mean()
    assert after < 0.3 * (moving - fixed)[inner].abs().mean()


@EVERY_SEARCH
def test_voxels_that_are_no_numbers_are_named(search: Any) -> None:
    image = torch.rand(24, 24)
    broken = image.clone()
    broken[3, 4] = torch.nan
    grid = Grid.centered((24, 24), 1.0)
    with pytest.raises(ValueError, match=r"1 voxels of an image of size \(24, 24\) are NaN"):
        search.register(to_sitk(image, grid), to_sitk(broken, grid))


@EVERY_SEARCH
def test_a_flat_image_stays_where_it_is(search: Any) -> None:
    grid = Grid.centered((32, 32), 1.0)
    flat = to_sitk(torch.zeros(32, 32), grid)
    assert np.abs(search.register(flat, flat)).max() == 0


def test_a_transforms_displacement_is_in_voxels_of_its_grid() -> None:
    grid = Grid.centered((5, 6, 7), (1.0, 2.0, 4.0))
    field = displacement_of(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), grid)
    np.testing.assert_allclose(field, np.broadcast_to(np.array([0.75, 1.0, 1.0])[:, None, None, None], field.shape))


def begun(lanes: int) -> tuple[RegistrationCore, EpisodeState]:
    core = RegistrationCore(build("RegSDM2D-v0"))
    return core, core.reset([np.random.default_rng(seed) for seed in range(lanes)])


def test_searches_run_over_all_lanes() -> None:
    core, state = begun(2)
    grid = core.task.grid
    fields = searched(Demons(smoothing=1.0, iterations=5), state, grid)
    alone = Demons(smoothing=1.0, iterations=5).register(to_sitk(state.pair.fixed[1, 0], grid),
                                                         to_sitk(state.pair.moving[1, 0], grid))
    assert fields.shape == (2, 2, 100, 100) and np.array_equal(fields[1].numpy(), alone)


def test_measures_of_nothing_are_the_starts_and_a_lost_organ_scores_nothing() -> None:
    core, state = begun(3)
    grid = core.task.grid
    still = Metrics.of(state, None, grid)
    np.testing.assert_allclose(still.dice, core.info(core.begin(state.pair, torch.zeros_like(state.pose)))["dice"])
    assert (still.folding == 0).all() and (still.sd_log_jacobian == 0).all()
    away = Metrics.of(state, torch.full((3, 2, 100, 100), 300.0), grid)
    assert (away.dice == 0).all()
    np.testing.assert_allclose(away.hausdorff, np.hypot(*grid.extent))


def test_an_agent_plays_all_lanes_and_takes_no_rejected_action() -> None:
    env = gym.make("RegSDM2D-v0")
    agent = DSL("DualStreamPolicy", env, policy_kwargs={"features_extractor_kwargs": {"shrink": 4}}, seed=0)
    core, state = begun(3)
    torch.manual_seed(0)
    ended = deform(agent, core, state, steps=7)
    assert (ended.steps == 7).all()
    assert (ended.pose != state.pose).any(1).all()
    assert Metrics.of(ended, ended.displacement, core.task.grid).dice.shape == (3,)
