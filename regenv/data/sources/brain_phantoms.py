"""Pairs of a head in the contrasts of several scanners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.phantoms.bank import Bank, build, check, check_grid, resample
from regenv.data.phantoms.brain_anatomy import paint_head
from regenv.data.phantoms.effects import bias_field, noise_at, per_lane
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


@lru_cache(maxsize=8)
def head_bank(ndim: int, split: str, patients: int, spacing: float, device: str) -> Bank:
    if device != "cpu":
        bank = head_bank(ndim, split, patients, spacing, "cpu")
        return Bank(bank.volumes.to(device), bank.grid, bank.points)
    shape = [round(e / spacing) for e in _HEAD_BANK_EXTENT[::-1]]
    grid = Grid.centered(shape if ndim == 3 else [1, *shape[1:]], spacing)
    return build(lambda g, rng: paint_head(g, rng, axial=ndim == 2), 5, split, patients, grid)


@dataclass(frozen=True)
class BrainPhantom:
    """A head with scalp, skull, CSF, folded grey and white matter, ventricles, eyes, nose and ears.

    Both images show the same head on the same grid, so the truth is the identity and the environment displaces the
    start. At difficulty 0 they differ by weak noise only; at 1 the moving image has another contrast (T1-, T2-, FLAIR-
    or CT-like, jittered, so also inverted), both have bias fields and noise. In 2D the slices are axial, through the
    eyes and ventricles. Landmarks are 32 points on the brain's surface.

    Args:
        ndim: 2 or 3.
        split: "train" or "test"; no patient is in both.
        patients: size of the bank.
        bank_spacing: resolution at which heads are painted, mm; default 1.5 in 2D and 4 in 3D.
    """

    ndim: int = 3
    split: str = "train"
    patients: int = 48
    bank_spacing: float | None = None

    def __post_init__(self) -> None:
        check("BrainPhantom", self.ndim, self.split, self.patients, self._spacing)

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
        bank = head_bank(n, self.split, self.patients, self._spacing, str(device))
        u = np.stack([rng.random(64) for rng in rngs])
        patients = (u[:, 0] * self.patients).astype(int)
        scale = 1 + 0.07 * (2 * u[:, 1:4] - 1)
        shift = (2 * u[:, 4:7] - 1) * np.array([6.0, 6.0, 6.0])
        if n == 2:
            scale[:, 2], shift[:, 2] = 1, 0
        world_to_patient = np.tile(np.eye(4), (lanes, 1, 1))
        world_to_patient[:, range(3), range(3)] = 1 / scale
        world_to_patient[:, :3, 3] = -shift / scale
        lifted = matmul(torch.from_numpy(world_to_patient),
                        torch.from_numpy(np.tile(_axial(grid.voxel_to_world), (lanes, 1, 1)))).numpy()

        def contrast(kind: np.ndarray, jitter: np.ndarray) -> np.ndarray:
            tables = _CONTRASTS[(kind * len(_CONTRASTS)).astype(int)]
            return np.clip(tables + hard * 0.12 * (2 * jitter - 1), 0.02, 1)

        first = contrast(u[:, 8] * hard, u[:, 9:15])
        second = np.where((u[:, 22] < hard)[:, None], contrast(u[:, 15], u[:, 16:22]), first)
        shape = grid.shape
        images = resample(bank, patients, lifted, shape if n == 3 else (1, *shape), np.stack([first, second], axis=1))
        images = images.view(lanes, 2, *shape)

        def finish(image: Tensor, column: int) -> Tensor:
            slopes = hard * 0.22 * (2 * u[:, column:column + 2 * n].reshape(lanes, n, 2) - 1)
            sigma = 0.005 + hard * 0.035 * u[:, column + 6]
            noise = noise_at(u[:, column + 7], shape, device).mul_(per_lane(sigma, n, device))
            return noise.add_(image * bias_field(slopes, shape, device)).clamp_(0, 1)

        landmarks = np.stack([bank.points[p] * scale[i] + shift[i] for i, p in enumerate(patients)])[..., :n]
        to_world = torch.from_numpy(np.tile(grid.voxel_to_world, (lanes, 1, 1)))
        to_voxel = torch.from_numpy(np.tile(grid.world_to_voxel, (lanes, 1, 1)))
        return PairBatch(
            fixed=finish(images[:, :1], 24), moving=finish(images[:, 1:], 36),
            fixed_to_world=to_world.to(device), world_to_moving=to_voxel.to(device),
            truth=torch.eye(n + 1, dtype=torch.float64).repeat(lanes, 1, 1).to(device),
            known=torch.ones(lanes, dtype=torch.bool, device=device),
            center=torch.from_numpy(np.tile(grid.center, (lanes, 1))).to(device),
            landmarks=torch.from_numpy(landmarks.copy()).to(device))


def _axial(to_world: np.ndarray) -> np.ndarray:
    """Lifts the (3, 3) voxel-to-world map of a slice (H, W) to that of a volume (1, H, W) in the plane z = 0."""
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((4, 4))
    lifted[:2, 1:3] = to_world[:2, :2]
    lifted[:2, 3] = to_world[:2, 2]
    lifted[2, 0] = lifted[3, 3] = 1
    return lifted
