"""Pairs of synthetic chests at inhale and exhale with corresponding key-points, in place of DIR-Lab and EMPIRE10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import SPLITS, PairBatch
from regenv.data.phantoms.breathing import Breath, Motion, random_waves
from regenv.data.phantoms.effects import noise_at
from regenv.data.phantoms.lung_anatomy import Chest, Patient, paint_chest
from regenv.data.sources.common import (
    check_grid,
    check_ndim,
    check_patients,
    check_split,
    pair_on_grid,
    random_affine,
    random_rigid,
)
from regenv.grid import Grid
from regenv.ops.affine import invert_affine, matmul, transform_points
from regenv.ops.sampling import affine_coordinates, sample

LUNG = 1
PHASES = ("inhale", "exhale", "either")
KEY_POINTS = {2: 128, 3: 512}
_SALT = 6
_EXTENT_MM = (384.0, 288.0, 336.0)      # painted, x, y, z
_FINE_ENOUGH = 0.8                      # of the grid's spacing: painting patients finer than that brings nothing
_SHEET = (-0.25, 0.30)                  # place of 2D images in the outline, from front (-1) to back (1)
_SLAB_MM = 5.0                          # distance from the sheet up to which vessels give key-points
_LEAST_DIFFICULTY = 0.3                 # share of the contrast's variation that remains at difficulty 0
_MOST_BENDING_MM = 5.0
_MOST_MOTION_MM = 40.0
_MOST_ZOOM = 5.0
_WITHOUT_VESSELS, _VESSEL = 0.3, 0.45   # share of imperfect masks that lack the vessels; intensity of these


@lru_cache(maxsize=64)
def lung_patient(split: str, index: int, spacing: float, device: str) -> Patient:
    """A patient of a split, painted on the first call."""
    if device != "cpu":
        return lung_patient(split, index, spacing, "cpu").to(device)
    grid = Grid.centered([round(e / spacing) for e in _EXTENT_MM[::-1]], spacing)
    return paint_chest(grid, np.random.default_rng([_SALT, SPLITS.index(split), index]))


@dataclass(frozen=True)
class Lungs:
    """Pairs of one patient's chest in CT at inhale and exhale, after the breath-hold scans of Castillo et al. 2013.

    They show lungs with lobes, fissures, airways, arteries and veins; the heart, the diaphragm and the organs below it;
    ribs, spine and muscles. Between inhale and exhale the diaphragm moves, and the lungs with it, less towards the
    apex; ribs and breast bone move differently, so that the lungs slide along them. A lower lobe moves a little further
    than the upper one, a smooth deformation is added, and the parenchyma is denser at exhale.

    The middle of the lungs lies in the middle of the grid, whose spacing is kept: 64 voxels of 5 mm show all of the
    lungs. Label 1 is the lungs with their vessels. Landmarks are points of vessels in both images' lungs and on both
    grids; their targets follow the motion exactly (to 1e-4 mm). In 2D images show a coronal sheet, head up; nothing
    moves across it.

    Args:
        ndim: 2 or 3.
        split: "train" or "test"; no patient is in both.
        patients: number of patients in the split, each painted when first drawn, about a second at 4 mm.
        fixed: the fixed image, "inhale", "exhale", or "either" as often.
        motion: smallest and largest motion of the diaphragm between the two, mm, times the difficulty.
        expansion: largest motion of the breast bone, mm, times the difficulty; the ribs' sides move half as far.
        lobes: largest motion of a lower lobe beyond the upper one's, mm, times the difficulty.
        bending: smooth random displacement between the two, root mean square in each direction, mm, times the
            difficulty.
        mm, degrees, stretch: place, orientation and linear deformation (bound of its coefficients) of the patient, both
            images alike, times the difficulty.
        key_points: number of landmarks; default 512, in 2D 128.
        bank_spacing: finest resolution at which patients are painted, mm; for coarser grids they are painted coarser.
        zoom: smallest and largest magnification, the same of both images, each as likely on a logarithmic scale.
            Magnified by 2, 5 mm of the grid show 2.5 mm of the patient, and the grid one lung or a part of both.
        imperfect: share of the pairs that look as clinical scans do: up to four times the noise, and masks that are too
            small or too large and may lack the vessels.

    Raises ValueError: an argument is unknown or out of range; or on a draw, the grid shows hardly any lung.
    """

    ndim: int = 3
    split: str = "train"
    patients: int = 16
    fixed: str = "inhale"
    motion: tuple[float, float] = (10.0, 28.0)
    expansion: float = 8.0
    lobes: float = 5.0
    bending: float = 2.5
    mm: float = 8.0
    degrees: float = 5.0
    stretch: float = 0.04
    key_points: int | None = None
    bank_spacing: float = 2.5
    zoom: tuple[float, float] = (1.0, 1.0)
    imperfect: float = 0.0

    def __post_init__(self) -> None:
        check_ndim("lungs", self.ndim)
        check_split("lungs", self.split)
        check_patients("lungs", self.patients, self.bank_spacing)
        if self.fixed not in PHASES:
            raise ValueError(f"lungs: fixed is {self.fixed!r}; it must be one of {', '.join(PHASES)}.")
        low_high = tuple(self.motion)
        if not (len(low_high) == 2 and 0 <= low_high[0] <= low_high[1] <= _MOST_MOTION_MM):
            raise ValueError(f"lungs: motion is {self.motion} mm; give the least and the largest, both in "
                             f"[0, {_MOST_MOTION_MM:g}].")
        for name, most in (("expansion", 20.0), ("lobes", 10.0), ("bending", _MOST_BENDING_MM), ("mm", 100.0),
                           ("degrees", 45.0), ("stretch", 0.3)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"lungs: {name} is {getattr(self, name)}; it must lie in [0, {most:g}].")
        zooms = tuple(self.zoom)
        if not (len(zooms) == 2 and 0.5 <= zooms[0] <= zooms[1] <= _MOST_ZOOM):
            raise ValueError(f"lungs: zoom is {self.zoom}; give the least and the largest, both in "
                             f"[0.5, {_MOST_ZOOM:g}].")
        if not 0 <= self.imperfect <= 1:
            raise ValueError(f"lungs: imperfect is {self.imperfect}; it must lie in [0, 1].")
        if self.key_points is not None and self.key_points < 1:
            raise ValueError(f"lungs: key_points is {self.key_points}; at least one is needed.")

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource."""
        check_grid("lungs", self.ndim, grid)
        device = torch.device(device)
        spacing = max(float(self.bank_spacing), round(_FINE_ENOUGH * min(grid.spacing) / self.zoom[1], 3))
        patients = [int(rng.integers(self.patients)) for rng in rngs]
        placed = matmul(random_affine(rngs, self.ndim, self.stretch * difficulty),
                        random_rigid(rngs, self.ndim, self.mm * difficulty, self.degrees * difficulty))
        if tuple(self.zoom) != (1.0, 1.0):
            placed = matmul(placed, torch.stack([self._magnified(rng) for rng in rngs]))
        placed = matmul(placed, _from_center(grid))
        lanes = [self._lane(rng, lung_patient(self.split, patient, spacing, str(device)), place, grid, difficulty)
                 for rng, patient, place in zip(rngs, patients, placed, strict=True)]
        fixed, moving, fixed_labels, moving_labels, points, targets = map(torch.stack, zip(*lanes, strict=True))
        return pair_on_grid(grid, fixed, moving, fixed_labels, moving_labels, points.to(device), targets.to(device))

    def _magnified(self, rng: np.random.Generator) -> Tensor:
        """Map from a magnified world to the patient's, (D+1, D+1) float64; its middle is anywhere in the lungs."""
        zoom = float(np.exp(rng.uniform(*np.log(self.zoom))))
        matrix = np.eye(self.ndim + 1)
        matrix[:-1, :-1] /= zoom
        across, along = 1 - 1 / max(zoom, 1.0), rng.uniform(-1, 1, 3)
        reach = np.array([70.0, 30.0, 70.0])[:: 1 if self.ndim == 3 else 2]
        matrix[:-1, -1] = 2 * across * reach * along[: self.ndim]
        return torch.from_numpy(matrix)

    def _lane(self, rng: np.random.Generator, patient: Patient, placed: Tensor, grid: Grid, difficulty: float
              ) -> tuple[Tensor, ...]:
        """Fixed and moving image, their labels, landmarks and targets; ``placed`` (D+1, D+1): world to patient."""
        breaths = self._breaths(rng, patient.chest, difficulty)
        looks = rng.random((2, 5))
        flaws = rng.random((2, 3)) if self.imperfect and rng.random() < self.imperfect else (None, None)
        scans = [_scan(breath, patient, placed, grid, look, difficulty, flaw)
                 for breath, look, flaw in zip(breaths, looks, flaws, strict=True)]
        count = self.key_points or KEY_POINTS[self.ndim]
        points = _key_points(rng, count, patient, breaths, placed, grid, [labels.cpu()[0] for _, labels in scans])
        return scans[0][0], scans[1][0], scans[0][1], scans[1][1], *points

    def _breaths(self, rng: np.random.Generator, chest: Chest, difficulty: float) -> tuple[Breath, Breath]:
        """Breathing states of the fixed and of the moving image."""
        u = rng.random(8)
        least, largest = self.motion
        motion = Motion(diaphragm=least + (largest - least) * u[0], deepen=self.expansion * (0.4 + 0.6 * u[1]),
                        widen=0.5 * self.expansion * (0.4 + 0.6 * u[2]), lift=0.6 * self.expansion * u[3],
                        lobes=self.lobes * u[4], back=0.20 * u[5], left=0.2 * (u[6] - 0.5))
        sheet = None if self.ndim == 3 else _SHEET[0] + (_SHEET[1] - _SHEET[0]) * u[7]
        inhale = self.fixed == "inhale" or (self.fixed == "either" and rng.random() < 0.5)
        phase = (0.5 if inhale else -0.5) * difficulty
        bending = random_waves(rng, self.bending * difficulty)
        return (Breath(chest, motion, phase, (bending[0][:0], bending[1][:0], bending[2][:0]), sheet),
                Breath(chest, motion, -phase, bending, sheet))


def _from_center(grid: Grid) -> Tensor:
    """Map from the world to the frame whose origin is the grid's middle, (D+1, D+1) float64."""
    matrix = np.eye(grid.ndim + 1)
    matrix[:grid.ndim, grid.ndim] = -grid.center
    return torch.from_numpy(matrix)


def _scan(breath: Breath, patient: Patient, placed: Tensor, grid: Grid, look: np.ndarray, difficulty: float,
          flaws: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Image (1, *shape) float32 and labels (1, *shape) int16.

    Args: placed (D+1, D+1): world to patient; look (5,), flaws (3,): numbers in [0, 1), see ``imperfect``.
    """
    device = patient.volumes.device
    to_patient = matmul(placed, torch.from_numpy(grid.voxel_to_world))
    points = affine_coordinates(to_patient[None].to(device), grid.shape)[0]
    wall = breath.wall(points)
    across, back = patient.chest.outline(*wall)
    width = max(1.5, 0.7 * min(grid.spacing))
    inside = (patient.chest.cavity(across, back) / width + 0.5).clamp(0, 1)
    outer = _channels_at(patient, slice(0, 1), wall)[0]
    tissue, air, lungs = _channels_at(patient, slice(1, 4), breath.lung(wall))
    vary = _LEAST_DIFFICULTY + (1 - _LEAST_DIFFICULTY) * difficulty

    def number(column: int, low: float, high: float) -> float:
        return float((low + high) / 2 + vary * (high - low) * (look[column] - 0.5))

    density = number(0, -0.02, 0.02) - 0.09 * breath.phase + (0.022 - 0.03 * breath.phase) * back
    image = outer + inside * (tissue + air * density - outer)
    image = number(1, 0.96, 1.04) * image + number(2, -0.02, 0.02)
    grain = number(3, 0.008, 0.025) * (1 if flaws is None else 1 + 3 * flaws[0])
    shown = lungs * inside >= (0.5 if flaws is None else 0.15 + 0.7 * flaws[1])
    if flaws is not None and flaws[2] < _WITHOUT_VESSELS:
        shown = shown & (image < _VESSEL)
    image = image + grain * noise_at(look[4:5], grid.shape, device)[0, 0]
    labels = shown.to(torch.int16) * LUNG
    return image.clamp(0, 1)[None], labels[None]


def _channels_at(patient: Patient, channels: slice, xyz: Sequence[Tensor]) -> Tensor:
    """Channels (C, *shape) float32 of the painted patient at places x, y, z (*shape), mm."""
    origin, spacing, shape = patient.grid.origin, patient.grid.spacing, xyz[0].shape
    points = torch.stack([(xyz[a] - origin[a]) / spacing[a] for a in (2, 1, 0)], -1).view(1, -1, *shape[-2:], 3)
    return sample(patient.volumes[None, channels].float(), points, padding="border")[0].view(-1, *shape)


def _key_points(rng: np.random.Generator, count: int, patient: Patient, breaths: Sequence[Breath], placed: Tensor,
                grid: Grid, labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Corresponding points (count, D) float64 of the fixed and the moving world, in both lungs and on the grid.

    They are points of vessels; where these are too few, any points of the fixed lungs; where those are too few as well,
    they are repeated in turn.
    """
    found: list[tuple[Tensor, Tensor]] = []
    vessels = _candidates(patient, breaths[0])
    vessels = vessels[rng.permutation(len(vessels))]
    lungs = torch.nonzero(labels[0] == LUNG).to(torch.float64).numpy()
    start, step = 0, count + count // 2
    while start < len(vessels) and sum(map(len, (each[0] for each in found))) < count:
        found.append(_seen_in_both(torch.from_numpy(vessels[start:start + step]), breaths, placed, grid, labels))
        start += step
    if sum(map(len, (each[0] for each in found))) < count and len(lungs):
        voxels = lungs[rng.integers(len(lungs), size=2 * count)] + rng.uniform(-0.5, 0.5, (2 * count, grid.ndim))
        world = torch.from_numpy(grid.to_world(voxels))
        painted = breaths[0].pull_back(_mapped(placed, world))
        found.append(_seen_in_both(painted, breaths, placed, grid, labels))
    fixed, moving = (torch.cat([each[side] for each in found]) for side in (0, 1)) if found else (torch.empty(0),) * 2
    if not len(fixed):
        raise ValueError(f"lungs: the grid {grid.shape} of {grid.spacing} mm shows no lung; use a larger one, such as "
                         "64 voxels of 5 mm.")
    turn = torch.arange(count) % len(fixed)
    return fixed[turn], moving[turn]


def _candidates(patient: Patient, breath: Breath) -> np.ndarray:
    """Points (K, D) of vessels in the painted chest, or of those that cross the sheet of a 2D image."""
    if breath.sheet is None:
        return patient.points
    _, y, z = torch.from_numpy(patient.points).unbind(-1)
    _, depth, center = patient.chest.levels(z)
    near = ((y - center - breath.sheet * depth).abs() < _SLAB_MM).numpy()
    return patient.points[near][:, [0, 2]] * (1.0, -1.0)


def _seen_in_both(painted: Tensor, breaths: Sequence[Breath], placed: Tensor, grid: Grid, labels: Sequence[Tensor]
                  ) -> tuple[Tensor, Tensor]:
    """World points (n, D) in the fixed and the moving image of those painted points (N, D) that lie in both lungs."""
    from_patient = invert_affine(placed)
    worlds = [_mapped(from_patient, breath.push(painted)) for breath in breaths]
    kept = torch.ones(len(painted), dtype=torch.bool)
    for world, mask in zip(worlds, labels, strict=True):
        voxels = torch.from_numpy(np.floor(grid.to_voxel(world.numpy()) + 0.5)).nan_to_num(-1)
        limits = torch.tensor(grid.shape) - 1
        kept &= ((voxels >= 0) & (voxels <= limits)).all(-1)
        index = voxels.clamp(min=torch.zeros_like(limits), max=limits).long()
        kept &= mask[tuple(index.unbind(-1))] == LUNG
    return worlds[0][kept], worlds[1][kept]


def _mapped(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (N, D) through a homogeneous matrix (D+1, D+1)."""
    return transform_points(matrix[None], points[None])[0]
