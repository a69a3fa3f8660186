"""register(fixed, moving): any two images, an agent, a local refinement, and a deformation where asked for."""

from __future__ import annotations

import csv
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from regagents.classical import evaluate_metric, refine_pose
from regagents.dsl.dsl import DSL
from regagents.registration.deformation import Deformation, Optimiser, optimiser
from regagents.registration.pipeline import DEFAULT, Pipeline, centered, pipeline, run, stages
from regenv import render
from regenv.atomic import whole_folder
from regenv.data.io.errors import OffImageError
from regenv.data.io.images import Image, ImageError, normalize, read_image, read_labels, read_mask
from regenv.data.io.landmarks import PointsLike, corresponding
from regenv.data.io.resampling import (
    SHORTEST_AXIS,
    foreground_center,
    matrix_to_sitk,
    on_image,
    resampled,
    resampled_labels,
    sampled,
    to_sitk,
)
from regenv.data.io.transforms import write_transform
from regenv.data.io.voxels import check_finite, whole_numbers
from regenv.data.io.writing import write_image
from regenv.ops.overlap import dice

ImageLike = str | Path | Image
LARGEST = float(np.finfo(np.float32).max)
WRITTEN = ("transform.tfm", "transform.h5", "warped.nii.gz", "overlay.png", "trace.csv", "metrics.json")
Measure = tuple[str, Callable[[sitk.Transform], Any]]
"""A name in ``metrics``, and what it is as a function of the transform from fixed to moving world points."""


@dataclass(frozen=True)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1), fixed world points to moving world points, mm, as ITK's Resample takes it.
        deformation: the displacement that comes before the pose, where it was asked for.
        warped: the moving image on the fixed grid.
        trace: one row per step of the chosen lane: stage, step, and the pose's matrix, row-major (m00, m01, ...); then
            the pose that the agent settled on and the refined one. The last row is ``pull_back``.
        metrics: mutual information at the start, after the agent, after refinement and after the deformation; seconds
            of each; TRE and Dice where landmarks and labels were given; what was decided in reading the images.
    """

    fixed: Image
    moving: Image
    pull_back: NDArray[np.float64]
    warped: Image
    trace: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    deformation: Deformation | None = None

    @property
    def transform(self) -> sitk.Transform:
        """SimpleITK's transform from fixed to moving world points, mm: affine, or composite if it deforms."""
        return _transform(self.pull_back, self.deformation)

    def save(self, out: str | Path) -> Path:
        """Write transform.tfm (the pose), warped.nii.gz, overlay.png, trace.csv and metrics.json into folder ``out``,
        and with a deformation transform.h5 (pose and deformation).

        After a failure none of them is written. An earlier run's files of these names are replaced, or removed where
        this run has none; other files stay. metrics.json comes last: beside it the set is whole.
        """
        with whole_folder(out, WRITTEN) as folder:
            write_transform(folder / "transform.tfm", self.pull_back)
            if self.deformation is not None:
                write_transform(folder / "transform.h5", self.transform)
            write_image(folder / "warped.nii.gz", self.warped.array, self.warped.grid)
            render.write_png(folder / "overlay.png", np.concatenate(self._pictures()))
            with (folder / "trace.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.trace[0]))
                writer.writeheader()
                writer.writerows(self.trace)
            (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2, allow_nan=False) + "\n")
        return Path(out)

    def _pictures(self) -> list[NDArray[np.uint8]]:
        """The fixed image with the moving one as it lies, and after registration."""
        grid, moving = self.fixed.grid, to_sitk(self.moving)
        return [render.frame(normalize(self.fixed.array), sampled(moving, grid, transform), spacing=grid.spacing,
                             text=text)
                for text, transform in (("before", None), ("after", self.transform))]


def register(fixed: ImageLike, moving: ImageLike, agent: str | Path | Pipeline | None = None, refine: bool = True,
             initial: NDArray[np.float64] | None = None, seed: int = 0,
             progress: Callable[[str, float], None] | None = None,
             landmarks: tuple[PointsLike, PointsLike] | None = None,
             labels: tuple[ImageLike, ImageLike] | None = None, deform: str | None = None,
             masks: tuple[ImageLike, ImageLike] | None = None, fill: float | None = None) -> Result:
    """Register two images: an agent finds the pose, a local search on mutual information refines it, and where asked
    for an optimiser finds the displacements that are left.

    Args:
        fixed, moving: paths or images, of any spacing, origin, direction; both 2D or both 3D.
        agent: a name in AGENTS, a Pipeline, shipped weights or a checkpoint's path; "none" leaves the start to the
            refinement. Default: by dimension.
        refine: refine the agent's pose by mutual information, and a learned optimiser's deformation by Adam.
        initial: (D+1, D+1) pull-back to start from, mm. Default: the two foregrounds' centres on each other.
        seed: of the scattered starts.
        progress: called with a stage's name and the share of work done.
        landmarks: corresponding points of the fixed and of the moving image, files or (N, D) world mm. The agent never
            sees them; they give ``metrics["tre_mm"]`` before and after.
        labels: label images of the fixed and of the moving image; likewise, they give ``metrics["dice"]`` of every
            label.
        deform: an optimiser of :data:`regagents.registration.deformation.OPTIMISERS`, "adam", "convex" or
            "convexadam", or the weights of a learned one, such as "lung3d-l2o".
        masks: of the fixed and of the moving image, the organ on which the deformation is found. Default everywhere.
        fill: value of the warped image where the moving one does not reach. Default: the moving image's least value.
    Raises:
        ImageError: bad or mismatching images, landmarks, labels or masks. CheckpointError: bad weights. ValueError: an
            agent of another dimension, an initial pose of another shape, masks without a deformation, a fill that is
            not finite.
    """
    if fill is not None and not abs(fill) <= LARGEST:
        raise ValueError(f"register: fill is {fill}; it must be a finite number of 32 bits.")
    a, b = _read(fixed, moving)
    if masks and deform is None:
        raise ValueError("register: masks tell where the deformation is found; name one, such as deform=\"adam\".")
    measures = [*([_tre(a, b, *landmarks)] if landmarks else []), *([_dice(a, b, *labels)] if labels else [])]
    inside = (_mask_of(a, masks[0]), _mask_of(b, masks[1])) if masks else None
    solver = None if deform is None else optimiser(deform, a.grid.ndim, refine)
    chain = pipeline(DEFAULT[a.grid.ndim] if agent is None else agent)
    agents = stages(chain, a)
    start = centered(a, b) if initial is None else _checked_pose(initial, a.grid.ndim)
    work = _Registration(a, b, progress or (lambda name, share: None))
    pull_back = work.pose(chain, agents, start, seed)
    if refine:
        pull_back = work.refined(pull_back)
    deformation = None if solver is None else work.deformed(solver, str(deform), pull_back, inside)
    transform = _transform(pull_back, deformation)
    warped = resampled(b, a.grid, transform, fill)
    metrics = {"fixed": a.path, "moving": b.path, "agent": [str(name) for name in chain.stages],
               "starts": chain.starts, "seed": seed, "similarity": work.similarity, "seconds": work.seconds,
               "pull_back": pull_back.tolist(), "notes": [*a.notes, *b.notes]}
    if deformation is not None:
        metrics["deformation"] = {"by": deform, "spacing": deformation.grid.spacing, "folding": deformation.folding,
                                  "sd_log_jacobian": deformation.sd_log_jacobian}
    metrics |= _measured(measures, start, pull_back, transform)
    work.tell("done", 1.0)
    return Result(a, b, pull_back, warped, work.trace, metrics, deformation)


@dataclass(frozen=True)
class _Registration:
    """The steps of a registration, each of which notes what :class:`Result` tells of it."""

    fixed: Image
    moving: Image
    tell: Callable[[str, float], None]
    similarity: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)

    def pose(self, chain: Pipeline, agents: Sequence[DSL], start: NDArray[np.float64],
             seed: int) -> NDArray[np.float64]:
        """The pose that a pipeline finds."""
        begun = time.perf_counter()
        pull_back, path = run(chain, self.fixed, self.moving, start, seed, self.tell, agents)
        self.trace.extend(_row(*visited) for visited in path)
        self.similarity["start"] = self._similarity(start)
        self._settle("agent", pull_back)
        self.seconds["agent"] = time.perf_counter() - begun
        return pull_back

    def refined(self, pull_back: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest optimum of mutual information."""
        self.tell("refinement", 0.9)
        found = refine_pose(to_sitk(self.fixed), to_sitk(self.moving), pull_back, foreground_center(self.fixed))
        self._settle("refinement", found.pull_back)
        self.seconds["refinement"] = found.seconds
        return found.pull_back

    def deformed(self, solver: Optimiser, name: str, pull_back: NDArray[np.float64],
                 masks: tuple[Image, Image] | None) -> Deformation:
        """The displacement that is left when the pose is right."""
        self.tell(name, 0.95)
        begun = time.perf_counter()
        deformation = solver.register(self.fixed, self.moving, pull_back, masks)
        self.seconds["deformation"] = time.perf_counter() - begun
        self.similarity["deformation"] = self._similarity(deformation.through(pull_back))
        return deformation

    def _settle(self, stage: str, pull_back: NDArray[np.float64]) -> None:
        """Note the pose that a stage ends with."""
        self.similarity[stage] = self._similarity(pull_back)
        self.trace.append(_row(stage, 0, pull_back))

    def _similarity(self, through: NDArray[np.float64] | sitk.Transform) -> float | None:
        """Mutual information of the two images, at the same voxels of both for every stage; None where there is none,
        since JSON knows no infinity."""
        value = -evaluate_metric(to_sitk(self.fixed), to_sitk(self.moving), through)
        return value if np.isfinite(value) else None


def _measured(measures: Sequence[Measure], start: NDArray[np.float64], pull_back: NDArray[np.float64],
              transform: sitk.Transform) -> dict[str, dict[str, Any]]:
    """Measures by name, of the images as they lie ("before"), the starting pose, the final pose, and the transform."""
    return {name: {"before": measure(matrix_to_sitk(np.eye(len(start)))), "start": measure(matrix_to_sitk(start)),
                   "pose": measure(matrix_to_sitk(pull_back)), "after": measure(transform)}
            for name, measure in measures}


def _read(fixed: ImageLike, moving: ImageLike) -> tuple[Image, Image]:
    """Both images, checked."""
    a, b = (image if isinstance(image, Image) else read_image(image) for image in (fixed, moving))
    if a.grid.ndim != b.grid.ndim:
        raise ImageError(f"{b.path}: moving image is {b.grid.ndim}D but fixed image {a.path} is {a.grid.ndim}D; "
                         "both must have the same dimension.")
    for image in (a, b):
        _check_registrable(image)
    return a, b


def _check_registrable(image: Image) -> None:
    if min(image.grid.shape) < SHORTEST_AXIS:
        raise ImageError(f"{image.path}: shape is {tuple(image.grid.shape)} voxels; every axis needs at least "
                         f"{SHORTEST_AXIS}. Register a single slice as a 2D image.")
    if not np.isfinite(image.array).all():
        raise ImageError(f"{image.path}: some voxels are NaN or infinite; all must be finite. Replace them.")


def _checked_pose(initial: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (ndim + 1, ndim + 1) or not np.isfinite(pose).all():
        raise ValueError(f"register: initial has shape {pose.shape}; a {ndim}D pose is a finite "
                         f"({ndim + 1}, {ndim + 1}) matrix.")
    return pose


def _tre(fixed: Image, moving: Image, fixed_points: PointsLike, moving_points: PointsLike) -> Measure:
    """Mean distance of corresponding landmarks in the moving world, mm, as a function of the transform."""
    points, targets = corresponding((fixed_points, moving_points), (fixed, moving))

    def measure(transform: sitk.Transform) -> float:
        moved = np.array([transform.TransformPoint(point) for point in points.tolist()])
        return float(np.linalg.norm(moved - targets, axis=1).mean())

    return "tre_mm", measure


def _dice(fixed: Image, moving: Image, fixed_labels: ImageLike, moving_labels: ImageLike) -> Measure:
    """Dice of every label of the fixed label image, as a function of the transform; None where a label is absent."""
    a, b = (_labels_of(image, given) for image, given in ((fixed, fixed_labels), (moving, moving_labels)))
    classes = [int(value) for value in np.unique(a.array) if value != 0]

    def measure(transform: sitk.Transform) -> dict[str, float | None]:
        warped = resampled_labels(b, a.grid, transform).array
        here, there = (torch.from_numpy(np.asarray(array, dtype=np.int64)[None, None]) for array in (a.array, warped))
        scores = dice(here, there, classes)[0].tolist()
        return {str(c): None if np.isnan(score) else score for c, score in zip(classes, scores, strict=True)}

    return "dice", measure


def _labels_of(image: Image, given: ImageLike) -> Image:
    """An image's labels. Raises ImageError: no whole numbers, or none of them lies on the image."""
    labels = given if isinstance(given, Image) else read_labels(given)
    labels = replace(labels, array=whole_numbers(labels.path, labels.array))
    on_image(labels, image)
    return labels


def _mask_of(image: Image, given: ImageLike) -> Image:
    """An image's mask; warns where it does not lie on the image. Raises ImageError: it has another dimension."""
    mask = given if isinstance(given, Image) else read_mask(given)
    check_finite(mask.path, mask.array)
    mask = replace(mask, array=(mask.array != 0).astype(np.uint8))
    try:
        on_image(mask, image)
    except OffImageError as error:
        warnings.warn(f"{error} Nothing is deformed.", stacklevel=3)
    return mask


def _transform(pull_back: NDArray[np.float64], deformation: Deformation | None) -> sitk.Transform:
    return matrix_to_sitk(pull_back) if deformation is None else deformation.through(pull_back)


def _row(stage: str, step: int, pull_back: NDArray[np.float64]) -> dict[str, Any]:
    """A row of the trace."""
    n = len(pull_back) - 1
    return {"stage": stage, "step": step,
            **{f"m{i}{j}": pull_back[i, j] for i in range(n) for j in range(n + 1)}}
