"""From a subject's head to a brain in MNI space: alignment, skull-stripping, bias correction, tissue classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.banks import downloads
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from regenv.ops.kmeans import kmeans

FRAME = Grid.centered((163, 193, 153), 1.0, (0.0, 17.0, 5.0))      # of MNI space (LPS), around the brain

_PITCHES = (-20, 0, 20)         # degrees, from which the alignment starts: heads are tilted forwards or backwards
_BRIGHTEST = 99.5               # percentile of the brain's intensities that becomes white
_N4_SHRINK = 4
_DEMONS_MM = 2


def prepared_brain(name: str) -> dict[str, Tensor]:
    """A subject's brain, see :func:`regenv.data.banks.brains.subject`.

    The two averages are given in MNI space with tissue maps; a voxel's tissue is the one with the largest share. The
    others are aligned to the 2009c average by an affine registration (Mattes MI, one thread, fixed seed): first the
    heads, from several pitches, then the brains. Then the average's brain mask strips them, N4 (Tustison et al. 2010)
    removes the bias field, and K-means of the intensities, sorted, gives the tissues.

    Raises DatasetError: the data are not available.
    """
    still = sitk.AffineTransform(3)
    if name == "mni152":
        files = downloads.mni152()
        scan, pull_back, maps = _read_float(files["t1"]), still, [_read_float(files[key]) for key in ("gm", "wm")]
        mask = scan > 0
    else:
        template = downloads.get("mni2009c")
        scan, pull_back = _read_float(template["t1"]), still
        maps = [_read_float(template[key]) for key in ("csf", "gm", "wm")]
        mask = _read_float(template["brain_mask"]) > 0.5
    if name not in ("mni152", "mni2009c"):
        head = _read_float(downloads.t1_scan(name))
        scan, pull_back, maps = head, _aligned(scan, sitk.Cast(mask, sitk.sitkUInt8), head), []
    brain = sitk.GetArrayFromImage(on_frame(sitk.Cast(mask, sitk.sitkFloat32), still)) > 0.5
    image = on_frame(scan, pull_back)
    if not maps:
        image = _unbiased(image, brain)
    values = _normalized(sitk.GetArrayFromImage(image), brain)
    tissues = np.zeros(FRAME.shape, np.uint8)
    if maps:
        shares = [sitk.GetArrayFromImage(on_frame(each, still))[brain] for each in maps]
        tissues[brain] = np.argmax(_with_fluid(shares), axis=0) + 1
    else:
        tissues[brain] = kmeans(torch.from_numpy(values[brain])[None, None], 3)[0][0, 0].numpy()
    return {"image": torch.from_numpy(np.round(values * 255).astype(np.uint8)), "labels": torch.from_numpy(tissues),
            "pull_back": torch.from_numpy(_matrix(pull_back))}


def on_frame(image: sitk.Image, pull_back: sitk.Transform, interpolator: int = sitk.sitkLinear) -> sitk.Image:
    """An image resampled on FRAME, 0 outside."""
    return sitk.Resample(image, FRAME.size, pull_back, interpolator, FRAME.origin, FRAME.spacing, FRAME.direction, 0.0)


def carried(labels: sitk.Image, fixed: sitk.Image, moving: sitk.Image) -> sitk.Image:
    """Labels of the moving brain on the fixed one, by diffeomorphic demons (Vercauteren et al. 2009); all on FRAME."""
    coarse = [sitk.BinShrink(image, [_DEMONS_MM] * 3) for image in (fixed, moving)]
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(60)
    demons.SetStandardDeviations(1.5)
    demons.SetNumberOfThreads(1)
    field = demons.Execute(coarse[0], sitk.HistogramMatching(coarse[1], coarse[0], 256, 12))
    through = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    return on_frame(labels, through, sitk.sitkNearestNeighbor)


def _read_float(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path), sitk.sitkFloat32)


def _normalized(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Intensities in [0, 1], 0 outside the brain."""
    return np.where(brain, np.clip(values / np.percentile(values[brain], _BRIGHTEST), 0, 1), 0).astype(np.float32)


def _aligned(template: sitk.Image, mask: sitk.Image, head: sitk.Image) -> sitk.AffineTransform:
    """Affine pull-back from the template's world to the head's."""
    kind = sitk.CenteredTransformInitializerFilter.MOMENTS
    found = []
    for pitch in _PITCHES:
        start = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(template, head, sitk.Euler3DTransform(), kind))
        start.SetRotation(float(np.deg2rad(pitch)), 0.0, 0.0)
        found.append((_register(template, head, start, (4,), 0.3), start))
    rigid = min(found, key=lambda each: each[0])[1]
    transform = sitk.AffineTransform(3)
    transform.SetCenter(rigid.GetCenter())
    transform.SetMatrix(rigid.GetMatrix())
    transform.SetTranslation(rigid.GetTranslation())
    _register(template, head, transform, (4, 2), 0.1)
    _register(template, head, transform, (2, 1), 0.2, mask)
    return transform


def _register(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, shrink: tuple[int, ...], share: float,
              mask: sitk.Image | None = None) -> float:
    """Optimise ``transform`` in place for the largest Mattes MI; returns its negative."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(share, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(shrink)       # mm
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return method.GetMetricValue()


def _with_fluid(shares: list[np.ndarray]) -> list[np.ndarray]:
    """Shares of cerebrospinal fluid, grey and white matter; MNI152 has bytes, and no map of the first."""
    if len(shares) == 3:
        return shares
    grey, white = (share / 255 for share in shares)
    return [1 - grey - white, grey, white]


def _unbiased(image: sitk.Image, brain: np.ndarray) -> sitk.Image:
    mask = framed(brain.astype(np.uint8), FRAME)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetMaximumNumberOfIterations([50] * 4)
    filter_.SetConvergenceThreshold(1e-4)
    filter_.SetNumberOfThreads(1)
    filter_.Execute(sitk.Shrink(image, [_N4_SHRINK] * 3), sitk.Shrink(mask, [_N4_SHRINK] * 3))
    field = sitk.GetArrayFromImage(filter_.GetLogBiasFieldAsImage(image))
    return framed(sitk.GetArrayFromImage(image) / np.exp(field), FRAME)


def _matrix(transform: sitk.AffineTransform) -> np.ndarray:
    """Homogeneous matrix (4, 4) float64 of a pull-back, mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return matrix
