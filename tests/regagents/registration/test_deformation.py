"""Images registered densely: a known deformation found again, through files, poses and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regagents.classical.syn import SyN
from regagents.common.checkpoints import CheckpointError
from regagents.registration import deformation as dense
from regagents.registration.register import register
from regenv.data.io.images import Image, ImageError, read_image
from regenv.data.io.resampling import matrix_to_sitk, resampled
from regenv.grid import Grid
from regenv.ops.regularity import non_diffeomorphic_volume
from tests.regagents.toys import checkpoint

SHAPES = {2: (64, 56), 3: (36, 40, 32)}
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def bumps(points: np.ndarray) -> np.ndarray:
    """Blobs of about 12 mm at world points (..., D)."""
    ndim = points.shape[-1]
    centres = np.random.default_rng(3).uniform(-45, 45, (60, ndim))
    return sum(np.exp(-((points - c)**2).sum(-1) / (2 * (5 + 3 * np.sin(7 * n))**2)) * (1 + n % 3)
               for n, c in enumerate(centres))


def wave(points: np.ndarray) -> np.ndarray:
    """A smooth displacement, mm, of up to 5 mm."""
    turned = np.roll(points, 1, -1)
    return 5 * np.sin(turned / 14.0)


def pair(ndim: int) -> tuple[Image, Image, np.ndarray, np.ndarray]:
    """Fixed and moving image, the pose, and points whose place in the moving one is pose(x + wave(x))."""
    turn = np.eye(ndim)
    turn[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    fixed = Grid.centered(SHAPES[ndim], 2.5, direction=turn.ravel().tolist())
    moving = Grid.centered(tuple(n + 6 for n in SHAPES[ndim]), 2.2, [3.0, -2.0, 4.0][:ndim])
    pose = np.eye(ndim + 1)
    pose[:ndim, -1] = [3.0, -2.0, 4.0][:ndim]
    there = moving.to_world(np.moveaxis(np.indices(moving.shape), 0, -1).reshape(-1, ndim)).reshape(*moving.shape, ndim)
    here = fixed.to_world(np.moveaxis(np.indices(fixed.shape), 0, -1).reshape(-1, ndim)).reshape(*fixed.shape, ndim)
    shown = bumps(here + wave(here)).astype(np.float32)      # F(x) = I(x + wave(x)), M(y) = I(pose^-1 y)
    seen = bumps(there - pose[:ndim, -1]).astype(np.float32)
    points = np.random.default_rng(1).uniform(-25, 25, (40, ndim))
    return Image(shown, fixed, "fixed.nii"), Image(seen, moving, "moving.nii"), pose, points


def error(transform: sitk.Transform, pose: np.ndarray, points: np.ndarray) -> float:
    found = np.array([transform.TransformPoint(point.tolist()) for point in points])
    wanted = (points + wave(points)) + pose[:-1, -1]
    return float(np.linalg.norm(found - wanted, axis=1).mean())


FOUND = [(n, name) for n in (2, 3) for name in ("adam", "convexadam", "demons", "greedy", "greedy:lung")]


@pytest.mark.parametrize(("ndim", "name"), [*FOUND, (2, "bspline")])
def test_a_known_deformation_is_found_about_a_pose(ndim: int, name: str) -> None:
    fixed, moving, pose, points = pair(ndim)
    found = dense.optimiser(name, ndim).register(fixed, moving, pose)
    before = error(matrix_to_sitk(pose), pose, points)
    assert before > 3 and error(found.through(pose), pose, points) < 0.3 * before
    assert found.folding < 0.01


@NDIM
def test_the_transform_is_the_pose_after_the_displacement(ndim: int) -> None:
    grid = Grid.centered(SHAPES[ndim], 2.0, [5.0, 6.0, 7.0][:ndim])
    displacement = np.random.default_rng(0).normal(0, 1, (ndim, *grid.shape))
    pose = np.eye(ndim + 1)
    pose[:2, :2], pose[:ndim, -1] = [[0.8, -0.6], [0.6, 0.8]], 4.0
    deformation = dense.Deformation(displacement, grid)
    voxel = np.array(grid.shape) // 3
    world = grid.to_world(voxel + displacement[(slice(None), *voxel)])
    expected = pose[:ndim, :ndim] @ world + pose[:ndim, -1]
    found = deformation.through(pose).TransformPoint(grid.to_world(voxel).tolist())
    np.testing.assert_allclose(found, expected)
    far = np.full(ndim, 1e3)
    np.testing.assert_allclose(deformation.through(pose).TransformPoint(far.tolist()),
                               pose[:ndim, :ndim] @ far + pose[:ndim, -1])


def test_register_deforms_measures_and_writes(tmp_path: Path) -> None:
    fixed, moving, pose, points = pair(3)
    targets = points + wave(points) + pose[:-1, -1]
    result = register(fixed, moving, "none", initial=pose, refine=False, deform="adam", landmarks=(points, targets),
                      labels=(_labels(fixed), _labels(moving)))
    tre = result.metrics["tre_mm"]
    assert tre["after"] == pytest.approx(error(result.transform, pose, points))
    assert tre["after"] < 0.25 * tre["pose"] and tre["pose"] == tre["start"]
    assert result.metrics["similarity"]["deformation"] > result.metrics["similarity"]["agent"]
    assert result.metrics["dice"]["after"]["1"] > result.metrics["dice"]["pose"]["1"]
    assert result.metrics["deformation"]["folding"] == result.deformation.folding
    assert result.metrics["deformation"]["non_diffeomorphic_volume"] == pytest.approx(
        non_diffeomorphic_volume(torch.from_numpy(result.deformation.displacement)[None]).item())
    out = result.save(tmp_path / "out")
    read = sitk.ReadTransform(str(out / "transform.h5"))
    for point in points[:5].tolist():
        np.testing.assert_allclose(read.TransformPoint(point), result.transform.TransformPoint(point))
    np.testing.assert_allclose(resampled(moving, fixed.grid, read).array, result.warped.array, atol=1e-5)


def _labels(image: Image) -> Image:
    return Image((image.array > 1.5).astype(np.int32), image.grid, "labels")


def test_masks_tell_where_the_deformation_is_found() -> None:
    fixed, moving, pose, _ = pair(2)
    left = Image((np.indices(fixed.grid.shape)[1] < 28).astype(np.uint8), fixed.grid, "left")
    everywhere = Image(np.ones(moving.grid.shape, np.uint8), moving.grid, "all")
    masked = dense.optimiser("adam", 2).register(fixed, moving, pose, (left, everywhere)).displacement
    free = dense.optimiser("adam", 2).register(fixed, moving, pose).displacement
    apart = np.abs(masked - free).mean(0)
    assert apart[:, -15:].mean() > 5 * apart[:, :15].mean()


def test_a_learned_optimiser_starts_and_adam_refines(tmp_path: Path) -> None:
    fixed, moving, pose, points = pair(3)
    alone = dense.optimiser("lung3d-l2o", 3, refine=False)
    coarse = alone.register(fixed, moving, pose)
    assert coarse.grid.spacing == pytest.approx((2.5,) * 3, rel=0.1)
    before = error(matrix_to_sitk(pose), pose, points)
    rough = error(coarse.through(pose), pose, points)
    fine = dense.optimiser("lung3d-l2o", 3).register(fixed, moving, pose)
    assert fine.grid.shape == fixed.grid.shape
    assert error(fine.through(pose), pose, points) < min(rough, 0.25 * before)


def test_what_cannot_be_deformed_is_named(tmp_path: Path) -> None:
    fixed, moving, pose, _ = pair(2)
    with pytest.raises(CheckpointError, match="DSL"):
        dense.optimiser(str(checkpoint(tmp_path / "toy.safetensors", 2)), 2)
    with pytest.raises(CheckpointError, match="nosuch"):
        dense.optimiser("nosuch", 2)
    with pytest.raises(ValueError, match="3D images"):
        dense.optimiser("lung3d-l2o", 2)
    with pytest.raises(ImageError, match="3D"):
        solid = Image(np.ones((4, 4, 4), np.uint8), Grid.centered((4, 4, 4), 1.0), "solid.nii")
        register(fixed, moving, "none", deform="adam", masks=(solid, solid))
    thin = Image(fixed.array[:6], Grid.centered((6, 56), 2.5), "thin.nii")
    with pytest.raises(ImageError, match=r"thin.nii: .*\(6, 56\)"):
        dense.optimiser("adam", 2).register(thin, moving, pose)


def test_memory_limits_the_grid_and_nothing_else_does() -> None:
    """A brain of 1 mm is registered as it is; with an eighth of the memory, or eight times the voxels, at 2 mm."""
    brain = Grid.centered((190, 230, 190), 1.0)
    for name in dense.OPTIMISERS:
        if name != "syn" or SyN.available():
            needed = int(brain.shape[0] * brain.shape[1] * brain.shape[2] * dense.OPTIMISERS[name].memory)
            assert dense.optimiser(name, 3, memory=2 * needed).finest(brain) == 1.0
            assert dense.optimiser(name, 3, memory=needed // 8).finest(brain) == pytest.approx(2.0, rel=1e-3)
    assert dense.optimiser("greedy", 3).finest(brain) == 1.0
    fixed, moving, pose, _ = pair(3)
    few = dense.optimiser("greedy", 3, memory=1 << 20).register(fixed, moving, pose)
    assert np.prod(few.grid.shape) * dense.OPTIMISERS["greedy"].memory < 1.1 * (1 << 20)
    with pytest.raises(ValueError, match="memory is 0"):
        dense.optimiser("greedy", 3, memory=0)
    with pytest.raises(ValueError, match=r"'greedy:knee'; it must be one of .*greedy:lung"):
        dense.optimiser("greedy:knee", 3)


def test_a_coarser_grid_than_the_image_is_told_with_the_memory_that_it_would_take() -> None:
    fixed, moving, pose, _ = pair(3)
    needed = np.prod(fixed.grid.shape) * dense.OPTIMISERS["adam"].memory
    notes = register(fixed, moving, "none", initial=pose, refine=False, deform="adam",
                     memory=int(needed / 8)).metrics["notes"]
    assert notes == [f"deformed on a grid of 5.00 mm: in the image's own voxels of 2.50 mm it would take "
                     f"{needed / 1e9:.1f} GB of memory, and {needed / 8e9:.1f} GB are allowed (memory)."]
    assert not dense.optimiser("adam", 3).register(fixed, moving, pose).notes


def test_labels_take_part_where_they_are_asked_to() -> None:
    """Two discs that the images do not show."""
    flat = Grid.centered((48, 48), 2.0)
    places = flat.to_world(np.moveaxis(np.indices(flat.shape), 0, -1).reshape(-1, 2)).reshape(48, 48, 2)
    image = Image(bumps(places).astype(np.float32), flat, "image.nii")
    discs = [Image((np.linalg.norm(places - [x, 0], axis=-1) < 16).astype(np.int32), flat, "disc.nii") for x in (-5, 5)]
    common = {"initial": "header", "refine": False, "labels": tuple(discs)}
    found = {name: register(image, image, "none", deform=name, **common).metrics["dice"]
             for name in ("greedy", dense.LABELLED)}
    assert found["greedy"]["after"]["1"] == pytest.approx(found["greedy"]["before"]["1"], abs=0.02)
    assert found[dense.LABELLED]["after"]["1"] > found["greedy"]["after"]["1"] + 0.1
    with pytest.raises(ValueError, match="greedy:labels', but labels is None"):
        register(image, image, "none", deform=dense.LABELLED)
    with pytest.raises(ValueError, match="there are no labels"):
        dense.optimiser(dense.LABELLED, 2).register(image, image, np.eye(3))


@pytest.mark.skipif(SyN.available(), reason="antspyx is installed")
def test_what_is_not_installed_is_named_before_work_starts() -> None:
    with pytest.raises(ValueError, match="pip install antspyx"):
        dense.optimiser("syn", 3)


@pytest.mark.slow
def test_a_real_pair_of_lungs_is_registered(shared_data: Path) -> None:
    """Ten landmark pairs, 34.9 mm apart; an affine registration leaves 4.6 to 5.3 mm, elastix's B-spline 2.0 mm."""
    stem = f"{shared_data}/lung_ct/3DCT_lung_"
    images = [read_image(f"{stem}{name}.mha") for name in ("baseline", "followup")]
    landmarks = [image.grid.to_world(np.loadtxt(f"{stem}{name}.txt", skiprows=2)[:, ::-1])
                 for name, image in zip(("baseline", "followup"), images, strict=True)]
    masks = tuple(f"{stem}{name}_mask.mha" for name in ("baseline", "followup"))
    result = register(*images, "none", deform="lung3d-l2o", masks=masks, landmarks=tuple(landmarks))
    tre = result.metrics["tre_mm"]
    assert tre["before"] > 30 and tre["pose"] > 5 and tre["after"] < 2.6
    assert result.deformation.folding < 1e-3


def cropped(image: Image, by: int, offset: float) -> Image:
    """The middle of an image, in whole numbers, plus an offset."""
    grid = image.grid
    inner = Grid(tuple(n - 2 * by for n in grid.shape), grid.spacing,
                 tuple(grid.to_world(np.full(grid.ndim, float(by))).tolist()), grid.direction)
    return Image(np.rint(image.array[(slice(by, -by),) * grid.ndim] * 300) + np.float32(offset), inner, image.path)


@pytest.mark.parametrize(("ndim", "name"), [*FOUND, (2, "bspline"), (2, "convex"), (3, "convex"),
                                            (3, "lung3d-l2o")])
def test_a_constant_added_to_both_images_changes_nothing(ndim: int, name: str) -> None:
    """Beyond the moving image there is its background, whatever number the scanner gives it."""
    fixed, moving, pose, points = pair(ndim)
    found = [register(Image(np.rint(fixed.array * 300) + np.float32(offset), fixed.grid, "f"),
                      cropped(moving, 5, offset), "none", initial=pose, refine=False, deform=name)
             for offset in (0, 1000)]
    ends = [[each.transform.TransformPoint(point) for point in points.tolist()] for each in found]
    assert np.abs(np.subtract(*ends)).max() == 0
    assert found[0].metrics["similarity"] == found[1].metrics["similarity"]


@NDIM
def test_every_stage_is_measured_alike(ndim: int) -> None:
    """No displacement at all has the mutual information of the pose, to the last digit."""
    fixed, moving, pose, _ = pair(ndim)
    nowhere = Image(np.ones((8,) * ndim, np.uint8), Grid.centered((8,) * ndim, 1.0, (5e3,) * ndim), "far.nii")
    with pytest.warns(UserWarning, match=r"far\.nii: it is 0 in every voxel of .*nothing is deformed"):
        result = register(fixed, moving, "none", initial=pose, deform="convex", masks=(nowhere, nowhere))
    assert np.abs(result.deformation.displacement).max() == 0
    assert result.metrics["similarity"]["deformation"] == result.metrics["similarity"]["refinement"]


def test_outside_the_moving_image_the_warped_one_has_its_least_value_or_the_fill() -> None:
    fixed, moving, pose, _ = pair(3)
    air = cropped(moving, 8, -1000)
    found = [register(fixed, air, "none", initial=pose, refine=False, fill=fill).warped.array[0, 0, 0]
             for fill in (None, -2048.0)]
    assert found == [air.array.min(), -2048]
    for fill in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="register: fill is"):
            register(fixed, air, "none", fill=fill)
