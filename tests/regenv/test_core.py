"""What is true of the core: poses, images and errors agree, known and unknown truth, and nothing is shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.core import RegistrationCore, pose_of
from regenv.data.catalogue import source_named
from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.ops.affine import about, homogeneous, matmul, transform_points
from regenv.parts.distance import ParameterNorm
from regenv.registry import CATALOGUE, build
from regenv.transforms.deformation_model import DeformationModel
from tests.regenv.families import LINEAR, core_of, small

EXACT = 1e-9  # mm
BLOB_MM = 8.0


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + i) for i in range(count)]


def aligned(core: RegistrationCore, lanes: int) -> Tensor:
    """Poses (B, P) whose residual is the identity."""
    return core.task.transform.parameters(torch.eye(core.task.grid.ndim + 1, dtype=torch.float64).repeat(lanes, 1, 1))


def some_actions(core: RegistrationCore, lanes: int, rng: np.random.Generator) -> Tensor:
    space = core.task.actions.space()
    if hasattr(space, "n"):
        return torch.from_numpy(rng.integers(space.n, size=lanes))
    return torch.from_numpy(rng.uniform(-1, 1, (lanes, *space.shape)).astype(np.float32))


@dataclass(frozen=True)
class Unknown:
    """Pairs of another source whose truth nobody tells: identity, not known."""

    source: PairSource

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def draw(self, rngs: Any, grid: Grid, device: torch.device, difficulty: float = 1.0) -> PairBatch:
        pair = self.source.draw(rngs, grid, device, difficulty)
        return replace(pair, known=torch.zeros_like(pair.known),
                       truth=torch.eye(grid.ndim + 1, dtype=torch.float64).expand_as(pair.truth).clone())


@dataclass(frozen=True)
class Blob:
    """A round blob off the centre, the same in both images."""

    ndim: int
    offset_mm: tuple[float, ...]

    def draw(self, rngs: Any, grid: Grid, device: torch.device, difficulty: float = 1.0) -> PairBatch:
        lanes, n = len(rngs), grid.ndim
        ticks = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in grid.shape), indexing="ij")
        voxels = torch.stack(ticks, -1).reshape(1, -1, n)
        world = transform_points(torch.from_numpy(grid.voxel_to_world)[None], voxels).reshape(*grid.shape, n)
        squared = (world - torch.tensor(self.offset_mm, dtype=torch.float64)).square().sum(-1)
        image = torch.exp(-squared / (2 * BLOB_MM**2)).float().expand(lanes, 1, *grid.shape).clone()
        eye = torch.eye(n + 1, dtype=torch.float64).expand(lanes, n + 1, n + 1).clone()
        return PairBatch(fixed=image, moving=image.clone(),
                         fixed_to_world=torch.from_numpy(grid.voxel_to_world).expand_as(eye).clone(),
                         world_to_moving=torch.from_numpy(grid.world_to_voxel).expand_as(eye).clone(),
                         truth=eye, known=torch.ones(lanes, dtype=torch.bool),
                         center=torch.zeros(lanes, n, dtype=torch.float64),
                         landmarks=torch.tensor([[self.offset_mm]], dtype=torch.float64).expand(lanes, 1, n).clone())


def centroid(image: Tensor, grid: Grid) -> np.ndarray:
    """Centre of mass of (1, *shape), world mm."""
    values = image[0].double().numpy()
    voxels = np.stack(np.meshgrid(*(np.arange(s) for s in grid.shape), indexing="ij"), -1)
    mean = (voxels * values[..., None]).reshape(-1, grid.ndim).sum(0) / values.sum()
    return np.asarray(grid.to_world(mean[None]))[0]


@pytest.mark.parametrize("name", LINEAR)
def test_error_is_zero_at_the_truth_and_only_there(name: str) -> None:
    core = core_of(name)
    pair = core.reset(generators(3)).pair
    at = core.begin(pair, aligned(core, 3))
    assert float(at.tre.max()) <= EXACT
    assert float(at.distance.max()) <= EXACT
    assert at.arrived.all()
    torch.testing.assert_close(at.pull_back, pair.truth, rtol=0, atol=EXACT)
    away = core.reset(generators(3))
    assert (away.tre > 1).all()
    assert not core.info(away)["is_success"][away.tre > core.task.success_mm].any()


@pytest.mark.parametrize("name", LINEAR)
def test_distance_and_landmark_error_follow_from_pose_and_pull_back(name: str, rng: np.random.Generator) -> None:
    core = core_of(name)
    state = core.reset(generators(4))
    for _ in range(3):
        state, *_ = core.step(state, some_actions(core, 4, rng))
    pair = state.pair
    moved = transform_points(state.pull_back, pair.landmarks) - transform_points(pair.truth, pair.landmarks)
    torch.testing.assert_close(state.tre, moved.square().sum(-1).sqrt().mean(-1), rtol=0, atol=EXACT)
    if isinstance(core.task.distance, ParameterNorm):
        torch.testing.assert_close(state.distance, core.task.transform.distance(state.pose), rtol=0, atol=EXACT)
    expected = matmul(pair.truth, about(pair.center, core.task.transform.matrix(state.pose)))
    torch.testing.assert_close(state.pull_back, expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(pose_of(core.task.transform, state.anchor, pair.center, state.pull_back), state.pose,
                               rtol=0, atol=1e-8)
    assert state.steps.tolist() == [3] * 4


@pytest.mark.parametrize("ndim", [2, 3])
def test_disentangled_action_shifts_the_picture_along_its_axis(ndim: int) -> None:
    offset = (20.0, -10.0, 15.0)[:ndim]
    core = core_of(f"RegRigid{ndim}D-v0", size=48, spacing=4.0, source=Blob(ndim, offset), motion="disentangled",
                   step_sizes=(4.0,), stop="never")
    pose = [[6.0, -9.0, 3.0, 20.0, -30.0, 15.0] if ndim == 3 else [6.0, -9.0, 25.0]]
    state = core.begin(core.reset(generators(1)).pair, torch.tensor(pose, dtype=torch.float64))
    before = centroid(state.warped[0], core.task.grid)
    for axis in range(ndim):
        after, *_ = core.step(state, torch.tensor([2 * axis]))
        shift = centroid(after.warped[0], core.task.grid) - before
        np.testing.assert_allclose(shift, 4.0 * np.eye(ndim)[axis], atol=0.05)


def test_disentangled_turn_leaves_the_image_centre_where_it_is() -> None:
    core = core_of("RegRigid2D-v0", size=48, spacing=4.0, source=Blob(2, (0.0, 0.0)), motion="disentangled",
                   step_sizes=(30.0,), stop="never")
    state = core.begin(core.reset(generators(1)).pair, torch.tensor([[25.0, -15.0, 10.0]], dtype=torch.float64))
    after, *_ = core.step(state, torch.tensor([4]))
    for seen in (state, after):
        np.testing.assert_allclose(centroid(seen.warped[0], core.task.grid), [25.0, -15.0], atol=0.05)


def test_rotation_turns_the_seen_image_counter_clockwise_from_x_to_y() -> None:
    core = core_of("RegRigid2D-v0", size=48, spacing=4.0, source=Blob(2, (30.0, 0.0)), motion="disentangled",
                   step_sizes=(90.0,), stop="never")
    state = core.begin(core.reset(generators(1)).pair, torch.zeros(1, 3, dtype=torch.float64))
    after, *_ = core.step(state, torch.tensor([4]))
    np.testing.assert_allclose(centroid(after.warped[0], core.task.grid), [0.0, 30.0], atol=0.1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotation_is_about_the_fixed_centre(ndim: int) -> None:
    """The centre moves by the translation only, wherever in the world the images lie."""
    core = core_of(f"RegRigid{ndim}D-v0")
    pair = core.reset(generators(2)).pair
    pair = replace(pair, center=pair.center + 37.0)
    p = len(core.task.transform.names)
    pose = torch.tensor([[3.0, -4.0, 5.0][:ndim] + [20.0] * (p - ndim)] * 2, dtype=torch.float64)
    state = core.begin(pair, pose, torch.eye(ndim + 1, dtype=torch.float64).expand(2, -1, -1))
    centre = pair.center[:, None]
    torch.testing.assert_close(transform_points(state.pull_back, centre) - centre, pose[:, None, :ndim],
                               rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", LINEAR)
def test_unknown_truth_has_no_error_and_no_arrival(name: str, rng: np.random.Generator) -> None:
    core = core_of(name, source=Unknown(source_named("phantoms", 2 if "2D" in name else 3)))
    state = core.reset(generators(3))
    state = core.begin(state.pair, aligned(core, 3))
    for _ in range(4):
        assert state.tre.isnan().all()
        assert state.distance.isnan().all()
        assert not state.arrived.any()
        assert not core.info(state)["is_success"].any()
        state, reward, terminated, _ = core.step(state, some_actions(core, 3, rng))
        assert reward.tolist() == [0.0] * 3
        assert not terminated.any()
        assert state.warped.isfinite().all()
        assert state.pull_back.isfinite().all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_parameter_steps_on_unknown_truth_go_on_from_the_current_estimate(ndim: int, rng: np.random.Generator) -> None:
    """T <- T a: what the next action means does not depend on where the images lay at the start."""
    core = core_of(f"RegRigid{ndim}D-v0", source=Unknown(source_named("phantoms", ndim)))
    state = core.reset(generators(4))
    for _ in range(3):
        action = some_actions(core, 4, rng)
        after, *_ = core.step(state, action)
        elementary = core.task.transform.matrix(torch.from_numpy(core.task.actions.deltas)[action])
        torch.testing.assert_close(after.pull_back, matmul(state.pull_back, about(state.pair.center, elementary)),
                                   rtol=0, atol=EXACT)
        state = after


def test_disentangled_steps_do_not_need_the_truth(rng: np.random.Generator) -> None:
    """The same pictures move the same way, whether or not the truth is told."""
    known = core_of("RegRigid3DGeometric-v0", stop="never")
    a = known.reset(generators(4))
    b = known.begin(replace(a.pair, known=torch.zeros(4, dtype=torch.bool)), a.pose, anchor=a.pair.truth)
    for _ in range(4):
        action = some_actions(known, 4, rng)
        a, b = known.step(a, action)[0], known.step(b, action)[0]
    torch.testing.assert_close(a.pull_back, b.pull_back, rtol=0, atol=EXACT)
    torch.testing.assert_close(a.warped, b.warped, rtol=0, atol=1e-6)


def test_known_and_unknown_lanes_share_a_batch(rng: np.random.Generator) -> None:
    core = core_of("RegRigid3D-v0", stop="never")
    whole = core.reset(generators(4))
    mixed = core.begin(replace(whole.pair, known=torch.tensor([True, False, True, False])), whole.pose)
    for _ in range(3):
        action = some_actions(core, 4, rng)
        whole, mixed = core.step(whole, action)[0], core.step(mixed, action)[0]
    known = mixed.pair.known
    assert torch.equal(mixed.pose[known], whole.pose[known])
    assert torch.equal(mixed.warped[known], whole.warped[known])
    assert mixed.tre.isnan().tolist() == [False, True, False, True]


def test_pose_of_finds_the_pose_of_any_estimate(rng: np.random.Generator) -> None:
    core = core_of("RegRigid3D-v0")
    state = core.reset(generators(5))
    shift = homogeneous(torch.eye(3, dtype=torch.float64).expand(5, 3, 3),
                        torch.from_numpy(rng.uniform(-9, 9, (5, 3))))
    wanted = matmul(state.pair.truth, matmul(shift, about(state.pair.center, core.task.transform.matrix(state.pose))))
    pose = pose_of(core.task.transform, state.pair.truth, state.pair.center, wanted)
    torch.testing.assert_close(core.begin(state.pair, pose).pull_back, wanted, rtol=0, atol=1e-8)


def test_truncation_at_the_limit_and_arrival_are_told_apart() -> None:
    core = RegistrationCore(build("RegRigid2D-v0", size=36).limited(2))
    pair = core.reset(generators(2)).pair
    state = core.begin(pair, torch.tensor([[2.0, 0, 0], [9.0, 0, 0]], dtype=torch.float64))
    state, _, terminated, truncated = core.step(state, torch.tensor([1, 1]))
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, False])
    state, _, terminated, truncated = core.step(state, torch.tensor([1, 1]))
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [True, True])


def test_reach_scales_the_starts_and_bad_settings_are_named() -> None:
    core = core_of("RegRigid2D-v0")
    far, close = core.reset(generators(3)), core.reset(generators(3), reach=0.5)
    torch.testing.assert_close(close.pose, 0.5 * far.pose, rtol=1e-12, atol=0)
    for bad in ({"reach": 0.0}, {"reach": 2.0}, {"difficulty": -0.1}, {"difficulty": 1.5}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} is {next(iter(bad.values()))}"):
            core.reset(generators(1), **bad)
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        core.task.limited(0)


OFTEN = {"RegRigid2D-v0": {"success_mm": 20.0}, "RegRigid3DContinuous-v0": {"success_mm": 35.0},
         "RegSimilarity2D-v0": {"success_mm": 60.0}}
"""Thresholds that many starts lie under."""


@pytest.mark.parametrize("name", OFTEN)
def test_starts_that_are_a_success_are_drawn_anew_and_no_others(name: str) -> None:
    plain, asked = core_of(name, success_mm=0.0), core_of(name, **OFTEN[name])
    first, state = plain.reset(generators(32)), asked.reset(generators(32))
    below = first.tre <= asked.task.success_mm
    assert below.any() and not below.all()
    assert (state.tre > asked.task.success_mm).all()
    assert torch.equal(state.pose[~below], first.pose[~below])
    assert (state.pose != first.pose)[below].any(1).all()
    torch.testing.assert_close(state.pair.moving, first.pair.moving, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "seed"), [("RegRigid2D-v0", 410), ("RegRigid3D-v0", 1675)])
def test_the_rare_start_of_the_rigid_ids_that_is_a_success_is_drawn_anew(name: str, seed: int) -> None:
    found = build(name).success_mm
    plain: Any = gym.make(name, size=16, success_mm=0.0)
    env: Any = gym.make(name, size=16)
    assert plain.reset(seed=seed)[1]["tre"] <= found
    info = env.reset(seed=seed)[1]
    assert info["tre"] > found and not info["is_success"]


@pytest.mark.parametrize("name", OFTEN)
def test_a_start_drawn_anew_depends_on_its_own_generator_only(name: str) -> None:
    core = core_of(name, **OFTEN[name])
    many = core.reset(generators(8))
    for lane in range(8):
        assert torch.equal(core.reset(generators(1, seed=lane)).pose[0], many.pose[lane])


def test_starts_that_are_meant_to_be_near_stay() -> None:
    meant, alone = core_of("RegRigid3D-v0", near=1.0), core_of("RegRigid3D-v0", near=1.0, success_mm=0.0)
    state = meant.reset(generators(4))
    assert (state.tre <= meant.task.success_mm).any()
    assert torch.equal(state.pose, alone.reset(generators(4)).pose)


def test_a_range_without_a_start_that_is_no_success_keeps_its_last_draw() -> None:
    core = core_of("RegRigid3D-v0", ranges=[1.0] * 6)
    state = core.reset(generators(3))
    assert (state.tre <= core.task.success_mm).all() and (state.pose.abs() <= 1).all()


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("reward", [{}, {"reward": "ncc"}], ids=["own", "ncc"])
@pytest.mark.parametrize("observation", ["difference", "pair"])
@pytest.mark.parametrize("obs_dtype", ["uint8", "float32"])
def test_nothing_returned_shares_memory_with_the_state(name: str, reward: dict[str, str], observation: str,
                                                       obs_dtype: str) -> None:
    task = build(name, **small(name), **reward, observation=observation, obs_dtype=obs_dtype)
    core = RegistrationCore(task, privileged=True)
    state = core.reset(generators(2))
    state, rewards, *_ = core.step(state, some_actions(core, 2, np.random.default_rng(0)))
    given = [core.observe(state), rewards, *core.info(state).values()]
    held = {tensor.untyped_storage().data_ptr() for tensor in tensors(state.release_views())}
    assert not held & {tensor.untyped_storage().data_ptr() for tensor in given}


def test_state_is_never_changed_in_place(rng: np.random.Generator) -> None:
    core = core_of("RegRigid3D-v0")
    state = core.reset(generators(3))
    copies = [tensor.clone() for tensor in tensors(state)]
    core.step(state, some_actions(core, 3, rng))
    state.put(torch.tensor([True, False, True]), core.reset(generators(2, seed=9)))
    core.observe(state)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), copies, strict=True))

def without_numbers(value: Any) -> Any:
    """The same on torch's meta device, where to ask for a number, as a host does that waits for its GPU, is an error.
    What a reset has worked out and kept stays."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if is_dataclass(value):
        there = replace(value, **{f.name: without_numbers(getattr(value, f.name)) for f in fields(value)})
        vars(there).update({name: kept for name, kept in vars(value).items() if name not in vars(there)})
        return there
    return value


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_step_never_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of(name)
    state, actions = core.reset(generators(2)), some_actions(core, 2, np.random.default_rng(0))
    core.info(state)
    monkeypatch.setattr(DeformationModel, "__post_init__", lambda self: None)  # looked at once a device, before a step
    core.deltas = without_numbers(core.deltas)
    after, rewards, terminated, truncated = core.step(without_numbers(state.release_views()), without_numbers(actions))
    core.observe(after)
    core.info(after)
    assert rewards.shape == terminated.shape == truncated.shape == (2,)
    with pytest.raises(RuntimeError):
        rewards.tolist()


def test_put_touches_only_its_lanes() -> None:
    core = core_of("RegRigid2D-v0")
    state, other = core.reset(generators(3)), core.reset(generators(2, seed=9))
    mask = torch.tensor([True, False, True])
    mixed = state.put(mask, other)
    for name, view in mixed.views.items():
        assert torch.equal(view[mask], other.views[name]) and torch.equal(view[~mask], state.views[name][~mask])
    state, other = replace(state, moments=None), replace(other, moments=None)
    for mine, theirs, result in zip(tensors(state), tensors(other), tensors(mixed), strict=True):
        assert torch.equal(result[mask], theirs)
        assert torch.equal(result[~mask], mine[~mask])


def test_frames_show_the_step_and_know_when_there_is_no_error() -> None:
    core = core_of("RegRigid3D-v0")
    state = core.reset(generators(2))
    frame = core.frame(state, 1)
    assert (frame.dtype, frame.ndim, frame.shape[-1]) == (np.uint8, 3, 3)
    blind = core.begin(replace(state.pair, known=torch.zeros(2, dtype=torch.bool)), state.pose)
    assert core.frame(blind, 0).shape == frame.shape
