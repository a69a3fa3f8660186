"""Classical registration: known poses are found, failures are results, and the same call gives the same answer."""

from itertools import islice

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.interpolate import RegularGridInterpolator

from regagents.classical import (
    Elastix,
    MattesMI,
    Refinement,
    SiftSimilarity,
    evaluate_metric,
    matrix_to_sitk,
    multi_start,
    random_starts,
    refine_pose,
    sitk_to_matrix,
    to_sitk,
    working,
)
from regenv.grid import Grid

SHAPES = {2: (64, 64), 3: (32, 32, 32)}
SPACING_MM = 3.0
FOUND_MM = 0.5
FAR_MM = 1e4
EXACT = 1e-9
QUICK = MattesMI(iterations=60)


def blobs(grid: Grid, rng: np.random.Generator, points_mm: np.ndarray) -> np.ndarray:
    """A smooth random image, defined everywhere: a sum of Gaussians, at world points (..., D)."""
    values = np.zeros(points_mm.shape[:-1])
    for _ in range(12):
        middle = grid.center + rng.uniform(-0.3, 0.3, grid.ndim) * grid.extent
        width = rng.uniform(0.06, 0.14) * grid.extent[0]
        values += rng.uniform(0.3, 1) * np.exp(-((points_mm - middle) ** 2).sum(-1) / (2 * width**2))
    return values


def pair(ndim: int, seed: int, translation: float, rotation: float) -> tuple[sitk.Image, sitk.Image, np.ndarray, Grid]:
    """Fixed and moving blobs of opposite contrast on an oblique grid, and the pull-back between them."""
    rng = np.random.default_rng(seed)
    angle = np.radians(25)
    direction = np.eye(ndim)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grid = Grid.centered(SHAPES[ndim], SPACING_MM, rng.uniform(-50, 50, ndim), direction.ravel())
    truth = next(islice(random_starts(np.eye(ndim + 1), grid.center, rng, translation, rotation), 1, None))
    points_vox = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    points_mm = grid.to_world(points_vox)
    back = np.linalg.inv(truth)
    draw = seed + 1000
    fixed = blobs(grid, np.random.default_rng(draw), points_mm)
    moving = blobs(grid, np.random.default_rng(draw), points_mm @ back[:ndim, :ndim].T + back[:ndim, ndim])
    return to_sitk(fixed, grid), to_sitk(1 / (1 + moving), grid), truth, grid


def error_mm(pose: np.ndarray, truth: np.ndarray, grid: Grid) -> float:
    """Mean distance over the middle of the fixed grid."""
    n = grid.ndim
    middle = np.stack(np.meshgrid(*(np.linspace(0.25, 0.75, 4) * (s - 1) for s in grid.shape), indexing="ij"), -1)
    points_mm = grid.to_world(middle.reshape(-1, n))
    difference = pose - truth
    return float(np.linalg.norm(points_mm @ difference[:n, :n].T + difference[:n, n], axis=1).mean())


@pytest.mark.parametrize("ndim", [2, 3])
def test_baseline_finds_a_known_pose(ndim: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed=1, translation=10, rotation=12)
    result = MattesMI().register(fixed, moving, np.eye(ndim + 1), grid.center)
    assert error_mm(np.eye(ndim + 1), truth, grid) > 5
    assert error_mm(result.pull_back, truth, grid) < FOUND_MM
    assert result.metric < 0 and result.iterations > 0 and result.seconds > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_refinement_reaches_the_optimum_from_nearby(ndim: int, seed: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed, translation=30, rotation=40)
    near = next(islice(random_starts(truth, grid.center, np.random.default_rng(seed), 3, 3), 1, None))
    result = refine_pose(fixed, moving, near, grid.center)
    assert error_mm(near, truth, grid) > FOUND_MM
    assert error_mm(result.pull_back, truth, grid) < 0.2


def test_refined_poses_from_scattered_starts_are_one() -> None:
    fixed, moving, truth, grid = pair(3, seed=4, translation=10, rotation=10)
    starts = islice(random_starts(truth, grid.center, np.random.default_rng(0), 3, 3), 1, 5)
    refined = [refine_pose(fixed, moving, start, grid.center).pull_back for start in starts]
    assert max(error_mm(pose, refined[0], grid) for pose in refined) < 0.2


def test_refinement_is_never_worse_than_its_start() -> None:
    fixed, moving, truth, grid = pair(3, seed=5, translation=5, rotation=5)
    assert evaluate_metric(fixed, moving, refine_pose(fixed, moving, truth, grid.center).pull_back) <= (
        evaluate_metric(fixed, moving, truth) + 1e-2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_refinement_keeps_the_size_of_things(ndim: int) -> None:
    fixed, moving, truth, grid = pair(ndim, seed=6, translation=5, rotation=5)
    rotation = refine_pose(fixed, moving, truth, grid.center).pull_back[:ndim, :ndim]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(ndim), atol=EXACT)
    assert np.linalg.det(rotation) > 0


@pytest.mark.parametrize("transform", [sitk.Euler2DTransform(), sitk.Similarity2DTransform(), sitk.Euler3DTransform(),
                                       sitk.VersorRigid3DTransform(), sitk.Similarity3DTransform()],
                         ids=lambda transform: transform.GetName())
def test_matrices_survive_simpleitk(transform: sitk.Transform) -> None:
    n = transform.GetDimension()
    rng = np.random.default_rng(n)
    transform.SetCenter(rng.uniform(-100, 100, n).tolist())
    # any rigid matrix; similarity with its scale of one
    matrix = next(islice(random_starts(np.eye(n + 1), np.zeros(n), rng, 100, 80), 1, None))
    center = np.asarray(transform.GetCenter())
    transform.SetMatrix(matrix[:n, :n].ravel().tolist())
    transform.SetTranslation((matrix[:n, n] - center + matrix[:n, :n] @ center).tolist())
    np.testing.assert_allclose(sitk_to_matrix(transform), matrix, atol=EXACT)
    np.testing.assert_allclose(sitk_to_matrix(matrix_to_sitk(sitk_to_matrix(transform))), matrix, atol=EXACT)
    point = rng.uniform(-100, 100, n)
    np.testing.assert_allclose(transform.TransformPoint(point.tolist()), matrix[:n, :n] @ point + matrix[:n, n],
                               atol=1e-8)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", [MattesMI(), MattesMI(metric="ncc"), MattesMI(metric="mse"), Refinement()],
                         ids=["mi", "ncc", "mse", "refinement"])
def test_no_overlap_is_a_result(ndim: int, method: MattesMI | Refinement) -> None:
    fixed, moving, _, grid = pair(ndim, seed=7, translation=5, rotation=5)
    away = np.eye(ndim + 1)
    away[:ndim, ndim] = FAR_MM
    result = method.register(fixed, moving, away, grid.center)
    assert result.metric == float("inf")
    np.testing.assert_array_equal(result.pull_back, away)
    assert evaluate_metric(fixed, moving, away) == float("inf")


@pytest.mark.parametrize("which", [0, 1], ids=["fixed", "moving"])
def test_a_flat_image_is_a_result(which: int) -> None:
    *images, _, grid = pair(3, seed=7, translation=5, rotation=5)
    images[which] = images[which] * 0
    for method in (MattesMI(), MattesMI(metric="ncc"), Refinement()):
        result = method.register(*images, np.eye(4), grid.center)
        assert result.metric == float("inf")
        np.testing.assert_array_equal(result.pull_back, np.eye(4))
    assert evaluate_metric(*images, np.eye(4)) == float("inf")


def test_the_metric_is_best_at_the_truth() -> None:
    fixed, moving, truth, grid = pair(3, seed=8, translation=10, rotation=10)
    others = islice(random_starts(truth, grid.center, np.random.default_rng(0), 20, 20), 1, 6)
    assert all(evaluate_metric(fixed, moving, truth) < evaluate_metric(fixed, moving, other) for other in others)


def test_multi_start_is_never_worse_than_its_first_start() -> None:
    fixed, moving, _, grid = pair(3, seed=9, translation=25, rotation=40)
    first = QUICK.register(fixed, moving, np.eye(4), grid.center)
    starts = random_starts(np.eye(4), grid.center, np.random.default_rng(0))
    best = multi_start(fixed, moving, islice(starts, 4), grid.center, seconds=60, method=QUICK)
    assert best.metric <= evaluate_metric(fixed, moving, first.pull_back)
    assert best.metric == pytest.approx(evaluate_metric(fixed, moving, best.pull_back))
    assert best.iterations > first.iterations


def test_multi_start_ends_when_its_time_is_used() -> None:
    fixed, moving, _, grid = pair(3, seed=9, translation=10, rotation=10)
    used = []

    def counted():
        for start in random_starts(np.eye(4), grid.center, np.random.default_rng(0)):
            used.append(start)
            yield start

    first = multi_start(fixed, moving, counted(), grid.center, seconds=0, method=QUICK)
    np.testing.assert_array_equal(first.pull_back, QUICK.register(fixed, moving, np.eye(4), grid.center).pull_back)
    assert len(used) <= 2  # one used, one drawn when the time was up
    budget = 0.3
    best = multi_start(fixed, moving, counted(), grid.center, seconds=budget, method=QUICK)
    assert best.seconds >= budget
    assert best.seconds - budget < 10 * first.seconds + 1  # at most one run over, on a busy machine


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_call_gives_the_same_answer(ndim: int) -> None:
    fixed, moving, _, grid = pair(ndim, seed=10, translation=8, rotation=8)
    for method in (QUICK, Refinement()):
        a, b = (method.register(fixed, moving, np.eye(ndim + 1), grid.center) for _ in range(2))
        np.testing.assert_array_equal(a.pull_back, b.pull_back)
        assert a.metric == b.metric
    other = MattesMI(iterations=60, seed=1).register(fixed, moving, np.eye(ndim + 1), grid.center)
    assert ndim == 2 or not np.array_equal(other.pull_back,
                                           QUICK.register(fixed, moving, np.eye(4), grid.center).pull_back)


def test_an_affine_motion_corrects_size() -> None:
    fixed, moving, truth, grid = pair(2, seed=11, translation=3, rotation=3)
    larger = truth @ np.diag([1.1, 1.1, 1.0])
    larger[:2, 2] += truth[:2, :2] @ (grid.center - 1.1 * grid.center)
    result = MattesMI(motion="similarity").register(fixed, moving, larger, grid.center)
    assert error_mm(larger, truth, grid) > 3
    assert error_mm(result.pull_back, truth, grid) < FOUND_MM


def test_working_images_keep_their_place() -> None:
    grid = Grid.centered((20, 60, 62), (1.0, 1.0, 4.0), (5.0, -7.0, 11.0))
    small = working(to_sitk(np.random.default_rng(0).random(grid.shape), grid), 20_000)
    assert small.GetSpacing() == (2.0, 2.0, 4.0)
    np.testing.assert_allclose(Grid.from_sitk(small).center, grid.center, atol=EXACT)
    assert working(small, 20_000).GetSize() == small.GetSize()


def test_errors_name_the_field_and_the_way_out() -> None:
    flat, volume = sitk.Image([32, 32], sitk.sitkFloat32), sitk.Image([8, 8, 8], sitk.sitkFloat32)
    with pytest.raises(ValueError, match="2D and the moving one 3D"):
        MattesMI().register(flat, volume, np.eye(3), np.zeros(2))
    with pytest.raises(ValueError, match="initial has shape"):
        refine_pose(volume, volume, np.eye(3))
    with pytest.raises(ValueError, match="Register a single slice"):
        refine_pose(sitk.Image([32, 32, 1], sitk.sitkFloat32), volume, np.eye(4))
    with pytest.raises(ValueError, match="metric is 'ssim'"):
        MattesMI(metric="ssim")
    with pytest.raises(ValueError, match="initials is empty"):
        multi_start(volume, volume, [], np.zeros(3), seconds=1)


# --- key-points, elastix ---------------------------------------------------------------------------------------------

def textured(turn: float, scale: float) -> tuple[sitk.Image, sitk.Image, np.ndarray, Grid]:
    """A picture full of key-points, seen a second time through a similarity map, and that map (fixed to moving)."""
    grid = Grid.centered((160, 160), 1.5, [30.0, -40.0])
    picture = np.random.default_rng(3).random((24, 24))
    axes = [np.linspace(-80, 80, 24)] * 2
    sampled = RegularGridInterpolator(axes, picture, method="cubic", bounds_error=False, fill_value=0.0)
    points_mm = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)) - grid.center
    angle = np.radians(turn)
    truth = np.eye(3)
    truth[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    truth[:2, 2] = [6.0, -9.0]
    back = np.linalg.inv(truth)
    fixed, moving = sampled(points_mm), sampled(points_mm @ back[:2, :2].T + back[:2, 2])
    about_center = np.eye(3)
    about_center[:2, :2] = truth[:2, :2]
    about_center[:2, 2] = grid.center + truth[:2, 2] - truth[:2, :2] @ grid.center
    return to_sitk(fixed, grid), to_sitk(moving, grid), about_center, grid


def test_sift_recovers_a_similarity_from_any_start() -> None:
    fixed, moving, truth, grid = textured(turn=100.0, scale=0.85)
    found = SiftSimilarity().register(fixed, moving, np.eye(3))
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM and found.metric < -20


def test_sift_without_matches_keeps_the_start() -> None:
    fixed, _, _, grid = textured(0.0, 1.0)
    start = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
    for image in (to_sitk(np.zeros(grid.shape), grid), to_sitk(np.eye(160), grid)):
        found = SiftSimilarity().register(fixed, image, start)
        assert np.array_equal(found.pull_back, start) and found.metric == np.inf
    with pytest.raises(ValueError, match="3D; SIFT needs 2D"):
        SiftSimilarity().register(*pair(3, 1, 5, 5)[:2], np.eye(4))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("motion", ["rigid", "similarity"])
def test_elastix_finds_a_known_pose_from_a_given_start(ndim: int, motion: str) -> None:
    pytest.importorskip("itk")
    fixed, moving, truth, grid = pair(ndim, seed=1, translation=30, rotation=40)
    near = next(islice(random_starts(truth, grid.center, np.random.default_rng(2), 6, 6), 1, None))
    found = Elastix(motion).register(fixed, moving, near, grid.center)
    assert error_mm(near, truth, grid) > 3
    assert error_mm(found.pull_back, truth, grid) < FOUND_MM


def test_elastix_gives_back_the_start_where_it_cannot_register() -> None:
    pytest.importorskip("itk")
    fixed, moving, _, grid = pair(2, seed=1, translation=5, rotation=5)
    far = np.eye(3)
    far[:2, 2] = FAR_MM
    found = Elastix().register(fixed, moving, far, grid.center)
    assert np.array_equal(found.pull_back, far) and found.metric == np.inf
    with pytest.raises(ValueError, match="motion is 'bent'"):
        Elastix("bent")
