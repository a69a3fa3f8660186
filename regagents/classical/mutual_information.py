"""Registration by mutual information with SimpleITK: a tuned baseline, from one start or from many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.classical.common import LEAST_OVERLAP, Result, checked, downsampled, is_flat, shift, turn_generators
from regagents.common.threads import one_thread
from regenv.data.io.resampling import matrix_to_sitk, sitk_to_matrix
from regenv.grid import Grid

_MOTIONS: dict[str, dict[int, Any]] = {
    "rigid": {2: sitk.Euler2DTransform, 3: sitk.Euler3DTransform},
    "similarity": {2: sitk.Similarity2DTransform, 3: sitk.Similarity3DTransform},
    "affine": {2: lambda: sitk.AffineTransform(2), 3: lambda: sitk.AffineTransform(3)},
}
_METRICS = {
    "mi": lambda method, bins: method.SetMetricAsMattesMutualInformation(bins),
    "ncc": lambda method, bins: method.SetMetricAsCorrelation(),
    "mse": lambda method, bins: method.SetMetricAsMeanSquares(),
}
_OFF_OVERLAP = "outside moving image buffer"  # in ITK's error, raised at the start or on the way
_NO_VALUE = 1e30        # ITK's metrics that do not raise report the largest double off overlap
_FEWEST_VOXELS = 8      # along the shortest axis, below which no pyramid level shrinks
_FEWEST_SAMPLES = 4096  # of a pyramid level: fewer leave a joint histogram too noisy to follow


@dataclass(frozen=True)
class MattesMI:
    """Regular-step gradient descent on Mattes mutual information (Mattes et al. 2003), by SimpleITK.

    The settings were tuned on whole heads of about 64 voxels an axis, displaced by up to 30 mm and 30 degrees on
    every axis, with the contrast of one image changed. With the usual 50 bins and smoothing in millimetres most of
    these pairs fail: the coarsest level has too few samples, and its steps are halved until they vanish.

    Args:
        levels: shrink factors, coarse to fine; a level that would leave an axis under 8 voxels shrinks less.
        smoothing: Gaussian sigma of each level, voxels of the fixed image.
        step: first step of each level, mm (scales are from the physical shift).
        minimum_step: step at which a level ends, mm.
        iterations: of each level, at most.
        relaxation: factor of the step whenever the gradient turns back.
        bins: of the joint histogram.
        sampling: random fraction of voxels of each level, raised where a level would have fewer than 4096 samples.
        seed: of the samples, at least 1 (SimpleITK takes 0 to mean the time of day, so it is raised by one here).
        metric: "mi", "ncc" or "mse" (the last two for images of one contrast).
        motion: "rigid", "similarity" or "affine".
        voxels: an image with more of them is first averaged down, by whole factors, to about this many.

    Raises:
        ValueError: a field is out of its range.
    """

    levels: tuple[int, ...] = (4, 2, 1)
    smoothing: tuple[float, ...] = (2.0, 1.0, 0.0)
    step: float = 4.0
    minimum_step: float = 1e-3
    iterations: int = 200
    relaxation: float = 0.8
    bins: int = 20
    sampling: float = 0.2
    seed: int = 0
    metric: str = "mi"
    motion: str = "rigid"
    voxels: int = 300_000

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.smoothing):
            raise ValueError(f"MattesMI: smoothing is {self.smoothing}; levels {self.levels} need as many numbers.")
        if self.metric not in _METRICS:
            raise ValueError(f"MattesMI: metric is {self.metric!r}; take one of {', '.join(_METRICS)}.")
        if self.motion not in _MOTIONS:
            raise ValueError(f"MattesMI: motion is {self.motion!r}; take one of {', '.join(_MOTIONS)}.")
        if not 0 < self.sampling <= 1:
            raise ValueError(f"MattesMI: sampling is {self.sampling}; it is a fraction of the voxels, in (0, 1].")

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64]) -> Result:
        """Register from a pose; see :class:`~regagents.classical.common.PoseMethod`.

        Returns: the pose found; the initial pose with metric ``inf`` where the images do not overlap or one is flat.
        Raises: ValueError: the images or the initial pose do not fit together.
        """
        began = perf_counter()
        initial = checked("MattesMI", fixed, moving, initial)
        fixed, moving = downsampled(fixed, self.voxels), downsampled(moving, self.voxels)
        if is_flat(fixed, moving):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        motion = _MOTIONS[self.motion][fixed.GetDimension()]()
        motion.SetCenter(np.asarray(center, dtype=np.float64).tolist())
        counted = itertools.count()
        with one_thread():
            method = self._method(fixed)
            method.SetMovingInitialTransform(matrix_to_sitk(initial))
            method.SetInitialTransform(motion, True)
            # No Python code runs in the command, so that no signal's exception is lost in SimpleITK.
            method.AddCommand(sitk.sitkIterationEvent, counted.__next__)
            try:
                method.Execute(fixed, moving)
                metric = method.GetMetricValue()
            except RuntimeError as error:
                if _OFF_OVERLAP not in str(error):
                    raise
                metric = float("inf")
        iterations = next(counted)
        if not abs(metric) < _NO_VALUE:
            return Result(initial, float("inf"), perf_counter() - began, iterations)
        return Result(initial @ sitk_to_matrix(motion), metric, perf_counter() - began, iterations)

    def _method(self, fixed: sitk.Image) -> sitk.ImageRegistrationMethod:
        """SimpleITK's method with these settings, for one fixed image."""
        most = max(1, min(fixed.GetSize()) // _FEWEST_VOXELS)
        levels = [min(level, most) for level in self.levels]
        count = fixed.GetNumberOfPixels()
        fewest = [_FEWEST_SAMPLES * level ** fixed.GetDimension() / count for level in levels]
        method = sitk.ImageRegistrationMethod()
        _METRICS[self.metric](method, self.bins)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentagePerLevel([min(1.0, max(self.sampling, f)) for f in fewest], self.seed + 1)
        method.SetShrinkFactorsPerLevel(levels)
        method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
        method.SetSmoothingSigmasPerLevel(list(self.smoothing))
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self.step, minStep=self.minimum_step, numberOfIterations=self.iterations,
            relaxationFactor=self.relaxation, gradientMagnitudeTolerance=1e-9)  # scaled gradients are small numbers
        method.SetOptimizerScalesFromPhysicalShift()
        return method


def evaluate_metric(fixed: sitk.Image, moving: sitk.Image, through: NDArray[np.float64] | sitk.Transform, *,
                    bins: int = 32, voxels: int = 300_000) -> float:
    """Negated Mattes mutual information at a pose or through a transform from fixed to moving world points, over all
    voxels: deterministic, for choosing between candidates.

    Returns: lower is better; ``inf`` if an image is constant or less than 5 % of the fixed one overlaps the moving one.
    Raises: ValueError: the images or the pose do not fit together.
    """
    linear = np.eye(fixed.GetDimension() + 1) if isinstance(through, sitk.Transform) else through
    pose = checked("evaluate_metric", fixed, moving, linear)
    transform = through if isinstance(through, sitk.Transform) else matrix_to_sitk(pose)
    fixed, moving = downsampled(fixed, voxels), downsampled(moving, voxels)
    overlap = _overlap(Grid.from_sitk(fixed), Grid.from_sitk(moving), transform)
    if overlap < LEAST_OVERLAP or is_flat(fixed, moving):
        return float("inf")
    with one_thread():
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(bins)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMovingInitialTransform(transform)
        method.SetInitialTransform(sitk.AffineTransform(fixed.GetDimension()))
        return float(method.MetricEvaluate(fixed, moving))


def random_starts(initial: NDArray[np.float64], center: NDArray[np.float64], rng: np.random.Generator,
                  translation: float = 30.0, rotation: float = 30.0) -> Iterator[NDArray[np.float64]]:
    """The initial pose, then endless poses ``initial @ motion``, motions uniform within +-mm and +-degrees an axis.

    Args: initial: (D+1, D+1); center: (D,), fixed world point that the rotation ``R = Rx Ry Rz`` turns about, mm.
    """
    initial, center = np.asarray(initial, dtype=np.float64), np.asarray(center, dtype=np.float64)
    n = len(center)
    yield initial
    while True:
        motion = np.eye(n + 1)
        for turn in turn_generators(n):
            angle = np.radians(rng.uniform(-rotation, rotation))
            motion[:n, :n] = motion[:n, :n] @ (np.eye(n) + np.sin(angle) * turn + (1 - np.cos(angle)) * turn @ turn)
        motion[:n, n] = rng.uniform(-translation, translation, n)
        yield initial @ shift(center) @ motion @ shift(-center)


def multi_start(fixed: sitk.Image, moving: sitk.Image, initials: Iterable[NDArray[np.float64]],
                center: NDArray[np.float64], seconds: float, method: MattesMI | None = None) -> Result:
    """Register from one start after another while time is left, and keep the pose with the best dense metric.

    A fair baseline for an agent gets the agent's time. The first start is always used, so the result is never worse
    (by :func:`evaluate_metric`) than from that start alone; the last run may exceed the time.

    Args:
        initials: poses, used in order, such as those of :func:`random_starts`; at least one.
        seconds: wall time after which no further start is begun.
        method: settings, default :class:`MattesMI`; every start draws other samples (seed, seed + 1, ...).
    Returns: the best pose with its value of :func:`evaluate_metric` (for any ``method.metric``), and the total time
        and iterations.
    Raises: ValueError: there is no start.
    """
    began = perf_counter()
    method = method or MattesMI()
    fixed, moving = downsampled(fixed, method.voxels), downsampled(moving, method.voxels)
    best, iterations = None, 0
    for number, initial in enumerate(initials):
        if best is not None and perf_counter() - began >= seconds:
            break
        found = replace(method, seed=method.seed + number).register(fixed, moving, initial, center)
        iterations += found.iterations
        metric = (evaluate_metric(fixed, moving, found.pull_back, voxels=method.voxels)
                  if np.isfinite(found.metric) else float("inf"))
        if best is None or metric < best.metric:
            best = replace(found, metric=metric)
    if best is None:
        raise ValueError("multi_start: initials is empty; give at least one pose to start from.")
    return replace(best, seconds=perf_counter() - began, iterations=iterations)


def _overlap(fixed: Grid, moving: Grid, transform: sitk.Transform) -> float:
    """Share of a coarse lattice of the fixed grid that lies inside the moving one."""
    ticks = (np.linspace(0, n - 1, min(n, 16)) for n in fixed.shape)
    points_vox = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, fixed.ndim)
    points_mm = np.array([transform.TransformPoint(point) for point in fixed.to_world(points_vox).tolist()])
    landed = moving.to_voxel(points_mm)
    return float(((landed >= -0.5) & (landed <= np.asarray(moving.shape) - 0.5)).all(1).mean())
