"""Pairs of axial slices of real heads in two modalities: MR T1, MR T2, and a synthetic CT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from regenv.data.banks.heads import HeadBank, load_heads
from regenv.data.pairs import PairBatch
from regenv.data.phantoms.appearance import Appearance
from regenv.data.sources.common import check_split, pair_on_grid, plane, random_affine, random_rigid, repeated
from regenv.grid import Grid
from regenv.ops import landmarks
from regenv.ops.affine import matmul

LEVELS_MM = (-45.0, 55.0)   # heights of the slices above the brain's centre
SLAB_MM, GAP_MM = 10.0, 2.0
HELD_OUT_EVERY = 4
BANK_SPACING = 1.5
MR = Appearance(contrast=0.2, flat=0.0, skull=0.0, strip=0.0, bias=0.2, crop=0.0, noise=0.04)
CT = Appearance(contrast=1.0, flat=1.0, skull=1.0, strip=0.0, bias=0.1, crop=0.0, noise=0.04)


@dataclass(frozen=True)
class Slices:
    """Pairs of axial slices of one head in two modalities; the truth is the identity.

    The fixed image is an MR scan (T1, or T2 where the head has one). The moving image has another modality: the other
    MR contrast, or a CT synthesised from the head's own anatomy (air, soft tissue, a nearly uniform brain, a bright
    skull by distance from the brain, noise, bias field). Both show one plane, tilted a little, through one affine
    co-deformation (Liao et al. 2017, eq. 6).

    At difficulty d a share d of the pairs has two modalities, the others show one scan twice: from two modalities
    alone, agents learn nothing from scratch.

    Args:
        subjects: see :class:`~regenv.data.sources.heads.Heads`.
        split: "train" or "test": every fourth slab of 10 mm is kept for the test, with gaps of 2 mm between.
        affine: bound of the co-deformation's c_ij, times the difficulty. tilt: of the plane, largest, degrees.
        mm, degrees: place of the head in both images, uniform within these bounds.
        ct: share of the pairs whose moving image is CT where the head has a second MR contrast.
        mr, ct_look: of the two modalities, see Appearance.
    """

    subjects: tuple[str, ...] = ("mni2009c",)
    split: str = "train"
    affine: float = 0.1
    tilt: float = 6.0
    mm: float = 8.0
    degrees: float = 8.0
    ct: float = 0.7
    mr: Appearance = MR
    ct_look: Appearance = CT
    ndim: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        check_split("slices", self.split)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """Pairs whose images both fill ``grid``; see PairSource."""
        heads = load_heads(self.subjects, BANK_SPACING, str(device))
        drawn = [self._modalities(rng, heads, difficulty) for rng in rngs]
        entries, is_ct = (np.stack(each) for each in zip(*drawn, strict=True))
        slab = plane(grid)
        levels = torch.tensor([self._level(rng) for rng in rngs], dtype=torch.float64)
        tilted = random_rigid(rngs, 3, 0.0, self.tilt)
        turned = _in_plane(random_rigid(rngs, 2, self.mm, self.degrees))
        turned[:, 2, 3] = levels
        through = matmul(matmul(random_affine(rngs, 3, self.affine * difficulty), tilted), turned)
        voxels = matmul(matmul(torch.from_numpy(heads.grid.world_to_voxel), through),
                        torch.from_numpy(slab.voxel_to_world)).to(device)
        tissue = heads.sample(heads.volumes, entries[:, 0], voxels, slab.shape)
        fixed = self.mr.draw(rngs, 1.0, plain=False).render(tissue, heads.stripped[entries[:, 0]])
        moving = self._moving(heads, entries, is_ct, tissue, voxels, rngs)
        points = repeated(landmarks.lattice(grid, 10), len(rngs))
        return pair_on_grid(grid, fixed.squeeze(2), moving.squeeze(2), landmarks=points, known=True).to(device)

    def _modalities(self, rng: np.random.Generator, heads: HeadBank, difficulty: float) -> tuple[np.ndarray, bool]:
        """Entries in the bank of the fixed and the moving image, and whether the moving one is shown as CT."""
        own = rng.permutation(heads.subjects[rng.integers(len(heads.subjects))])
        two, as_ct = rng.random() < difficulty, rng.random() < self.ct or len(own) == 1
        return np.array([own[0], own[1] if two and not as_ct else own[0]]), two and as_ct

    def _level(self, rng: np.random.Generator) -> float:
        """Height of a slice of this split, mm."""
        slabs = np.arange(round((LEVELS_MM[1] - LEVELS_MM[0]) / SLAB_MM))
        held = slabs % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        slab = rng.choice(slabs[held if self.split == "test" else ~held])
        return float(LEVELS_MM[0] + SLAB_MM * slab + rng.uniform(GAP_MM / 2, SLAB_MM - GAP_MM / 2))

    def _moving(self, heads: HeadBank, entries: np.ndarray, is_ct: np.ndarray, tissue: Tensor, voxels: Tensor,
               rngs: Sequence[np.random.Generator]) -> Tensor:
        """Moving images (B, 1, 1, H, W) of the planes whose fixed images show ``tissue``.

        Both modalities' looks are drawn for every lane, so that its numbers depend on no other lane.
        """
        differs = entries[:, 0] != entries[:, 1]
        if differs.any():
            tissue = tissue.clone()
            tissue[differs] = heads.sample(heads.volumes, entries[differs, 1], voxels[differs], tuple(tissue.shape[2:]))
        image = torch.empty_like(tissue[:, :1])
        for look, where in ((self.mr, ~is_ct), (self.ct_look, is_ct)):
            looks = look.draw(rngs, 1.0, plain=False)
            if where.any():
                outline = heads.sample(heads.outlines, entries[where, 1], voxels[where], tuple(tissue.shape[2:]))[:, 0]
                image[where] = looks.select(where).render(tissue[where], heads.stripped[entries[where, 1]], outline)
        return image


def _in_plane(matrix: Tensor) -> Tensor:
    """2D maps (B, 3, 3) as 3D maps (B, 4, 4) that leave z unchanged."""
    space = torch.eye(4, dtype=matrix.dtype).repeat(len(matrix), 1, 1)
    space[:, :2, :2], space[:, :2, 3] = matrix[:, :2, :2], matrix[:, :2, 2]
    return space
