"""Transforms on disk, and their parts: matrices, displacement fields, and what else SimpleITK has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.data.io.displacements import Field
from regenv.data.io.errors import ImageError, check_utf8, reason, silent, unwritten
from regenv.data.io.resampling import matrix_to_sitk, sitk_to_matrix
from regenv.data.io.transform_files import FIELDS, TRANSFORMS, flattened, not_linear, stored_parts
from regenv.data.io.writing import write_image

Part: TypeAlias = "NDArray[np.float64] | Field | sitk.Transform"
"""A matrix (D+1, D+1), a displacement field, or another transform, such as a spline: a map of world points, mm, LPS."""

WRITABLE = (".tfm", ".txt", ".h5")
_HDF5_BYTES = 1 << 16   # that a file of HDF5 has beside its numbers
_ROUNDING = 1e-9
_RIGID = 1e-6               # by which a matrix may miss a rotation
_LEAST_DETERMINANT = 1e-12


# ----------------------------------------------------------------------------------------------------------- writing

def write_transform(path: str | Path, transform: NDArray[np.float64] | sitk.Transform | Field) -> None:
    """Write a transform as SimpleITK, ANTs and 3D Slicer read it (it maps fixed to moving world points).

    Args:
        path: .tfm, .txt or .h5 (which is smaller with a displacement field); .nii, .nii.gz, .mha or .nrrd for a field
            alone, whose vectors are rounded to 32 bits.
        transform: affine pull-back (D+1, D+1), world mm, LPS; SimpleITK's; or a field.

    Raises:
        ImageError: the matrix is not a finite, invertible, affine one, or the suffix is wrong, or the disk does not
            take the file.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    check_utf8(path)
    if path.name.lower().endswith(FIELDS):
        field = transform if isinstance(transform, Field) else _only_field(path, transform)
        return write_image(path, field.vectors.astype(np.float32), field.grid)
    if path.suffix.lower() not in WRITABLE:
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be {' or '.join(WRITABLE)}.")
    if isinstance(transform, sitk.Transform | Field):
        return _write(path, transform.transform() if isinstance(transform, Field) else transform)
    _check_matrix(path, np.asarray(transform, dtype=np.float64))
    _write(path, matrix_to_sitk(transform))


def _only_field(path: Path, transform: NDArray[np.float64] | sitk.Transform) -> Field:
    parts = parts_of(transform) if isinstance(transform, sitk.Transform) else (transform,)
    if len(parts) != 1 or not isinstance(parts[0], Field):
        raise ImageError(f"{path}: format is '{path.suffix}', of displacement fields, but the transform is "
                         f"{kinds(parts)}; it must be .tfm or .h5.")
    return parts[0]


def _write(path: Path, transform: sitk.Transform) -> None:
    with atomic(path) as temporary:
        if path.suffix.lower() == ".h5" and hasattr(os, "posix_fallocate"):
            _reserve(temporary, sum(numbers.nbytes for numbers in _numbers(transform)) + _HDF5_BYTES)
        try:
            with silent():
                sitk.WriteTransform(transform, str(temporary))
                found = sitk.ReadTransform(str(temporary))
        except RuntimeError as error:
            raise unwritten(path, reason(error)) from error
        whole = path.suffix.lower() == ".h5" or temporary.read_bytes().endswith(b"\n")
        read, given = _numbers(found), _numbers(transform)
        if not whole or len(read) != len(given) or not all(map(np.array_equal, read, given)):
            raise unwritten(path, "what can be read back is not what was written")


def _reserve(path: Path, size: int) -> None:
    """Raise OSError unless a file of so many bytes fits: after a write that fails, HDF5 crashes as Python ends."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


def _numbers(transform: sitk.Transform) -> list[NDArray[np.float64]]:
    """All parameters of a transform, of a composite one's parts in turn."""
    return [np.asarray(numbers) for part in flattened(transform) for numbers in
            (Field.of(part).vectors if part.GetTransformEnum() == sitk.sitkDisplacementField else part.GetParameters(),
             part.GetFixedParameters())]


# ----------------------------------------------------------------------------------------------------------- reading

def read_transform(path: str | Path) -> NDArray[np.float64]:
    """Read any linear transform that SimpleITK can (rigid, similarity, affine, or a composite of such).

    Returns:
        Pull-back, (D+1, D+1) float64, world mm, LPS.

    Raises:
        ImageError: the file is missing or unreadable, or the transform is not linear or not invertible.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() not in TRANSFORMS:
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {', '.join(TRANSFORMS)}.")
    for part in (parts := read_parts(path)):
        if not isinstance(part, np.ndarray):
            raise not_linear(path, kind(part))
    return parts[0]     # type: ignore[return-value]    # matrices that follow each other are one


def read_parts(path: str | Path) -> tuple[Part, ...]:
    """Read any transform that SimpleITK can, or a displacement field in mm (.nii, .nii.gz, .mha, .nrrd).

    Returns: at least one part, in the order in which a point goes through them; no two matrices follow each other.
    Raises ImageError: the file is missing, damaged or no transform, or a matrix is not invertible.
    """
    path = Path(path)
    stored = stored_parts(path)
    if not stored:
        raise ImageError(f"{path}: the composite transform is empty; it needs a part. Check where it comes from.")
    sizes = {part.grid.ndim if isinstance(part, Field) else part.GetDimension() for part in stored}
    if not sizes <= {2, 3} or len(sizes) > 1:
        raise ImageError(f"{path}: dimensions of its parts are {sorted(sizes)}; all must be 2, or all 3.")
    parts = joined(part if isinstance(part, Field) else _part(part) for part in stored)
    for part in parts:
        if isinstance(part, np.ndarray):
            _check_matrix(path, part)
        elif isinstance(part, sitk.Transform) and not np.isfinite(part.GetParameters()).all():
            raise ImageError(f"{path}: a parameter of its {kind(part)} is infinite or not a number; all must be "
                             "finite. Check where it comes from.")
    return parts


def parts_of(transform: sitk.Transform) -> tuple[Part, ...]:
    """The parts of SimpleITK's transform, as :func:`read_parts`."""
    return joined(map(_part, flattened(transform)))


def _part(transform: sitk.Transform) -> Part:
    """One transform that is no composite."""
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        return Field.of(transform)
    return _stored_matrix(transform) if transform.IsLinear() else transform


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts of which no two matrices follow each other: their product stands for them."""
    found: list[Part] = []
    for part in parts:
        if found and isinstance(part, np.ndarray) and isinstance(found[-1], np.ndarray):
            found[-1] = part @ found[-1]
        else:
            found.append(part)
    return tuple(found)


def composite(parts: Sequence[Part]) -> sitk.Transform:
    """SimpleITK's transform of parts (at least one) that a point goes through in this order."""
    transforms = [matrix_to_sitk(part) if isinstance(part, np.ndarray) else
                  part.transform() if isinstance(part, Field) else part for part in parts]
    return transforms[0] if len(transforms) == 1 else sitk.CompositeTransform(transforms[::-1])


def kind(part: Part) -> str:
    """What a part is, in a word: "translation", "rigid", "similarity", "affine", "displacement field" or ITK's name."""
    if not isinstance(part, np.ndarray):
        return "displacement field" if isinstance(part, Field) else str(part.GetName())
    linear = part[:-1, :-1]
    scale = abs(np.linalg.det(linear)) ** (1 / len(linear))
    if np.abs(linear - np.eye(len(linear))).max() < _RIGID:
        return "translation" if part[:-1, -1].any() else "identity"
    if np.abs(linear @ linear.T - scale**2 * np.eye(len(linear))).max() >= _RIGID * scale**2:
        return "affine"
    mirrored = "mirrored " if np.linalg.det(linear) < 0 else ""
    return mirrored + ("rigid" if abs(scale - 1) < _RIGID else "similarity")


def kinds(parts: Sequence[Part]) -> str:
    """What the parts are, in the order in which a point goes through them."""
    return ", then ".join(map(kind, parts))


def _stored_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """The matrix (D+1, D+1) of a linear SimpleITK transform from its parameters, so that what was written is read
    without rounding; :func:`sitk_to_matrix`, which maps points, rounds."""
    n = transform.GetDimension()
    matrix = np.eye(n + 1)
    concrete = transform.Downcast()
    if not (hasattr(concrete, "GetMatrix") and hasattr(concrete, "GetTranslation")):  # translation, scale
        return sitk_to_matrix(transform)
    linear = np.asarray(concrete.GetMatrix()).reshape(n, n)
    center = np.asarray(concrete.GetCenter())
    matrix[:n, :n] = linear
    matrix[:n, n] = np.asarray(concrete.GetTranslation()) + center - linear @ center
    return matrix


def _check_matrix(path: Path, matrix: NDArray[np.float64]) -> None:
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ImageError(f"{path}: matrix shape is {matrix.shape}; it must be (3, 3) in 2D or (4, 4) in 3D.")
    n = matrix.shape[0] - 1
    if not np.isfinite(matrix).all() or not np.allclose(matrix[n], np.eye(n + 1)[n], rtol=0, atol=_ROUNDING) \
            or abs(np.linalg.det(matrix[:n, :n])) < _LEAST_DETERMINANT:
        raise ImageError(f"{path}: matrix is {matrix.tolist()}; it must be finite, affine and invertible. "
                         "Check where it comes from.")
