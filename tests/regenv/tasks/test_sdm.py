"""RegSDM: the organ pairs, their known deformations, and the environment's transition, against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from torch import Tensor

import regenv
from regenv.core import RegistrationCore
from regenv.data.banks import ground_truth
from regenv.data.banks.ground_truth import CONTROL_VOXELS, MODELS, GroundTruth, pairs_path, register
from regenv.data.banks.pelvises import ORGAN, population
from regenv.data.sources.organs import OrganPairs, composition_error, turned
from regenv.ops import bspline, overlap
from regenv.ops.sampling import identity
from regenv.ops.warp import compose, warp_dense, warp_through
from regenv.placement import accepted
from regenv.registry import build
from regenv.transforms.deformation_model import ModelError

EXACT = 1e-6       # mm
SMOOTH = 0.02      # of the intensity range, between a warp of a warp and one warp
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def generators(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(first + i) for i in range(count)]


def core_of(ndim: int, **arguments: Any) -> RegistrationCore:
    return RegistrationCore(build(f"RegSDM{ndim}D-v0", **arguments), privileged=True)


# --- ground truth ---------------------------------------------------------------------------------------------------

@NDIM
def test_the_shipped_model_keeps_the_organs_of_training(ndim: int) -> None:
    """Dice of the organ between a known deformation and its projection on the modes: loss below 5 % (section 3)."""
    people, truth = population(ndim), ground_truth.shipped(ndim)
    assert truth.model.count == {2: 15, 3: 25}[ndim] and len(truth.pairs) == 33 * 32
    rows = np.random.default_rng(0).choice(len(truth.pairs), 12 if ndim == 2 else 4, replace=False)
    pairs = truth.pairs[rows].numpy()
    found = register(people, pairs, bspline.control_shape(people.grid.shape, CONTROL_VOXELS[ndim]))
    organs = (people.labels == ORGAN).to(torch.int16)
    matrix = torch.eye(ndim + 1, dtype=torch.float64).expand(len(rows), -1, -1)

    def score(field: Tensor) -> float:
        warped = warp_through(organs[pairs[:, 1]], matrix, field, people.grid.shape, "nearest")
        return overlap.dice(organs[pairs[:, 0]], warped, [ORGAN]).mean().item()

    full = bspline.displacement(found, people.grid.shape)
    kept = truth.model.displacement(truth.model.project(full))
    assert score(full) > {2: 0.95, 3: 0.9}[ndim]
    assert score(full) - score(kept) < 0.05
    assert score(kept) > score(torch.zeros_like(full)) + 0.1


@NDIM
def test_no_amplitude_is_no_deformation(ndim: int) -> None:
    model = ground_truth.shipped(ndim).model
    assert model.displacement(torch.zeros(1, model.count)).abs().max() < EXACT


def test_ground_truth_files_come_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    truth = ground_truth.shipped(2)
    truth.save(tmp_path / "m.safetensors")
    again = GroundTruth.load(tmp_path / "m.safetensors")
    assert torch.equal(again.amplitudes, truth.amplitudes) and torch.equal(again.pairs, truth.pairs)
    beside = pairs_path(tmp_path / "m.safetensors")
    beside.write_bytes(beside.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"m-pairs.safetensors: it cannot be read"):
        GroundTruth.load(tmp_path / "m.safetensors")
    beside.unlink()
    with pytest.raises(ModelError, match=r"m-pairs.safetensors: no such file"):
        GroundTruth.load(tmp_path / "m.safetensors")
    assert (MODELS / "organ2d.json").is_file()


# --- pairs ----------------------------------------------------------------------------------------------------------

@NDIM
@pytest.mark.parametrize(("composition", "turn"), [("opposite", 0.0), ("dense", 0.0), ("dense", 8.0)])
def test_the_known_deformation_aligns_a_subject_with_itself(ndim: int, composition: str, turn: float) -> None:
    """Small deformations of one subject: moving, seen through the target, is the fixed image (no warp is exact)."""
    source = OrganPairs(ndim, intra=1.0, spread=0.1, composition=composition, turn=turn)
    core = core_of(ndim, source=source, fuzzy=False)
    state = core.reset(generators(4))
    pair = state.pair
    assert pair.known.all() and pair.target_pose is not None
    at = core.begin(pair, pair.target_pose)
    assert at.distance.abs().max() < EXACT
    inner = (slice(None), slice(None), *(slice(n // 8, n - n // 8) for n in pair.fixed.shape[2:]))
    before, after = ((each - pair.fixed)[inner].abs().mean() for each in (pair.moving, at.warped))
    assert after < 0.5 * before and after < SMOOTH


@NDIM
def test_synthetic_pairs_of_two_subjects_align_their_organs(ndim: int) -> None:
    source = OrganPairs(ndim, intra=0.0, spread=0.3, composition="dense")
    core = core_of(ndim, source=source)
    state = core.reset(generators(6 if ndim == 2 else 3))
    start = overlap.mean_dice(state.pair.fixed_labels, state.pair.moving_labels, state.pair.classes)
    ended = core.info(core.begin(state.pair, state.pair.target_pose))["dice"]
    assert ended.mean() > start.mean() + 0.05 and ended.mean() > 0.85


@NDIM
def test_turned_pairs_are_rotated_whole_and_their_deformation_with_them(ndim: int) -> None:
    """R(T'(x)) = T(R(x)); R, which is what nothing becomes, keeps distances in mm."""
    model, grid = ground_truth.shipped(ndim).model, population(ndim).grid
    field = model.displacement(0.2 * model.sample(generators(3)))
    turn, _, turned_field = turned(generators(3), 10.0, grid, torch.zeros_like(field), field, field)
    inner = (slice(None), slice(None), *(slice(n // 4, n - n // 4) for n in grid.shape))
    gap = (compose(turn, turned_field) - compose(field, turn))[inner]
    assert gap.abs().max() < 0.01 < turn.abs().max()
    points = (identity(grid.shape) + turn).double() * torch.tensor(grid.spacing[::-1]).view(-1, *(1,) * ndim)
    for axis, step in enumerate(grid.spacing[::-1]):
        edges = points.diff(dim=axis + 2).norm(dim=1)
        torch.testing.assert_close(edges, torch.full_like(edges, step), rtol=0, atol=1e-4)


def test_both_ways_of_composing_agree_for_small_deformations() -> None:
    """The opposite-parameter rule is first order: a third of the deformation, less than a third of the error."""
    mm, lost = composition_error(OrganPairs(2, spread=0.0), generators(12))
    assert mm.max() < EXACT and lost.max() == 0
    mm, lost = composition_error(OrganPairs(2, spread=0.3), generators(12))
    wide, _ = composition_error(OrganPairs(2, spread=0.9), generators(12))
    assert 0 < mm.mean() < wide.mean() / 3


@NDIM
def test_real_pairs_are_measured_by_organ_and_surface(ndim: int) -> None:
    source = OrganPairs(ndim, split="test")
    people = population(ndim)
    pair = source.real(np.array(people.test_pairs[:3]))
    state = core_of(ndim, source=source).begin(pair, torch.zeros(3, {2: 15, 3: 25}[ndim], dtype=torch.float64))
    info = core_of(ndim, source=source).info(state)
    organs = (people.labels == ORGAN).numpy()
    for lane, (fixed, moving) in enumerate(people.test_pairs[:3]):
        both = (organs[fixed] & organs[moving]).sum()
        assert info["dice"][lane] == pytest.approx(2 * both / (organs[fixed].sum() + organs[moving].sum()), abs=1e-6)
    assert info["distance"].isnan().all() and (info["tre"] > 1).all()


def test_splits_share_no_subject() -> None:
    assert not set(OrganPairs(2).subjects()) & set(OrganPairs(2, split="test").subjects())
    drawn = OrganPairs(2, split="test").draw(generators(5), population(2).grid, torch.device("cpu"))
    held = population(2).images[list(population(2).test)]
    assert all((held == image).flatten(1).all(1).any() for image in torch.cat([drawn.fixed, drawn.moving]))


@pytest.mark.parametrize(("arguments", "words"), [
    ({"split": "validation"}, "split is 'validation'"), ({"kind": "imagined"}, "kind is 'imagined'"),
    ({"intra": 2.0}, "intra is 2.0"), ({"split": "test", "kind": "synthetic"}, "use kind='real'"),
    ({"composition": "none"}, "composition is 'none'"), ({"turn": 5.0}, "turn is 5.0 with composition 'opposite'")])
def test_wrong_sources_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("RegSDM2D-v0", source={"name": "organs", **arguments})


# --- transition -----------------------------------------------------------------------------------------------------

@NDIM
def test_actions_change_one_mode_and_the_reward_is_equation_1(ndim: int) -> None:
    core = core_of(ndim, fuzzy=False)
    state = core.reset(generators(2))
    target = state.pair.target_pose
    units = torch.tensor(core.task.actions.units)
    for action in (0, 1, 7):
        after, reward, *_ = core.step(state, torch.full((2,), action))
        moved = torch.zeros_like(state.pose)
        moved[:, action // 2] = units[action // 2] * (1 if action % 2 == 0 else -1)
        torch.testing.assert_close(after.pose, state.pose + moved)
        expected = (target - state.pose).norm(dim=1) - (target - after.pose).norm(dim=1)
        torch.testing.assert_close(reward, expected)
        torch.testing.assert_close(core.info(state)["q_star"][:, action], expected)
        once = warp_dense(state.pair.moving, core.task.transform.displacement(after.pose))
        torch.testing.assert_close(after.warped, once, rtol=0, atol=1e-4)
        state = after


def test_masked_actions_have_no_effect_and_the_others_their_own() -> None:
    """What info shows before a step is what the step does, for every action, far outside the usual amplitudes."""
    core = core_of(2)
    state = core.reset(generators(64))
    sigma = torch.tensor(core.task.guard.deviations, dtype=torch.float64)
    far = core.begin(state.pair, 2.0 * sigma * torch.ones_like(state.pose), guard_seed=torch.arange(64))
    mask = core.info(far)["action_mask"]
    assert mask.shape == (64, 30) and mask[:, 1::2].float().mean() > mask[:, 0::2].float().mean() + 0.1
    assert not mask.all() and mask.any()
    for action in (0, 1, 28):
        after = core.step(far, torch.full((64,), action))[0]
        changed = (after.pose != far.pose).any(1)
        assert torch.equal(changed, mask[:, action])


def test_fuzzy_control_keeps_random_walks_inside() -> None:
    """2,000 random steps: share of amplitudes within k standard deviations, with and without."""
    inside = {}
    for fuzzy in (True, False):
        core = core_of(2, fuzzy=fuzzy, increment=0.5)
        state = core.reset(generators(8))
        sigma = torch.tensor(core.task.transform.model.deviations.tolist(), dtype=torch.float64)
        rng, kept = np.random.default_rng(3), []
        for step in range(2000):
            delta = core.task.actions.delta(torch.from_numpy(rng.integers(0, 30, 8)), core.deltas)
            if fuzzy:
                delta = delta * accepted(core.task, state, state.pose, delta[:, None])[:, 0]
            state = type(state)(**{**state.__dict__, "pose": state.pose + delta, "steps": state.steps + 1})
            if step % 10 == 0:
                kept.append((state.pose.abs() <= 1.5 * sigma).double().mean())
        inside[fuzzy] = float(torch.stack(kept).mean())
    assert (1 - inside[True]) < 0.6 * (1 - inside[False]), inside


def test_continuous_actions_are_guarded_part_by_part() -> None:
    core = RegistrationCore(build("RegSDM2DContinuous-v0"))
    state = core.reset(generators(16))
    sigma = torch.tensor(core.task.guard.deviations, dtype=torch.float64)
    pose = torch.zeros_like(state.pose)
    pose[:, 3] = 4 * sigma[3]
    state = core.begin(state.pair, pose, guard_seed=torch.arange(16))
    after = core.step(state, torch.ones(16, 15))[0]
    assert (after.pose[:, 3] == pose[:, 3]).all()
    assert (after.pose[:, [0, 1, 2]] > 0).all()


def test_maskable_ppo_sees_the_mask() -> None:
    env = gym.make("RegSDM2D-v0")
    assert is_masking_supported(env)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(get_action_masks(env), info["action_mask"])
    model = MaskablePPO("CnnPolicy", "RegSDM2D-v0", n_steps=32, batch_size=16, n_epochs=1, device="cpu").learn(32)
    assert model.num_timesteps == 32


def test_training_may_start_on_the_way() -> None:
    core = core_of(2, wander=1.0)
    state = core.reset(generators(40))
    zero = core_of(2).reset(generators(40))
    assert (zero.pose == 0).all() and (state.pose != 0).any(1).all()
    assert state.distance.mean() < zero.distance.mean()
    straight, stray = (core_of(2, wander=1.0, stray=each).reset(generators(40)) for each in (0.0, 2.0))
    along = straight.pose / straight.pair.target_pose  # one share of the way for all modes of a lane
    torch.testing.assert_close(along, along[:, :1].expand_as(along))
    assert stray.distance.mean() > state.distance.mean()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        build("RegSDM2D-v0", model=str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match="is 3D; this environment needs a 2D one"):
        build("RegSDM2D-v0", model=str(MODELS / "organ3d.safetensors"))
    with pytest.raises(ValueError, match="increment is 0"):
        build("RegSDM2D-v0", increment=0)
    with pytest.raises(ValueError, match="wander is 2"):
        build("RegSDM2D-v0", wander=2)
    with pytest.raises(ValueError, match="stray -1"):
        build("RegSDM2D-v0", stray=-1)
    with pytest.raises(ValueError, match=r"the grid has \(36, 36\)"):
        OrganPairs(2).draw(generators(1), regenv.Grid.centered((36, 36), 1.0), torch.device("cpu"))
