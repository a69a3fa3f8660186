"""Pairs of a synthetic abdominal spine: CT against cone-beam CT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.phantoms.bank import PhantomBank, paint_bank, sample_bank
from regenv.data.phantoms.effects import between, noise_at, per_lane, ramp
from regenv.data.phantoms.spine_anatomy import paint_spine
from regenv.data.sources.common import check_grid, check_ndim, check_patients, check_split, pair_on_grid
from regenv.grid import Grid
from regenv.ops.affine import matmul

_SPINE_BANK_EXTENT = (224.0, 208.0, 448.0)  # mm, x, y, z
_MIN_MOVING_SPACING = 2.0  # mm
_LANDMARKS = 32


_COLUMNS: dict[str, int | slice] = {
    "patient": 0, "size": slice(1, 4), "place": slice(4, 7), "midline": 7, "moving_place": slice(8, 11),
    "soft": 12, "bone": 13, "noise": 14, "noise_start": 15,
    "moving_contrast": 16, "moving_soft": 17, "moving_bone": 18, "cupping": 19, "streak": 20, "offset": 21,
    "moving_noise": 22, "moving_noise_start": 23, "streaks": slice(24, 36), "radius": 36, "height": 37,
}
_NUMBERS = 40           # drawn per lane; the order of the columns is part of what a seed means


class _Numbers(NamedTuple):
    """Random numbers of the lanes, uniform in [0, 1): (B,), or (B, K) where several are needed.

    Attributes:
        patient: index in the bank. size, place: of the patient along x, y, z.
        midline: distance of a 2D image from the midsagittal plane.
        moving_place: of the moving grid along each axis.
        soft, bone, noise, noise_start: brightness and noise of the fixed image.
        moving_contrast: of the soft tissues. moving_soft, moving_bone: brightness. cupping, streak, offset,
            moving_noise: strength of the artefacts. moving_noise_start; streaks: see :func:`_streaks`.
        radius, height: of the moving image's field of view.
    """

    patient: np.ndarray
    size: np.ndarray
    place: np.ndarray
    midline: np.ndarray
    moving_place: np.ndarray
    soft: np.ndarray
    bone: np.ndarray
    noise: np.ndarray
    noise_start: np.ndarray
    moving_contrast: np.ndarray
    moving_soft: np.ndarray
    moving_bone: np.ndarray
    cupping: np.ndarray
    streak: np.ndarray
    offset: np.ndarray
    moving_noise: np.ndarray
    moving_noise_start: np.ndarray
    streaks: np.ndarray
    radius: np.ndarray
    height: np.ndarray

    @classmethod
    def draw(cls, rngs: Sequence[np.random.Generator]) -> _Numbers:
        u = np.stack([rng.random(_NUMBERS) for rng in rngs])
        return cls(**{name: u[:, column] for name, column in _COLUMNS.items()})


class _Patients(NamedTuple):
    """The patients of the lanes: indices in the bank (B,), scale and shift (B, 3), mm, and the maps (B, 4, 4) from the
    world to each patient."""

    chosen: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    from_world: np.ndarray


class _FieldOfView(NamedTuple):
    """What the moving image shows: a cylinder about ``middle`` (B, D), of radius and half height (B,), mm, within the
    half extent ``half`` of its grid."""

    middle: np.ndarray
    half: tuple[float, ...]
    radius: np.ndarray
    tall: np.ndarray


@lru_cache(maxsize=8)
def painted_spines(split: str, patients: int, spacing: float, device: str) -> PhantomBank:
    """Patients with the channels soft tissue and bone, painted once."""
    if device != "cpu":
        return painted_spines(split, patients, spacing, "cpu").to(device)
    grid = Grid.centered([round(e / spacing) for e in _SPINE_BANK_EXTENT[::-1]], spacing)
    return paint_bank(paint_spine, 3, split, patients, grid)


@dataclass(frozen=True)
class SpinePhantom:
    """Abdominal spine, CT and cone-beam CT, after experiment E1 of Liao et al. 2017.

    The fixed CT shows many vertebrae. The moving CBCT shows a few of them: a cylinder at a random level, with weak
    soft-tissue contrast, streaks, cupping and noise. A shift by one vertebra looks almost right; ribs, kidneys, the
    pelvis and the vertebrae's sizes tell the level. Fixed and moving world agree: the truth is the identity, and the
    environment displaces the start.

    In 2D the images are near-midsagittal slices: world x is the patient's y (posterior), world y its z (superior).

    Args:
        ndim: 2 or 3.
        moving_extent_mm: edge-to-edge size of the moving grid in 3D world axes (x, y, z); its spacing is the fixed
            grid's smallest, at least 2 mm.
        truncated: whether the CBCT is cut to a cylinder narrower than its grid. Turn it off for regions of interest.
        placement_mm: largest distance of the patient from the world's origin along z. With large values (80) a small
            grid sees every level; with much larger ones it also sees the pelvis, where no vertebra can be measured.
        lateral_mm: the same along x and y. Attention does not find the middle of the spine exactly: a fine agent should
            be trained with about 30.
        split: "train" or "test"; no patient is in both.
        patients: number of patients in the split.
        bank_spacing: resolution at which patients are painted, mm; about half the grid's spacing suffices.
    """

    ndim: int = 3
    moving_extent_mm: tuple[float, float, float] = (176.0, 176.0, 176.0)
    truncated: bool = True
    placement_mm: float = 12.0
    lateral_mm: float = 8.0
    split: str = "train"
    patients: int = 64
    bank_spacing: float = 4.0

    def __post_init__(self) -> None:
        check_ndim("SpinePhantom", self.ndim)
        check_split("SpinePhantom", self.split)
        check_patients("SpinePhantom", self.patients, self.bank_spacing)
        if len(self.moving_extent_mm) != 3 or not all(math.isfinite(e) and e > 0 for e in self.moving_extent_mm):
            raise ValueError(f"SpinePhantom: moving_extent_mm is {self.moving_extent_mm}; "
                             "give three positive lengths in mm (x, y, z).")

    def moving_grid(self, grid: Grid) -> Grid:
        """The moving grid before it is placed at a level: same centre as the fixed grid."""
        spacing = max(min(grid.spacing), _MIN_MOVING_SPACING)
        extent = self.moving_extent_mm[3 - self.ndim:]
        return Grid.centered([max(2, round(e / spacing)) for e in extent[::-1]], spacing, grid.center.tolist(),
                             grid.direction)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`. The moving grid's place varies by lane, its shape does not."""
        check_grid("SpinePhantom", self.ndim, grid)
        device, n, lanes, hard = torch.device(device), self.ndim, len(rngs), float(difficulty)
        bank = painted_spines(self.split, self.patients, float(self.bank_spacing), str(device))
        numbers, moving_grid = _Numbers.draw(rngs), self.moving_grid(grid)
        patients = self._patients(numbers)
        offset = _moving_offset(numbers, grid, moving_grid)
        moving_to_world = np.tile(moving_grid.voxel_to_world, (lanes, 1, 1))
        moving_to_world[:, :n, n] += offset
        world_to_moving = np.tile(moving_grid.world_to_voxel, (lanes, 1, 1))
        world_to_moving[:, :n, n] -= (world_to_moving[:, :n, :n] * offset[:, None, :]).sum(-1)
        field = self._field_of_view(numbers, grid.center + offset, moving_grid)

        soft_bone = np.stack([_varied(numbers.soft, 0.48, 0.62, 0.55, hard),
                              _varied(numbers.bone, 0.42, 0.6, 0.5, hard)], axis=1)[:, None]
        ct = _channels(bank, patients, np.tile(grid.voxel_to_world, (lanes, 1, 1)), grid.shape, soft_bone)
        noise = per_lane(_varied(numbers.noise, 0.005, 0.03, 0.005, hard), n, device)
        ct += noise * noise_at(numbers.noise_start, grid.shape, device)
        tissues = _channels(bank, patients, moving_to_world, moving_grid.shape, np.tile(np.eye(2), (lanes, 1, 1)))
        cbct = _cone_beam(tissues, numbers, moving_grid, field if self.truncated else None, hard)

        landmarks = np.stack([_landmarks(bank.points[patient], n, patients, field, lane)
                              for lane, patient in enumerate(patients.chosen)])
        pair = pair_on_grid(grid, ct.clamp(0, 1), cbct.clamp(0, 1), landmarks=torch.from_numpy(landmarks).to(device),
                            known=True)
        return replace(pair, world_to_moving=torch.from_numpy(world_to_moving).to(device))

    def _patients(self, numbers: _Numbers) -> _Patients:
        """The patients' places and sizes in the world."""
        scale = 1 + 0.06 * (2 * numbers.size - 1)
        shift = (2 * numbers.place - 1) * np.array([self.lateral_mm, self.lateral_mm, self.placement_mm])
        from_world = np.tile(np.eye(4), (len(scale), 1, 1))
        from_world[:, range(3), range(3)] = 1 / scale
        from_world[:, :3, 3] = -shift / scale
        if self.ndim == 2:  # the slice follows the spine to within 3 mm
            from_world[:, 0, 3] = between(numbers.midline, -3, 3)
        return _Patients((numbers.patient * self.patients).astype(int), scale, shift, from_world)

    def _field_of_view(self, numbers: _Numbers, middle: np.ndarray, moving_grid: Grid) -> _FieldOfView:
        half = tuple(e / 2 for e in moving_grid.extent)
        if not self.truncated:
            return _FieldOfView(middle, half, np.full(len(middle), np.inf), np.full(len(middle), half[-1]))
        return _FieldOfView(middle, half, between(numbers.radius, 0.88, 1.0) * half[0],
                            between(numbers.height, 0.86, 1.0) * half[-1])


def _varied(u: np.ndarray, low: float, high: float, plain: float, difficulty: float) -> np.ndarray:
    """Values (B,) of numbers in [0, 1): ``plain`` at difficulty 0, from the whole range at 1."""
    return plain + difficulty * (between(u, low, high) - plain)


def _moving_offset(numbers: _Numbers, grid: Grid, moving_grid: Grid) -> np.ndarray:
    """Shifts (B, D), mm, of the moving grid: along z anywhere where the fixed grid covers it."""
    room = np.maximum(0, np.array(grid.extent) - np.array(moving_grid.extent)) / 2
    return (2 * numbers.moving_place[:, :grid.ndim] - 1) * np.append(np.minimum(room[:-1], 6.0), room[-1])


def _channels(bank: PhantomBank, patients: _Patients, to_world: np.ndarray, shape: tuple[int, ...], mix: np.ndarray
              ) -> Tensor:
    """Weighted sums (B, K, *shape) of the patients' channels, with weights (B, K, 2), on grids ``to_world``."""
    lifted = matmul(torch.from_numpy(patients.from_world), torch.from_numpy(_sagittal(to_world))).numpy()
    images = sample_bank(bank, patients.chosen, lifted, shape if len(shape) == 3 else (*shape, 1), mix)
    return images.view(len(patients.chosen), mix.shape[1], *shape)


def _cone_beam(tissues: Tensor, numbers: _Numbers, grid: Grid, field: _FieldOfView | None, difficulty: float) -> Tensor:
    """CBCT images (B, 1, *shape) of soft tissue and bone (B, 2, *shape), cut to ``field`` unless that is None."""
    shape, n, device = grid.shape, grid.ndim, tissues.device

    def number(u: np.ndarray, low: float, high: float, plain: float) -> Tensor:
        return per_lane(_varied(u, low, high, plain, difficulty), n, device)

    soft, bone = tissues.split(1, dim=1)
    tissue = 0.47 * (soft * 4).clamp(max=1)
    weak = tissue + number(numbers.moving_contrast, 0.2, 0.6, 1.0) * (soft - tissue)
    image = number(numbers.moving_soft, 0.35, 0.7, 0.55) * weak + number(numbers.moving_bone, 0.25, 0.55, 0.5) * bone
    half = [e / 2 for e in grid.extent]
    axes = [ramp(shape[-1 - a], device).view(*(-1 if b == a else 1 for b in reversed(range(n))))
            * (half[a] - grid.spacing[a] / 2) for a in range(n)]
    # in 2D the slice is the cylinder's middle: only its depth and its height remain
    square = sum((a * a for a in axes[:-1]), torch.zeros((), device=device))
    image = image * (1 - number(numbers.cupping, 0.0, 0.35, 0.0) * (1 - square / half[0]**2).clamp(min=0))
    streaks = torch.from_numpy(np.stack([_streaks(lane, shape, grid.spacing) for lane in numbers.streaks]))
    image = image + number(numbers.streak, 0.01, 0.09, 0.0) * streaks.to(device).unsqueeze(1)
    image = image + number(numbers.offset, 0.0, 0.12, 0.0) \
        + number(numbers.moving_noise, 0.01, 0.07, 0.01) * noise_at(numbers.moving_noise_start, shape, device)
    if field is None:
        return image
    inside = square <= per_lane(field.radius**2, n, device)
    return image * (inside & (axes[-1].abs() <= per_lane(field.tall, n, device)))


def _sagittal(to_world: np.ndarray) -> np.ndarray:
    """Lifts (B, 3, 3) voxel-to-world maps of slices into 3D, (B, 4, 4); 3D maps pass unchanged.

    A slice (H, W) becomes a volume (H, W, 1) in the plane x = 0, its axes y and z.
    """
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((len(to_world), 4, 4))
    lifted[:, 1:3, :2] = to_world[:, :2, :2]
    lifted[:, 1:3, 3] = to_world[:, :2, 2]
    lifted[:, 0, 2] = lifted[:, 3, 3] = 1
    return lifted


def _streaks(u: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Streaks of one lane, about unit amplitude, float32 of ``shape``: rays from a dense spot in each axial slice.

    Args: u: (12,) numbers in [0, 1).
    """
    axes = [(np.arange(m) - (m - 1) / 2) * s for m, s in zip(shape[::-1], spacing, strict=True)]
    x, y = (axes[0][None, :], axes[1][:, None]) if len(shape) == 3 else (np.full((1, 1), 9.0), axes[0][:, None])
    x, y = x - 30 * (2 * u[0] - 1), y - 30 * (2 * u[1] - 1)
    angle, radius = np.arctan2(y, x), np.sqrt(x * x + y * y)
    rays = sum(np.cos(np.floor(3 + 14 * f) * angle + 2 * np.pi * p) for f, p in u[2:10].reshape(4, 2)) / 2
    plane = rays * np.minimum(radius / 25, 1)
    along = np.cos(2 * np.pi * (axes[-1] / between(u[10], 35, 90) + u[11]))
    height = (0.5 + 0.5 * along).reshape(-1, *(1,) * (len(shape) - 1))
    if len(shape) == 2:
        plane = plane.T
    return (plane * height).astype(np.float32)


def _landmarks(edges: np.ndarray, ndim: int, patients: _Patients, field: _FieldOfView, lane: int) -> np.ndarray:
    """The edge points of one lane's vertebrae that lie nearest to the middle of its moving image, (32, D), world mm.

    Points outside the moving image's field of view do not count; where too few are left, they are repeated in turn.

    Args: edges: (levels * 16, 3), mm in the patient's frame.
    """
    of_slices_or_volumes = edges.reshape(-1, 2, 8, 3)[:, 3 - ndim]
    points = (of_slices_or_volumes.reshape(-1, 3) * patients.scale[lane] + patients.shift[lane])[:, 3 - ndim:]
    away = points - field.middle[lane]
    seen = (np.abs(away) <= np.array(field.half)).all(1) & (np.abs(away[:, -1]) <= field.tall[lane])
    seen &= (away[:, :-1] ** 2).sum(1) <= field.radius[lane]**2
    order = np.argsort((away**2).sum(1) + np.where(seen, 0.0, 1e9), kind="stable")
    return points[order[np.arange(_LANDMARKS) % max(1, min(_LANDMARKS, int(seen.sum())))]]
