"""register(fixed, moving): any two images from any pose, a verdict, and a deformation where asked for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from regagents.classical import downsampled, evaluate_metric
from regagents.common.algorithm import Algorithm
from regagents.registration.candidates import Candidate, best_end, finals, ranked
from regagents.registration.choice import AUTO, Traits, choose
from regagents.registration.deformation import LABELLED, MEMORY, Deformation, optimiser
from regagents.registration.finish import TRANSFORMS, finished
from regagents.registration.pipeline import Pipeline, centered, pipeline, run, stages
from regagents.registration.result import Result, composed
from regagents.registration.score import FINE, FINEST, Score
from regagents.registration.verdict import evidence, verdict
from regenv.data.io.errors import OffImageError
from regenv.data.io.images import Image, ImageError, read_image, read_labels, read_mask
from regenv.data.io.landmarks import PointsLike, corresponding
from regenv.data.io.resampling import (
    SHORTEST_AXIS,
    matrix_to_sitk,
    on_image,
    resampled,
    resampled_labels,
    to_sitk,
)
from regenv.data.io.transforms import read_transform
from regenv.data.io.voxels import check_finite, whole_numbers
from regenv.grid import Grid
from regenv.ops.overlap import dice

ImageLike = str | Path | Image
LARGEST = float(np.finfo(np.float32).max)
POSE_VOXELS = 500_000    # of an image while its pose is sought
TOLD_SAMPLES = 2_000    # points of the score along the agent's way
Measure = tuple[str, Callable[[sitk.Transform], Any]]
"""A name in ``metrics``, and what it is as a function of the transform from fixed to moving world points."""


def register(fixed: ImageLike, moving: ImageLike, agent: str | Path | Pipeline = "auto", refine: bool = True,
             initial: NDArray[np.float64] | str | Path | None = None,
             progress: Callable[[str, float], None] | None = None,
             landmarks: tuple[PointsLike, PointsLike] | None = None,
             labels: tuple[ImageLike, ImageLike] | None = None, deform: str | None = None,
             masks: tuple[ImageLike, ImageLike] | None = None, fill: float | None = None,
             transform: str = "rigid", memory: int = MEMORY) -> Result:
    """Register two images from any pose, and say whether that succeeded.

    An agent looks from all directions, and its ends compete with the headers' pose, the foregrounds' centres and a
    search by mutual information (in 2D also phase correlation and key-points). The pose that agrees best is refined;
    where asked for an optimiser then finds the displacements that are left.

    Args:
        fixed: path or image, of any spacing, origin, direction, in 2D or 3D.
        moving: likewise, of as many axes.
        agent: "auto"; a name in AGENTS, a Pipeline, shipped weights or a checkpoint's path; "none" leaves the start to
            the refinement.
        refine: refine the pose, and a learned optimiser's deformation by Adam. Else the best of the agent's own ends.
        initial: where the search begins, and stays near: a pull-back (D+1, D+1), mm, "header" (the images as they lie),
            "center" (the foregrounds' centres on each other), or the file of a linear transform. Default: anywhere.
        progress: called with a stage's name and the share of work done.
        landmarks: corresponding points of the fixed and of the moving image, files or (N, D) world mm. The agent never
            sees them; they give ``metrics["tre_mm"]`` before and after.
        labels: label images of the fixed and of the moving image; likewise, they give ``metrics["dice"]`` of every
            label.
        deform: "auto", what measured best on such pairs (:mod:`regagents.registration.choice`); an optimiser of
            :data:`regagents.registration.deformation.OPTIMISERS`, such as "greedy" or "adam"; or the weights of a
            learned one, such as "lung3d-l2o". "greedy:labels" does see the labels, whose Dice is then no measure.
        masks: of the fixed and of the moving image, the part that is registered: they take the foregrounds' place in
            the score, the refinement and the deformation. Default: the foregrounds, found by Otsu's threshold.
        fill: value of the warped image where the moving one does not reach. Default: the moving image's least value.
        transform: "rigid", "similarity" or "affine".
        memory: bytes that the deformation may work with; images that need more are deformed on a coarser grid.
    Raises:
        ImageError: bad or mismatching images, landmarks, labels, masks or file of a transform. CheckpointError: bad
            weights. ValueError: an agent of another dimension, an initial pose of another shape, an unknown transform,
            a fill that is not finite.
    """
    if fill is not None and not abs(fill) <= LARGEST:
        raise ValueError(f"register: fill is {fill}; it must be a finite number of 32 bits.")
    if transform not in TRANSFORMS:
        raise ValueError(f"register: transform is {transform!r}; take one of {', '.join(TRANSFORMS)}.")
    a, b = _read(fixed, moving)
    points = _points(a, b, landmarks) if landmarks else None
    classes = (_labels_of(a, labels[0]), _labels_of(b, labels[1])) if labels else None
    measures = [*([_tre(*points)] if points else []), *([_dice(a, *classes)] if classes else [])]
    inside = (_mask_of(a, masks[0]), _mask_of(b, masks[1])) if masks else None
    if deform is not None and deform != AUTO:       # a bad name is told before any work
        optimiser(deform, a.ndim, refine, memory)
    if deform == LABELLED and classes is None:
        raise ValueError(f"register: deform is {deform!r}, but labels is None; give the labels of both images.")
    chain = pipeline(agent, a.ndim)
    if initial is not None:
        chain = replace(chain, turned=False, rivals=())
    agents = stages(chain, a)
    small = reduced_image(a), reduced_image(b)
    start = _start(*small, initial)
    work = _Registration(*small, (a, b), inside, progress or (lambda name, share: None))
    pull_back = work.pose(chain, agents, start)
    if refine:
        pull_back = work.refined(transform)
    deformation = None if deform is None else work.deformed(deform, a, b, pull_back, refine, memory, classes)
    through = composed(pull_back, deformation)
    metrics = {"fixed": a.path, "moving": b.path, "agent": [str(name) for name in chain.stages],
               "transform": transform, "similarity": work.similarity, "seconds": work.seconds,
               "candidates": [_told(one) for one in work.candidates], "verdict": work.verdict(pull_back, deformation),
               "pull_back": pull_back.tolist(), "notes": [*a.notes, *b.notes]}
    if deformation is not None:
        metrics["deformation"] = {**work.deformer, "spacing": deformation.grid.spacing, "folding": deformation.folding,
                                  "sd_log_jacobian": deformation.sd_log_jacobian,
                                  "non_diffeomorphic_volume": deformation.non_diffeomorphic_volume}
        metrics["notes"] += deformation.notes
    metrics |= _measured(measures, start, pull_back, through)
    work.tell("done", 1.0)
    return Result(a, b, pull_back, resampled(b, a.grid, through, fill), work.trace, metrics, deformation,
                  labels=classes[1] if classes else None, landmarks=points)


@dataclass
class _Registration:
    """The steps of a registration, each of which notes what :class:`Result` tells of it.

    Attributes: fixed, moving: as :func:`reduced_image` makes them. whole: both at their own resolution.
    """

    fixed: Image
    moving: Image
    whole: tuple[Image, Image]
    masks: tuple[Image, Image] | None
    tell: Callable[[str, float], None]
    similarity: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    deformer: dict[str, Any] = field(default_factory=dict)
    affine: NDArray[np.float64] | None = None

    @cached_property
    def score(self) -> Score:
        return Score.of(self.fixed, self.moving, self.masks)

    @cached_property
    def fine(self) -> Score:
        return Score.of(self.fixed, self.moving, self.masks, FINE)

    @cached_property
    def finest(self) -> Score:
        return Score.of(*self.whole, self.masks, FINEST)

    def pose(self, chain: Pipeline, agents: Sequence[Algorithm], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """The best of the agent's ends as it left them; the start for a pipeline without agents."""
        begun = time.perf_counter()
        ended = run(chain, self.fixed, self.moving, start, self.tell, agents)
        self.seconds["agent"] = time.perf_counter() - begun
        self.tell("candidates", 0.6)
        self.candidates = ranked(self.fixed, self.moving, self.score, start, ended, chain.rivals)
        pull_back = best_end(ended, start, self.score)
        path = self.candidates[0].path or next((one.path for one in ended), [])
        thin = self.score.thinned(TOLD_SAMPLES)
        self.trace.extend(_row(visited.stage, visited.step, visited.action,
                               float(thin.at(visited.pull_back[None]).score[0]), visited.pull_back) for visited in path)
        self.similarity["start"] = self._similarity(start)
        self._settle("agent", pull_back)
        self.seconds["candidates"] = time.perf_counter() - begun - self.seconds["agent"]
        return pull_back

    def refined(self, transform: str) -> NDArray[np.float64]:
        """The transform asked for near the best candidate."""
        self.tell("refinement", 0.8)
        begun = time.perf_counter()
        self.candidates = finals(self.candidates, self.score)
        best = self.candidates[0]
        assert best.affine is not None     # as the finals leave it
        self._settle("candidates", best.affine)
        found = finished(best.affine, transform, self.fine, self.finest)
        self.affine = found.affine
        self._settle("refinement", found.pull_back)
        self.seconds["refinement"] = time.perf_counter() - begun
        return found.pull_back

    def verdict(self, pull_back: NDArray[np.float64], deformation: Deformation | None) -> dict[str, Any]:
        """Whether the pose is right."""
        self.tell("verdict", 0.97)
        begun = time.perf_counter()
        folding = 0.0 if deformation is None else deformation.folding
        affine = pull_back if self.affine is None else self.affine
        found = verdict(evidence(self.score, self.fine, pull_back, affine, self.candidates, folding))
        self.seconds["verdict"] = time.perf_counter() - begun
        return found

    def deformed(self, name: str, fixed: Image, moving: Image, pull_back: NDArray[np.float64], refine: bool,
                 memory: int, labels: tuple[Image, Image] | None) -> Deformation:
        """The displacement that is left when the pose is right, of the images at their own resolution."""
        begun = time.perf_counter()
        self.deformer = {"by": name}
        if name == AUTO:
            chosen = choose(Traits.of(fixed, moving, self.fine, pull_back))
            self.deformer = {"by": chosen.name, "choice": chosen.told()}
        name = self.deformer["by"]
        self.tell(name, 0.9)
        solver = optimiser(name, fixed.ndim, refine, memory)
        deformation = solver.register(fixed, moving, pull_back, self.masks, labels)
        self.seconds["deformation"] = time.perf_counter() - begun
        self.similarity["deformation"] = self._similarity(deformation.through(pull_back))
        return deformation

    def _settle(self, stage: str, pull_back: NDArray[np.float64]) -> None:
        """Note the pose that a stage ends with."""
        self.similarity[stage] = self._similarity(pull_back)
        self.trace.append(_row(stage, 0, "", float(self.score.at(pull_back[None]).score[0]), pull_back))

    def _similarity(self, through: NDArray[np.float64] | sitk.Transform) -> float | None:
        """Mutual information of the two images, at the same voxels of both for every stage; None where there is none,
        since JSON knows no infinity."""
        value = -evaluate_metric(to_sitk(self.fixed), to_sitk(self.moving), through)
        return value if np.isfinite(value) else None


def reduced_image(image: Image) -> Image:
    """An image as the search for a pose sees it: intensities in [0, 1], averaged down to at most 500,000 voxels. What
    stages need of it (its foreground, coarser copies) is then cheap, and made once."""
    small = downsampled(to_sitk(image), POSE_VOXELS)
    return Image(sitk.GetArrayFromImage(small), Grid.from_sitk(small), image.path)


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
        raise ImageError(f"{b.path}: moving image is {b.grid.ndim}D but fixed image {a.path} is {a.grid.ndim}D; a "
                         "slice cannot be registered into a volume. Save a slab of 4 slices or more with its spacing, "
                         "or register the matching slice as 2D.")
    for image in (a, b):
        _check_registrable(image)
    return a, b


def _check_registrable(image: Image) -> None:
    if min(image.grid.shape) < SHORTEST_AXIS:
        raise ImageError(f"{image.path}: shape is {tuple(image.grid.shape)} voxels; every axis needs at least "
                         f"{SHORTEST_AXIS}. Register a single slice as a 2D image.")
    if not np.isfinite(image.array).all():
        raise ImageError(f"{image.path}: some voxels are NaN or infinite; all must be finite. Replace them.")


def _start(fixed: Image, moving: Image, initial: NDArray[np.float64] | str | Path | None) -> NDArray[np.float64]:
    """The pose that ``initial`` means."""
    n = fixed.grid.ndim
    if initial is None or (isinstance(initial, str) and initial == "center"):
        return centered(fixed, moving)
    if isinstance(initial, str) and initial == "header":
        return np.eye(n + 1)
    if isinstance(initial, (str, Path)):
        pose = read_transform(initial)
        if len(pose) != n + 1:
            raise ImageError(f"{initial}: the transform is {len(pose) - 1}D, but the images are {n}D.")
        return pose
    return _checked_pose(initial, n)


def _checked_pose(initial: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    pose = np.asarray(initial, dtype=np.float64)
    if pose.shape != (ndim + 1, ndim + 1) or not np.isfinite(pose).all():
        raise ValueError(f"register: initial has shape {pose.shape}; a {ndim}D pose is a finite "
                         f"({ndim + 1}, {ndim + 1}) matrix.")
    return pose


def _points(fixed: Image, moving: Image,
            given: tuple[PointsLike, PointsLike]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corresponding landmarks of both images, (N, D) each, mm."""
    here, there = corresponding(given, (fixed, moving))
    return here, there


def _tre(points: NDArray[np.float64], targets: NDArray[np.float64]) -> Measure:
    """Mean distance of corresponding landmarks in the moving world, mm, as a function of the transform."""
    def measure(transform: sitk.Transform) -> float:
        moved = np.array([transform.TransformPoint(point) for point in points.tolist()])
        return float(np.linalg.norm(moved - targets, axis=1).mean())

    return "tre_mm", measure


def _dice(fixed: Image, a: Image, b: Image) -> Measure:
    """Dice of every label of the fixed label image ``a``, as a function of the transform; None where one is absent."""
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
        warnings.warn(f"{error} The whole image is registered, and nothing is deformed.", stacklevel=3)
    return mask


def _row(stage: str, step: int, action: str, score: float, pull_back: NDArray[np.float64]) -> dict[str, Any]:
    """A row of the trace."""
    n = len(pull_back) - 1
    return {"stage": stage, "step": step, "action": action, "score": float(score),
            **{f"m{i}{j}": pull_back[i, j] for i in range(n) for j in range(n + 1)}}


def _told(candidate: Candidate) -> dict[str, Any]:
    """What is told of a candidate."""
    pose = candidate.pull_back if candidate.climbed is None else candidate.climbed
    return {"name": ", ".join(candidate.names), "score": candidate.score, "information": candidate.information,
            "overlap": candidate.overlap, "share": candidate.share, "pull_back": pose.tolist()}
