"""Labelled registrations for the verdict: two thirds are possible, with a known pose, a third has none.

``cases("calibration", 200, seed=0)`` and ``cases("test", 200, seed=0)`` share no person, no painted patient and no
draw. Chests, pelvises and coronal sheets of lungs are in the test alone, so that it also tells of anatomies that
nothing was calibrated on. All images have voxels of 2 to 5 mm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from capture_cases import about, coarser, fitted, head_files, moved_grid, random_rotation
from hard_images import cropped, ct_like, hands_off, partial, slab
from scipy import ndimage

from regagents.registration.register import register
from regenv.atomic import atomic
from regenv.data.banks.pelvises import FRAMES
from regenv.data.io.images import Image, normalize, read_image
from regenv.data.io.resampling import foreground_center
from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.livers import Livers
from regenv.data.sources.lungs import Lungs
from regenv.data.sources.organs import OrganPairs
from regenv.data.sources.slices import Slices
from regenv.data.sources.spine_phantoms import SpinePhantom
from regenv.grid import Grid

SPLITS = ("calibration", "test")
PEOPLE = {"calibration": ("Colin27", "CSI1", "MNI 2009c"), "test": ("CSI3", "CSI2", "MNI152 (brain only)")}
SLICED = {"calibration": ("mni2009c",), "test": ("csi3", "csi2")}
HALF = {"calibration": "train", "test": "test"}         # the painters' names of the two
NEAR_MM = {2: 5.0, 3: 10.0}     # mean landmark error up to which a registration succeeded
HEAD_MM = 3.0
POINTS = 200                    # of the fixed foreground, at which the error is taken
TRUTHS = Path(__file__).parent / "results" / "verdict_truths.json"
PATIENTS = 6                    # painted, of spines and livers
Parts = tuple[Image, Image, np.ndarray | None]
"""Fixed and moving image, and the pull-back between them as they lie, or None."""


@dataclass(frozen=True, eq=False)
class VerdictCase:
    """A registration whose outcome can be told.

    Attributes:
        truth: (D+1, D+1), fixed world to moving world, mm; None where no pose is right.
        kind: what is done, such as "people" or "no overlap". anatomy: of the fixed image. split: of :data:`SPLITS`.
    """

    fixed: Image
    moving: Image
    truth: np.ndarray | None
    kind: str
    anatomy: str
    split: str

    def error_mm(self, pull_back: np.ndarray) -> float | None:
        """Mean distance from the truth over points of the fixed foreground, mm; None where there is no truth."""
        if self.truth is None:
            return None
        places = np.argwhere(normalize(self.fixed.array) > 0.15)
        chosen = places[np.linspace(0, len(places) - 1, POINTS).astype(int)]
        points = np.c_[self.fixed.grid.to_world(chosen), np.ones(POINTS)]
        return float(np.linalg.norm(points @ (pull_back - self.truth).T, axis=1).mean())

    def succeeded(self, pull_back: np.ndarray) -> bool:
        """Whether a pose is within :data:`NEAR_MM` of the truth."""
        error = self.error_mm(pull_back)
        return error is not None and error <= NEAR_MM[self.fixed.ndim]


def cases(split: str, count: int, seed: int = 0) -> Iterator[VerdictCase]:
    """The first ``count`` cases of a split; every third one is impossible."""
    for index in range(count):
        yield case(split, index, seed)


def case(split: str, index: int, seed: int = 0) -> VerdictCase:
    """One case. Raises ValueError: an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"verdict: split is {split!r}; it must be one of {', '.join(SPLITS)}.")
    possible, impossible = (list(kinds(split, real)) for real in (True, False))
    turn, place = divmod(index, 3)
    name = impossible[turn % len(impossible)] if place == 2 else possible[(2 * turn + place) % len(possible)]
    kind, anatomy = name
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    maker, mm, degrees = KINDS[name][:3]
    fixed, moving, truth = maker(split, rng)
    motion = about(foreground_center(fixed), _motion(rng, fixed.ndim, mm, degrees))
    there = motion if truth is None else motion @ np.linalg.inv(truth)
    return VerdictCase(fixed, replace(moving, grid=moved_grid(moving.grid, there)),
                       None if truth is None else motion, kind, anatomy, split)


def kinds(split: str, possible: bool) -> Iterator[tuple[str, str]]:
    """Kind and anatomy of what a split holds."""
    for name, (_, _, _, real, splits) in KINDS.items():
        if real == possible and split in splits:
            yield name


def _motion(rng: np.random.Generator, ndim: int, mm: float, degrees: float) -> np.ndarray:
    """A rigid motion: in half of the cases within +-mm and +-degrees, else within +-mm and of any rotation, where
    ``degrees`` are 30 or more (a small field of view is never turned over)."""
    motion = np.eye(ndim + 1)
    whole = rng.random() < 0.5 and degrees >= 30
    angle = np.radians(rng.uniform(-180, 180) if whole else rng.uniform(-degrees, degrees))
    if ndim == 2:
        motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    elif whole:
        motion[:3, :3] = random_rotation(rng)
    else:
        axis = rng.normal(size=3)
        x, y, z = axis / np.linalg.norm(axis)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        motion[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion[:ndim, ndim] = rng.uniform(-mm, mm, ndim)
    return motion


# --------------------------------------------------------------------------------------------------------------- heads

@lru_cache(maxsize=8)
def head(name: str) -> Image:
    return coarser(read_image(head_files()[name]), HEAD_MM)


def agreed(fixed: str, moving: str) -> np.ndarray:
    """The pose between two people who lie upright, refined from their centres on each other; found once and stored.

    No optimum of mutual information over whole heads: between heads of different size that leaves the brains apart.
    """
    if fixed == moving:
        return np.eye(4)
    name = f"{fixed} ← {moving}"
    known = json.loads(TRUTHS.read_text()) if TRUTHS.is_file() else {}
    if name not in known:
        heads = [coarser(read_image(head_files()[one])) for one in (fixed, moving)]
        known[name] = register(*heads, "none", initial="center").pull_back.round(6).tolist()
        with atomic(TRUTHS) as temporary:
            temporary.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    return np.array(known[name])


def prepare(split: str) -> None:
    """Find and store the poses between a split's people, so that processes do not do it twice."""
    for fixed in PEOPLE[split]:
        for moving in PEOPLE[split]:
            agreed(fixed, moving)


def _two(split: str, rng: np.random.Generator, same: float = 0.0) -> tuple[Image, Image, np.ndarray]:
    """Two people, in a share ``same`` of the cases one twice, and their pose."""
    names = rng.permutation(PEOPLE[split])[:2].tolist()
    names[1] = names[0] if rng.random() < same else names[1]
    return head(names[0]), head(names[1]), agreed(*names)


def people(split: str, rng: np.random.Generator) -> Parts:
    return _two(split, rng)


def modality(split: str, rng: np.random.Generator) -> Parts:
    """T1 and T2 of the MNI 2009c average, either way."""
    one, other = rng.permutation(["MNI 2009c", "MNI 2009c T2"]).tolist()
    return head(one), head(other), np.eye(4)


def contrast(split: str, rng: np.random.Generator) -> Parts:
    """A T1 beside a made CT, or beside a contrast that no scanner has."""
    fixed, moving, truth = _two(split, rng, same=0.5)
    return fixed, (ct_like if rng.random() < 0.5 else hands_off)(moving, rng), truth


def slabs(split: str, rng: np.random.Generator) -> Parts:
    """10 to 32 axial slices of a head."""
    fixed, moving, truth = _two(split, rng, same=0.5)
    return fixed, slab(moving, rng, int(rng.integers(10, 33))), truth


def parts(split: str, rng: np.random.Generator) -> Parts:
    fixed, moving, truth = _two(split, rng, same=0.5)
    return fixed, partial(moving, rng, rng.uniform(0.5, 0.7)), truth


def apart(split: str, rng: np.random.Generator) -> Parts:
    """The upper and the lower part of one head, with a gap between."""
    image = head(str(rng.choice(PEOPLE[split])))
    length = image.grid.shape[0]
    ends = [cropped(image, 0, 0, round(0.38 * length)), cropped(image, 0, round(0.62 * length), length)]
    first = int(rng.integers(2))
    return ends[first], ends[1 - first], None


def thin_slabs(split: str, rng: np.random.Generator) -> Parts:
    """Two slabs of 24 mm from places of one head or of two that lie at least 30 mm apart."""
    fixed, moving, _ = _two(split, rng, same=0.5)
    found = []
    for image, share in zip((fixed, moving), rng.permutation([0.3, 0.66]), strict=True):
        thickness = image.grid.spacing[2]
        first = int(share * image.grid.shape[0] + rng.uniform(-5, 5) / thickness)
        found.append(cropped(image, 0, first, first + max(4, round(24 / thickness))))
    return found[0], found[1], None


def mirrored_heads(split: str, rng: np.random.Generator) -> Parts:
    """A head with a large lesion on one side, and its mirror image with another contrast."""
    image = head(str(rng.choice(PEOPLE[split])))
    sick = _lesion(image, rng)
    return sick, replace(sick, array=np.ascontiguousarray(np.flip(sick.array, -1)) ** 0.8), None


def _lesion(image: Image, rng: np.random.Generator) -> Image:
    """A bright ball of 45 to 60 mm with a dark middle, 35 mm to one side of the foreground's centre."""
    values = normalize(image.array)
    center = image.grid.to_voxel(foreground_center(image))
    steps = np.array(image.grid.spacing[::-1])
    center[-1] += rng.choice([-1, 1]) * 35 / steps[-1]
    offsets = np.indices(values.shape) - center.reshape(-1, *[1] * image.ndim)
    distance = np.sqrt(((offsets * steps.reshape(-1, *[1] * image.ndim)) ** 2).sum(0))
    radius = rng.uniform(22, 30)
    values = np.where(distance < radius, 1.0, values)
    return replace(image, array=np.where(distance < 0.6 * radius, 0.05, values).astype(np.float32))


# ---------------------------------------------------------------------------------------------------- painted patients

def drawn(source: PairSource, grid: Grid, rng: np.random.Generator) -> tuple[Image, Image, PairBatch]:
    """One pair of a source, as images in the world."""
    pair = source.draw([rng], grid, torch.device("cpu"))
    to_world = np.linalg.inv(pair.world_to_moving[0].numpy())
    images = (Image(one[0, 0].numpy(), _grid(matrix, tuple(one.shape[2:])), "drawn")
              for one, matrix in ((pair.fixed, pair.fixed_to_world[0].numpy()), (pair.moving, to_world)))
    return (*images, pair)


def _grid(to_world: np.ndarray, shape: tuple[int, ...]) -> Grid:
    """The grid whose voxels a matrix (D+1, D+1) places."""
    n = len(shape)
    scaled = to_world[:n, :n][:, ::-1]
    spacing = np.linalg.norm(scaled, axis=0)
    return Grid(shape, tuple(spacing.tolist()), tuple(to_world[:n, n].tolist()),
                tuple((scaled / spacing).ravel().tolist()))


def _known(source: PairSource, grid: Grid, rng: np.random.Generator) -> Parts:
    """A pair whose truth is the source's; where it deforms, the rigid map nearest to its landmarks' motion."""
    fixed, moving, pair = drawn(source, grid, rng)
    if pair.targets is None or pair.landmarks is None:
        return fixed, moving, pair.truth[0].numpy()
    return fixed, moving, fitted(pair.landmarks[0].numpy(), pair.targets[0].numpy())


SPINE_GRID, ABDOMEN_GRID = Grid.centered((80, 48, 48), 4.0), Grid.centered((56, 56, 64), 4.5)
CHEST_GRID, SHEET_GRID, SLICE_GRID = (Grid.centered((56, 56, 64), 5.0), Grid.centered((128, 128), 2.5),
                                      Grid.centered((128, 128), 1.9))


def _spines(split: str) -> SpinePhantom:
    return SpinePhantom(split=HALF[split], patients=PATIENTS)


def spine(split: str, rng: np.random.Generator) -> Parts:
    return _known(_spines(split), SPINE_GRID, rng)


def lungs(split: str, rng: np.random.Generator) -> Parts:
    return _known(Lungs(split=HALF[split], patients=PATIENTS), CHEST_GRID, rng)


def sheets(split: str, rng: np.random.Generator) -> Parts:
    return _known(Lungs(2, split=HALF[split], patients=PATIENTS), SHEET_GRID, rng)


def pelvis(split: str, rng: np.random.Generator) -> Parts:
    return _known(OrganPairs(3, split=HALF[split], kind="real"), FRAMES[3], rng)


def slices(split: str, rng: np.random.Generator) -> Parts:
    return _known(Slices(subjects=SLICED[split], split=HALF[split]), SLICE_GRID, rng)


def _chest(split: str, rng: np.random.Generator) -> Image:
    return drawn(Lungs(split=HALF[split], patients=PATIENTS), CHEST_GRID, rng)[0]


def _abdomen(split: str, rng: np.random.Generator) -> Image:
    return drawn(Livers(split=HALF[split], patients=PATIENTS), ABDOMEN_GRID, rng)[0]


def other_organ(split: str, rng: np.random.Generator) -> Parts:
    """A head beside an abdomen or a spine; in the test also a chest beside a head, a spine or an abdomen."""
    person = head(str(rng.choice(PEOPLE[split])))
    others = [lambda: _abdomen(split, rng), lambda: spine(split, rng)[0]]
    if split == "test":
        person = person if rng.random() < 0.5 else _chest(split, rng)
        others += [lambda: pelvis(split, rng)[0]]
    pair = [person, others[int(rng.integers(len(others)))]()]
    first = int(rng.integers(2))
    return pair[first], pair[1 - first], None


def other_picture(split: str, rng: np.random.Generator) -> Parts:
    """2D: a slice of a head beside a sagittal spine or, in the test, a coronal chest."""
    other = (sheets(split, rng)[0] if split == "test"
             else drawn(SpinePhantom(2, split=HALF[split], patients=PATIENTS), Grid.centered((128, 96), 2.0), rng)[0])
    return slices(split, rng)[0], other, None


def noise(split: str, rng: np.random.Generator) -> Parts:
    """An image beside smooth noise on its own grid."""
    image = head(str(rng.choice(PEOPLE[split])))
    return image, _noise(image, rng), None


def noise2d(split: str, rng: np.random.Generator) -> Parts:
    image = slices(split, rng)[0]
    return image, _noise(image, rng), None


def _noise(image: Image, rng: np.random.Generator) -> Image:
    smooth = ndimage.gaussian_filter(rng.normal(size=image.array.shape), rng.uniform(0.5, 6.0))
    return replace(image, array=((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32))


def mirrored_abdomens(split: str, rng: np.random.Generator) -> Parts:
    """A patient's abdomen and its mirror image: the liver lies on the left."""
    image = _abdomen(split, rng)
    return image, replace(image, array=np.ascontiguousarray(np.flip(image.array, -1))), None


def mirrored_chests(split: str, rng: np.random.Generator) -> Parts:
    fixed, moving, _ = drawn(Lungs(split=HALF[split], patients=PATIENTS), CHEST_GRID, rng)
    return fixed, replace(moving, array=np.ascontiguousarray(np.flip(moving.array, -1))), None


def mirrored_slices(split: str, rng: np.random.Generator) -> Parts:
    """A slice with a lesion on one side, and its mirror image."""
    sick = _lesion(slices(split, rng)[0], rng)
    return sick, replace(sick, array=np.ascontiguousarray(np.flip(sick.array, -1)) ** 0.8), None


Maker = Callable[[str, np.random.Generator], Parts]
KINDS: dict[tuple[str, str], tuple[Maker, float, float, bool, tuple[str, ...]]] = {
    # kind, anatomy: maker, largest shift (mm) and moderate angle (degrees) of the header, possible, splits
    ("people", "head"): (people, 60.0, 40.0, True, SPLITS),
    ("contrast", "head"): (contrast, 60.0, 40.0, True, SPLITS),
    ("spine, CT to CBCT", "spine"): (spine, 20.0, 20.0, True, SPLITS),
    ("two modalities", "head, 2D"): (slices, 40.0, 40.0, True, SPLITS),
    ("breathing", "chest"): (lungs, 40.0, 30.0, True, ("test",)),
    ("slab", "head"): (slabs, 40.0, 30.0, True, SPLITS),
    ("part", "head"): (parts, 50.0, 40.0, True, SPLITS),
    ("T1 to T2", "head"): (modality, 60.0, 40.0, True, ("calibration",)),
    ("organs of two", "pelvis"): (pelvis, 15.0, 15.0, True, ("test",)),
    ("breathing", "chest, 2D"): (sheets, 40.0, 40.0, True, ("test",)),
    ("other organ", "any"): (other_organ, 40.0, 40.0, False, SPLITS),
    ("no overlap", "head"): (apart, 30.0, 30.0, False, SPLITS),
    ("noise", "head"): (noise, 40.0, 40.0, False, SPLITS),
    ("mirrored, lesion", "head"): (mirrored_heads, 30.0, 30.0, False, SPLITS),
    ("slabs of other places", "head"): (thin_slabs, 30.0, 20.0, False, SPLITS),
    ("other picture", "head, 2D"): (other_picture, 30.0, 40.0, False, SPLITS),
    ("mirrored", "abdomen"): (mirrored_abdomens, 30.0, 30.0, False, ("test",)),
    ("noise", "head, 2D"): (noise2d, 30.0, 40.0, False, SPLITS),
    ("mirrored", "chest"): (mirrored_chests, 30.0, 30.0, False, ("test",)),
    ("mirrored, lesion", "head, 2D"): (mirrored_slices, 20.0, 30.0, False, SPLITS),
}
