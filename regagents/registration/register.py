"""register(fixed, moving): any two images, an agent, a local refinement, and a deformation where asked for."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from regenv.data.io.images import Image, ImageError, normalize, read_image, read_labels, read_mask
from regenv.data.io.landmarks import read_landmarks
from regenv.data.io.resampling import SHORTEST_AXIS, foreground_center, matrix_to_sitk, resampled, to_sitk
from regenv.data.io.transforms import write_transform
from regenv.data.io.writing import write_image
from regenv.ops.overlap import dice

ImageLike = str | Path | Image
PointsLike = str | Path | NDArray[np.float64]
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
            of each; TRE and Dice where landmarks and labels were given.
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

        After a failure none of them is written. Files of these names from an earlier run are replaced.
        """
        with whole_folder(out) as folder:
            write_transform(folder / "transform.tfm", self.pull_back)
            if self.deformation is not None:
                sitk.WriteTransform(self.transform, str(folder / "transform.h5"))
            write_image(folder / "warped.nii.gz", self.warped.array, self.warped.grid)
            before = resampled(self.moving, self.fixed.grid, np.eye(self.fixed.grid.ndim + 1))
            pictures = [render.frame(normalize(self.fixed.array), normalize(image.array),
                                     spacing=self.fixed.grid.spacing, text=text)
                        for image, text in ((before, "before"), (self.warped, "after"))]
            render.write_png(folder / "overlay.png", np.concatenate(pictures))
            with (folder / "trace.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.trace[0]))
                writer.writeheader()
                writer.writerows(self.trace)
            (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2, allow_nan=False) + "\n")
        return Path(out)


def register(fixed: ImageLike, moving: ImageLike, agent: str | Path | Pipeline | None = None, refine: bool = True,
             initial: NDArray[np.float64] | None = None, seed: int = 0,
             progress: Callable[[str, float], None] | None = None,
             landmarks: tuple[PointsLike, PointsLike] | None = None,
             labels: tuple[ImageLike, ImageLike] | None = None, deform: str | None = None,
             masks: tuple[ImageLike, ImageLike] | None = None) -> Result:
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
    Raises:
        ImageError: bad or mismatching images, landmarks, labels or masks. CheckpointError: bad weights. ValueError: an
            agent of another dimension, an initial pose of another shape, masks without a deformation.
    """
    a, b = _read(fixed, moving)
    if masks and deform is None:
        raise ValueError("register: masks tell where the deformation is found; name one, such as deform=\"adam\".")
    measures = [*([_tre(a, b, *landmarks)] if landmarks else []), *([_dice(a, *labels)] if labels else [])]
    inside = _masks((a, b), masks) if masks else None
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
    warped = resampled(b, a.grid, transform)
    metrics = {"fixed": a.path, "moving": b.path, "agent": [str(name) for name in chain.stages],
               "starts": chain.starts, "seed": seed, "similarity": work.similarity, "seconds": work.seconds,
               "pull_back": pull_back.tolist()}
    if deformation is not None:
        metrics["deformation"] = {"by": deform, **work.regularity(deformation, warped)}
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
        return deformation

    def regularity(self, deformation: Deformation, warped: Image) -> dict[str, Any]:
        """The deformation's spacing, folding and SD of log det J; notes the warped image's mutual information."""
        nothing = np.eye(self.fixed.grid.ndim + 1)
        self.similarity["deformation"] = _similarity(to_sitk(self.fixed), to_sitk(warped), nothing)
        return {"spacing": deformation.grid.spacing, "folding": deformation.folding,
                "sd_log_jacobian": deformation.sd_log_jacobian}

    def _settle(self, stage: str, pull_back: NDArray[np.float64]) -> None:
        """Note the pose that a stage ends with."""
        self.similarity[stage] = self._similarity(pull_back)
        self.trace.append(_row(stage, 0, pull_back))

    def _similarity(self, pull_back: NDArray[np.float64]) -> float | None:
        return _similarity(to_sitk(self.fixed), to_sitk(self.moving), pull_back)


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


def _similarity(fixed: sitk.Image, moving: sitk.Image, pull_back: NDArray[np.float64]) -> float | None:
    """Mutual information; None where there is none, since JSON knows no infinity."""
    value = -evaluate_metric(fixed, moving, pull_back)
    return value if np.isfinite(value) else None


def _tre(fixed: Image, moving: Image, fixed_points: PointsLike, moving_points: PointsLike) -> Measure:
    """Mean distance of corresponding landmarks in the moving world, mm, as a function of the transform."""
    n = fixed.grid.ndim
    points, names = [], []
    for given, image in ((fixed_points, fixed), (moving_points, moving)):
        array = given if isinstance(given, np.ndarray) else read_landmarks(given, image.grid)
        names.append(f"landmarks of {image.path}" if isinstance(given, np.ndarray) else str(given))
        if array.ndim != 2 or array.shape[1] != n:
            raise ImageError(f"{names[-1]}: landmarks have shape {array.shape}; a {n}D image needs (N, {n}).")
        points.append(np.asarray(array, dtype=np.float64))
    if len(points[0]) != len(points[1]):
        raise ImageError(f"{names[1]}: number of landmarks is {len(points[1])}, but {names[0]} has {len(points[0])}; "
                         "line n of one must correspond to line n of the other.")

    def measure(transform: sitk.Transform) -> float:
        moved = np.array([transform.TransformPoint(point.tolist()) for point in points[0]])
        return float(np.linalg.norm(moved - points[1], axis=1).mean())

    return "tre_mm", measure


def _dice(image: Image, fixed_labels: ImageLike, moving_labels: ImageLike) -> Measure:
    """Dice of every label of the fixed label image, as a function of the transform; None where a label is absent."""
    a, b = (given if isinstance(given, Image) else read_labels(given) for given in (fixed_labels, moving_labels))
    for labels in (a, b):
        if labels.grid.ndim != image.grid.ndim:
            raise ImageError(f"{labels.path}: labels are {labels.grid.ndim}D but {image.path} is {image.grid.ndim}D; "
                             "both must have the same dimension.")
    classes = [int(value) for value in np.unique(a.array) if value != 0]

    def measure(transform: sitk.Transform) -> dict[str, float | None]:
        warped = resampled(b, a.grid, transform, sitk.sitkNearestNeighbor).array
        here, there = (torch.from_numpy(np.asarray(array, dtype=np.int64)[None, None]) for array in (a.array, warped))
        scores = dice(here, there, classes)[0].tolist()
        return {str(c): None if np.isnan(score) else score for c, score in zip(classes, scores, strict=True)}

    return "dice", measure


def _masks(images: tuple[Image, Image], masks: tuple[ImageLike, ImageLike]) -> tuple[Image, Image]:
    """Masks of both images, checked."""
    fixed, moving = (given if isinstance(given, Image) else read_mask(given) for given in masks)
    for image, mask in zip(images, (fixed, moving), strict=True):
        if mask.grid.ndim != image.grid.ndim:
            raise ImageError(f"{mask.path}: mask is {mask.grid.ndim}D but {image.path} is {image.grid.ndim}D; "
                             "both must have the same dimension.")
    return fixed, moving


def _transform(pull_back: NDArray[np.float64], deformation: Deformation | None) -> sitk.Transform:
    return matrix_to_sitk(pull_back) if deformation is None else deformation.through(pull_back)


def _row(stage: str, step: int, pull_back: NDArray[np.float64]) -> dict[str, Any]:
    """A row of the trace."""
    n = len(pull_back) - 1
    return {"stage": stage, "step": step,
            **{f"m{i}{j}": pull_back[i, j] for i in range(n) for j in range(n + 1)}}
