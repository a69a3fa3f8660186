"""Heads, loaded once and reduced to a working resolution, all on one grid about the brain's centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data import datasets
from regenv.data.appearance import AWAY_MM
from regenv.grid import Grid

BANK_MM = 240.0
PEOPLE = ("mni152", "mni2009c", "colin27", "csi1", "csi2", "csi3")


@dataclass(frozen=True)
class Bank:
    """Volumes of heads.

    Attributes:
        grid: grid of all volumes, centred on the brain.
        volumes: (E, 2, *shape): intensity in [0, 1]; AWAY_MM minus the distance (mm) to the brain's surface, >= 0.
        stripped: (E,) bool, whether a volume shows the brain only.
        people: entries of each person, one per modality.
    """

    grid: Grid
    volumes: Tensor
    stripped: Tensor
    people: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=8)
def bank(subjects: tuple[str, ...], spacing: float, device: str = "cpu") -> Bank:
    """The heads of ``subjects`` at ``spacing`` mm. Raises ValueError for an unknown name; asks for missing data."""
    volumes: list[Tensor] = []
    stripped: list[bool] = []
    people: list[tuple[int, ...]] = []
    grid = Grid.centered((round(BANK_MM / spacing),) * 3, spacing)
    for name in subjects:
        scans, brain = _load(name)
        entries = []
        for scan in scans:
            entries.append(len(volumes))
            volumes.append(_reduced(scan, brain, grid))
            stripped.append(name == "mni152")
        people.append(tuple(entries))
    return Bank(grid, torch.stack(volumes).to(device), torch.tensor(stripped), tuple(people))


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
