"""Real pairs for dense registration, and what is measured of a displacement on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from regagents.registration.deformation import Deformation, tensors
from regagents.registration.register import register
from regenv.data.banks import brains, downloads
from regenv.data.banks.brain_preparation import on_frame
from regenv.data.io.images import read_image, read_mask
from regenv.grid import Grid
from regenv.ops.features import pooled
from regenv.ops.overlap import mean_dice
from regenv.ops.warp import warp_through

TISSUES = (1, 2, 3)
WIDE = 8                # of the slices, every how many millimetres
BRIGHTEST = 99.5        # percentile of the brain's intensities that becomes white
LUNG_MM = 2.5           # of the grid on which lungs are deformed


@dataclass(frozen=True)
class Pair:
    """Two images (1, 1, *shape) in [0, 1] on one grid of isotropic voxels.

    Attributes: spacing: mm. labels: of both, (1, 1, *shape). masks: of both, (1, 1, *shape), where the images count.
    points: (N, D) fixed world and where they belong in the moving world, mm, behind ``pose`` (D+1, D+1).
    """

    name: str
    fixed: Tensor
    moving: Tensor
    spacing: float = 1.0
    labels: tuple[Tensor, Tensor] | None = None
    masks: tuple[Tensor, Tensor] | None = None
    points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    pose: NDArray[np.float64] | None = None
    grid: Grid | None = None

    def averaged(self, stride: int) -> Pair:
        """The pair's images over blocks of voxels; what it is measured by stays as fine as it is."""
        return Pair(self.name, pooled(self.fixed, stride), pooled(self.moving, stride), self.spacing * stride)

    def score(self, field: Tensor) -> float:
        """Mean Dice of the tissues, or the mean distance of the points from where they belong, mm."""
        ndim = field.shape[1]
        if self.labels is not None:
            warped = warp_through(self.labels[1], torch.eye(ndim + 1)[None].double(), field, tuple(field.shape[2:]),
                                  mode="nearest")
            return float(mean_dice(self.labels[0], warped, TISSUES))
        assert self.points is not None and self.pose is not None and self.grid is not None
        through = Deformation(field[0].double().numpy(), self.grid).through(self.pose)
        moved = np.array([through.TransformPoint(point) for point in self.points[0].tolist()])
        return float(np.linalg.norm(moved - self.points[1], axis=1).mean())


def of_people(fixed: str, moving: str) -> Pair:
    """Two people's T1 brains at 1 mm, with their tissues; "NAME-T2" is the T2 image of an average."""
    (a, here), (b, there) = (_brain(name) for name in (fixed, moving))
    return Pair(f"{fixed} < {moving}", a, b, labels=(here, there))


def _brain(name: str) -> tuple[Tensor, Tensor]:
    """Image and tissues."""
    kept = brains.subject(name.removesuffix("-T2"))
    labels = kept["labels"].short()[None, None]
    if not name.endswith("-T2"):
        return kept["image"].float()[None, None] / 255, labels
    t2 = sitk.ReadImage(str(downloads.get(name.removesuffix("-T2"))["t2"]), sitk.sitkFloat32)
    values = sitk.GetArrayFromImage(on_frame(t2, sitk.AffineTransform(3)))
    values = np.where(labels[0, 0].numpy() > 0, values, 0)
    white = np.percentile(values[values > 0], BRIGHTEST)
    return torch.from_numpy(np.clip(values / white, 0, 1).astype(np.float32))[None, None], labels


def slices(pair: Pair, most: int) -> list[Pair]:
    """Axial slices of two people that both show much brain."""
    assert pair.labels is not None
    good = [z for z in range(0, pair.fixed.shape[2], WIDE)
            if all(float((labels[0, 0, z] > 0).float().mean()) > 0.2 for labels in pair.labels)]
    return [Pair(f"{pair.name}, z {z}", pair.fixed[:, :, z].contiguous(), pair.moving[:, :, z].contiguous(),
                 labels=(pair.labels[0][:, :, z].contiguous(), pair.labels[1][:, :, z].contiguous()))
            for z in good[:most]]


def lungs(folder: Path) -> list[Pair]:
    """A real pair of inhale and exhale, and back, from a folder with 3DCT_lung_{baseline,followup}.mha, _mask.mha and
    .txt (ten corresponding voxels); after a rigid registration of the masked lungs."""
    names = ("baseline", "followup")
    images = [read_image(folder / f"3DCT_lung_{name}.mha") for name in names]
    masks = [read_mask(folder / f"3DCT_lung_{name}_mask.mha") for name in names]
    points = [image.grid.to_world(np.loadtxt(folder / f"3DCT_lung_{name}.txt", skiprows=2)[:, ::-1])
              for name, image in zip(names, images, strict=True)]
    found = []
    for a, b in ((0, 1), (1, 0)):
        pose = register(images[a], images[b], "none", masks=(masks[a], masks[b])).pull_back
        grid = images[a].grid.resized(spacing=LUNG_MM)
        given = tensors(images[a], images[b], pose, (masks[a], masks[b]), grid)
        found.append(Pair(f"{names[a]} < {names[b]}", given["fixed"], given["moving"], LUNG_MM,
                          masks=(given["fixed_mask"], given["moving_mask"]), points=(points[a], points[b]), pose=pose,
                          grid=grid))
    return found


def people_of(pairs: Sequence[Pair]) -> str:
    """Their names, in a sentence."""
    return ", ".join(sorted({name for pair in pairs for name in pair.name.partition(", z")[0].split(" < ")}))
