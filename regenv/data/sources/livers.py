"""Pairs of synthetic abdomens for dense registration with large deformations, in place of LiTS and SLIVER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.data.phantoms.bank import PhantomBank, paint_bank
from regenv.data.phantoms.effects import noise_at, per_lane
from regenv.data.phantoms.liver_anatomy import paint_liver
from regenv.data.sources.common import (
    check_bending,
    check_grid,
    check_patients,
    check_split,
    pair_on_grid,
    random_affine,
    random_bending,
    random_rigid,
)
from regenv.grid import Grid
from regenv.ops.affine import matmul, transform_points
from regenv.ops.sampling import identity, sample

LIVER = 1
_EXTENT_MM = (352.0, 288.0, 320.0)      # painted, x, y, z
_SALT = 5
_LEAST_DIFFICULTY = 0.3                 # share of the contrast's variation that remains at difficulty 0


@lru_cache(maxsize=4)
def painted_livers(split: str, patients: int, spacing: float, device: str) -> PhantomBank:
    """Patients with the channels tissue, blood and liver, painted once."""
    if device != "cpu":
        return painted_livers(split, patients, spacing, "cpu").to(device)
    grid = Grid.centered([round(e / spacing) for e in _EXTENT_MM[::-1]], spacing)
    return paint_bank(paint_liver, _SALT, split, patients, grid)


@dataclass(frozen=True)
class Livers:
    """Pairs of two patients' abdomens in contrast-enhanced CT, after the 3D experiments of Luo et al. 2022.

    They show the liver with lobes, vessels, lesions and gall bladder, and its neighbours. The deformation between two
    livers is unknown. Each image has a pose, a smooth deformation and a contrast phase of its own. The middle of an
    average liver lies in the middle of the grid, whose spacing is kept: 64 voxels of 4 mm show all of it. Label 1 is
    the liver with its vessels.

    Args:
        split: "train" or "test"; no patient is in both.
        patients: number of patients in the split, painted once, about a second each.
        mm, degrees, stretch: place, orientation and linear deformation (bound of its coefficients) of each abdomen,
            times the difficulty.
        bending: largest coefficient of each abdomen's own cubic B-spline deformation, mm, times the difficulty.
        knots: approximate distance of its control points, mm.
        bank_spacing: resolution at which patients are painted, mm; finer than the grid's brings nothing.

    Raises ValueError: an argument is unknown or out of range.
    """

    split: str = "train"
    patients: int = 32
    mm: float = 10.0
    degrees: float = 6.0
    stretch: float = 0.06
    bending: float = 14.0
    knots: float = 64.0
    bank_spacing: float = 4.0
    ndim: int = field(default=3, init=False)

    def __post_init__(self) -> None:
        check_split("livers", self.split)
        check_patients("livers", self.patients, self.bank_spacing)
        if self.patients < 2:
            raise ValueError(f"livers: patients is {self.patients}; a pair needs at least 2.")
        for name, most in (("mm", 100.0), ("degrees", 45.0), ("stretch", 0.3)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"livers: {name} is {getattr(self, name)}; it must lie in [0, {most:g}].")
        check_bending("livers", self.knots, self.bending)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource."""
        check_grid("livers", 3, grid)
        device = torch.device(device)
        bank = painted_livers(self.split, self.patients, float(self.bank_spacing), str(device))
        patients = np.stack([rng.choice(self.patients, 2, replace=False) for rng in rngs])
        (fixed, fixed_labels), (moving, moving_labels) = (
            self._scan(bank, patients[:, side], rngs, grid, device, difficulty) for side in (0, 1))
        return pair_on_grid(grid, fixed, moving, fixed_labels, moving_labels)

    def _scan(self, bank: PhantomBank, patients: np.ndarray, rngs: Sequence[np.random.Generator], grid: Grid,
              device: torch.device, difficulty: float) -> tuple[Tensor, Tensor]:
        """One image of each lane's patient, and its labels."""
        placed = matmul(random_affine(rngs, 3, self.stretch * difficulty),
                        random_rigid(rngs, 3, self.mm * difficulty, self.degrees * difficulty))
        here = Grid.centered(grid.shape, grid.spacing, direction=grid.direction)
        to_world, to_bank = torch.from_numpy(here.voxel_to_world), torch.from_numpy(bank.grid.world_to_voxel)
        voxels = matmul(to_bank, matmul(placed, to_world))
        bending = random_bending(rngs, grid, self.knots, self.bending * difficulty)
        look = np.stack([rng.random(6) for rng in rngs])
        tissue, blood, liver = self._sampled(bank, patients, voxels, bending, device).split(1, dim=1)
        vary = _LEAST_DIFFICULTY + (1 - _LEAST_DIFFICULTY) * difficulty

        def number(column: int, low: float, high: float) -> Tensor:
            middle = (low + high) / 2
            return per_lane(middle + vary * (high - low) * (look[:, column] - 0.5), 3, device)

        image = tissue + number(0, 0.05, 0.30) * blood + number(1, -0.07, 0.05) * liver
        image = number(2, 0.9, 1.1) * image + number(3, -0.03, 0.03)
        image = image + number(4, 0.005, 0.03) * noise_at(look[:, 5], grid.shape, device)
        return image.clamp(0, 1), (liver >= 0.5).to(torch.int16) * LIVER

    def _sampled(self, bank: PhantomBank, patients: np.ndarray, voxels: Tensor, bending: Tensor, device: torch.device
                 ) -> Tensor:
        """Channels (B, 3, *shape), seen through displacements and then maps to the bank's voxels (B, 4, 4).

        Lanes are sampled one at a time: this reads the bank in place instead of copying a volume per lane.
        """
        shape = tuple(bending.shape[2:])
        out = torch.empty(len(patients), bank.volumes.shape[1], *shape, device=device)
        for lane, patient in enumerate(patients):
            points = (identity(shape, device) + bending[lane:lane + 1].to(device)).flatten(2).transpose(1, 2)
            moved = transform_points(voxels[lane:lane + 1].to(device, torch.float32), points).unflatten(1, shape)
            out[lane] = sample(bank.volumes[patient:patient + 1], moved, padding="border")[0]
        return out
