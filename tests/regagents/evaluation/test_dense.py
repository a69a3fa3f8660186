"""Displacements of a chunk's pairs by classical methods, and what is measured of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import regenv  # noqa: F401  registers the ids
from regagents.classical.convexadam import AdamInstance
from regagents.classical.deformable import Demons
from regagents.evaluation.dense import MEASURES, STANDARD, field_measures, placed, searched, solved
from regenv.core import RegistrationCore
from regenv.data.io.resampling import framed
from regenv.ops import overlap
from regenv.registry import build
from regenv.state import EpisodeState

QUICK = Demons(smoothing=1.0, iterations=5)


def begun(lanes: int, env_id: str = "RegSDM2D-v0", **arguments: object) -> tuple[RegistrationCore, EpisodeState]:
    core = RegistrationCore(build(env_id, **arguments))
    return core, core.reset([np.random.default_rng(seed) for seed in range(lanes)])


def moved_grid(state: EpisodeState, voxels: int) -> EpisodeState:
    """The same pairs, whose moving images lie on a grid that begins some voxels earlier along the first axis."""
    pair = state.pair
    shift = torch.eye(3, dtype=torch.float64).repeat(pair.lanes, 1, 1)
    shift[:, 0, 2] = voxels
    assert pair.moving_labels is not None
    moving, labels = (torch.nn.functional.pad(image, (0, 0, voxels, 0)) for image in (pair.moving, pair.moving_labels))
    return replace(state, pair=replace(pair, moving=moving, moving_labels=labels,
                                       world_to_moving=shift @ pair.world_to_moving), views={}, moments=None)


def test_classical_methods_run_over_all_lanes() -> None:
    core, state = begun(2)
    grid = core.task.grid
    fields = searched(QUICK, state, grid)
    alone = QUICK.register(framed(state.pair.fixed[1, 0], grid), framed(state.pair.moving[1, 0], grid))
    assert fields.shape == (2, 2, 100, 100) and np.array_equal(fields[1].numpy(), alone)


def test_an_optimiser_is_given_the_organs_where_it_is_masked() -> None:
    _, state = begun(2)
    optimiser = AdamInstance(iterations=3)
    pair = state.pair
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    masked = optimiser.solve(pair.fixed, pair.moving, pair.fixed_labels > 0, pair.moving_labels > 0)
    torch.testing.assert_close(solved(optimiser, state, masked=True), masked)
    torch.testing.assert_close(solved(optimiser, state), optimiser.solve(pair.fixed, pair.moving))
    with pytest.raises(ValueError, match="masks, and the pairs have no labels"):
        solved(optimiser, replace(state, pair=replace(pair, fixed_labels=None)), masked=True)


def test_no_displacement_measures_the_start_and_a_lost_organ_scores_nothing() -> None:
    core, state = begun(3)
    grid = core.task.grid
    names = (*STANDARD, "hausdorff_mm")
    still = field_measures(state, None, grid, names)
    np.testing.assert_allclose(still["dice"], core.info(core.begin(state.pair, torch.zeros_like(state.pose)))["dice"])
    assert still["folding"] == still["sd_log_jacobian"] == [0] * 3
    away = field_measures(state, torch.full((3, 2, 100, 100), 300.0), grid, names)
    assert away["dice"] == [0] * 3
    np.testing.assert_allclose([away["hausdorff_mm"], away["hd95_mm"]], np.hypot(*grid.extent))


def test_surfaces_and_errors_are_those_of_the_operators() -> None:
    core, state = begun(2, "RegKeypoint2D-v0", size=32)
    field = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 4
    found, ended = field_measures(state, field, core.task.grid), core.begin(state.pair, field)
    assert list(found) == list(STANDARD)
    np.testing.assert_allclose(found["tre_mm"], ended.tre)
    np.testing.assert_allclose(found["dice"], core.info(ended)["dice"], rtol=1e-6)
    assert ended.labels is not None and state.pair.fixed_labels is not None
    apart = overlap.hd95(state.pair.fixed_labels, ended.labels, state.pair.classes, core.task.grid.spacing)
    np.testing.assert_allclose(found["hd95_mm"], apart.mean(1))


def test_measures_that_a_source_does_not_allow_are_left_out_and_undefined_ones_are_none() -> None:
    digits, drawn = begun(2, "RegDenseDigits-v0")
    assert "tre_mm" not in field_measures(drawn, None, digits.task.grid)  # they have no landmarks
    core, state = begun(2)
    bare = replace(state, pair=replace(state.pair, fixed_labels=None, moving_labels=None, landmarks=None, targets=None))
    assert list(field_measures(bare, None, core.task.grid, tuple(MEASURES))) == ["folding", "sd_log_jacobian", "ndv"]
    assert state.pair.moving_labels is not None
    labels = state.pair.moving_labels.clone()
    labels[1] = 0
    found = field_measures(replace(state, pair=replace(state.pair, moving_labels=labels)), None, core.task.grid)
    assert found["dice"][0] is not None and found["dice"][1] is found["hd95_mm"][1] is None
    empty = replace(state, pair=replace(state.pair, fixed_labels=0 * labels, moving_labels=labels))
    assert field_measures(empty, None, core.task.grid)["dice"] == [None, None]


def test_a_class_that_another_pair_has_does_not_count() -> None:
    core, state = begun(2)
    pair = state.pair
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    fixed, moving = pair.fixed_labels.clone(), pair.moving_labels.clone()
    fixed[1, :, :9], moving[1, :, :9] = 2, 2
    together = field_measures(replace(state, pair=replace(pair, fixed_labels=fixed, moving_labels=moving)), None,
                              core.task.grid)
    assert together["hd95_mm"][0] == field_measures(state, None, core.task.grid)["hd95_mm"][0]


def test_moving_images_of_another_grid_are_brought_onto_the_fixed_one() -> None:
    core, state = begun(2)
    other = moved_grid(state, 7)
    assert placed(state, state.pair.moving) is state.pair.moving
    torch.testing.assert_close(placed(other, other.pair.moving), state.pair.moving)
    assert field_measures(other, None, core.task.grid) == field_measures(state, None, core.task.grid)
    np.testing.assert_allclose(searched(QUICK, other, core.task.grid), searched(QUICK, state, core.task.grid),
                               atol=1e-3)
