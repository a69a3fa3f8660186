"""Agents of every algorithm as stages of a pipeline: what they bring home, and which are refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from regagents.agents import create, load
from regagents.registration.pipeline import Pipeline, align, run, stages, turned
from regagents.registration.poses import anchored, mean_pose
from regagents.registration.register import register
from regenv.data.banks.downloads import mni152
from regenv.data.io.images import Image, normalize, read_image
from regenv.data.io.resampling import matrix_to_sitk, sampled, to_sitk
from regenv.grid import Grid
from regenv.ops.affine import about
from regenv.transforms.rigid import Rigid, RigidMotion
from regenv.transforms.similarity import Similarity
from tests.regagents.toys import blobs, grids, rigid, stubborn

PIXEL = 224 / 168           # mm, of the agents' own images
MISALIGNED = (12.0, -23.0, -21.0, 1.2)      # pixels, degrees, scale: within the range E1 of their training
EXACT = 1e-9


def similarity(scale: float, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """x -> s R x + t, (3, 3)."""
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.block([[turn, np.array(shift)[:, None]], [np.zeros((1, 2)), np.ones((1, 1))]])


TRUTH = similarity(MISALIGNED[3], MISALIGNED[2], (MISALIGNED[0] * PIXEL, MISALIGNED[1] * PIXEL))


@lru_cache(maxsize=1)
def slices() -> tuple[Image, Image]:
    """An axial slice of a real brain, and the same slice moved by TRUTH, of another contrast and on a larger grid."""
    pytest.importorskip("nilearn")
    head = to_sitk(read_image(mni152()["t1"]))
    plane, larger = (normalize(sampled(head, Grid.centered((1, size, size), PIXEL, [0.0, 0.0, 10.0]))[0])
                     for size in (168, 288))
    here, there = Grid.centered((168, 168), PIXEL), Grid.centered((288, 288), PIXEL)
    moved = sampled(to_sitk(Image(np.sqrt(larger), there, "moved")), there, matrix_to_sitk(np.linalg.inv(TRUTH)))
    return Image(plane, here, "fixed"), Image(moved, there, "moved")


def error_mm(pull_back: np.ndarray) -> float:
    """Mean distance from where TRUTH takes points of the fixed slice."""
    axis = np.linspace(-70, 70, 8)
    points = np.stack([*np.meshgrid(axis, axis), np.ones((8, 8))]).reshape(3, -1)
    return float(np.linalg.norm(((pull_back - TRUTH) @ points)[:2], axis=0).mean())


@pytest.mark.parametrize(("name", "pixels"), [("similarity-rl", 5), ("similarity-oneshot", 6)])
def test_similarity_agents_bring_a_slice_home(name: str, pixels: float) -> None:
    """Agents alone, of which one remembers and one acts once; the start is more than 20 pixels away."""
    result = register(*slices(), name, refine=False, initial="center")
    assert error_mm(np.eye(3)) / PIXEL > 20 and error_mm(result.pull_back) / PIXEL < pixels
    scale = np.sqrt(np.linalg.det(result.pull_back[:2, :2]))
    turn = result.pull_back[:2, :2] / scale
    assert scale == pytest.approx(MISALIGNED[3], abs=0.08) and np.abs(turn @ turn.T - np.eye(2)).max() < EXACT
    path = [row for row in result.trace if row["stage"] == name]
    assert len(path) == 2 if name == "similarity-oneshot" else len(path) > 10
    if name == "similarity-rl":
        assert {row["action"].split()[0] for row in path[1:]} <= {"tx", "ty", "alpha", "s"}


def test_a_one_shot_agent_acts_as_often_as_it_is_told() -> None:
    agent = load("similarity-oneshot")
    fixed, moving = slices()
    for steps, taken in ((None, 1), (3, 3)):
        assert align(agent, fixed, moving, np.eye(3)[None], steps).steps.tolist() == [taken]


def test_lanes_of_an_agent_with_memory_do_not_meet() -> None:
    """The same pose is another one for whoever remembers another way there: two lanes from one start stay two."""
    fixed, moving = slices()
    twice = align(load("similarity-rl"), fixed, moving, np.stack([np.eye(3)] * 2), steps=12)
    assert twice.met.tolist() == [0, 1] and twice.steps.tolist() == [12, 12]
    assert np.array_equal(twice.path[:, 0], twice.path[:, 1])


@pytest.mark.parametrize("name", ["brain2d-spac", "digits-spac", "organ2d"])
def test_agents_that_deform_are_refused(name: str) -> None:
    fixed, moving = slices()
    with pytest.raises(ValueError, match=rf"^{name}: agent deforms \(its poses are those of \w+\)[^\n]*$"):
        register(fixed, moving, name)


def test_attention_needs_a_saliency() -> None:
    fixed, _ = slices()
    with pytest.raises(ValueError, match=r"similarity-oneshot: algorithm is OneShot; attention needs the saliency"):
        stages(Pipeline(("similarity-oneshot", "rigid2d"), attention=True), fixed)
    assert len(stages(Pipeline(("rigid2d", "similarity-oneshot"), attention=True), fixed)) == 2


def test_a_continuous_agent_changes_all_parameters_at_once_from_the_starts_own_scale() -> None:
    """Two times 2 mm along x, 1 degree and 0.01 in scale, where the start has a scale of 1.25."""
    agent = create({"agent": "OneShot", "env": "RegSimilarity2DContinuous-v0",
                    "env_kwargs": {"size": 48, "spacing": 8.0, "step_sizes": [1.0]}})
    with torch.no_grad():
        agent.policy.head.weight.zero_()
        agent.policy.head.bias.copy_(torch.tensor([2 / 8, 0.0, 1.0, 0.2]))      # of 8 mm, 8 mm, 1 degree, 0.05
    grid, _ = grids(2)
    image = Image(blobs(grid), grid, "image")
    begun = similarity(1.25, 0.0, (0.0, 0.0))
    aligned = align(agent, image, image, np.linalg.inv(begun)[None], steps=2, center=np.zeros(2))
    pushed = np.linalg.inv(aligned.pull_backs[0])
    wanted = begun
    for scale in (1.26, 1.27):      # a step turns and scales what is there about the centre, and shifts it
        wanted = similarity(scale / np.sqrt(np.linalg.det(wanted[:2, :2])), 1.0, (2.0, 0.0)) @ wanted
    assert np.abs(pushed - wanted).max() < 1e-5
    assert aligned.actions == [[""], [""]]


def test_a_rigid_stage_keeps_the_scale_that_it_begins_with() -> None:
    """Three steps of 1 mm along the fixed image's x, and nothing else."""
    grid, _ = grids(2)
    image = Image(blobs(grid), grid, "image")
    start = similarity(1.3, 20.0, (5.0, -4.0))
    agents: list[Any] = [stubborn(2, step=1.0)]
    ended = run(Pipeline(("stubborn",), steps=(3,)), image, image, start, agents=agents)
    moved = np.linalg.inv(start) @ ended[0].pull_back
    assert np.abs(moved - rigid([3.0, 0.0, 0.0], np.zeros(2))).max() < 1e-6


# ------------------------------------------------------------------------------------------------- arithmetic of poses

def test_the_mean_of_similarities_is_one() -> None:
    mean = mean_pose(np.stack([similarity(0.8, 10.0, (0.0, 6.0)), similarity(1.2, 30.0, (4.0, 0.0))]))
    assert np.abs(mean - similarity(1.0, 20.0, (2.0, 3.0))).max() < EXACT


def test_the_mean_of_rigid_poses_is_rigid() -> None:
    rng = np.random.default_rng(0)
    poses = np.stack([rigid(rng.uniform(-20, 20, 6).tolist(), np.zeros(3)) for _ in range(7)])
    mean = mean_pose(poses)
    assert np.abs(mean[:3, :3] @ mean[:3, :3].T - np.eye(3)).max() < EXACT
    assert np.abs(mean[:3, 3] - poses[:, :3, 3].mean(0)).max() < EXACT
    u, _, vt = np.linalg.svd(poses.mean(0)[:3, :3])
    assert np.abs(mean[:3, :3] - u @ vt).max() < EXACT


@pytest.mark.parametrize("moves", [Rigid(2), RigidMotion(2), Similarity(2), Rigid(3), RigidMotion(3), Similarity(3)],
                         ids=lambda moves: f"{type(moves).__name__}{moves.ndim}")
def test_anchor_and_pose_are_the_start_whatever_it_is(moves: Any) -> None:
    rng = np.random.default_rng(1)
    n = moves.ndim
    turns = 1 if n == 2 else 3
    plain = [rigid([*rng.uniform(-9, 9, n), *rng.uniform(-40, 40, turns)], np.zeros(n)) for _ in range(2)]
    stretched = [pose @ np.diag([*scales, 1.0]) for pose, scales in zip(
        plain, ([1.4] * n, [1.2, 0.7, 0.9][:n]), strict=True)]
    starts = torch.from_numpy(np.stack([*plain, *stretched]))
    center, target = torch.full((4, n), 11.0, dtype=torch.float64), torch.full((n,), -6.0, dtype=torch.float64)
    anchor, pose = anchored(moves, starts, center, target)
    again = anchor @ about(center, moves.matrix(pose))
    assert (again - starts).abs().max() < EXACT
    reached = (anchor[:, :n, :n] @ center[..., None])[..., 0] + anchor[:, :n, n]
    assert (reached - target).abs().max() < EXACT
    kept = 3 if isinstance(moves, Similarity) else 2        # starts that need no stretch of their anchor
    assert (anchor[:kept, :n, :n] - torch.eye(n)).abs().max() == 0


@pytest.mark.parametrize("moves", [Rigid(3), RigidMotion(3), Similarity(3)], ids=lambda moves: type(moves).__name__)
def test_an_agent_begins_from_each_of_the_cubes_rotations(moves: Any) -> None:
    """Euler's angles are not to be had at some of them."""
    center = torch.full((24, 3), 11.0, dtype=torch.float64)
    starts = torch.from_numpy(turned(rigid([5.0, -4.0, 3.0, 0, 0, 0], np.zeros(3)), np.full(3, 7.0)))
    anchor, pose = anchored(moves, starts, center, torch.zeros(3, dtype=torch.float64))
    assert (anchor @ about(center, moves.matrix(pose)) - starts).abs().max() < 1e-6
