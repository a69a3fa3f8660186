"""register(fixed, moving): any two images, an agent, a local refinement, and a deformation where asked for."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from regagents.classical import evaluate_metric, matrix_to_sitk, refine_pose
from regagents.registration.deformation import Deformation, optimiser
from regagents.registration.pipeline import (
    DEFAULT,
    Pipeline,
    centered,
    pipeline,
    run,
    stages,
)
from regenv import render
from regenv.atomic import whole_folder
from regenv.data.io.images import Image, ImageError, normalize, read_image, read_labels, read_mask, write_image
from regenv.data.io.landmarks import read_landmarks
from regenv.data.io.resampling import foreground_center, resampled, to_sitk
from regenv.data.io.transforms import write_transform
from regenv.ops.overlap import dice

FEWEST_VOXELS = 4  # along an axis: the smoothing's and the metric's least


@dataclass(frozen=True)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1) float64, fixed world points to moving world points, mm: what Resample wants.
        deformation: what is displaced before the pose takes it on, where it was asked for.
        warped: the moving image on the fixed grid.
        trace: one row per step of the lane that was chosen: stage, step, and the pose's matrix, row-major (m00, m01,
            ...); then the pose that the agent settled on and the refined one. The last row is ``pull_back``.
        metrics: numbers: mutual information at the start, after the agent, after refinement and after the deformation;
            seconds of each; TRE and Dice where landmarks and labels were given.
    """

    fixed: Image
    moving: Image
    pull_back: np.ndarray
    warped: Image
    trace: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    deformation: Deformation | None = None

    @property
    def transform(self) -> sitk.Transform:
        """From fixed to moving world points, mm, as SimpleITK's: affine, or composite where it deforms."""
        return _transform(self.pull_back, self.deformation)

    def save(self, out: str | Path) -> Path:
        """Write transform.tfm (the pose), warped.nii.gz, overlay.png, trace.csv and metrics.json into folder ``out``,
        and with a deformation transform.h5 (all of the transform): all of them or, after a failure, none; files of
        these names from an earlier run are replaced."""
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


def register(fixed: str | Path | Image, moving: str | Path | Image, agent: str | Pipeline | None = None,
             refine: bool = True, initial: np.ndarray | None = None, seed: int = 0,
             progress: Callable[[str, float], None] | None = None,
             landmarks: tuple[str | Path | np.ndarray, str | Path | np.ndarray] | None = None,
             labels: tuple[str | Path | Image, str | Path | Image] | None = None, deform: str | None = None,
             masks: tuple[str | Path | Image, str | Path | Image] | None = None) -> Result:
    """Register two images: an agent finds the pose, a local search on mutual information polishes it, and where asked
    for an optimiser finds what displacements are left.

    Args:
        fixed, moving: paths or images, of any spacing, origin, direction; both 2D or both 3D.
        agent: a name in AGENTS, a Pipeline, shipped weights or a checkpoint's path; "none" leaves the start to the
            refinement. Default: by dimension.
        refine: polish by mutual information from the agent's pose, and by Adam from a learned optimiser's deformation.
        initial: (D+1, D+1) pull-back to start from. Default: the two foregrounds' centres on each other.
        seed: of the scattered starts.
        progress: called with a stage's name and the share of work done.
        landmarks: corresponding points of the fixed and of the moving image, files or (N, D) world mm; never seen by
            the agent, only measured: ``metrics["tre_mm"]`` before and after.
        labels: label images of the fixed and of the moving image; likewise, ``metrics["dice"]`` of every label.
        deform: an optimiser of :data:`regagents.registration.deformation.OPTIMISERS`, "adam", "convex" or "convexadam", or the weights of
            a learned one, such as "lung3d-l2o".
        masks: of the fixed and of the moving image, the organ on which the deformation is found. Default everywhere.
    Raises:
        ImageError: bad or mismatching images, landmarks, labels or masks. CheckpointError: bad weights. ValueError: an
            agent of another dimension, an initial pose of another shape, masks without a deformation.
    """
    tell = progress or (lambda name, share: None)
    a, b = (image if isinstance(image, Image) else read_image(image) for image in (fixed, moving))
    if a.grid.ndim != b.grid.ndim:
        raise ImageError(f"{b.path}: moving image is {b.grid.ndim}D but fixed image {a.path} is {a.grid.ndim}D; "
                         "both must have the same dimension.")
    for image in (a, b):
        _check_registrable(image)
    if masks and deform is None:
        raise ValueError("register: masks tell where the deformation is found; name one, such as deform=\"adam\".")
    measures = [*([_tre(a, b, *landmarks)] if landmarks else []), *([_dice(a, *labels)] if labels else [])]
    inside = _masks((a, b), masks) if masks else None
    solver = None if deform is None else optimiser(deform, a.grid.ndim, refine)
    chain = pipeline(DEFAULT[a.grid.ndim] if agent is None else agent)
    agents = stages(chain, a)
    begun = time.perf_counter()
    source, target = to_sitk(b), to_sitk(a)
    start = centered(a, b) if initial is None else _checked_pose(initial, a.grid.ndim)
    pull_back, path = run(chain, a, b, start, seed, tell, agents)
    trace = [_row(*visited) for visited in path]
    similarity = {"start": _similarity(target, source, start), "agent": _similarity(target, source, pull_back)}
    seconds = {"agent": time.perf_counter() - begun}
    trace.append(_row("agent", 0, pull_back))
    if refine:
        tell("refinement", 0.9)
        polished = refine_pose(target, source, pull_back, foreground_center(a))
        pull_back = polished.pull_back
        seconds["refinement"] = polished.seconds
        similarity["refinement"] = _similarity(target, source, pull_back)
        trace.append(_row("refinement", 0, pull_back))
    deformation = None
    if solver is not None:
        tell(str(deform), 0.95)
        begun = time.perf_counter()
        deformation = solver.register(a, b, pull_back, inside)
        seconds["deformation"] = time.perf_counter() - begun
    transform = _transform(pull_back, deformation)
    warped = resampled(b, a.grid, transform)
    metrics = {"fixed": a.path, "moving": b.path, "agent": [str(name) for name in chain.stages],
               "starts": chain.starts, "seed": seed, "similarity": similarity, "seconds": seconds,
               "pull_back": pull_back.tolist()}
    nothing = np.eye(a.grid.ndim + 1)
    if deformation is not None:
        similarity["deformation"] = _similarity(target, to_sitk(warped), nothing)
        metrics["deformation"] = {"by": deform, "spacing": deformation.grid.spacing, "folding": deformation.folding,
                                  "sd_log_jacobian": deformation.sd_log_jacobian}
    for name, measure in measures:
        metrics[name] = {"before": measure(matrix_to_sitk(nothing)), "start": measure(matrix_to_sitk(start)),
                         "pose": measure(matrix_to_sitk(pull_back)), "after": measure(transform)}
    tell("done", 1.0)
    return Result(a, b, pull_back, warped, trace, metrics, deformation)


def _check_registrable(image: Image) -> None:
    if min(image.grid.shape) < FEWEST_VOXELS:
        raise ImageError(f"{image.path}: shape is {tuple(image.grid.shape)} voxels; every axis needs at least "
                         f"{FEWEST_VOXELS}. Register a single slice as a 2D image.")
    if not np.isfinite(image.array).all():
        raise ImageError(f"{image.path}: some voxels are NaN or infinite; all must be finite. Replace them.")


def _checked_pose(initial: np.ndarray, ndim: int) -> np.ndarray:
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (ndim + 1, ndim + 1) or not np.isfinite(pose).all():
        raise ValueError(f"register: initial has shape {pose.shape}; a {ndim}D pose is a finite "
                         f"({ndim + 1}, {ndim + 1}) matrix.")
    return pose


def _similarity(fixed: sitk.Image, moving: sitk.Image, pull_back: np.ndarray) -> float | None:
    """Mutual information; None where there is none, since JSON knows no infinity."""
    value = -evaluate_metric(fixed, moving, pull_back)
    return value if np.isfinite(value) else None


def _tre(fixed: Image, moving: Image, fixed_points: str | Path | np.ndarray,
         moving_points: str | Path | np.ndarray) -> tuple[str, Callable[[sitk.Transform], float]]:
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


def _dice(image: Image, fixed_labels: str | Path | Image,
          moving_labels: str | Path | Image) -> tuple[str, Callable[[sitk.Transform], dict[str, float | None]]]:
    """Dice of every label of the fixed label image, as a function of the transform; None where it is absent."""
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


def _masks(images: tuple[Image, Image], masks: tuple[str | Path | Image, str | Path | Image]) -> tuple[Image, Image]:
    """Masks of both images, checked."""
    fixed, moving = (given if isinstance(given, Image) else read_mask(given) for given in masks)
    for image, mask in zip(images, (fixed, moving), strict=True):
        if mask.grid.ndim != image.grid.ndim:
            raise ImageError(f"{mask.path}: mask is {mask.grid.ndim}D but {image.path} is {image.grid.ndim}D; "
                             "both must have the same dimension.")
    return fixed, moving


def _transform(pull_back: np.ndarray, deformation: Deformation | None) -> sitk.Transform:
    return matrix_to_sitk(pull_back) if deformation is None else deformation.through(pull_back)


def _row(stage: str, step: int, pull_back: np.ndarray) -> dict[str, Any]:
    n = len(pull_back) - 1
    return {"stage": stage, "step": step,
            **{f"m{i}{j}": pull_back[i, j] for i in range(n) for j in range(n + 1)}}
