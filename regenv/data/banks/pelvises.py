"""Pelvises for organ-centred registration: 41 synthetic subjects, and the preparation of Krebs et al. 2017.

Each subject is registered to a template by translation only, from the intensities, then resampled once into the
template's frame and cropped. The organs then overlap only roughly: this is where an agent starts. Synthetic subjects
and the user's own (:mod:`regenv.data.layouts.prostate`) are prepared in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regenv.data.banks import cache
from regenv.data.banks.alignment import downsampled, rigid, translation
from regenv.data.banks.downloads import cache_dir
from regenv.data.io.images import Image, ImageError, normalize
from regenv.data.io.labels import check_labels
from regenv.data.io.resampling import SHORTEST_AXIS, antialiased, framed, matrix_to_sitk, resampled_labels, sampled
from regenv.data.phantoms.pelvis_anatomy import BLADDER, ORGAN, RECTUM, Organ, paint_pelvis
from regenv.grid import Grid
from regenv.ops.sampling import sample

__all__ = ["BLADDER", "ORGAN", "RECTUM", "Population", "Subject", "aligned_by_labels", "population",
           "prepared_population", "split", "surface_points", "translations"]

COUNT, TESTS = 41, 8            # subjects, as in the paper; 25 come from one scanner and 16 from the other
FRAMES = {2: Grid.centered((100, 100), 0.9), 3: Grid.centered((20, 75, 75), (1.2, 1.2, 3.6))}
VERSION = 2                     # of the files kept; raise it when what they hold changes

_SEED = 2017
_FIRST_SCANNER = 25
_NATIVE = (((26, 150, 163), (0.8, 0.8, 3.6)), ((24, 160, 174), (0.75, 0.75, 4.0)))    # shape, mm
_POSITIONING_MM = (1.5, 1.5, 1.0)       # standard deviation of a scan's centre about the organ's
_RAY_STEP = 0.25                # over the finest spacing


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject's image and its organ's labels, as scanned.

    Attributes:
        name: for messages.
        image: 3D, any intensities.
        labels: on the image's grid; 1 is the organ, other labels are its neighbours.

    Raises:
        ImageError: the image is not 3D or too thin, or the labels lie on another grid or lack the organ.
    """

    name: str
    image: Image
    labels: Image

    def __post_init__(self) -> None:
        image, labels = self.image, self.labels
        if image.ndim != 3:
            raise ImageError(f"{image.path}: image is {image.ndim}D; a 3D image is needed. Give the whole volume.")
        if min(image.grid.shape) < SHORTEST_AXIS:
            raise ImageError(f"{image.path}: shape is {image.grid.shape}; at least {SHORTEST_AXIS} voxels are needed "
                             "along every axis. Give the whole volume.")
        check_labels(labels, image)
        if not (labels.array == ORGAN).any():
            raise ImageError(f"{labels.path}: label {ORGAN}, the organ, is absent; at least one voxel must carry it. "
                             "Check the segmentation, or leave the subject out.")


@dataclass(frozen=True, eq=False)
class Population:
    """Subjects on one grid, in the frame of a template: the origin is its image's centre, the axes are its grid's.

    Attributes:
        grid: 2D or 3D.
        images: (S, 1, *shape) float32 in [0, 1].
        labels: (S, 1, *shape) int16: 1 organ, 2 bladder, 3 rectum.
        names: of the subjects.
        train, test: indices of subjects, disjoint. The template is the first of ``train``.
    """

    grid: Grid
    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def test_pairs(self) -> tuple[tuple[int, int], ...]:
        """All ordered pairs (fixed, moving) of different test subjects: 56 of 8."""
        return tuple(itertools.permutations(self.test, 2))


# --------------------------------------------------------------------------------------------------- synthetic subjects

@lru_cache(maxsize=4)
def population(ndim: int, alignment: str = "translation") -> Population:
    """The 41 synthetic subjects; painted once, then kept in the cache folder.

    Args:
        ndim: 3, or 2 for the middle slice through each organ.
        alignment: "translation", found from the intensities, or "labels", :func:`aligned_by_labels` (the paper's 3-D*).

    Returns:
        33 subjects for training, 8 for test. Do not write to the tensors: they are shared.

    Raises:
        ValueError: ndim or alignment is none of the above.
    """
    _check(ndim, alignment)
    tensors = cache.kept(_file(alignment, ndim), lambda: _made(alignment, ndim))
    train, test = split(COUNT, TESTS)
    return Population(FRAMES[ndim], tensors["images"], tensors["labels"], tuple(map(_name, range(COUNT))), train,
                      test)


def _file(alignment: str, ndim: int) -> Path:
    return cache_dir() / "organs" / f"{alignment}-{ndim}d-v{VERSION}.safetensors"


def _made(alignment: str, ndim: int) -> dict[str, Tensor]:
    """One population's tensors; those of the others are kept at once, since painting takes longest."""
    subjects = tuple(map(_synthetic_subject, range(COUNT)))
    offsets = translations(subjects, TESTS)
    made = {}
    for (name, align), frame in itertools.product(_ALIGNMENTS.items(), FRAMES):
        aligned = align(subjects, offsets, frame, TESTS)
        made[name, frame] = {"images": aligned.images, "labels": aligned.labels}
        cache.keep(_file(name, frame), made[name, frame])
    return made[alignment, ndim]


def split(count: int, tests: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices 0 .. count - 1, divided at random but always in the same way: (train, test), ascending.

    Raises ValueError unless both parts get at least one.
    """
    if not 0 < tests < count:
        raise ValueError(f"organs: {tests} of {count} subjects are for test; at least one must be and one must remain.")
    order = np.random.default_rng([_SEED, count, tests]).permutation(count)
    return tuple(sorted(order[tests:].tolist())), tuple(sorted(order[:tests].tolist()))


def _name(index: int) -> str:
    """As in the cards of the shipped models."""
    return f"made-{index:02d}"


def _synthetic_subject(index: int) -> Subject:
    scanner = int(index >= _FIRST_SCANNER)
    rng = np.random.default_rng([_SEED, index])
    organ = Organ.draw(rng)
    shape, spacing = _NATIVE[scanner]
    grid = Grid.centered(shape, spacing, (organ.center + rng.normal(0, _POSITIONING_MM)).tolist())
    signal, labels = paint_pelvis(grid, organ, rng, scanner)
    return Subject(_name(index), Image(signal, grid, _name(index)), Image(labels, grid, _name(index)))


# ------------------------------------------------------------------------------------------------------ preparation

def prepared_population(subjects: Sequence[Subject], ndim: int, alignment: str = "translation", tests: int = TESTS
                        ) -> Population:
    """Subjects on the benchmark's grid, each resampled once and cropped about the template's image centre.

    Args:
        subjects: scanned on any grids.
        ndim: 3 for (20, 75, 75) voxels of (1.2, 1.2, 3.6) mm; 2 for the slice through the middle of each organ,
            (100, 100) voxels of 0.9 mm.
        alignment: "translation" or "labels", as :func:`population`.
        tests: number of test subjects, see :func:`split`.

    Raises:
        ValueError: ndim or alignment is unknown, or there are too few subjects.
        ImageError: a translation cannot be found, or an organ lies outside the cropped field.
    """
    _check(ndim, alignment)
    return _ALIGNMENTS[alignment](subjects, translations(subjects, tests), ndim, tests)


def translations(subjects: Sequence[Subject], tests: int = TESTS) -> np.ndarray:
    """The translation of world points from the template to each subject, found from the intensities alone.

    By Mattes mutual information, from aligned image centres, with one thread and a fixed seed.

    Args: subjects; tests: see :func:`split`; the template is the first subject for training.
    Returns: (S, 3) mm, world; 0 for the template.
    Raises:
        ValueError: there are too few subjects.
        ImageError: the images of a subject and the template do not overlap.
    """
    template = subjects[split(len(subjects), tests)[0][0]]
    fixed = downsampled(template.image)
    return np.stack([np.zeros(3) if each is template else translation(fixed, each.image) for each in subjects])


def aligned_by_labels(subjects: Sequence[Subject], offsets: np.ndarray, ndim: int, tests: int = TESTS) -> Population:
    """Subjects aligned rigidly so that their organs overlap best with the template's: the paper's 3-D*.

    The images are resampled once, through translation and rigid correction at the same time.

    Args: subjects, ndim, tests: as :func:`prepared_population`; offsets: (S, 3) mm, as :func:`translations` finds them.
    Raises ImageError: an organ lies outside the cropped field.
    """
    places = _places(subjects, offsets, ndim, tests)
    rough = _placed(subjects, places, ndim, tests)
    organs = (rough.labels[:, 0] == ORGAN).numpy()
    template = rough.train[0]
    corrected = [place @ _lifted(rigid(organs[template], organ, rough.grid))
                 for place, organ in zip(places, organs, strict=True)]
    return _placed(subjects, corrected, ndim, tests)


def _by_translation(subjects: Sequence[Subject], offsets: np.ndarray, ndim: int, tests: int) -> Population:
    return _placed(subjects, _places(subjects, offsets, ndim, tests), ndim, tests)


_ALIGNMENTS: dict[str, Callable[..., Population]] = {"translation": _by_translation, "labels": aligned_by_labels}


def _check(ndim: int, alignment: str) -> None:
    if ndim not in FRAMES:
        raise ValueError(f"organs: ndim is {ndim}; it must be 2 or 3.")
    if alignment not in _ALIGNMENTS:
        raise ValueError(f"organs: alignment is {alignment!r}; it must be one of {', '.join(_ALIGNMENTS)}.")


def _places(subjects: Sequence[Subject], offsets: np.ndarray, ndim: int, tests: int) -> list[np.ndarray]:
    """Pull-backs (4, 4) from the template's frame to each subject's world, mm.

    In 2D the plane z = 0 of the frame is mapped to the native slice nearest to the middle of the subject's organ.
    """
    grid = subjects[split(len(subjects), tests)[0][0]].image.grid
    places = []
    for subject, offset in zip(subjects, offsets, strict=True):
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = np.reshape(grid.direction, (3, 3)), grid.center + offset
        if ndim == 2:
            normal = place[:3, 2]
            place[:3, 3] += normal * ((_middle(subject) - place[:3, 3]) @ normal)
        places.append(place)
    return places


def _middle(subject: Subject) -> np.ndarray:
    """World point in the native slice that is nearest to the organ's centroid, (3,) mm."""
    voxel = np.argwhere(subject.labels.array == ORGAN).mean(0)
    voxel[0] = round(voxel[0])
    return subject.labels.grid.to_world(voxel)


def _placed(subjects: Sequence[Subject], places: Sequence[np.ndarray], ndim: int, tests: int) -> Population:
    """The one resampling: images linear and antialiased, labels nearest."""
    grid = FRAMES[ndim]
    frame = grid if ndim == 3 else Grid.centered((1, *grid.shape), (*grid.spacing, 1.0))
    images, labels = [], []
    for subject, place in zip(subjects, places, strict=True):
        values = framed(normalize(subject.image.array), subject.image.grid)
        smooth = antialiased(values, (*grid.spacing, 0.0)[:3])
        images.append(sampled(smooth, frame, matrix_to_sitk(place)).clip(0, 1).reshape(1, *grid.shape))
        found = resampled_labels(subject.labels, frame, place).array.reshape(1, *grid.shape)
        if not (found == ORGAN).any():
            raise ImageError(f"{subject.labels.path}: the organ lies outside the cropped field of {grid.extent} mm "
                             "about the template's image centre. Check the labels, or leave the subject out.")
        labels.append(found.astype(np.int16))
    train, test = split(len(subjects), tests)
    return Population(grid, torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)),
                      tuple(subject.name for subject in subjects), train, test)


def _lifted(matrix: np.ndarray) -> np.ndarray:
    """A 2D or 3D map (D+1, D+1) as a 3D map (4, 4)."""
    n = len(matrix) - 1
    lifted = np.eye(4)
    lifted[:n, :n], lifted[:n, 3] = matrix[:n, :n], matrix[:n, n]
    return lifted


# ----------------------------------------------------------------------------------------------------- surface points

def surface_points(labels: Tensor, count: int, spacing: Sequence[float] | None = None) -> Tensor:
    """Corresponding points of the organs' surfaces: where rays from the centroid leave the organ for the last time.

    The rays go in fixed, equally distributed directions (2D: equal angles, the first along +x; 3D: a Fibonacci
    sphere), so that point n of one subject corresponds to point n of another.

    Args:
        labels: (S, 1, *shape) integer; label 1 is the organ.
        count: points per subject.
        spacing: mm, ITK order (x, y[, z]); directions are equally distributed in mm. Default 1 along every axis.

    Returns:
        (S, count, D) float32 voxel points, array-axis order. A ray that misses the organ gives the centroid.

    Raises:
        ValueError: count is not positive, spacing has the wrong length, or a subject has no organ.
    """
    ndim = labels.ndim - 2
    if count < 1:
        raise ValueError(f"surface_points: count is {count}; at least one point is needed.")
    units = np.asarray((1.0,) * ndim if spacing is None else spacing, dtype=np.float64)[::-1]
    if len(units) != ndim:
        raise ValueError(f"surface_points: spacing is {spacing}; {ndim}D labels need {ndim} numbers (x, y[, z]).")
    organ = (labels[:, 0] == ORGAN).cpu()
    for index, present in enumerate(organ.flatten(1).any(1).tolist()):
        if not present:
            raise ValueError(f"surface_points: labels[{index}] has no voxel with label {ORGAN}, the organ; its surface "
                             "is needed. Check the labels, or leave the subject out.")
    centers = torch.stack([torch.nonzero(mask).to(torch.float32).mean(0) for mask in organ])
    rays = torch.from_numpy(_directions(ndim, count) / units * units.min()).to(torch.float32)
    longest = float(np.linalg.norm(np.array(labels.shape[2:]) * units)) / units.min()
    reach = torch.arange(0, longest, _RAY_STEP)
    return torch.stack([_last_exit(mask[None, None].to(torch.float32), center, rays, reach)
                        for mask, center in zip(organ, centers, strict=True)]).to(labels.device)


def _last_exit(organ: Tensor, center: Tensor, rays: Tensor, reach: Tensor) -> Tensor:
    """The outermost half crossing of a mask (1, 1, *shape) along rays (N, D) of lengths (R,): (N, D)."""
    ndim = len(center)
    points = center + rays[:, None] * reach[:, None]
    values = sample(organ, points.view(1, len(rays), *(1,) * (ndim - 2), len(reach), ndim)).view(len(rays), len(reach))
    inside = values >= 0.5
    last = (inside * torch.arange(1, len(reach) + 1)).amax(1) - 1       # -1 where the ray misses
    here = last.clamp(0, len(reach) - 2)
    a, b = (values.gather(1, at[:, None])[:, 0] for at in (here, here + 1))
    share = ((a - 0.5) / (a - b).clamp_min(1e-6)).clamp(0, 1)
    length = torch.where(last < 0, 0.0, reach[here] + _RAY_STEP * share)
    return center + rays * length[:, None]


def _directions(ndim: int, count: int) -> np.ndarray:
    """Unit vectors (count, D), array-axis order."""
    turns = np.arange(count)
    if ndim == 2:
        angles = 2 * math.pi * turns / count
        return np.stack([np.sin(angles), np.cos(angles)], axis=1)
    height = 1 - (2 * turns + 1) / count
    ring = np.sqrt(1 - height**2)
    golden = math.pi * (3 - math.sqrt(5)) * turns
    return np.stack([height, ring * np.sin(golden), ring * np.cos(golden)], axis=1)
