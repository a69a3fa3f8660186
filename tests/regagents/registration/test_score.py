"""Agreement of two images at a pose: against brute force, scikit-learn, boxes in closed form and known poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from regagents.classical.refinement import generators
from regagents.registration.information import counted, normalised
from regagents.registration.score import Agreement, Foreground, Score, rigid_part, stretches, stretching
from regenv.data.io.images import Image
from regenv.grid import Grid
from tests.regagents.registration.phantoms import GRIDS, error_mm, few, seen
from tests.regagents.toys import rigid

SAMPLES = 3_000
EDGES = 0.07     # of boxes 12 voxels wide, whose edges are half a voxel soft on every side
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def pose_of(ndim: int, mm: float = 4.0, degrees: float = 6.0) -> np.ndarray:
    return rigid([mm, -mm, 0.5 * mm][:ndim] + [degrees, -degrees, degrees][:1 if ndim == 2 else 3], np.zeros(ndim))


def scaled(ndim: int, *factors: float) -> np.ndarray:
    return np.diag([*(factors * ndim)[:ndim], 1.0])


def brute_force(a: np.ndarray, b: np.ndarray, weight: np.ndarray, bins: int) -> float:
    """Each sample is shared between the two neighbouring bins of either intensity."""
    joint = np.zeros((bins, bins))
    for x, y, w in zip(a * (bins - 1), b * (bins - 1), weight, strict=True):
        for i in range(bins):
            for j in range(bins):
                joint[i, j] += w * max(0, 1 - abs(x - i)) * max(0, 1 - abs(y - j))
    joint /= joint.sum()

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint) - 1


def informed(a: np.ndarray, b: np.ndarray, weight: np.ndarray, bins: int) -> float:
    """What the kernel makes of weighted samples (N,)."""
    found, joint = np.zeros((2, len(a), 12)), np.zeros((bins, bins))
    found[0, :, 0], found[0, :, 8] = b, weight
    counted(a, found[0], a[:0], found[1, :0], 1.0, 1.0, joint)
    return normalised(joint)[0]


def test_soft_information_is_that_of_a_weighted_joint_histogram(rng: np.random.Generator) -> None:
    a, b, weight = rng.random((3, 2, 60))
    b = 0.5 * a**2 + 0.5 * b
    a[0, :3], b[0, :3] = [0, 1, 0.5], [1, 0, 1]
    for each in zip(a, b, weight, strict=True):
        assert informed(*each, 6) == pytest.approx(brute_force(*each, 6), abs=1e-9)


def test_intensities_on_the_bins_have_scikit_learns_mutual_information(rng: np.random.Generator) -> None:
    a = rng.integers(0, 8, 500)
    b = (a + rng.integers(0, 3, 500)) % 8
    both = mutual_info_score(a * 8 + b, a * 8 + b)
    assert informed(a / 7, b / 7, np.ones(500), 8) == pytest.approx(mutual_info_score(a, b) / both, abs=1e-9)


@NDIM
def test_the_gradient_is_that_of_finite_differences(ndim: int) -> None:
    """What climb ascends, along every motion of an affine map, mm."""
    score = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim], pose_of(ndim)), level=few(SAMPLES))
    parts = generators(ndim, "affine")
    parts[np.abs(parts[:, :-1, :-1]).sum((1, 2)) > 0] /= 25.0
    basis = torch.from_numpy(parts)

    def pose(move: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(torch.einsum("k,kij->ij", move, basis))

    def value(move: torch.Tensor) -> float:
        return score.measured(pose(move).numpy(), False).information

    move = torch.full((len(basis),), 0.3, dtype=torch.float64, requires_grad=True)
    by_pose = torch.from_numpy(score.measured(pose(move).detach().numpy(), True).gradient)
    slope, = torch.autograd.grad((pose(move) * by_pose).sum(), move)
    with torch.no_grad():
        steps = 0.002 * torch.eye(len(basis), dtype=torch.float64)
        differences = np.array([(value(move + step) - value(move - step)) / 0.004 for step in steps])
    assert slope.abs().max() > 1e-3
    assert slope.numpy() == pytest.approx(differences, abs=0.03 * float(slope.abs().max()))


@NDIM
def test_the_gradient_without_kinks_is_exact(ndim: int) -> None:
    """Between the kinks of linear interpolation, where differences and gradient agree to four digits."""
    score = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim], pose_of(ndim)), level=few(60))
    pose, step = pose_of(ndim, 2.0, 3.0) @ scaled(ndim, 1.03, 0.96), 1e-6
    gradient = score.measured(pose, True).gradient
    for place in np.ndindex(ndim, ndim + 1):
        move = np.zeros_like(pose)
        move[place] = step
        ends = [score.measured(pose + sign * move, False).information for sign in (1, -1)]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient[place], rel=2e-3, abs=1e-6), place


def box(ndim: int, middle: float, width: float) -> Image:
    """A box about (middle, 0, ...) of a width along x, 24 mm along the other axes, on a grid of 64 mm."""
    grid = Grid.centered((32,) * ndim, 2.0)
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    half = np.array([width / 2, 12.0, 12.0][:ndim])
    inside = (np.abs(points - np.array([middle, 0.0, 0.0][:ndim])) < half).all(-1)
    return Image(inside.astype(np.float32), grid, "box")


def translation(ndim: int, x: float) -> np.ndarray:
    pose = np.eye(ndim + 1)
    pose[0, -1] = x
    return pose


@NDIM
def test_overlap_and_coverage_of_boxes_have_closed_forms(ndim: int) -> None:
    one, other = box(ndim, 0.0, 24.0), box(ndim, 0.0, 24.0)
    shifts = np.array([0.0, 6.0, 12.0, 30.0, 32.0])
    found = Score.of(one, other, (one, other)).at(np.stack([translation(ndim, x) for x in shifts]))
    assert found.overlap == pytest.approx(np.clip(1 - shifts / 24, 0, 1), abs=EDGES)
    # the field of view ends 32 mm from its middle, the box 12 mm: from a shift of 20 mm on the box leaves it
    assert found.covered == pytest.approx(np.clip(1 - (shifts - 20) / 24, 0, 1), abs=EDGES)
    assert found.stretching == pytest.approx(0, abs=1e-12)


@NDIM
def test_overlap_is_a_share_of_the_smaller_object(ndim: int) -> None:
    large, small = box(ndim, 0.0, 48.0), box(ndim, -6.0, 12.0)
    for pair in ((large, small), (small, large)):
        assert Score.of(*pair, pair).at(np.eye(ndim + 1)[None]).overlap == pytest.approx(1, abs=EDGES)
    shrunk = Score.of(large, large, (large, large)).at(scaled(ndim, 2.0)[None])     # the moving box is half as wide
    assert shrunk.overlap == pytest.approx(1, abs=EDGES)


@NDIM
def test_both_directions_agree_alike(ndim: int) -> None:
    """A score of the two images exchanged, at the inverse pose, is the same but for where the points lie."""
    fixed, moving = seen(GRIDS[ndim]), seen(GRIDS[ndim], pose_of(ndim, 9.0))
    poses = np.stack([np.eye(ndim + 1), pose_of(ndim, 9.0), pose_of(ndim, 20.0, 90.0)])
    there, back = Score.of(fixed, moving).at(poses), Score.of(moving, fixed).at(np.linalg.inv(poses))
    for part in ("information", "overlap", "covered"):
        assert getattr(there, part) == pytest.approx(getattr(back, part), abs=0.02)


@NDIM
@pytest.mark.parametrize("motion", ["rigid", "similarity", "affine"])
def test_climbing_is_never_worse_and_keeps_to_its_motion(ndim: int, motion: str) -> None:
    score = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim], pose_of(ndim)), level=few(SAMPLES))
    for start in (np.eye(ndim + 1), pose_of(ndim, 30.0, 120.0), pose_of(ndim), translation(ndim, 500.0)):
        end = score.climb(start, motion, 8)
        before, after = score.at(np.stack([start, end])).information - 0.1 * score.at(np.stack([start, end])).stretching
        assert after >= before - 1e-9
        lengths = stretches(end)
        if motion == "rigid":
            assert lengths == pytest.approx(0, abs=1e-9)
        if motion == "similarity":
            assert np.ptp(lengths) == pytest.approx(0, abs=1e-9)


@NDIM
@pytest.mark.parametrize(("motion", "factors"), [("rigid", (1.0,)), ("similarity", (1.12,)),
                                                 ("affine", (1.1, 0.94, 1.05))])
def test_climbing_finds_a_known_map(ndim: int, motion: str, factors: tuple[float, ...]) -> None:
    truth = pose_of(ndim) @ scaled(ndim, *factors)
    score = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim], truth), level=few(6_000))
    assert error_mm(np.eye(ndim + 1), truth) > 5
    assert error_mm(score.climb(np.eye(ndim + 1), motion), truth) < 1.0     # of voxels of 2 and 3 mm


@NDIM
def test_masks_take_the_foregrounds_place(ndim: int) -> None:
    """Two objects go apart by 4 mm each; the mask says which of them is registered."""
    grid = Grid.centered((32, 56, 36)[-ndim:], 3.0)
    places = [np.eye(ndim + 1), np.eye(ndim + 1)]
    places[0][1, -1], places[1][1, -1] = 40.0, -40.0
    shrink = scaled(ndim, 0.8)

    def both(left: float, right: float) -> tuple[Image, list[Image]]:
        parts = [seen(grid, translation(ndim, x) @ place @ shrink)
                 for x, place in zip((left, right), places, strict=True)]
        return replace(parts[0], array=parts[0].array + parts[1].array), [
            replace(part, array=(part.array > 0.1).astype(np.uint8)) for part in parts]

    (fixed, here), (moving, there) = both(0.0, 0.0), both(4.0, -4.0)
    for which, x in enumerate((4.0, -4.0)):
        score = Score.of(fixed, moving, (here[which], there[which]), level=few(SAMPLES))
        end = score.climb(np.eye(ndim + 1), "rigid")
        middle = places[which][:, -1]
        assert (end @ middle)[:ndim] == pytest.approx((translation(ndim, x) @ middle)[:ndim], abs=0.5)


@NDIM
def test_brightness_and_contrast_change_nothing(ndim: int) -> None:
    fixed, moving = seen(GRIDS[ndim]), seen(GRIDS[ndim], pose_of(ndim))
    poses = np.stack([np.eye(ndim + 1), pose_of(ndim)])
    plain = Score.of(fixed, moving, level=few(SAMPLES)).at(poses)
    other = Score.of(replace(fixed, array=fixed.array * 1500 - 1000), replace(moving, array=moving.array * 7 + 300),
                     level=few(SAMPLES)).at(poses)
    for part in ("information", "overlap", "covered"):
        assert getattr(other, part) == pytest.approx(getattr(plain, part), abs=2e-3)


@NDIM
def test_noise_and_constant_images_have_finite_scores(ndim: int, rng: np.random.Generator) -> None:
    grid = Grid.centered((20,) * ndim, 3.0)
    noise = [Image(rng.normal(size=grid.shape).astype(np.float32), grid, "noise") for _ in range(2)]
    flat = Image(np.full(grid.shape, 3.0, np.float32), grid, "flat")
    poses = np.stack([np.eye(ndim + 1), pose_of(ndim, 20.0, 80.0), translation(ndim, 1e4)])
    for pair in ((noise[0], noise[1]), (noise[0], flat), (flat, noise[0]), (flat, flat)):
        score = Score.of(*pair, level=few(500))
        found = score.at(poses)
        assert all(np.isfinite(part).all() for part in (found.score, found.information, found.overlap, found.covered))
        assert np.isfinite(score.climb(poses[1], "affine", 5)).all()
    unlike = Score.of(*noise).at(poses)
    assert unlike.information.max() < 0.1 and unlike.overlap[-1] < 1e-6


@pytest.mark.parametrize(("ndim", "axis"), [(2, 0), (2, 1), (3, 1)])
def test_spacing_and_handedness_do_not_matter(ndim: int, axis: int) -> None:
    """The same object on grids of other spacing, one of them left-handed: the score is one of the world."""
    direction = np.eye(ndim)[[1, 0, 2][:ndim]]
    direction[:, axis] *= -1 if axis else 1
    odd = Grid.centered((52, 31, 43)[:ndim], (3.6, 2.0, 2.8)[:ndim], [2.0, -1.0, 3.0][:ndim],
                        direction.ravel().tolist())
    truth = pose_of(ndim)
    plain = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim], truth)).at(truth[None])
    for pair in ((seen(odd), seen(GRIDS[ndim], truth)), (seen(GRIDS[ndim]), seen(odd, truth))):
        score = Score.of(*pair, level=few(SAMPLES))
        assert score.at(truth[None]).overlap == pytest.approx(plain.overlap, abs=0.1)
        assert error_mm(score.climb(np.eye(ndim + 1), "rigid"), truth) < 1.0


def test_fewer_points_are_some_of_the_points() -> None:
    score = Score.of(seen(GRIDS[2]), seen(GRIDS[2], pose_of(2)), level=few(SAMPLES))
    thin = score.thinned(200)
    assert len(thin.fixed.points_mm) == len(thin.moving.at_points) == 200
    every = {tuple(point) for point in score.fixed.points_mm.tolist()}
    assert {tuple(point) for point in thin.fixed.points_mm.tolist()} <= every
    assert np.array_equal(thin.fixed.at(thin.fixed.points_mm.numpy())[0], thin.fixed.at_points)
    assert Foreground.of(seen(GRIDS[2]), few(SAMPLES)).thinned(10**9).points_mm.shape == score.fixed.points_mm.shape


def test_an_agreement_ranks_by_information_where_the_objects_lie_on_each_other() -> None:
    one = np.ones(1)
    assert Agreement(0.4 * one, 0.5 * one, one, 0 * one).score == pytest.approx(0.2)
    assert Agreement(0.4 * one, 0.5 * one, one, 1 * one).score == pytest.approx(0.1)


@NDIM
def test_stretching_is_near_the_squared_logarithms_of_the_stretches(ndim: int) -> None:
    factors = [1.1, 0.93, 1.04][:ndim]
    pose = rigid([3.0] * ndim + [50.0] * (1 if ndim == 2 else 3), np.zeros(ndim)) @ np.diag([*factors, 1.0])
    assert sorted(stretches(pose)) == pytest.approx(sorted(np.log(factors)))
    assert float(stretching(torch.from_numpy(pose))) == pytest.approx(float((np.log(factors) ** 2).sum()), rel=0.1)
    assert float(stretching(torch.from_numpy(np.linalg.inv(pose)))) == pytest.approx(
        float(stretching(torch.from_numpy(pose))))


@NDIM
def test_the_rigid_part_turns_alike_and_takes_the_centre_along(ndim: int) -> None:
    center = np.array([5.0, -7.0, 11.0][:ndim])
    turn = pose_of(ndim, 8.0, 35.0)
    stretched = turn @ np.diag([*[1.3, 0.8, 1.1][:ndim], 1.0])      # its polar rotation is the turn's
    found = rigid_part(stretched, center)
    assert found[:ndim, :ndim] == pytest.approx(turn[:ndim, :ndim])
    assert found[:ndim, :ndim] @ center + found[:ndim, ndim] == pytest.approx(
        stretched[:ndim, :ndim] @ center + stretched[:ndim, ndim])
