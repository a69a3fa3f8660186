"""Pairs of different subjects' brains for dense registration: axial slices in 2D, volumes in 3D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from regenv.data.banks.brains import LABELS, load_brains
from regenv.data.banks.downloads import SUBJECTS
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import (
    bent,
    check_bending,
    check_grid,
    check_ndim,
    check_split,
    pair_on_grid,
    random_bending,
)
from regenv.grid import Grid

SPLIT = {"train": ("mni152", "mni2009c", "csi1", "csi2"), "test": ("colin27", "csi3")}
LOWEST_MM, SLABS, SLAB_MM, GAP_MM = -30, 9, 10, 2      # slices lie in slabs above this height in MNI space
HELD_OUT_EVERY = 4
BENDING_MM = {2: 6.0, 3: 9.0}       # gives about 1.7 mm root mean square along each axis


@dataclass(frozen=True)
class Brains:
    """Pairs of two subjects' real brains, skull-stripped and affinely aligned in MNI space.

    The deformation that remains between them is unknown. In training, both images are seen through random smooth
    deformations of their own. In 2D both are the axial slice at one random height. The middle of the brain lies in the
    middle of the grid, whose spacing is kept: 128 x 128 voxels of 1.5 mm show a whole slice. Subjects are prepared
    once, about a minute each, and kept in the cache folder.

    Labels are 1 cerebrospinal fluid, 2 grey and 3 white matter. Those of the averages mni152 and mni2009c come from
    their tissue maps, those of the others from K-means of the intensities, which takes the inner nuclei for white
    matter. Or labels are AAL's regions, see :func:`regenv.data.banks.brains.regions`.

    Args:
        ndim: 2 or 3.
        split: "train" or "test": subjects and heights of slices are held out, every fourth slab of 10 mm with gaps of
            2 mm between (1 to 9 and 41 to 49 mm above MNI's origin are for test).
        subjects: of the split; by default all of them. Training: "mni152" (extra ``data``), which needs no download,
            "mni2009c" (``regenv data get mni2009c``), "csi1" and "csi2" (also ``bold5000``). Test: "colin27" (also
            ``colin27``) and "csi3". With one subject alone, both images show it.
        atlas: the subject of all fixed images, as in SPAC; of either split.
        bending: largest coefficient of the deformations' cubic B-splines, mm, times the difficulty; by default 6 in
            2D and 9 in 3D for training, 0 for test.
        knots: approximate distance of their control points, mm.
        labels: "tissue" or "aal".

    Raises:
        ValueError: an argument is unknown or out of range.
        DatasetError: on the first draw, a subject's data or the atlas is missing.
    """

    ndim: int
    split: str = "train"
    subjects: tuple[str, ...] = ()
    atlas: str | None = None
    bending: float | None = None
    knots: float = 24.0
    labels: str = "tissue"

    def __post_init__(self) -> None:
        check_ndim("brains", self.ndim)
        check_split("brains", self.split)
        for name in self.subjects:
            if name not in SPLIT[self.split]:
                raise ValueError(f"brains: subject is {name!r}; for split {self.split!r} it must be one of "
                                 f"{', '.join(SPLIT[self.split])}.")
        if self.atlas is not None and self.atlas not in SUBJECTS:
            raise ValueError(f"brains: atlas is {self.atlas!r}; it must be one of {', '.join(SUBJECTS)}.")
        if self.labels not in LABELS:
            raise ValueError(f"brains: labels is {self.labels!r}; it must be one of {', '.join(LABELS)}.")
        check_bending("brains", self.knots, self.amplitude)

    @property
    def amplitude(self) -> float:
        """Largest coefficient of the deformations at difficulty 1, mm."""
        if self.bending is not None:
            return self.bending
        return BENDING_MM[self.ndim] if self.split == "train" else 0.0

    @property
    def shown(self) -> tuple[str, ...]:
        """The subjects that pairs show, the atlas first where there is one."""
        moving = self.subjects or SPLIT[self.split]
        return moving if self.atlas is None else (self.atlas, *(name for name in moving if name != self.atlas))

    @property
    def levels(self) -> tuple[int, ...]:
        """Heights of the split's slices in MNI space, whole mm, ascending; () in 3D."""
        if self.ndim == 3:
            return ()
        slabs = [i for i in range(SLABS) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == (self.split == "test")]
        return tuple(LOWEST_MM + SLAB_MM * i + j for i in slabs for j in range(GAP_MM // 2, SLAB_MM - GAP_MM // 2 + 1))

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All pairs that may be drawn: indices into ``shown``, fixed and moving."""
        count = len(self.shown)
        if count == 1:
            return ((0, 0),)
        return tuple((i, j) for i in range(1 if self.atlas is not None else count) for j in range(count) if i != j)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See PairSource."""
        check_grid("brains", self.ndim, grid)
        brains, pairs = load_brains(self.shown, grid, self.levels, self.labels, str(device)), np.array(self.pairs())
        drawn = torch.from_numpy(pairs[[rng.integers(len(pairs)) for rng in rngs]]).to(device)
        layers = torch.tensor([rng.integers(brains.images.shape[1]) for rng in rngs]).to(device)
        amplitude, images = self.amplitude * difficulty, []
        for side in (0, 1):
            image, labels = (each[drawn[:, side], layers] for each in (brains.images, brains.labels))
            if amplitude > 0:
                image, labels = bent(image, labels, random_bending(rngs, grid, self.knots, amplitude).to(device))
            images.append((image, labels))
        (fixed, fixed_labels), (moving, moving_labels) = images
        return pair_on_grid(grid, fixed, moving, fixed_labels, moving_labels)
