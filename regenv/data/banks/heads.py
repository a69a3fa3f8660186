"""Heads, loaded once and reduced to a working resolution, all on one grid about the brain's centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regenv.atomic import atomic
from regenv.data.banks import downloads as datasets
from regenv.data.phantoms.appearance import AWAY_MM, TISSUE
from regenv.grid import Grid
from regenv.ops.warp import warp_affine

BANK_MM = 240.0
CLOSING_MM = 9.0
VERSION = 1  # of the files kept; raise it when what they hold changes
PEOPLE = ("mni152", "mni2009c", "colin27", "csi1", "csi2", "csi3")


@dataclass(frozen=True)
class Bank:
    """Volumes of heads.

    Attributes:
        grid: grid of all volumes, centred on the brain.
        volumes: (E, 2, *shape): intensity in [0, 1]; AWAY_MM minus the distance (mm) to the brain's surface, >= 0.
        outlines: (E, 1, *shape): 1 inside the skin, cavities filled, 0 outside.
        stripped: (E,) bool, whether a volume shows the brain only.
        people: entries of each person, one per modality.
    """

    grid: Grid
    volumes: Tensor
    outlines: Tensor
    stripped: Tensor
    people: tuple[tuple[int, ...], ...]

    def sample(self, channels: Tensor, entries: np.ndarray, voxels: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``volumes`` or ``outlines`` of each lane's entry (B,) on grids that ``voxels`` (B, 4, 4) map to the bank's:
        (B, C, *shape)."""
        out = torch.empty(len(entries), channels.shape[1], *shape, device=voxels.device)
        for entry in np.unique(entries):
            where = torch.from_numpy(np.flatnonzero(entries == entry)).to(voxels.device)
            out[where] = warp_affine(channels[entry].expand(len(where), -1, -1, -1, -1), voxels[where], shape)
        return out


@lru_cache(maxsize=8)
def bank(subjects: tuple[str, ...], spacing: float, device: str = "cpu") -> Bank:
    """The heads of ``subjects`` at ``spacing`` mm. Raises ValueError for an unknown name; asks for missing data."""
    grid = Grid.centered((round(BANK_MM / spacing),) * 3, spacing)
    parts = [_person(name, grid) for name in subjects]
    ends = np.cumsum([len(part["volumes"]) for part in parts]).tolist()
    people = tuple(tuple(range(end - len(part["volumes"]), end)) for part, end in zip(parts, ends, strict=True))
    stripped = torch.tensor([name == "mni152" for name, each in zip(subjects, people, strict=True) for _ in each])
    return Bank(grid, torch.cat([part["volumes"] for part in parts]).to(device),
                torch.cat([part["outlines"] for part in parts]).to(device), stripped, people)


def _person(name: str, grid: Grid) -> dict[str, Tensor]:
    """One person's volumes and outlines, see Bank; made once and kept in the cache folder."""
    kept = datasets.cache_dir() / "heads" / f"{name}-{grid.spacing[0]:.4g}mm-v{VERSION}.safetensors"
    if kept.is_file():
        return load_file(kept)
    scans, brain = _load(name)
    volumes = torch.stack([_reduced(scan, brain, grid) for scan in scans])
    made = {"volumes": volumes, "outlines": torch.stack([_outline(volume[0], grid) for volume in volumes])}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic(kept) as temporary:
        save_file(made, temporary)
    return made


def _load(name: str) -> tuple[list[sitk.Image], sitk.Image]:
    """Scans of a person (one per modality, aligned) and the brain's mask."""
    if name not in PEOPLE:
        raise ValueError(f"heads: subject is {name!r}; it must be one of {', '.join(PEOPLE)}.")
    if name == "mni152":
        head = sitk.ReadImage(str(datasets.mni152()["t1"]), sitk.sitkFloat32)
        return [head], head > 0
    template = datasets.get("mni2009c")
    mask = sitk.ReadImage(str(_member(template, "brain_mask")), sitk.sitkFloat32) > 0.5
    t1 = sitk.ReadImage(str(_member(template, "T1w")), sitk.sitkFloat32)
    if name == "mni2009c":
        return [t1, sitk.ReadImage(str(_member(template, "T2w")), sitk.sitkFloat32)], mask
    archive, part = ("colin27", "ch2") if name == "colin27" else ("bold5000", name.upper())
    head = sitk.ReadImage(str(_member(datasets.get(archive), part)), sitk.sitkFloat32)
    return [head], _brain_by_template(head, t1, mask)


def _outline(values: Tensor, grid: Grid) -> Tensor:
    """(1, *shape): what the skin encloses."""
    head = sitk.GetImageFromArray((values > TISSUE).to(torch.uint8).numpy())
    reach = [max(1, round(CLOSING_MM / s)) for s in grid.spacing]
    head = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(head, reach, sitk.sitkBall))
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(head), sortByObjectSize=True) == 1
    return torch.from_numpy(sitk.GetArrayFromImage(largest).astype(np.float32))[None]


def _member(files: dict[str, Path], part: str) -> Path:
    return next(path for path in files.values() if part in path.name)


def _brain_by_template(head: sitk.Image, template: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """The template's brain mask, carried over by an affine registration (Mattes MI, single thread, fixed seed)."""
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
    """(2, *shape): the scan, antialiased, in [0, 1]; and how near the brain is."""
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
