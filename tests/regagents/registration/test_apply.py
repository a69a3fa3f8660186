"""Transforms applied and inverted: as SimpleITK and ANTs do it, in the stated order, there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from regagents.registration.apply import (
    Applied,
    Inverse,
    apply_transforms,
    grid_of,
    invert_file,
    invert_transform,
    map_points,
    write_points,
)
from regagents.registration.statement import FORWARD, statement, write_statement
from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError
from regenv.data.io.images import Image
from regenv.data.io.landmarks import read_landmarks
from regenv.data.io.resampling import framed
from regenv.data.io.transforms import write_transform
from regenv.data.io.writing import write_image
from regenv.grid import Grid

GREY = 0.05             # of intensities up to 1000
AGREE_MM = 0.01
EXACT_MM = 1e-5
SHAPES = {2: (26, 24), 3: (16, 18, 20)}
IDS = (312_782_604, 2**60 + 1)


def smooth(shape: tuple[int, ...], size: float, seed: int, sigma: float = 5.0) -> np.ndarray:
    """Random numbers of a width of ``sigma`` voxels, ``size`` at most."""
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return values * size / np.abs(values).max()


def grid(ndim: int) -> Grid:
    angle = np.radians(15)
    direction = np.eye(ndim)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Grid.centered(SHAPES[ndim], [2.0, 2.5, 3.0][:ndim], [5.0, -3.0, 8.0][:ndim], direction.ravel())


def field(ndim: int, size: float = 4.0, seed: int = 5) -> Field:
    """A displacement field that is 0 nowhere, of up to ``size`` mm."""
    return Field(np.stack([smooth(SHAPES[ndim], size, seed + c) for c in range(ndim)], -1), grid(ndim))


def image(ndim: int) -> Image:
    """The moving image, on another grid."""
    shape = tuple(n + 3 for n in SHAPES[ndim])
    where = Grid.centered(shape, 2.2, [4.0, -4.0, 6.0][:ndim])
    return Image((smooth(shape, 500, 1, 2.0) + 500).astype(np.float32), where, "moving.nii")


def rigid(ndim: int) -> sitk.Transform:
    return sitk.Euler2DTransform((3, -2), 0.2, (2, 1)) if ndim == 2 else \
        sitk.Euler3DTransform((3, -2, 5), 0.1, -0.15, 0.2, (2, 1, -3))


def similarity(ndim: int) -> sitk.Transform:
    return sitk.Similarity2DTransform(1.2, 0.1, (2, -1)) if ndim == 2 else \
        sitk.Similarity3DTransform(0.9, (0, 0.6, 0.8), 0.2, (2, -1, 3), (1, 2, 3))


def affine(ndim: int) -> sitk.Transform:
    matrix = np.eye(ndim) + 0.1 * np.random.default_rng(2).normal(size=(ndim, ndim))
    return sitk.AffineTransform(matrix.ravel().tolist(), [2.0, -3.0, 1.0][:ndim], [1.0, 2.0, 3.0][:ndim])


def displacement(ndim: int) -> sitk.Transform:
    return field(ndim).transform()


def both(ndim: int) -> sitk.Transform:
    """First the displacement, then an affine transform: ITK lists them from the end."""
    return sitk.CompositeTransform([affine(ndim), displacement(ndim)])


KINDS = pytest.mark.parametrize("make", [rigid, similarity, affine, displacement, both], ids=lambda f: f.__name__)
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def resample(moving: Image, like: Grid, transform: sitk.Transform, interpolator: int = sitk.sitkLinear) -> np.ndarray:
    """SimpleITK alone."""
    reference = framed(np.zeros(like.shape, np.float32), like)
    return sitk.GetArrayFromImage(sitk.Resample(framed(moving.array, moving.grid), reference, transform, interpolator,
                                                -7.0))


def applied(*steps: object, like: Grid, moving: Image, **options: object) -> Applied:
    return apply_transforms(steps, like, image=moving, fill=-7.0, **options)    # type: ignore[arg-type]


@NDIM
@KINDS
def test_an_image_is_carried_as_by_simpleitk(ndim: int, make: Callable[[int], sitk.Transform]) -> None:
    moving, like = image(ndim), grid(ndim)
    found = applied(make(ndim), like=like, moving=moving)
    wanted = resample(moving, like, make(ndim))
    assert np.abs(found.image.array - wanted).max() < GREY
    assert abs(found.covered - (wanted != -7).mean()) < 0.01 and 0.2 < found.covered < 1


@NDIM
@KINDS
def test_points_go_where_simpleitk_takes_them_and_come_back(ndim: int, make: Callable[[int], sitk.Transform],
                                                            rng) -> None:
    points = rng.uniform(grid(ndim).center - 40, grid(ndim).center + 40, (200, ndim))       # beyond the field, too
    transform = make(ndim)
    there, astray = map_points([transform], points)
    wanted = np.array([transform.TransformPoint(point) for point in points.tolist()])
    assert np.abs(there - wanted).max() < EXACT_MM and not astray.any()
    within = np.abs(grid(ndim).to_voxel(points) / (np.asarray(SHAPES[ndim]) - 1) - 0.5).max(1) < 0.5
    back, astray = map_points([make(ndim)], there, of="moving")
    assert np.abs(back - points)[within].max() < EXACT_MM and not astray[within].any() and within.sum() > 10


@NDIM
def test_the_inverse_of_a_linear_transform_is_simpleitks(ndim: int) -> None:
    for make in (rigid, similarity, affine):
        inverted = invert_transform(make(ndim))
        assert inverted.kind == make.__name__ and inverted.round_trip_mm["max"] < 1e-10 and inverted.folded == 0
        wanted = resample(image(ndim), grid(ndim), make(ndim).GetInverse())
        for step in (Inverse(make(ndim)), inverted.transform):
            assert np.abs(applied(step, like=grid(ndim), moving=image(ndim)).image.array - wanted).max() < GREY


def test_the_inverse_of_a_field_is_simpleitks() -> None:
    """ITK's iteration converges where the displacement is 0 at the border, and to its tolerance."""
    window = np.prod(np.meshgrid(*(np.sin(np.pi * np.linspace(0, 1, n)) ** 2 for n in SHAPES[3]), indexing="ij"), 0)
    given = Field(field(3, size=3.0).vectors * window[..., None], grid(3))
    inverted = invert_transform(given)
    ours = inverted.parts[0]
    assert isinstance(ours, Field) and ours.grid == given.grid
    theirs = sitk.InvertDisplacementField(framed(given.vectors, given.grid), 400, 1e-4, 1e-6)
    assert np.abs(ours.vectors - sitk.GetArrayFromImage(theirs)).max() < AGREE_MM
    wanted = resample(image(3), grid(3), sitk.DisplacementFieldTransform(theirs))
    found = applied(Inverse(given), like=grid(3), moving=image(3)).image.array
    assert np.abs(found - wanted).max() < 1.0       # one grey level


@NDIM
@pytest.mark.parametrize("make", [displacement, both], ids=lambda f: f.__name__)
def test_a_round_trip_is_measured_where_the_field_is(ndim: int, make: Callable[[int], sitk.Transform]) -> None:
    """What is reported is what SimpleITK finds with the two transforms."""
    there, inverted = make(ndim), invert_transform(make(ndim))
    back = inverted.transform
    nodes = grid(ndim).to_world(np.moveaxis(np.indices(SHAPES[ndim]), 0, -1).reshape(-1, ndim))
    errors = [np.linalg.norm(np.subtract(back.TransformPoint(there.TransformPoint(point)), point))
              for point in nodes.tolist()]
    assert abs(inverted.round_trip_mm["median"] - np.median(errors)) < EXACT_MM
    assert abs(inverted.round_trip_mm["max"] - np.max(errors)) < EXACT_MM
    assert np.median(errors) < 0.05 and np.max(errors) < 0.5 and inverted.folded == 0


def test_an_inverse_reaches_wherever_its_field_leads() -> None:
    """A field that moves its whole grid far away: ITK's filters, which stay on the grid, find no inverse."""
    given = Field(field(3).vectors + np.array([40.0, 0.0, -30.0]), grid(3))
    assert invert_transform(given).round_trip_mm["max"] < 0.5
    with pytest.raises(ValueError, match="voxels, which is too much"):
        invert_transform(Field(field(3).vectors + 3e4, grid(3)))


def test_a_stretching_field_is_inverted_where_the_fixed_point_iteration_diverges() -> None:
    line = grid(2)
    vectors = np.zeros((*line.shape, 2))
    vectors[..., 0] = 5.0 * np.arange(line.shape[1])        # x is stretched 3.5 times, 2 mm becoming 7
    there, astray = map_points([Field(vectors, line)], line.center[None], of="moving")
    again = map_points([Field(vectors, line)], there)[0]
    assert np.abs(again - line.center).max() < EXACT_MM and not astray.any()


def test_a_folded_field_is_inverted_and_told() -> None:
    steep = field(3, size=30.0)
    inverted = invert_transform(steep)
    determinant = sitk.DisplacementFieldJacobianDeterminant(framed(steep.vectors, steep.grid))
    assert 0.01 < inverted.folded < 0.6
    assert abs(inverted.folded - (sitk.GetArrayFromImage(determinant) <= 0).mean()) < 0.1    # other edges, and turned
    assert inverted.round_trip_mm["max"] > 5


def test_points_beyond_what_a_field_reaches_are_astray() -> None:
    far = grid(3).center + np.array([500.0, 0, 0])
    found, astray = map_points([field(3)], np.stack([grid(3).center, far]), of="moving")
    assert astray.tolist() == [False, True] and np.array_equal(found[1], far)


@NDIM
def test_the_first_transform_is_the_first_that_a_point_goes_through(ndim: int) -> None:
    steps = [displacement(ndim), affine(ndim), Inverse(rigid(ndim))]
    whole = sitk.CompositeTransform([rigid(ndim).GetInverse(), affine(ndim), displacement(ndim)])
    found = applied(*steps, like=grid(ndim), moving=image(ndim)).image.array
    assert np.abs(found - resample(image(ndim), grid(ndim), whole)).max() < GREY
    turned = applied(*steps[::-1], like=grid(ndim), moving=image(ndim)).image.array
    assert np.abs(found - turned).max() > 20
    undone = [Inverse(whole), *steps]
    points = grid(ndim).center + np.random.default_rng(0).uniform(-10, 10, (20, ndim))
    assert np.abs(map_points(undone, map_points(steps, points)[0])[0] - map_points(steps, points)[0]).max() < EXACT_MM


@pytest.mark.parametrize(("name", "interpolator"), [
    ("nearest", sitk.sitkNearestNeighbor), ("bspline", sitk.sitkBSpline), ("lanczos", sitk.sitkLanczosWindowedSinc)])
def test_interpolations_are_simpleitks(name: str, interpolator: int) -> None:
    found = applied(rigid(3), like=grid(3), moving=image(3), interpolation=name).image.array
    assert np.abs(found - resample(image(3), grid(3), rigid(3), interpolator)).max() < GREY


def test_labels_of_many_digits_survive() -> None:
    moving = image(3)
    labels = Image(np.select([moving.array > 600, moving.array > 500], IDS, 0), moving.grid, "labels.nii")
    found = apply_transforms([both(3)], grid(3), labels=labels).image.array
    classes = Image(np.searchsorted((0, *IDS), labels.array).astype(np.float32), moving.grid, "classes.nii")
    wanted = resample(classes, grid(3), both(3), sitk.sitkNearestNeighbor).clip(0).astype(int)
    assert np.array_equal(found, np.array((0, *IDS))[wanted]) and set(np.unique(found)) == {0, *IDS}


def test_what_does_not_fit_is_refused() -> None:
    like, moving = grid(3), image(3)
    spline = sitk.BSplineTransformInitializer(framed(moving.array, moving.grid), [2, 2, 2])
    for steps, words in (([], "no transform"), ([rigid(2)], "moving.nii: it is 3D, but the transforms are 2D"),
                         ([rigid(2), rigid(3)], r"dimensions are \[2, 3\]"), ([Inverse(spline)], "is BSplineTransform"),
                         ([np.zeros((4, 4))], "finite and invertible")):
        with pytest.raises(ValueError, match=words):
            applied(*steps, like=like, moving=moving)
    for options, words in (({}, "an image or labels"), ({"image": moving, "labels": moving}, "an image or labels"),
                           ({"image": moving, "interpolation": "cubic"}, "interpolation is 'cubic'"),
                           ({"image": moving, "fill": np.nan}, "fill is nan")):
        with pytest.raises(ValueError, match=words):
            apply_transforms([rigid(3)], like, **options)
    for points, of, words in ((np.zeros((2, 2)), "fixed", r"shape \(2, 2\)"), (np.zeros((2, 3)), "both", "'both'")):
        with pytest.raises(ValueError, match=words):
            map_points([rigid(3)], points, of)
    assert applied(sitk.TranslationTransform(3, (0, 0, 999)), like=like, moving=moving).covered == 0


# --------------------------------------------------------------------------------------------------------------- files

def test_an_inverse_in_a_file_says_what_it_maps_and_how_well(tmp_path: Path) -> None:
    write_transform(tmp_path / "transform.h5", both(3))
    fixed = Image(np.zeros(SHAPES[3], np.float32), grid(3), "fixed.nii")
    write_statement(tmp_path / "transform.h5", statement(fixed, image(3), {"transform.h5": "both"}))
    inverted = invert_file(tmp_path / "transform.h5", tmp_path / "back.h5")
    stated = json.loads((tmp_path / "back.json").read_text())
    assert stated["round_trip_mm"] == inverted.round_trip_mm and stated["folded"] == 0
    assert stated["maps"] == "points of the moving image to points of the fixed image, mm, LPS" != FORWARD
    assert stated["files"] == {"back.h5": "affine, then displacement field"}
    assert stated["fixed"]["size"] == list(SHAPES[3][::-1]) and stated["moving"]["path"] == "moving.nii"
    there = map_points([tmp_path / "transform.h5"], grid(3).center[None])[0]
    assert np.abs(map_points([tmp_path / "back.h5"], there)[0] - grid(3).center).max() < 0.1


def test_inverses_of_fields_and_matrices_are_written_in_files_of_their_own_kind(tmp_path: Path) -> None:
    write_transform(tmp_path / "field.nii.gz", field(2))
    write_transform(tmp_path / "pose.tfm", affine(2))
    invert_file(tmp_path / "field.nii.gz", tmp_path / "back.nii.gz")
    invert_file(tmp_path / "pose.tfm", tmp_path / "pose_back.tfm")
    assert json.loads((tmp_path / "back.json").read_text())["maps"].endswith("the other way than field.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "back.nii.gz")).GetNumberOfComponentsPerPixel() == 2
    assert np.allclose(sitk.ReadTransform(str(tmp_path / "pose_back.tfm")).TransformPoint((1.0, 2.0)),
                       affine(2).GetInverse().TransformPoint((1.0, 2.0)))
    before = set(tmp_path.iterdir())
    (tmp_path / "card.json").write_text('{"card_version": 1}')
    for given, out, words in (("pose.tfm", "back.mha", r"\.mha'; the inverse of a transform that is affine"),
                              ("field.nii.gz", "back.png", r"format is '\.png'"),
                              ("pose.tfm", "card.tfm", r"card\.json: it is there"), ("none.tfm", "a.tfm", "no such")):
        with pytest.raises(ValueError, match=words):
            invert_file(tmp_path / given, tmp_path / out)
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        invert_file(tmp_path / "pose.tfm", tmp_path / "nowhere" / "a.tfm")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "card.json"}


def test_points_are_written_as_they_are_read(tmp_path: Path, rng) -> None:
    for ndim in (2, 3):
        points = rng.normal(size=(5, ndim)) * 100
        write_points(tmp_path / "points.csv", points)
        assert np.array_equal(read_landmarks(tmp_path / "points.csv"), points)


def test_a_constant_image_gives_its_grid(tmp_path: Path) -> None:
    write_image(tmp_path / "empty.mha", np.zeros(SHAPES[3], np.uint8), grid(3))
    assert np.allclose(grid_of(tmp_path / "empty.mha").voxel_to_world, grid(3).voxel_to_world)
    with pytest.raises(ImageError, match="no such file"):
        grid_of(tmp_path / "none.mha")


@pytest.mark.parametrize("make", [rigid, similarity, affine, displacement, both], ids=lambda f: f.__name__)
def test_ants_gives_the_same_image(tmp_path: Path, make: Callable[[int], sitk.Transform]) -> None:
    """Of transforms that were written here, of their inverses, and in the same order."""
    ants = pytest.importorskip("ants")
    moving, like = image(3), Image(np.zeros(SHAPES[3], np.float32), grid(3), "fixed.nii")
    name = "t.nii.gz" if make is displacement else "t.h5" if make is both else "t.tfm"
    write_transform(tmp_path / name, make(3))
    write_transform(tmp_path / "shift.tfm", np.array([[1.0, 0, 0, 3], [0, 1, 0, -4], [0, 0, 1, 5], [0, 0, 0, 1]]))
    invert_file(tmp_path / name, tmp_path / f"i{name}")
    for part, shown in (("moving", moving), ("fixed", like)):
        write_image(tmp_path / f"{part}.nii.gz", shown.array, shown.grid)
    theirs = {part: ants.image_read(str(tmp_path / f"{part}.nii.gz")) for part in ("moving", "fixed")}
    for steps in ([name], [f"i{name}"], [name, "shift.tfm"], ["shift.tfm", name]):
        wanted = ants.apply_transforms(theirs["fixed"], theirs["moving"], [str(tmp_path / step) for step in steps],
                                       interpolator="linear", defaultvalue=-7.0).numpy().T
        found = applied(*(tmp_path / step for step in steps), like=grid(3), moving=moving)
        assert np.mean(np.abs(found.image.array - wanted) > 0.2) < 1e-3     # at the image's very edge they may differ
        assert found.covered > 0.2


def test_ants_own_affine_is_read(tmp_path: Path) -> None:
    ants = pytest.importorskip("ants")
    matrix = np.asarray(affine(3).GetMatrix()).reshape(3, 3)
    theirs = ants.create_ants_transform(transform_type="AffineTransform", dimension=3, matrix=matrix,
                                        translation=affine(3).GetTranslation(), center=affine(3).GetCenter())
    ants.write_transform(theirs, str(tmp_path / "0GenericAffine.mat"))
    points = np.random.default_rng(0).normal(size=(5, 3)) * 50
    wanted = [theirs.apply_to_point(tuple(point)) for point in points.tolist()]
    assert np.abs(map_points([tmp_path / "0GenericAffine.mat"], points)[0] - wanted).max() < 1e-4   # 32 bits
