"""Registration by mutual information: a tuned SimpleITK baseline, and the local refinement that follows an agent.

One code path for 2D and 3D. A pose is a ``pull_back``: a (D+1, D+1) float64 matrix from world points of the fixed
image to world points of the moving one (mm, ITK order, LPS). Optimisers search for a small motion *before* the given
pose, ``pull_back = initial @ motion``: the initial pose may be any invertible affine map and no Euler angle is near
its singularity. Mutual information is reported as ITK does, negated: lower is better, ``inf`` means no registration.

Determinism: SimpleITK runs on one thread, so on one machine the same call with the same seed returns the same bits.
Another CPU, another number of PyTorch threads (refinement only) or another version of SimpleITK or PyTorch may change
the last digits, from which a search can part ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from regenv.data.io import normalize
from regenv.grid import Grid
from regenv.ops.similarity import mi
from regenv.ops.warp import sample

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
_NO_VALUE = 1e30         # ITK's metrics that do not raise report the largest double off overlap
_SHORTEST_AXIS = 4       # voxels, for the recursive Gaussian
_FEWEST_VOXELS = 8       # along the shortest axis, below which no pyramid level shrinks
_FEWEST_SAMPLES = 4096   # of a pyramid level: fewer leave a joint histogram too noisy to follow
_LEAST_OVERLAP = 0.05    # of the samples, below which mutual information means nothing
_RIDGE = 0.01            # keeps the preconditioner regular where the image does not show a motion (a disc, a slab)
_LEAST_CONTRAST = 1e-12  # variance of the fixed samples, intensities in [0, 1]


@dataclass(frozen=True, eq=False)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1) float64, fixed world points to moving world points, mm.
        metric: value reached, lower is better; ``inf`` where the images do not overlap or one of them has a single
            value (``pull_back`` is then the start).
        seconds: wall time.
        iterations: optimiser iterations (evaluations of the metric, for :class:`Refinement`).
    """

    pull_back: np.ndarray
    metric: float
    seconds: float
    iterations: int


@dataclass(frozen=True)
class MattesMI:
    """Regular-step gradient descent on Mattes mutual information (Mattes et al. 2003), by SimpleITK.

    The settings were tuned on whole heads of about 64 voxels an axis, displaced by up to 30 mm and 30 degrees on
    every axis, with the contrast of one image changed. The usual 50 bins and smoothing in millimetres starve the
    coarsest level of samples and halve the steps to nothing: with them most of these pairs fail.

    Args:
        levels: shrink factors, coarse to fine; a level that would leave an axis under 8 voxels shrinks less.
        smoothing: Gaussian sigma of each level, voxels of the fixed image.
        step: first step of each level, mm (scales are from the physical shift).
        minimum_step: step at which a level ends, mm.
        iterations: at most, of each level.
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

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray, center: np.ndarray) -> Result:
        """Register from a pose.

        Args:
            fixed, moving: scalar images, 2D or 3D.
            initial: (D+1, D+1), the pull-back to start from.
            center: (D,), fixed world point that rotations turn about, mm.
        Returns: the pose found; the initial pose with metric ``inf`` where the images do not overlap or one is flat.
        Raises: ValueError: the images or the initial pose do not fit together.
        """
        began = perf_counter()
        initial = _checked("MattesMI", fixed, moving, initial)
        fixed, moving = working(fixed, self.voxels), working(moving, self.voxels)
        if _flat(fixed) or _flat(moving):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        motion = _MOTIONS[self.motion][fixed.GetDimension()]()
        motion.SetCenter(np.asarray(center, dtype=np.float64).tolist())
        iterations = 0

        def count() -> None:
            nonlocal iterations
            iterations += 1

        with _one_thread():
            method = self._method(fixed)
            method.SetMovingInitialTransform(matrix_to_sitk(initial))
            method.SetInitialTransform(motion, True)
            method.AddCommand(sitk.sitkIterationEvent, count)
            try:
                method.Execute(fixed, moving)
                metric = method.GetMetricValue()
            except RuntimeError as error:
                if _OFF_OVERLAP not in str(error):
                    raise
                metric = float("inf")
        if not abs(metric) < _NO_VALUE:
            return Result(initial, float("inf"), perf_counter() - began, iterations)
        return Result(initial @ sitk_to_matrix(motion), metric, perf_counter() - began, iterations)

    def _method(self, fixed: sitk.Image) -> sitk.ImageRegistrationMethod:
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


@dataclass(frozen=True)
class Refinement:
    """Local refinement to the nearest optimum of mutual information, with its exact gradient.

    A fixed, jittered lattice of points of the fixed image (the same wherever the search begins, off the voxels, so
    that interpolation has no favourite poses) makes the metric one smooth function of the pose. L-BFGS with a strong
    Wolfe line search then descends in coordinates in which the fixed image's edges resist every motion alike:
    ``H = sum_x (J^T grad I)(J^T grad I)^T``, the Gauss-Newton matrix of the mean squared error, whitened. So a few
    dozen evaluations reach the optimum itself, and starts some millimetres apart end in one pose.

    Args:
        smoothing: Gaussian sigma of each stage, mm at a working spacing of 3 mm (scaled with the working spacing).
        samples: points of each stage, at most.
        iterations: of L-BFGS in each stage.
        bins: of the joint histogram.
        seed: of the jitter.
        voxels: an image with more of them is first averaged down, by whole factors, to about this many.
    """

    smoothing: tuple[float, ...] = (4.0, 0.0)
    samples: tuple[int, ...] = (50_000, 100_000)
    iterations: int = 30
    bins: int = 48
    seed: int = 0
    voxels: int = 450_000

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray,
                 center: np.ndarray | None = None) -> Result:
        """Refine a pose that is some millimetres and degrees off, by a rigid motion.

        Args: as :meth:`MattesMI.register`; ``center`` has no influence (the motion turns about the middle of the
            fixed image's edges, which parts rotation from translation) and is there for the common contract.
        Returns: the refined pose, never worse in the metric of the last stage than the initial one; the initial one
            with metric ``inf`` where the images do not overlap or one of them is flat.
        Raises: ValueError: the images or the initial pose do not fit together.
        """
        began = perf_counter()
        initial = _checked("Refinement", fixed, moving, initial)
        fixed, moving = working(fixed, self.voxels), working(moving, self.voxels)
        if _flat(fixed) or _flat(moving):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        pose, evaluations, stage = initial, 0, None
        for smoothing, samples in zip(self.smoothing, self.samples, strict=True):
            sigma = smoothing / 3.0 * float(np.mean(fixed.GetSpacing()))
            stage = _Objective.build(_blurred(fixed, sigma), _blurred(moving, sigma), samples, self.bins, self.seed)
            if stage is None:
                return Result(initial, float("inf"), perf_counter() - began, evaluations)
            pose, count = stage.descend(pose, self.iterations)
            evaluations += count
        assert stage is not None
        candidates = [(stage.at(candidate), candidate) for candidate in (initial, pose)]
        metric, best = candidates[1] if candidates[1][0] <= candidates[0][0] else candidates[0]
        return Result(best, metric, perf_counter() - began, evaluations)


@dataclass(frozen=True, eq=False)
class _Objective:
    """Negated mutual information over fixed samples, as a function of a whitened motion u (d,).

    Attributes: values (N,) of the fixed image at points (N, D+1), homogeneous, about ``center``; moving (1, 1, *shape)
    with ``world_to_voxel`` (D+1, D+1); whitening (d, d); generators (d, D+1, D+1).
    """

    values: Tensor
    points: Tensor
    moving: Tensor
    world_to_voxel: Tensor
    center: np.ndarray
    whitening: Tensor
    generators: Tensor
    bins: int

    @classmethod
    def build(cls, fixed: sitk.Image, moving: sitk.Image, samples: int, bins: int, seed: int) -> _Objective | None:
        """The objective of one stage; None if the fixed image is flat."""
        grid, moving_grid = Grid.from_sitk(fixed), Grid.from_sitk(moving)
        n = grid.ndim
        array = normalize(sitk.GetArrayFromImage(fixed))
        points_vox = _jittered_lattice(grid.shape, samples, seed)
        values = _sampled(torch.from_numpy(array)[None, None], torch.from_numpy(points_vox))
        if float(values.var()) < _LEAST_CONTRAST:
            return None
        # edges: gradients of the fixed image, per mm, at the samples
        nearest = tuple(np.rint(points_vox).astype(np.int64).T)
        per_voxel = np.stack([g[nearest] for g in np.gradient(array)], -1).astype(np.float64)
        edges = per_voxel @ grid.world_to_voxel[:n, :n]
        points_mm = grid.to_world(points_vox)
        strength = (edges**2).sum(1)
        if strength.sum() == 0:
            return None
        center = strength @ points_mm / strength.sum()
        offsets = points_mm - center
        turns, shifts = _turns(n), np.eye(n)
        resisted = np.concatenate([np.stack([(offsets @ turn.T * edges).sum(1) for turn in turns], 1), edges], 1)
        normal = resisted.T @ resisted / strength.sum() * n
        radius = (offsets**2).sum(1).mean()
        normal += _RIDGE * np.diag([radius] * len(turns) + [1.0] * n)
        whitening = np.linalg.inv(np.linalg.cholesky(normal)).T * np.mean(grid.spacing)
        generators = np.zeros((len(turns) + n, n + 1, n + 1))
        generators[:len(turns), :n, :n] = turns
        generators[len(turns):, :n, n] = shifts
        homogeneous = np.concatenate([offsets, np.ones((len(offsets), 1))], 1)
        volume = torch.from_numpy(normalize(sitk.GetArrayFromImage(moving)))[None, None]
        return cls(values, torch.from_numpy(homogeneous), volume, torch.from_numpy(moving_grid.world_to_voxel), center,
                   torch.from_numpy(whitening), torch.from_numpy(generators), bins)

    def __call__(self, motion: Tensor, pose: Tensor) -> Tensor:
        """Negated mutual information of ``pose @ exp(motion)``; ``pose`` starts at ``center``. ``inf`` off overlap."""
        n = self.points.shape[1] - 1
        to_voxel = self.world_to_voxel @ pose @ self._exponential(motion)
        points_vox = (self.points @ to_voxel[:n].T).to(torch.float32)
        last = torch.tensor(self.moving.shape[2:], dtype=torch.float32) - 1
        inside = ((points_vox >= 0) & (points_vox <= last)).all(1)
        if inside.float().mean() < _LEAST_OVERLAP:
            return motion.sum() * 0 + float("inf")
        warped = _sampled(self.moving, points_vox[inside])
        return -mi(self.values[inside][None, None], warped[None, None], bins=self.bins)[0].double()

    def descend(self, initial: np.ndarray, iterations: int) -> tuple[np.ndarray, int]:
        """The best pose that L-BFGS meets from ``initial``, and the evaluations it took."""
        pose = torch.from_numpy(initial @ _shift(self.center))
        motion = torch.zeros(len(self.whitening), dtype=torch.float64, requires_grad=True)
        best, best_motion, count = float("inf"), motion.detach().clone(), 0
        optimizer = torch.optim.LBFGS([motion], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=1e-6,
                                      tolerance_change=1e-5, history_size=8, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            nonlocal best, best_motion, count
            optimizer.zero_grad()
            value = self(motion, pose)
            value.backward()
            count += 1
            if value.item() < best:
                best, best_motion = value.item(), motion.detach().clone()
            return value

        with torch.enable_grad():
            if np.isfinite(self.at(initial)):
                optimizer.step(closure)
        moved = pose @ self._exponential(best_motion)
        return moved.detach().numpy() @ _shift(-self.center), count

    def at(self, pose: np.ndarray) -> float:
        """Negated mutual information at a pose."""
        with torch.no_grad():
            return float(self(torch.zeros(len(self.whitening), dtype=torch.float64),
                              torch.from_numpy(pose @ _shift(self.center))))

    def _exponential(self, motion: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(torch.einsum("k,kij->ij", self.whitening @ motion, self.generators))


def refine(fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray, center: np.ndarray | None = None) -> Result:
    """Local refinement of an agent's pose with the standard settings of :class:`Refinement`."""
    return Refinement().register(fixed, moving, initial, center)


def evaluate_metric(fixed: sitk.Image, moving: sitk.Image, pull_back: np.ndarray, *, bins: int = 32,
                    voxels: int = 300_000) -> float:
    """Negated Mattes mutual information at a pose, over all voxels: deterministic, for choosing between candidates.

    Returns: lower is better; ``inf`` where an image is flat or under a twentieth of the fixed one meets the moving one.
    Raises: ValueError: the images or the pose do not fit together.
    """
    pull_back = _checked("evaluate_metric", fixed, moving, pull_back)
    fixed, moving = working(fixed, voxels), working(moving, voxels)
    overlap = _overlap(Grid.from_sitk(fixed), Grid.from_sitk(moving), pull_back)
    if overlap < _LEAST_OVERLAP or _flat(fixed) or _flat(moving):
        return float("inf")
    with _one_thread():
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(bins)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(matrix_to_sitk(pull_back))
        return float(method.MetricEvaluate(fixed, moving))


def random_starts(initial: np.ndarray, center: np.ndarray, rng: np.random.Generator, translation: float = 30.0,
                  rotation: float = 30.0) -> Iterator[np.ndarray]:
    """The initial pose, then without end ``initial @ motion``, each axis uniform within +-mm and +-degrees.

    Args: initial (D+1, D+1); center (D,), that the rotation ``R = Rx Ry Rz`` turns about, fixed world, mm.
    """
    initial, center = np.asarray(initial, dtype=np.float64), np.asarray(center, dtype=np.float64)
    n = len(center)
    yield initial
    while True:
        motion = np.eye(n + 1)
        for turn in _turns(n):
            angle = np.radians(rng.uniform(-rotation, rotation))
            motion[:n, :n] = motion[:n, :n] @ (np.eye(n) + np.sin(angle) * turn + (1 - np.cos(angle)) * turn @ turn)
        motion[:n, n] = rng.uniform(-translation, translation, n)
        yield initial @ _shift(center) @ motion @ _shift(-center)


def multi_start(fixed: sitk.Image, moving: sitk.Image, initials: Iterable[np.ndarray], center: np.ndarray,
                seconds: float, method: MattesMI | None = None) -> Result:
    """Register from one start after another while time is left, and keep the pose with the best dense metric.

    The honest baseline against an agent: give it the agent's time. The first start is always used, so the result is
    never worse (by :func:`evaluate_metric`) than from that start alone; the time may be exceeded by the last run.

    Args:
        initials: poses, used in order, such as :func:`random_starts`; at least one.
        seconds: wall time after which no further start is begun.
        method: settings, default :class:`MattesMI`; every start draws other samples (seed, seed + 1, ...).
    Returns: the best pose with its value of :func:`evaluate_metric` (for any ``method.metric``), and the total time
        and iterations.
    Raises: ValueError: there is no start.
    """
    began = perf_counter()
    method = method or MattesMI()
    fixed, moving = working(fixed, method.voxels), working(moving, method.voxels)
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


def to_sitk(array: np.ndarray | Tensor, grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array (*shape) on a grid, float32.

    Raises: ValueError: the array has another shape than the grid.
    """
    values = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array, dtype=np.float32)
    if values.shape != tuple(grid.shape):
        raise ValueError(f"to_sitk: the array's shape is {values.shape}; its grid has {tuple(grid.shape)} voxels.")
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def matrix_to_sitk(pull_back: np.ndarray) -> sitk.AffineTransform:
    """A matrix (D+1, D+1) as SimpleITK's transform from fixed to moving world points."""
    n = len(pull_back) - 1
    transform = sitk.AffineTransform(n)
    transform.SetMatrix(np.asarray(pull_back, dtype=np.float64)[:n, :n].ravel().tolist())
    transform.SetTranslation(np.asarray(pull_back, dtype=np.float64)[:n, n].tolist())
    return transform


def sitk_to_matrix(transform: sitk.Transform) -> np.ndarray:
    """The matrix (D+1, D+1) of a linear SimpleITK transform (Euler, Versor, similarity, affine), whatever its centre.

    Raises: ValueError: the transform is not linear.
    """
    if not transform.IsLinear():
        raise ValueError(f"sitk_to_matrix: the transform is {transform.GetName()}; only a linear one has a matrix.")
    n = transform.GetDimension()
    matrix = np.eye(n + 1)
    matrix[:n, n] = transform.TransformPoint([0.0] * n)
    for axis in range(n):
        matrix[:n, axis] = transform.TransformPoint(np.eye(n)[axis].tolist()) - matrix[:n, n]
    return matrix


def working(image: sitk.Image, voxels: int) -> sitk.Image:
    """The image in float32, averaged over whole blocks until it has at most ``voxels``, the finest axes first."""
    factors = np.ones(image.GetDimension(), dtype=np.int64)
    spacing = np.asarray(image.GetSpacing())
    size = np.asarray(image.GetSize())
    while np.prod(size // factors) > voxels:
        current = np.where(size // (factors + 1) < _SHORTEST_AXIS, np.inf, spacing * factors)
        if np.isinf(current).all():
            break
        factors[current < 1.01 * current.min()] += 1  # axes of one spacing stay alike
    image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.BinShrink(image, factors.tolist()) if factors.max() > 1 else image


def _checked(who: str, fixed: sitk.Image, moving: sitk.Image, initial: np.ndarray) -> np.ndarray:
    n = fixed.GetDimension()
    if n not in (2, 3) or moving.GetDimension() != n:
        raise ValueError(f"{who}: the fixed image is {n}D and the moving one {moving.GetDimension()}D; "
                         "both must be 2D, or both 3D.")
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"{who}: the {name} image has {image.GetNumberOfComponentsPerPixel()} channels; "
                             "give one channel, such as its grey values.")
        if min(image.GetSize()) < _SHORTEST_AXIS:
            raise ValueError(f"{who}: the {name} image has {image.GetSize()} voxels; every axis needs at least "
                             f"{_SHORTEST_AXIS}. Register a single slice as a 2D image.")
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (n + 1, n + 1) or not np.isfinite(pose).all():
        raise ValueError(f"{who}: initial has shape {pose.shape}; a {n}D pose is a finite ({n + 1}, {n + 1}) matrix.")
    return pose


@contextmanager
def _one_thread() -> Iterator[None]:
    """SimpleITK on one thread: the sums of several come in another order each time.

    The registration method's own setting does not reach all of its parts; the global one does, and is put back.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _turns(n: int) -> np.ndarray:
    """Generators of the rotations about x, y and z in 3D, of the one in 2D: (D(D-1)/2, D, D), skew-symmetric."""
    planes: Sequence[tuple[int, int]] = {2: ((0, 1),), 3: ((1, 2), (2, 0), (0, 1))}[n]
    turns = np.zeros((len(planes), n, n))
    for turn, (a, b) in zip(turns, planes, strict=True):
        turn[b, a], turn[a, b] = 1.0, -1.0
    return turns


def _shift(offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(len(offset) + 1)
    matrix[:-1, -1] = offset
    return matrix


def _blurred(image: sitk.Image, sigma: float) -> sitk.Image:
    """Gaussian smoothing, sigma in mm, along the axes long enough for the recursive filter."""
    for axis, size in enumerate(image.GetSize()):
        if sigma > 0 and size >= 4:
            image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
    return image


def _jittered_lattice(shape: tuple[int, ...], samples: int, seed: int) -> np.ndarray:
    """About ``samples`` voxel points (N, D), one at a random place in each cell of a regular lattice."""
    last = np.asarray(shape, dtype=np.float64) - 1
    pitch = max(1.0, float((np.prod(shape) / samples) ** (1 / len(shape))))
    corners = np.stack(np.meshgrid(*(np.arange(0, n, pitch) for n in last), indexing="ij"), -1).reshape(-1, len(shape))
    points = corners + pitch * np.random.default_rng(seed).random(corners.shape)
    return points[(points <= last).all(1)]


def _sampled(image: Tensor, points_vox: Tensor) -> Tensor:
    """Values (N,) of an image (1, 1, *shape) at voxel points (N, D)."""
    ndim = points_vox.shape[1]
    return sample(image, points_vox.to(torch.float32).view(1, *(1,) * (ndim - 1), -1, ndim)).flatten()


def _flat(image: sitk.Image) -> bool:
    """Whether all voxels have one value, which no pose explains."""
    values = sitk.GetArrayViewFromImage(image)
    return not values.max() > values.min()


def _overlap(fixed: Grid, moving: Grid, pull_back: np.ndarray) -> float:
    """Fraction of a coarse lattice of the fixed grid that lands inside the moving one."""
    ticks = (np.linspace(0, n - 1, min(n, 16)) for n in fixed.shape)
    points_vox = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, fixed.ndim)
    points_mm = fixed.to_world(points_vox) @ pull_back[:-1, :-1].T + pull_back[:-1, -1]
    landed = moving.to_voxel(points_mm)
    return float(((landed >= -0.5) & (landed <= np.asarray(moving.shape) - 0.5)).all(1).mean())
