"""Real heads in 3D, reduced once to a coarser spacing, all on one grid about the brain's centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.banks import cache, downloads
from regenv.data.phantoms.appearance import AWAY_MM, TISSUE
from regenv.grid import Grid
from regenv.ops.warp import warp_affine

BANK_MM = 240.0
CLOSING_MM = 9.0
VERSION = 1  # of the files kept; raise it when what they hold changes


@dataclass(frozen=True)
class HeadBank:
    """Volumes of heads.

    Attributes:
        grid: of all volumes, centred on the brain.
        volumes: (E, 2, *shape): intensity in [0, 1]; AWAY_MM minus the distance (mm) to the brain's surface, >= 0.
        outlines: (E, 1, *shape): 1 inside the skin, cavities filled, 0 outside.
        stripped: (E,) bool, whether a volume shows the brain only.
        subjects: indices of each subject's volumes, one per modality.
    """

    grid: Grid
    volumes: Tensor
    outlines: Tensor
    stripped: Tensor
    subjects: tuple[tuple[int, ...], ...]

    def sample(self, channels: Tensor, entries: np.ndarray, voxels: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``volumes`` or ``outlines`` (``channels``) of each lane's entry (B,), on grids of their own: (B, C, *shape).

        Args: voxels: (B, 4, 4), from voxel points of these grids to voxel points of the bank's.
        """
        out = torch.empty(len(entries), channels.shape[1], *shape, device=voxels.device)
        for entry in np.unique(entries):
            where = torch.from_numpy(np.flatnonzero(entries == entry)).to(voxels.device)
            out[where] = warp_affine(channels[entry].expand(len(where), -1, -1, -1, -1), voxels[where], shape)
        return out


@lru_cache(maxsize=8)
def load_heads(subjects: tuple[str, ...], spacing: float, device: str = "cpu") -> HeadBank:
    """The heads of ``subjects`` at ``spacing`` mm.

    Raises:
        ValueError: an unknown subject.
        DatasetError: a subject's data are missing.
    """
    grid = Grid.centered((round(BANK_MM / spacing),) * 3, spacing)
    parts = [_subject(name, grid) for name in subjects]
    ends = np.cumsum([len(part["volumes"]) for part in parts]).tolist()
    entries = tuple(tuple(range(end - len(part["volumes"]), end)) for part, end in zip(parts, ends, strict=True))
    stripped = torch.tensor([name == "mni152" for name, each in zip(subjects, entries, strict=True) for _ in each])
    return HeadBank(grid, torch.cat([part["volumes"] for part in parts]).to(device),
                    torch.cat([part["outlines"] for part in parts]).to(device), stripped, entries)


def _subject(name: str, grid: Grid) -> dict[str, Tensor]:
    """One subject's volumes and outlines, see HeadBank; made once and kept in the cache folder."""
    return cache.kept(downloads.cache_dir() / "heads" / f"{name}-{grid.spacing[0]:.4g}mm-v{VERSION}.safetensors",
                      lambda: _prepared(name, grid))


def _prepared(name: str, grid: Grid) -> dict[str, Tensor]:
    modalities, brain = scans(name)
    volumes = torch.stack([_reduced(scan, brain, grid) for scan in modalities])
    return {"volumes": volumes, "outlines": torch.stack([_outline(volume[0], grid) for volume in volumes])}


def scans(name: str) -> tuple[list[sitk.Image], sitk.Image]:
    """Scans of a subject (one per modality, aligned) and the brain's mask."""
    if name not in downloads.SUBJECTS:
        raise ValueError(f"heads: subject is {name!r}; it must be one of {', '.join(downloads.SUBJECTS)}.")
    scan = sitk.ReadImage(str(downloads.t1_scan(name)), sitk.sitkFloat32)
    if name == "mni152":
        return [scan], scan > 0
    template = {key: sitk.ReadImage(str(path), sitk.sitkFloat32) for key, path in downloads.get("mni2009c").items()
                if key in ("t1", "t2", "brain_mask")}
    mask = template["brain_mask"] > 0.5
    if name == "mni2009c":
        return [scan, template["t2"]], mask
    return [scan], _brain_by_template(scan, template["t1"], mask)


def _outline(values: Tensor, grid: Grid) -> Tensor:
    """The region that the skin encloses, (1, *shape) of 0 and 1."""
    head = sitk.GetImageFromArray((values > TISSUE).to(torch.uint8).numpy())
    reach = [max(1, round(CLOSING_MM / s)) for s in grid.spacing]
    head = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(head, reach, sitk.sitkBall))
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(head), sortByObjectSize=True) == 1
    return torch.from_numpy(sitk.GetArrayFromImage(largest).astype(np.float32))[None]


def _brain_by_template(head: sitk.Image, template: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """The template's brain mask on a head, by an affine registration (Mattes MI, single thread, fixed seed)."""
    start = sitk.CenteredTransformInitializer(head, template, sitk.AffineTransform(3),
                                              sitk.CenteredTransformInitializerFilter.MOMENTS)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.02, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([3, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(head, template)
    return sitk.Resample(mask, head, start, sitk.sitkNearestNeighbor)


def _reduced(scan: sitk.Image, brain: sitk.Image, grid: Grid) -> Tensor:
    """The scan on the grid, antialiased, in [0, 1], and AWAY_MM minus the distance to the brain: (2, *shape)."""
    moments = sitk.LabelShapeStatisticsImageFilter()
    moments.Execute(sitk.Cast(brain, sitk.sitkUInt8))
    here = Grid.centered(grid.shape, grid.spacing, moments.GetCentroid(1))
    frame = sitk.Image(*grid.size, sitk.sitkFloat32)
    frame.SetSpacing(here.spacing)
    frame.SetOrigin(here.origin)
    smooth = sitk.SmoothingRecursiveGaussian(scan, 0.4 * grid.spacing[0])
    values = sitk.GetArrayFromImage(sitk.Resample(smooth, frame, sitk.Transform(), sitk.sitkLinear, 0.0))
    values = np.clip(values / np.percentile(values[values > 0.05 * values.max()], 99.5), 0, 1)
    distance = sitk.SignedMaurerDistanceMap(brain, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    near = sitk.Clamp(AWAY_MM - distance, sitk.sitkFloat32, 0.0, 2 * AWAY_MM)
    near = sitk.GetArrayFromImage(sitk.Resample(near, frame, sitk.Transform(), sitk.sitkLinear, 0.0))
    return torch.from_numpy(np.stack([values, near]).astype(np.float32))
