"""Pairs of real heads in 3D, with varied contrast, skull, field of view and orientation.

A pair shows one head twice. Each image has its own contrast (a random smooth intensity map that may invert, or another
modality where the head has one), its own skull, bias field, field of view and noise; both share an affine
co-deformation (Liao et al. 2017, eq. 6). The moving image differs by a small affine map of its own, as another subject
would. Volumes are reduced once to nearly the grid's spacing: sampling 1 mm volumes makes drawing ten times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from regenv.data.banks.heads import BANK_MM, load_heads
from regenv.data.pairs import PairBatch
from regenv.data.phantoms.appearance import Appearance
from regenv.data.sources.common import random_affine, random_rigid, repeated
from regenv.grid import Grid
from regenv.ops.affine import invert_affine, matmul, transform_points

LANDMARK_MM = 60.0


@dataclass(frozen=True)
class Heads:
    """Pairs of real heads.

    Args:
        subjects: "mni152" (extra ``data``), "mni2009c", "colin27", "csi1", "csi2", "csi3"
            (``regenv data get mni2009c``, ``colin27``, ``bold5000``).
        affine: bound of the co-deformation's c_ij (eq. 6), times the difficulty.
        person: bound of the moving image's own affine map, times the difficulty.
        mm, degrees: place and orientation of each head in its image, uniform within these bounds.
        appearance: of the images, see Appearance.
    """

    subjects: tuple[str, ...] = ("mni152",)
    affine: float = 0.15
    person: float = 0.05
    mm: float = 20.0
    degrees: float = 15.0
    appearance: Appearance = field(default_factory=Appearance)
    ndim: int = field(default=3, init=False)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """Pairs whose fixed images fill ``grid``; see PairSource."""
        lanes, n, spacing = len(rngs), 3, min(grid.spacing)
        heads = load_heads(self.subjects, max(2.0, 0.6 * spacing), str(device))
        moving_grid = Grid.centered((round(BANK_MM / spacing),) * n, spacing)
        entries = np.stack([rng.choice(heads.subjects[rng.integers(len(heads.subjects))], 2) for rng in rngs])
        shared = random_affine(rngs, n, self.affine * difficulty)
        own = random_affine(rngs, n, self.person * difficulty)
        placed = random_rigid(rngs, n, self.mm, self.degrees)
        other = random_rigid(rngs, n, self.mm, self.degrees)
        to_bank = torch.from_numpy(heads.grid.world_to_voxel)
        images = []
        for side, (through, on) in enumerate(((matmul(shared, placed), grid),
                                              (matmul(matmul(own, shared), other), moving_grid))):
            looks = self.appearance.draw(rngs, difficulty, plain=side == 0)
            voxels = matmul(matmul(to_bank, through), torch.from_numpy(on.voxel_to_world)).to(device)
            tissue = heads.sample(heads.volumes, entries[:, side], voxels, on.shape)
            images.append(looks.render(tissue, heads.stripped[entries[:, side]]))
        return PairBatch(
            fixed=images[0], moving=images[1],
            fixed_to_world=repeated(grid.voxel_to_world, lanes),
            world_to_moving=repeated(moving_grid.world_to_voxel, lanes),
            truth=matmul(invert_affine(other), placed),
            known=torch.ones(lanes, dtype=torch.bool),
            center=repeated(grid.center, lanes),
            landmarks=transform_points(invert_affine(placed), repeated(_landmarks(), lanes)),
        ).to(device)


def _landmarks() -> Tensor:
    """27 points on a lattice over the brain, (27, 3) mm about its centre."""
    ticks = torch.linspace(-1, 1, 3, dtype=torch.float64) * LANDMARK_MM
    return torch.cartesian_prod(ticks, ticks, ticks)
