"""What is true of the organ benchmark: reproducible, sane labels, as hard as the paper's, surfaces that correspond."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.banks import downloads as datasets
from regenv.data.banks import pelvises
from regenv.data.banks.pelvises import BLADDER, ORGAN, RECTUM, Population, Subject, population, surface_points
from regenv.data.io.images import Image, ImageError
from regenv.grid import Grid
from regenv.ops.overlap import dice, hausdorff
from regenv.ops.sampling import sample

DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])
SHAPES = {2: (100, 100), 3: (20, 75, 75)}
SPACINGS = {2: (0.9, 0.9), 3: (1.2, 1.2, 3.6)}      # mm
# Krebs et al. 2017, table 1: mean and standard deviation of Dice, mean Hausdorff distance (mm), without any agent
TABLE = {("translation", 2): (0.76, 0.10, 11.6), ("translation", 3): (0.62, 0.11, 16.1),
         ("labels", 3): (0.74, 0.08, 9.2)}
DICE_BAND, SPREAD_BAND, HAUSDORFF_BAND_MM = 0.06, 0.05, 2.5
SAME_MEAN = 0.01        # of intensities in [0, 1], across versions of libraries
SHIFT_MM = 0.6
SUBVOXEL = 0.15         # of a voxel: linear interpolation of a mask


@pytest.fixture(scope="module")
def template() -> Subject:
    return pelvises._synthetic_subject(0)


def scores(whole: Population) -> tuple[Tensor, Tensor]:
    """Dice and Hausdorff distances (mm) of the organ over the test pairs, (56,) each."""
    fixed, moving = (whole.labels[list(side)] for side in zip(*whole.test_pairs, strict=True))
    return dice(fixed, moving, (ORGAN,))[:, 0], hausdorff(fixed, moving, (ORGAN,), whole.grid.spacing)[:, 0]


def masks(whole: Population, label: int = ORGAN) -> np.ndarray:
    return (whole.labels[:, 0] == label).numpy()


def moved(subject: Subject, matrix: np.ndarray) -> Subject:
    """The subject somewhere else in the world: the same voxels, a rigidly moved (4, 4) grid."""
    def move(image: Image) -> Image:
        grid = image.grid
        turned = matrix[:3, :3] @ np.reshape(grid.direction, (3, 3))
        origin = matrix[:3, :3] @ grid.origin + matrix[:3, 3]
        return Image(image.array, Grid(grid.shape, grid.spacing, tuple(origin), tuple(turned.ravel())), image.path)
    return Subject("moved", move(subject.image), move(subject.labels))


# ---------------------------------------------------------------------------------------------------- the population

@DIMENSIONS
@pytest.mark.parametrize("alignment", ["translation", "labels"])
def test_shapes_types_and_split(ndim: int, alignment: str) -> None:
    whole = population(ndim, alignment)
    assert whole.images.shape == whole.labels.shape == (41, 1, *SHAPES[ndim])
    assert whole.grid.shape == SHAPES[ndim] and whole.grid.spacing == SPACINGS[ndim]
    assert whole.images.dtype == torch.float32 and whole.labels.dtype == torch.int16
    assert whole.images.min() >= 0 and whole.images.max() <= 1 and whole.images.isfinite().all()
    assert len(whole.train) == 33 and len(whole.test) == 8 and sorted(whole.train + whole.test) == list(range(41))
    assert len(set(whole.test_pairs)) == 56 and all(f != m and {f, m} <= set(whole.test) for f, m in whole.test_pairs)


@DIMENSIONS
def test_what_is_kept_is_what_the_code_makes(ndim: int, template: Subject) -> None:
    """Fails where the painting or the preparation changed and pelvises.VERSION did not; also, it is reproducible."""
    chosen = (33, 0, 11)        # of both scanners; the template must be the first for training
    assert pelvises.split(3, 1)[0][0] == 1 and population(ndim).train[0] == 0
    subjects = [template if i == 0 else pelvises._synthetic_subject(i) for i in chosen]
    whole = pelvises.prepared_population(subjects, ndim, tests=1)
    kept = population(ndim)
    assert (whole.images - kept.images[list(chosen)]).abs().mean() < SAME_MEAN
    assert dice(whole.labels, kept.labels[list(chosen)], (ORGAN, RECTUM)).min() > 0.99


def test_painted_once_then_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REGENV_DATA", str(tmp_path))
    monkeypatch.setattr(pelvises, "COUNT", 2)
    monkeypatch.setattr(pelvises, "TESTS", 1)
    unremembered = population.__wrapped__
    first = unremembered(2)
    assert len(list((datasets.cache_dir() / "organs").iterdir())) == 4     # both dimensions, both alignments
    monkeypatch.setattr(pelvises, "_synthetic_subject", None)
    again = unremembered(2)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)


@DIMENSIONS
def test_organ_is_whole_and_inside_the_field(ndim: int) -> None:
    for mask in masks(population(ndim)):
        pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
        assert sitk.GetArrayFromImage(pieces).max() == 1
        for axis in range(ndim):
            assert not np.take(mask, [0, -1], axis).any()


@pytest.mark.parametrize(("ndim", "neighbour"), [(2, RECTUM), (3, RECTUM), (3, BLADDER)])
def test_neighbours_touch_the_organ(ndim: int, neighbour: int) -> None:
    whole = population(ndim)
    for mask, other in zip(masks(whole), masks(whole, neighbour), strict=True):
        grown = sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), [1] * ndim, sitk.sitkBox)
        contact = (sitk.GetArrayFromImage(grown) > 0) & other
        assert contact.sum() > 3 and not (mask & other).any()


def test_neighbours_lie_where_they_belong() -> None:
    """The bladder above (+z), the rectum behind (+y)."""
    whole = population(3)
    centers = {label: np.array([np.argwhere(mask).mean(0) for mask in masks(whole, label)])
               for label in (ORGAN, BLADDER, RECTUM)}
    assert (centers[BLADDER][:, 0] > centers[ORGAN][:, 0] + 5).all()
    assert (centers[RECTUM][:, 1] > centers[ORGAN][:, 1] + 10).all()


def test_organs_differ_in_size_and_shape() -> None:
    whole = population(3)
    millilitres = masks(whole).sum((1, 2, 3)) * math.prod(whole.grid.spacing) / 1000
    assert 10 < millilitres.min() < 25 and 75 < millilitres.max() < 120
    extents = np.array([np.ptp(np.argwhere(mask), axis=0) for mask in masks(whole)])
    flatness = extents[:, 2] / extents[:, 1]
    assert flatness.max() / flatness.min() > 1.5


def test_subjects_have_their_own_contrast_and_texture() -> None:
    whole = population(2)
    inside = [image[0][torch.from_numpy(mask)] for image, mask in zip(whole.images, masks(whole), strict=True)]
    assert np.std([float(values.mean()) for values in inside]) > 0.03
    middle = whole.images[:, 0, 40:60, 40:60].flatten(1)
    correlation = torch.corrcoef(middle)[~torch.eye(len(middle), dtype=torch.bool)]
    assert correlation.max() < 0.9


@pytest.mark.parametrize("case", list(TABLE))
def test_as_hard_as_the_papers_data(case: tuple[str, int]) -> None:
    overlaps, distances = scores(population(case[1], case[0]))
    mean, spread, distance = TABLE[case]
    assert float(overlaps.mean()) == pytest.approx(mean, abs=DICE_BAND)
    assert float(overlaps.std()) == pytest.approx(spread, abs=SPREAD_BAND)
    assert float(distances.mean()) == pytest.approx(distance, abs=HAUSDORFF_BAND_MM)


@DIMENSIONS
def test_perfect_rigid_alignment_beats_translation(ndim: int) -> None:
    rough, aligned = (scores(population(ndim, alignment)) for alignment in ("translation", "labels"))
    assert aligned[0].mean() > rough[0].mean() + 0.04 and aligned[1].mean() < rough[1].mean() - 2
    whole = population(ndim, "labels")
    template = whole.labels[whole.train[0]].expand(41, -1, *(-1,) * ndim)
    gain = dice(whole.labels, template, (ORGAN,)) - dice(population(ndim).labels, template, (ORGAN,))
    assert gain.min() > -0.02       # each by itself, up to the resampling of masks


# ------------------------------------------------------------------------------------------------------ preparation

def test_translation_finds_a_shifted_copy(template: Subject) -> None:
    """Cropped on two sides, so that aligned image centres are not the answer, and far away."""
    shift = np.eye(4)
    shift[:3, 3] = [30.0, -20.0, 8.0]
    subjects = [template, moved(cropped(template, (0, 6, 9)), shift)]
    assert pelvises.split(2, 1) == ((0,), (1,))
    offsets = pelvises.translations(subjects, tests=1)
    assert np.abs(offsets[1] - shift[:3, 3]).max() < SHIFT_MM and not offsets[0].any()
    whole = pelvises.prepared_population(subjects, 3, tests=1)
    assert dice(whole.labels[:1], whole.labels[1:], (ORGAN,)).min() > 0.95
    assert whole.names == ("made-00", "moved")


def cropped(subject: Subject, low: tuple[int, ...]) -> Subject:
    """Without the first voxels along each axis."""
    index = tuple(slice(n, None) for n in low)

    def crop(image: Image) -> Image:
        array, origin = image.array[index], tuple(image.grid.to_world(np.array(low)))
        return Image(array, Grid(array.shape, image.grid.spacing, origin, image.grid.direction), image.path)
    return Subject("cropped", crop(subject.image), crop(subject.labels))


@DIMENSIONS
def test_perfect_rigid_undoes_a_rotation(ndim: int) -> None:
    """A rotation of the whole scan: what the masks say brings the images into line too, out of the slices in 3D."""
    wide, turn = pelvises._synthetic_subject(5), np.eye(4)
    turn[:3, :3] = rotation((0, 0, 14) if ndim == 2 else (10, -6, 14))
    subjects, offsets = [wide, moved(wide, turn)], np.zeros((2, 3))
    rough = pelvises._by_translation(subjects, offsets, ndim, tests=1)
    whole = pelvises.aligned_by_labels(subjects, offsets, ndim, tests=1)
    assert dice(rough.labels[:1], rough.labels[1:], (ORGAN,)).min() < 0.95
    assert dice(whole.labels[:1], whole.labels[1:], (ORGAN,)).min() > 0.98
    likeness = [torch.corrcoef(each.images[..., 25:-25, 25:-25].flatten(1))[0, 1] for each in (rough, whole)]
    assert likeness[0] < 0.8 and likeness[1] > 0.97


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.deg2rad(degrees).tolist())
    return np.reshape(transform.GetMatrix(), (3, 3))


def test_slices_go_through_the_middle_of_each_organ(template: Subject) -> None:
    """Nearest labels at the grid's own voxels: the 2D organ is the native slice, seen on another lattice."""
    whole = pelvises._by_translation([template] * 2, np.zeros((2, 3)), 2, tests=1)
    organ = template.labels.array == ORGAN
    middle = round(np.argwhere(organ).mean(0)[0])
    area = organ[middle].sum() * math.prod(template.labels.grid.spacing[:2])
    assert masks(whole)[0].sum() * 0.9**2 == pytest.approx(area, rel=0.02)


def subject(image: np.ndarray, labels: np.ndarray, spacing: float = 2.0, other: float | None = None) -> Subject:
    return Subject("s", Image(image.astype(np.float32), Grid.centered(image.shape, spacing), "image.mhd"),
                   Image(labels, Grid.centered(labels.shape, other or spacing), "labels.mhd"))


def ball(shape: tuple[int, ...], radius: float, center: tuple[float, ...] | None = None) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    middle = [(n - 1) / 2 for n in shape] if center is None else center
    return (sum((a - m) ** 2 for a, m in zip(axes, middle, strict=True)) < radius**2).astype(np.uint8)


@pytest.mark.parametrize(("image", "labels", "other", "told"), [
    ((10, 10), (10, 10), None, r"image.mhd: image is 2D; a 3D image is needed"),
    ((3, 10, 10), (3, 10, 10), None, r"image.mhd: shape is \(3, 10, 10\); at least 4 voxels"),
    ((10, 10, 10), (10, 10, 9), None, r"labels.mhd: shape is \(10, 10, 9\), but \(10, 10, 10\) in its image image.mhd"),
    ((10, 10, 10), (10, 10, 10), 2.5, r"labels.mhd: spacing is \(2.5, 2.5, 2.5\), but \(2.0, 2.0, 2.0\)"),
    ((10, 10, 10), (10, 10, 10), None, r"labels.mhd: label 1, the organ, is absent"),
])
def test_subjects_are_checked(image, labels, other, told, rng) -> None:
    with pytest.raises(ImageError, match=told):
        subject(rng.random(image), np.zeros(labels, np.uint8), other=other)


def test_what_cannot_be_prepared_is_named(rng) -> None:
    shape = (30, 60, 60)
    texture = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.random(shape)), 2.0))
    good = subject(texture, ball(shape, 8))
    astray = subject(texture, ball(shape, 2, (15, 3, 3)))
    tiny = subject(texture[:4, :6, :6], ball((4, 6, 6), 2), spacing=0.2)
    with pytest.raises(ImageError, match=r"labels.mhd: the organ lies outside the cropped field of \(90.0, 90"):
        pelvises.prepared_population([good, astray], 3, tests=1)
    with pytest.raises(ImageError, match=r"image.mhd: no translation to the template is found"):
        pelvises.prepared_population([good, tiny], 3, tests=1)
    with pytest.raises(ValueError, match=r"8 of 2 subjects are for test"):
        pelvises.prepared_population([good, good], 3)


@pytest.mark.parametrize(("arguments", "told"), [
    ((4,), "ndim is 4; it must be 2 or 3"), ((2, "affine"), "alignment is 'affine'; it must be one of translation"),
])
def test_bad_arguments_are_named(arguments, told) -> None:
    with pytest.raises(ValueError, match=told):
        population(*arguments)


# ----------------------------------------------------------------------------------------------------- surface points

def ellipsoid(radii: tuple[float, ...], shape: tuple[int, ...]) -> Tensor:
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    inside = sum((a / r) ** 2 for a, r in zip(axes, radii, strict=True)) <= 1
    return torch.from_numpy(inside[None, None].astype(np.int16))


@pytest.mark.parametrize("radii", [(20.0, 28.0), (12.0, 18.0, 24.0)])
def test_points_lie_on_a_known_surface_and_scale_with_it(radii: tuple[float, ...]) -> None:
    shape, middle = (80,) * len(radii), 39.5
    small, large = (surface_points(ellipsoid(tuple(k * r for r in radii), shape), 200)[0] - middle for k in (1.0, 1.25))
    for points, k in ((small, 1.0), (large, 1.25)):
        level = torch.linalg.vector_norm(points / torch.tensor(radii) / k, dim=-1)
        assert (level - 1).abs().max() < 0.05
    assert (large - 1.25 * small).abs().max() < 1.0 and (large - 1.25 * small).abs().mean() < 2 * SUBVOXEL
    along = torch.nn.functional.cosine_similarity(small, large)
    assert along.min() > 1 - 1e-5       # point n lies in the same direction in both


def test_points_turn_with_the_mask() -> None:
    """A quarter turn maps equal angles to each other: the same points, a quarter further on."""
    mask = ellipsoid((14.0, 24.0), (61, 61))
    turned = torch.rot90(mask, 1, (2, 3))       # row r, column c goes to row 60 - c, column r
    points, after = surface_points(mask, 40)[0], surface_points(turned, 40)[0]
    expected = torch.stack([60 - points[:, 1], points[:, 0]], dim=1).roll(-10, 0)
    assert torch.allclose(after, expected, atol=1e-3)


def test_directions_are_equal_in_millimetres() -> None:
    spacing = (1.0, 1.0, 3.0)
    ball_mm = ellipsoid((8.0, 24.0, 24.0), (25, 65, 65))       # 24 mm all round
    points = surface_points(ball_mm, 500, spacing)[0].numpy()
    world = Grid.centered((25, 65, 65), spacing).to_world(points)
    assert np.abs(world.mean(0)).max() < 0.5        # evenly spread
    assert np.abs(world[:, 2]).mean() == pytest.approx(12, abs=0.5)     # as on a sphere, not on a flat ellipsoid
    octants = np.unique((world > 0) @ [1, 2, 4], return_counts=True)[1]
    assert len(octants) == 8 and octants.max() < 1.15 * octants.min()


def test_the_outermost_boundary_counts() -> None:
    mask = ellipsoid((20.0, 20.0), (61, 61)) - ellipsoid((12.0, 12.0), (61, 61))
    distance = torch.linalg.vector_norm(surface_points(mask, 64)[0] - 30, dim=-1)
    assert (distance - 20).abs().max() < 1


@DIMENSIONS
def test_points_of_the_population_lie_on_its_organs(ndim: int) -> None:
    whole = population(ndim)
    points = surface_points(whole.labels, 64, whole.grid.spacing)
    assert points.shape == (41, 64, ndim)
    organ = (whole.labels == ORGAN).float()
    centers = torch.stack([torch.nonzero(mask[0]).float().mean(0) for mask in organ])[:, None]

    def seen(at: Tensor) -> Tensor:
        return sample(organ, at.view(41, 64, *(1,) * (ndim - 1), ndim)).flatten(1)
    outward = torch.nn.functional.normalize(points - centers, dim=-1)
    assert (seen(points) - 0.5).abs().max() < SUBVOXEL
    for step in (0.5, 1.0, 2.0, 4.0):
        assert (seen(points + step * outward) < 0.5).all()
    assert (seen(points - 0.5 * outward) > 0.5).float().mean() > 0.98


def test_surface_errors_are_named() -> None:
    labels = torch.cat([ellipsoid((5.0, 5.0), (20, 20)), torch.zeros(1, 1, 20, 20, dtype=torch.int16)])
    with pytest.raises(ValueError, match=r"labels\[1\] has no voxel with label 1"):
        surface_points(labels, 10)
    with pytest.raises(ValueError, match="count is 0"):
        surface_points(labels[:1], 0)
    with pytest.raises(ValueError, match=r"spacing is \(1.0, 1.0, 1.0\); 2D labels need 2"):
        surface_points(labels[:1], 10, (1.0, 1.0, 1.0))
