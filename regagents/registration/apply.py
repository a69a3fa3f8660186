"""Transforms applied to images, labels and points, in a chain, each of them or its inverse; and transforms inverted.

A transform maps points of the fixed image to points of the moving image, mm, LPS, as ITK's do, so it carries images and
labels the other way. A chain's steps stand in the order in which a point of the fixed image goes through them, as on
the command line of ANTs' antsApplyTransforms (ITK's CompositeTransform lists them from the end).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.registration import fields
from regagents.registration.statement import BACKWARD, FORWARD, check_free, read_statement, write_statement
from regenv.atomic import atomic
from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError
from regenv.data.io.formats import inspect
from regenv.data.io.headers import MAX_BYTES, Header
from regenv.data.io.images import Image, read_image, read_labels
from regenv.data.io.resampling import framed, resampled, resampled_labels, sampled
from regenv.data.io.transform_files import FIELDS
from regenv.data.io.transforms import (
    WRITABLE,
    Part,
    composite,
    joined,
    kind,
    kinds,
    parts_of,
    read_parts,
    write_transform,
)
from regenv.data.io.voxels import check_finite, whole_numbers
from regenv.grid import Grid

TransformLike: TypeAlias = "str | Path | NDArray[np.float64] | sitk.Transform | Field"
Step: TypeAlias = "TransformLike | Inverse"
ImageLike: TypeAlias = "str | Path | Image"
INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline,
                 "lanczos": sitk.sitkLanczosWindowedSinc}
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
CHUNK = 1 << 20         # points that are carried at a time
MEASURED = 1 << 21      # points at which a round trip is measured, at most
CUBE_MM = 100.0         # from the world's origin to the sides of the cube where that of a linear transform is


@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a transform, as a step of a chain."""

    of: TransformLike


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps as parts: each with whether its inverse is taken, which of a matrix is another matrix."""

    links: tuple[tuple[Part, bool], ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Chain:
        """A chain of steps, in the order in which a point of the fixed image goes through them.

        Raises ImageError: a file cannot be read. ValueError: there is no step; dimensions differ; the inverse of a
            transform that is neither linear nor a displacement field.
        """
        if not steps:
            raise ValueError("apply: the chain has no transform; give at least one.")
        links = [link for step in steps for link in _links(step)]
        sizes = {_ndim(part) for part, _ in links}
        if len(sizes) > 1:
            raise ValueError(f"apply: the transforms' dimensions are {sorted(sizes)}; all must be 2, or all 3.")
        found: list[tuple[Part, bool]] = []
        for part, inverted in links:
            if found and isinstance(part, np.ndarray) and isinstance(found[-1][0], np.ndarray):
                found[-1] = (part @ found[-1][0], False)
            else:
                found.append((part, inverted))
        return cls(tuple(found))

    @property
    def ndim(self) -> int:
        return _ndim(self.links[0][0])

    @property
    def inverse(self) -> Chain:
        """Raises ValueError: a part has no inverse."""
        return Chain(tuple(_turned(part, inverted) for part, inverted in reversed(self.links)))

    def carry(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Points (N, D), world mm, at the chain's end; and which of them are astray, (N,): no point of an inverted
        field's grid is mapped to them."""
        found, astray = np.asarray(points, dtype=np.float64), np.zeros(len(points), dtype=bool)
        for part, inverted in self.links:
            if isinstance(part, np.ndarray):
                found = found @ part[:-1, :-1].T + part[:-1, -1]
            elif isinstance(part, sitk.Transform):
                found = np.array([part.TransformPoint(point) for point in found.tolist()]).reshape(found.shape)
            elif inverted:
                found, lost = fields.sources(part, found)
                astray |= lost
            else:
                found = fields.moved(part, found)
        return found, astray

    def transform(self, like: Grid) -> sitk.Transform:
        """SimpleITK's transform. Where a field is inverted it is a field on a grid, exact at its voxels."""
        if not any(inverted for _, inverted in self.links):
            return composite([part for part, _ in self.links])
        vectors = np.empty((int(np.prod(like.shape)), like.ndim))
        for first in range(0, len(vectors), CHUNK):
            chosen = np.arange(first, min(first + CHUNK, len(vectors)))
            points = like.to_world(np.stack(np.unravel_index(chosen, like.shape), -1))
            vectors[chosen] = self.carry(points)[0] - points
        return Field(vectors.reshape(*like.shape, like.ndim), like).transform()


def _ndim(part: Part) -> int:
    return len(part) - 1 if isinstance(part, np.ndarray) else part.grid.ndim if isinstance(part, Field) \
        else part.GetDimension()


def _links(step: Step) -> list[tuple[Part, bool]]:
    """A step's parts, in the order in which a point goes through them."""
    if isinstance(step, Inverse):
        return [_turned(part, False) for part in reversed(parts(step.of))]
    return [(part, False) for part in parts(step)]


def _turned(part: Part, inverted: bool) -> tuple[Part, bool]:
    if isinstance(part, np.ndarray):
        return np.asarray(np.linalg.inv(part), dtype=np.float64), False
    if isinstance(part, sitk.Transform):
        raise ValueError(f"apply: a transform is {kind(part)}, whose inverse is not known here; write it as a "
                         "displacement field first.")
    return part, not inverted


def parts(transform: TransformLike) -> tuple[Part, ...]:
    """A transform's parts, in the order in which a point goes through them. Raises ImageError: as :func:`read_parts`.
    ValueError: a matrix is none of an affine, invertible map."""
    if isinstance(transform, str | Path):
        return read_parts(transform)
    if isinstance(transform, sitk.Transform):
        return parts_of(transform)
    if isinstance(transform, Field):
        return (transform,)
    matrix = np.asarray(transform, dtype=np.float64)
    if matrix.shape not in ((3, 3), (4, 4)) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise ValueError(f"apply: a matrix of shape {matrix.shape} is {matrix.tolist()}; it must be (3, 3) or (4, 4), "
                         "finite and invertible.")
    return (matrix,)


# ---------------------------------------------------------------------------------------------------------------- apply

@dataclass(frozen=True, eq=False)
class Applied:
    """An image or labels on another grid; and the share of its voxels that the image covers, 0 to 1."""

    image: Image
    covered: float


def apply_transforms(steps: Sequence[Step], like: ImageLike | Grid, *, image: ImageLike | None = None,
                     labels: ImageLike | None = None, interpolation: str = "linear",
                     fill: float | None = None) -> Applied:
    """An image or labels of the moving image, carried to the fixed image.

    Args:
        steps: transforms (files, matrices (D+1, D+1), SimpleITK's, fields) or their :class:`Inverse`, in the order in
            which a point of the fixed image goes through them.
        like: the fixed image, or its grid.
        image: float32 comes back. labels: whole numbers, that of the nearest voxel, 0 outside; one of the two.
        interpolation: of the image, one of :data:`INTERPOLATORS`.
        fill: of the image where it does not reach, default its least value.
    Raises: ImageError: a file cannot be read, or dimensions differ. ValueError: as :meth:`Chain.of`; neither image nor
        labels, or both; another interpolation.
    """
    if (image is None) == (labels is None):
        raise ValueError("apply: give an image or labels, one of the two.")
    if interpolation not in INTERPOLATORS:
        raise ValueError(f"apply: interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATORS)}.")
    if fill is not None and not abs(fill) <= float(np.finfo(np.float32).max):
        raise ValueError(f"apply: fill is {fill}; it must be a finite number of 32 bits.")
    chain = Chain.of(steps)
    moving = _image(image) if image is not None else _labels(labels)    # type: ignore[arg-type]
    grid = like if isinstance(like, Grid) else _image(like).grid
    for name, ndim in ((moving.path, moving.ndim), ("the image that it is to lie like", grid.ndim)):
        if ndim != chain.ndim:
            raise ImageError(f"{name}: it is {ndim}D, but the transforms are {chain.ndim}D; all must have the same "
                             "dimension.")
    through = chain.transform(grid)
    found = resampled_labels(moving, grid, through) if image is None else \
        resampled(moving, grid, through, fill, INTERPOLATORS[interpolation])
    ones = framed(np.ones(moving.grid.shape, np.uint8), moving.grid)
    covered = sampled(ones, grid, through, 0.0, sitk.sitkNearestNeighbor, sitk.sitkUInt8).mean(dtype=np.float64)
    return Applied(found, float(covered))


def map_points(steps: Sequence[Step], points: NDArray[np.float64],
               of: str = "fixed") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points of the fixed image where they lie in the moving image, or, ``of`` "moving", the other way: by the inverse,
    to 1e-7 voxels of a displacement field.

    Args: points: (N, D), world mm, LPS.
    Returns: points (N, D), and which of them are astray (N,): no point of a field's grid is mapped to them.
    Raises ValueError: as :meth:`Chain.of`; the points have another dimension.
    """
    if of not in ("fixed", "moving"):
        raise ValueError(f"apply: the points are of {of!r}; it must be fixed or moving.")
    chain = Chain.of(steps)
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != chain.ndim:
        raise ValueError(f"apply: points have shape {given.shape}, but the transforms are {chain.ndim}D; "
                         f"(N, {chain.ndim}) is needed.")
    return (chain if of == "fixed" else chain.inverse).carry(given)


def write_points(path: str | Path, points: NDArray[np.float64]) -> None:
    """Write points (N, D) as CSV with the names x, y[, z], so that they are read as they were."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(["xyz"[:points.shape[1]], *points.tolist()])


def header_of(path: Path, time: int | None = None) -> Header:
    """The header of an image's file or a DICOM series. Raises ImageError: as the readers of images."""
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder. Check the path.")
    if path.is_dir() or path.name.lower().endswith(DICOM_SUFFIXES):
        from regenv.data.io.dicom import read_series  # a quarter of a second, which few need

        return read_series(path, None, MAX_BYTES)
    return inspect(path, MAX_BYTES, time)


def grid_of(path: str | Path, spacing: float | None = None) -> Grid:
    """An image's grid; its voxels, which may all be 0, are not read. Args: spacing: mm, where the file has none."""
    header = header_of(Path(path), time=0)
    n = len(header.size)
    return Grid(header.size[::-1], header.spacing or (1.0 if spacing is None else spacing,) * n, header.origin,
                header.direction)


def _image(given: ImageLike) -> Image:
    image = given if isinstance(given, Image) else read_image(given)
    check_finite(image.path, image.array)
    return image


def _labels(given: ImageLike) -> Image:
    if not isinstance(given, Image):
        return read_labels(given)
    return Image(whole_numbers(given.path, given.array), given.grid, given.path)


# --------------------------------------------------------------------------------------------------------------- invert

@dataclass(frozen=True, eq=False)
class Inverted:
    """The inverse of a transform.

    Attributes:
        parts: in the order in which a point goes through them: matrices, and fields on grids of their own.
        round_trip_mm: how far points come back from where they started, after the transform and its inverse: "median",
            "p99" and "max" over the voxels of the first field's grid; of a linear one, the corners of a cube.
        folded: share of the fields' voxels where the transform has no inverse (the largest share of a field).
    """

    parts: tuple[Part, ...]
    round_trip_mm: dict[str, float]
    folded: float

    @property
    def transform(self) -> sitk.Transform:
        return composite(self.parts)

    @property
    def kind(self) -> str:
        return kinds(self.parts)


def invert_transform(transform: TransformLike) -> Inverted:
    """The inverse: of a matrix exactly, of a displacement field by iteration in every voxel, of a composite in the
    reversed order.

    Where a field folds, several points have one target; the inverse then leads to one of them, and ``folded`` and the
    round trip tell. Raises ImageError, ValueError: as :meth:`Chain.of`.
    """
    chain = Chain.of([transform])
    turned = joined(fields.inverse(part) if inverted and isinstance(part, Field) else part
                    for part, inverted in chain.inverse.links)
    folded = max((fields.share_folded(part) for part, _ in chain.links if isinstance(part, Field)), default=0.0)
    points = _domain(chain)
    back = Chain(tuple((part, False) for part in turned)).carry(chain.carry(points)[0])[0]
    error = np.linalg.norm(back - points, axis=1)
    return Inverted(turned, {"median": float(np.median(error)), "p99": float(np.percentile(error, 99)),
                             "max": float(error.max())}, folded)


def invert_file(path: str | Path, out: str | Path) -> Inverted:
    """Write the inverse of a file's transform, and beside it the JSON that says what it maps to what and how well.

    Args: out: .tfm, .txt or .h5; also .nii, .nii.gz, .mha or .nrrd for a displacement field alone.
    Raises: as :func:`invert_transform`; ImageError: the suffix is another, or not for such a transform. ValueError: the
        JSON would replace a file that is none of a transform.
    """
    out, given = Path(out), parts(path)
    alone = len(given) == 1 and isinstance(given[0], Field)
    if not out.name.lower().endswith(WRITABLE + FIELDS if alone else WRITABLE):
        raise ImageError(f"{out}: format is '{out.suffix}'; the inverse of a transform that is {kinds(given)} is "
                         f"written as {', '.join(WRITABLE + FIELDS if alone else WRITABLE)}.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: folder {out.parent} does not exist. Create it first.")
    check_free(out)
    stated = read_statement(path) or {}
    maps = {FORWARD: BACKWARD, BACKWARD: FORWARD}.get(stated.get("maps", ""),
                                                      f"points, mm, LPS, the other way than {Path(path).name}")
    inverted = invert_transform(composite(given))
    only = inverted.parts[0] if len(inverted.parts) == 1 else None
    write_transform(out, inverted.transform if only is None else only)
    write_statement(out, {"maps": maps, "files": {out.name: inverted.kind}, "inverse_of": str(path),
                          "round_trip_mm": inverted.round_trip_mm, "folded": inverted.folded,
                          **{name: stated[name] for name in ("fixed", "moving") if name in stated}})
    return inverted


def _domain(chain: Chain) -> NDArray[np.float64]:
    """Points (N, D) at which a round trip is measured, where the chain begins."""
    n = chain.ndim
    first = next((at for at, (part, _) in enumerate(chain.links) if isinstance(part, Field)), None)
    if first is None:
        return np.asarray(CUBE_MM * (2.0 * np.stack(np.unravel_index(np.arange(2**n), (2,) * n), -1) - 1))
    grid = chain.links[first][0].grid       # type: ignore[union-attr]
    count = int(np.prod(grid.shape))
    voxels = np.arange(0, count, 1 + count // MEASURED)
    nodes = grid.to_world(np.stack(np.unravel_index(voxels, grid.shape), -1))
    return Chain(chain.links[:first]).inverse.carry(nodes)[0] if first else nodes
