"""Pairs of real heads in 3D for dense registration: person to person, and a person to itself, bent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.banks import downloads
from regenv.data.banks.brain_preparation import FRAME
from regenv.data.banks.brains import load_brains, subject
from regenv.data.io.resampling import antialiased, matrix_to_sitk
from regenv.data.pairs import PairBatch
from regenv.data.phantoms.effects import bias_field, noise_at
from regenv.data.sources.common import (
    check_bending,
    check_grid,
    check_split,
    pair_on_grid,
    random_affine,
    random_bending,
    random_rigid,
)
from regenv.grid import Grid
from regenv.ops.affine import about, matmul, transform_points
from regenv.ops.sampling import identity, sample, sample_labels

TRAIN, TEST = ("mni2009c", "csi1", "csi2"), ("csi3", "colin27")
_BRIGHTEST = 99.5           # percentile of the brain's intensities that becomes white
_FINE_SHARE = 0.4           # of the fine bending's knots and amplitude, those of a second, finer one
_GAMMA, _BIAS, _NOISE = 0.5, 0.15, 0.03


@dataclass(frozen=True)
class Brains3D:
    """Pairs of real heads or brains, affinely aligned in MNI space, with tissue labels.

    A pair shows two people, or one person twice. In training, both images are seen through random maps of their own
    (mirrored or not, a small affine map as a linear registration leaves it, and smooth bendings that cannot fold), with
    random contrast, bias field and noise; MNI2009c is shown in T1 and T2. In the test split images are as they are, and
    each pair has at least one person who is in no training pair: CSI3 or Colin27.

    The middle of the brain lies in the middle of the grid: 64 x 80 x 64 voxels of 2.5 mm hold the brain and most of the
    skull. Labels are 1 cerebrospinal fluid, 2 grey and 3 white matter, see :class:`regenv.data.sources.brains.Brains`,
    in whole heads, too.

    Args:
        split: "train" or "test".
        subjects: people of the split; by default all of them.
        skull: share of pairs that show whole heads, as the files are; in the others both brains are skull-stripped.
        same: share of pairs that show one person twice; 0 in the test split.
        bending: largest coefficient of the bendings' cubic B-splines, mm, times the difficulty. knots: approximate
            distance of their control points, mm. A second bending has 0.4 times both.
        mm, degrees, stretch: bounds of each image's affine map, times the difficulty.

    Raises:
        ValueError: an argument is unknown or out of range.
        DatasetError: on the first draw, a subject's data are missing (``regenv data get mni2009c bold5000 colin27``).
    """

    split: str = "train"
    subjects: tuple[str, ...] = ()
    skull: float = 0.5
    same: float = 0.35
    bending: float = 12.0
    knots: float = 36.0
    mm: float = 3.0
    degrees: float = 4.0
    stretch: float = 0.05
    ndim: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_split("brains3d", self.split)
        known = TRAIN if self.split == "train" else TEST + TRAIN
        for name in self.subjects:
            if name not in known:
                raise ValueError(f"brains3d: subject is {name!r}; for split {self.split!r} it must be one of "
                                 f"{', '.join(known)}.")
        for name, most in (("skull", 1.0), ("same", 1.0), ("mm", 20.0), ("degrees", 20.0), ("stretch", 0.2)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"brains3d: {name} is {getattr(self, name)}; it must lie in [0, {most:g}].")
        check_bending("brains3d", self.knots, self.bending)
        if not self.pairs():
            raise ValueError(f"brains3d: subjects are {self.subjects}; there is no pair of two people with one of "
                             f"{', '.join(TEST)} in it." if self.split == "test" else "brains3d: there is no pair.")

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All pairs of two people, fixed and moving; in training a person alone is a pair with itself."""
        people = self.subjects or (TRAIN if self.split == "train" else TEST + TRAIN)
        pairs = tuple((a, b) for a in people for b in people if a != b)
        if self.split == "test":
            return tuple(pair for pair in pairs if set(pair) & set(TEST))
        return pairs or ((people[0], people[0]),)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource."""
        check_grid("brains3d", 3, grid)
        pairs, training = self.pairs(), self.split == "train"
        lanes = []
        for rng in rngs:
            here, there = pairs[rng.integers(len(pairs))]
            whole, once = rng.random(2) < (self.skull, self.same)
            lanes.append([side for name in (here, here if training and once else there)
                          for side in self._seen(rng, name, bool(whole), grid, difficulty if training else None)])
        fixed, fixed_labels, moving, moving_labels = (torch.cat(each).to(device)
                                                      for each in zip(*lanes, strict=True))
        return pair_on_grid(grid, fixed, moving, fixed_labels, moving_labels)

    def _seen(self, rng: np.random.Generator, name: str, whole: bool, grid: Grid,
              difficulty: float | None) -> tuple[Tensor, Tensor]:
        """Image (1, 1, *shape) and labels of a person, as they are or, with a difficulty, changed at random."""
        scans = _scans(name, whole, grid)
        image, labels = scans[rng.integers(len(scans)) if difficulty is not None else 0], _labels(name, grid)
        if difficulty is None:
            return image, labels
        points = self._places(rng, grid, difficulty)
        image, labels = sample(image, points), sample_labels(labels, points)
        return _recoloured(rng, image, difficulty), labels

    def _places(self, rng: np.random.Generator, grid: Grid, difficulty: float) -> Tensor:
        """Where a changed image takes its voxels from, (1, *shape, 3) voxels of the grid."""
        mirror = torch.diag(torch.tensor([rng.choice((-1.0, 1.0)), 1.0, 1.0, 1.0], dtype=torch.float64))[None]
        place = matmul(matmul(mirror, random_affine([rng], 3, self.stretch * difficulty)),
                       random_rigid([rng], 3, self.mm * difficulty, self.degrees * difficulty))
        to_world, to_voxel = (torch.from_numpy(m)[None] for m in (grid.voxel_to_world, grid.world_to_voxel))
        matrix = matmul(to_voxel, matmul(about(grid.center, place), to_world))
        coarse, fine = (random_bending([rng], grid, share * self.knots, share * self.bending * difficulty)
                        for share in (1.0, _FINE_SHARE))
        points = (identity(grid.shape, torch.device("cpu")) + coarse + fine).movedim(1, -1)
        return transform_points(matrix, points.reshape(1, -1, 3).double()).view(points.shape).to(torch.float32)


def _recoloured(rng: np.random.Generator, image: Tensor, difficulty: float) -> Tensor:
    """An image (1, 1, *shape) of another contrast, with a bias field and noise; what was 0 remains so."""
    shape = tuple(image.shape[2:])
    there = image > 0
    image = image.clamp(0, 1) ** float(np.exp(difficulty * rng.uniform(-_GAMMA, _GAMMA)))
    image = rng.uniform(0.8, 1.1) * image * bias_field(difficulty * rng.uniform(-_BIAS, _BIAS, (1, 3, 2)), shape,
                                                       image.device)
    noise = noise_at(rng.random(1), shape, image.device) * (difficulty * rng.uniform(0, _NOISE))
    return ((image + noise).clamp(0, 1) * there).to(torch.float32)


@lru_cache(maxsize=32)
def _scans(name: str, whole: bool, grid: Grid) -> tuple[Tensor, ...]:
    """A person's scans (1, 1, *shape) on a grid about the brain: of the brain, or of the whole head."""
    brain = load_brains((name,), grid).images[0]
    if not whole:
        inside = brain > 0
        return (brain, *(scan * inside for scan in _heads(name, grid)[1:]))
    return _heads(name, grid)


@lru_cache(maxsize=16)
def _heads(name: str, grid: Grid) -> tuple[Tensor, ...]:
    """A person's whole heads (1, 1, *shape), one of each modality, scaled by what is in the brain."""
    files = [downloads.t1_scan(name), *([downloads.get(name)["t2"]] if name == "mni2009c" else [])]
    pull_back = matrix_to_sitk(subject(name)["pull_back"].numpy())
    target = Grid.centered(grid.shape, grid.spacing, FRAME.center.tolist(), grid.direction)
    inside = _labels(name, grid)[0, 0].numpy() > 0
    found = []
    for path in files:
        scan = antialiased(sitk.ReadImage(str(path), sitk.sitkFloat32), grid.spacing)
        values = sitk.GetArrayFromImage(sitk.Resample(scan, target.size, pull_back, sitk.sitkLinear, target.origin,
                                                      target.spacing, target.direction, 0.0))
        white = np.percentile(values[inside], _BRIGHTEST)
        found.append(torch.from_numpy(np.clip(values / white, 0, 1).astype(np.float32))[None, None])
    return tuple(found)


def _labels(name: str, grid: Grid) -> Tensor:
    return load_brains((name,), grid).labels[0]
