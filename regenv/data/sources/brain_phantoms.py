"""Pairs of a synthetic head in the contrasts of several scanners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.phantoms.bank import PhantomBank, paint_bank, sample_bank
from regenv.data.phantoms.brain_anatomy import paint_head
from regenv.data.phantoms.effects import bias_field, noise_at, per_lane
from regenv.data.sources.common import check_grid, check_ndim, check_patients, check_split, pair_on_grid
from regenv.grid import Grid
from regenv.ops.affine import matmul

_HEAD_BANK_EXTENT = (192.0, 232.0, 224.0)  # mm, x, y, z
_CONTRASTS = np.array([
    #  soft skull  csf  grey white   eye
    [0.62, 0.12, 0.15, 0.50, 0.78, 0.30],   # T1-like
    [0.40, 0.08, 0.95, 0.62, 0.40, 0.90],   # T2-like
    [0.55, 0.15, 0.10, 0.72, 0.55, 0.20],   # FLAIR-like
    [0.42, 0.95, 0.32, 0.44, 0.39, 0.36],   # CT-like
])


_COLUMNS: dict[str, int | slice] = {
    "patient": 0, "size": slice(1, 4), "place": slice(4, 7), "contrast": 8, "jitter": slice(9, 15),
    "moving_contrast": 15, "moving_jitter": slice(16, 22), "differs": 22, "scanner": slice(24, 32),
    "moving_scanner": slice(36, 44),
}
_NUMBERS = 64           # drawn per lane; the order of the columns is part of what a seed means


class _Numbers(NamedTuple):
    """Random numbers of the lanes, uniform in [0, 1): (B,), or (B, K) where several are needed.

    Attributes:
        patient: index in the bank. size, place: of the patient along x, y, z.
        contrast, jitter: of the fixed image, see :func:`_contrasts`. moving_contrast, moving_jitter: of the moving one.
        differs: whether the moving image has a contrast of its own.
        scanner, moving_scanner: see :func:`_scanned`.
    """

    patient: np.ndarray
    size: np.ndarray
    place: np.ndarray
    contrast: np.ndarray
    jitter: np.ndarray
    moving_contrast: np.ndarray
    moving_jitter: np.ndarray
    differs: np.ndarray
    scanner: np.ndarray
    moving_scanner: np.ndarray

    @classmethod
    def draw(cls, rngs: Sequence[np.random.Generator]) -> _Numbers:
        u = np.stack([rng.random(_NUMBERS) for rng in rngs])
        return cls(**{name: u[:, column] for name, column in _COLUMNS.items()})


@lru_cache(maxsize=8)
def painted_heads(ndim: int, split: str, patients: int, spacing: float, device: str) -> PhantomBank:
    """Patients with one channel per tissue, painted once; in 2D one slice each."""
    if device != "cpu":
        return painted_heads(ndim, split, patients, spacing, "cpu").to(device)
    shape = [round(e / spacing) for e in _HEAD_BANK_EXTENT[::-1]]
    grid = Grid.centered(shape if ndim == 3 else [1, *shape[1:]], spacing)
    return paint_bank(lambda g, rng: paint_head(g, rng, axial=ndim == 2), 5, split, patients, grid)


@dataclass(frozen=True)
class BrainPhantom:
    """A head with scalp, skull, CSF, folded grey and white matter, ventricles, eyes, nose and ears.

    Both images show the same head on the same grid, so the truth is the identity and the environment displaces the
    start. At difficulty 0 they differ by weak noise only. At 1 the moving image has another contrast (T1-, T2-, FLAIR-
    or CT-like, jittered, and so possibly inverted), and both have bias fields and noise. In 2D the slices are axial,
    through the eyes and ventricles. Landmarks are 32 points on the brain's surface.

    Args:
        ndim: 2 or 3.
        split: "train" or "test"; no patient is in both.
        patients: number of patients in the split.
        bank_spacing: resolution at which heads are painted, mm; default 1.5 in 2D and 4 in 3D.
    """

    ndim: int = 3
    split: str = "train"
    patients: int = 48
    bank_spacing: float | None = None

    def __post_init__(self) -> None:
        check_ndim("BrainPhantom", self.ndim)
        check_split("BrainPhantom", self.split)
        check_patients("BrainPhantom", self.patients, self._spacing)

    @property
    def _spacing(self) -> float:
        if self.bank_spacing is None:
            return 1.5 if self.ndim == 2 else 4.0
        return float(self.bank_spacing)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`. Fixed and moving share the grid."""
        check_grid("BrainPhantom", self.ndim, grid)
        device, n, lanes, hard = torch.device(device), self.ndim, len(rngs), float(difficulty)
        bank = painted_heads(n, self.split, self.patients, self._spacing, str(device))
        numbers = _Numbers.draw(rngs)
        patients = (numbers.patient * self.patients).astype(int)
        scale = 1 + 0.07 * (2 * numbers.size - 1)
        shift = (2 * numbers.place - 1) * np.array([6.0, 6.0, 6.0])
        if n == 2:
            scale[:, 2], shift[:, 2] = 1, 0
        world_to_patient = np.tile(np.eye(4), (lanes, 1, 1))
        world_to_patient[:, range(3), range(3)] = 1 / scale
        world_to_patient[:, :3, 3] = -shift / scale
        lifted = matmul(torch.from_numpy(world_to_patient),
                        torch.from_numpy(np.tile(_axial(grid.voxel_to_world), (lanes, 1, 1)))).numpy()
        first = _contrasts(numbers.contrast * hard, numbers.jitter, hard)
        second = np.where((numbers.differs < hard)[:, None],
                          _contrasts(numbers.moving_contrast, numbers.moving_jitter, hard), first)
        shape = grid.shape
        images = sample_bank(bank, patients, lifted, shape if n == 3 else (1, *shape), np.stack([first, second], 1))
        images = images.view(lanes, 2, *shape)
        landmarks = np.stack([bank.points[p] * scale[i] + shift[i] for i, p in enumerate(patients)])[..., :n]
        return pair_on_grid(grid, _scanned(images[:, :1], numbers.scanner, hard),
                            _scanned(images[:, 1:], numbers.moving_scanner, hard),
                            landmarks=torch.from_numpy(landmarks.copy()).to(device), known=True)


def _contrasts(kind: np.ndarray, jitter: np.ndarray, difficulty: float) -> np.ndarray:
    """Intensities of the tissues (B, 6), by numbers in [0, 1): which contrast (B,), and how it is varied (B, 6)."""
    tables = _CONTRASTS[(kind * len(_CONTRASTS)).astype(int)]
    return np.clip(tables + difficulty * 0.12 * (2 * jitter - 1), 0.02, 1)


def _scanned(image: Tensor, u: np.ndarray, difficulty: float) -> Tensor:
    """Images (B, 1, *shape) with bias field and noise, by numbers (B, 8) in [0, 1)."""
    shape, device = tuple(image.shape[2:]), image.device
    n = len(shape)
    slopes = difficulty * 0.22 * (2 * u[:, :2 * n].reshape(len(u), n, 2) - 1)
    sigma = 0.005 + difficulty * 0.035 * u[:, 6]
    noise = noise_at(u[:, 7], shape, device).mul_(per_lane(sigma, n, device))
    return noise.add_(image * bias_field(slopes, shape, device)).clamp_(0, 1)


def _axial(to_world: np.ndarray) -> np.ndarray:
    """The (3, 3) voxel-to-world map of a slice (H, W) as that of a volume (1, H, W) in the plane z = 0, (4, 4)."""
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((4, 4))
    lifted[:2, 1:3] = to_world[:2, :2]
    lifted[:2, 3] = to_world[:2, 2]
    lifted[2, 0] = lifted[3, 3] = 1
    return lifted
