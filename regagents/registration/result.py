"""A registration's outcome, and the files it is written to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.registration import fields, report, statement
from regagents.registration.apply import Chain
from regagents.registration.deformation import Deformation
from regenv import render
from regenv.atomic import whole_folder
from regenv.data.io.displacements import Field
from regenv.data.io.images import Image
from regenv.data.io.resampling import framed, matrix_to_sitk, resampled_labels, sampled, to_sitk
from regenv.data.io.transforms import kind, write_transform
from regenv.data.io.writing import write_image
from regenv.grid import Grid

WRITTEN = ("transform.tfm", "transform.h5", "transform.json", "warped.nii.gz", "labels_warped.nii.gz",
           "points_warped.csv", "displacement.nii.gz", "jacobian.nii.gz", "overlay.png", "trace.csv", "report.html",
           "metrics.json")


@dataclass(frozen=True)
class Result:
    """A registration's outcome.

    Attributes:
        pull_back: (D+1, D+1), fixed world points to moving world points, mm, as ITK's Resample takes it.
        warped: the moving image on the fixed grid.
        trace: one row per step of the chosen lane: stage, step, and the pose's matrix, row-major (m00, m01, ...); then
            the pose that the agent settled on and the refined one. The last row is ``pull_back``.
        metrics: mutual information at the start, after the agent, after refinement and after the deformation; seconds
            of each; TRE and Dice where landmarks and labels were given; what was decided in reading the images.
        deformation: the displacement that comes before the pose, where it was asked for.
        labels: of the moving image, whole numbers.
        landmarks: corresponding points of the fixed and of the moving image, (N, D) each, world mm.
    """

    fixed: Image
    moving: Image
    pull_back: NDArray[np.float64]
    warped: Image
    trace: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    deformation: Deformation | None = None
    labels: Image | None = field(default=None, kw_only=True)
    landmarks: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(default=None, kw_only=True)

    @property
    def transform(self) -> sitk.Transform:
        """SimpleITK's transform from fixed to moving world points, mm: affine, or composite if it deforms."""
        return composed(self.pull_back, self.deformation)

    def save(self, out: str | Path) -> Path:
        """Write into folder ``out``:

        - transform.tfm, the pose; with a deformation transform.h5, displacement and pose; transform.json, which says
          what they map to what;
        - warped.nii.gz, the moving image on the fixed grid; overlay.png; report.html; trace.csv;
        - with labels labels_warped.nii.gz, those of the moving image on the fixed grid, in their own integers;
        - with landmarks points_warped.csv, a row a point, mm: fixed_x... as given; in_moving_x..., where the transform
          takes it; moving_x... as given; in_fixed_x..., where the inverse takes that one; distance_mm, from in_moving
          to moving;
        - with a deformation displacement.nii.gz, that without the pose, vectors in mm (LPS) on its own grid; and
          jacobian.nii.gz, the determinant of the whole transform on the fixed grid: the moving image's volume over the
          fixed one's, 0 or less where it folds;
        - metrics.json.

        After a failure none of them is written. An earlier run's files of these names are replaced, or removed where
        this run has none; other files stay. metrics.json comes last: beside it the set is whole.
        """
        with whole_folder(out, WRITTEN) as folder:
            write_transform(folder / "transform.tfm", self.pull_back)
            write_image(folder / "warped.nii.gz", self.warped.array, self.warped.grid)
            files = {"transform.tfm": kind(np.asarray(self.pull_back))}
            if self.deformation is not None:
                files |= self._write_deformation(folder, field_of(self.deformation))
            (folder / "transform.json").write_text(
                statement.text(statement.statement(self.fixed, self.moving, files)))
            if self.labels is not None:
                labels = resampled_labels(self.labels, self.fixed.grid, self.transform)
                write_image(folder / "labels_warped.nii.gz", labels.array, labels.grid)
            if self.landmarks is not None:
                _write_table(folder / "points_warped.csv", self._points(*self.landmarks))
            render.write_png(folder / "overlay.png", np.concatenate(self._pictures()))
            _write_table(folder / "trace.csv", self.trace)
            report.write(folder / "report.html", self)
            (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2, allow_nan=False) + "\n")
        return Path(out)

    def _write_deformation(self, folder: Path, displacement: Field) -> dict[str, str]:
        """Write what there is only with a deformation. Returns what the transforms among it are, by file."""
        write_transform(folder / "transform.h5", self.transform)
        write_transform(folder / "displacement.nii.gz", displacement)
        pose = float(np.linalg.det(self.pull_back[:-1, :-1]))
        determinants = framed(pose * fields.determinants(displacement), displacement.grid)
        write_image(folder / "jacobian.nii.gz", sampled(determinants, self.fixed.grid, fill=pose), self.fixed.grid)
        then = kind(np.asarray(self.pull_back))
        return {"transform.h5": f"displacement field, then {then}",
                "displacement.nii.gz": "displacement field, of the fixed image's space; transform.tfm comes after it"}

    def _points(self, fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> list[dict[str, float]]:
        """A row for each pair of landmarks, see :meth:`save`."""
        chain = Chain.of([self.pull_back] if self.deformation is None
                         else [field_of(self.deformation), self.pull_back])
        there, back = chain.carry(fixed)[0], chain.inverse.carry(moving)[0]
        distances = np.linalg.norm(there - moving, axis=1)
        columns = {"fixed": fixed, "in_moving": there, "moving": moving, "in_fixed": back}
        return [{f"{name}_{axis}": float(points[n, a]) for name, points in columns.items()
                 for a, axis in enumerate("xyz"[:fixed.shape[1]])} | {"distance_mm": float(distances[n])}
                for n in range(len(fixed))]

    def _pictures(self) -> list[NDArray[np.uint8]]:
        """The fixed image with the moving one as it lies, and after registration."""
        grid, moving = self.fixed.grid, to_sitk(self.moving)
        fixed = sitk.GetArrayViewFromImage(to_sitk(self.fixed))
        return [render.frame(fixed, _middle_slices(moving, grid, transform), spacing=grid.spacing, text=text)
                for text, transform in (("before", None), ("after", self.transform))]


def _middle_slices(image: sitk.Image, grid: Grid, transform: sitk.Transform | None) -> NDArray[np.float32]:
    """An image on a grid, (*grid.shape), in three dimensions in the middle slices alone, which are what a picture
    shows; 0 elsewhere."""
    if grid.ndim == 2:
        return sampled(image, grid, transform)
    found = np.zeros(grid.shape, dtype=np.float32)
    for axis, size in enumerate(grid.shape):
        first = np.zeros(grid.ndim)
        first[axis] = size // 2
        shape = tuple(1 if other == axis else n for other, n in enumerate(grid.shape))
        middle = replace(grid, shape=shape, origin=tuple(grid.to_world(first).tolist()))
        found[(slice(None),) * axis + (slice(size // 2, size // 2 + 1),)] = sampled(image, middle, transform)
    return found


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV; a column that a row lacks stays empty."""
    found = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in found for name in row)))
        writer.writeheader()
        writer.writerows(found)


def field_of(deformation: Deformation) -> Field:
    """A deformation's displacements in millimetres."""
    vectors = np.moveaxis(deformation.displacement, 0, -1) @ deformation.grid.voxel_to_world[:-1, :-1].T
    return Field(np.ascontiguousarray(vectors), deformation.grid)


def composed(pull_back: NDArray[np.float64], deformation: Deformation | None) -> sitk.Transform:
    return matrix_to_sitk(pull_back) if deformation is None else deformation.through(pull_back)
