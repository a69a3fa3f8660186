"""Transforms on disk; only linear ones are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.data.io.errors import ImageError, check_utf8, reason, silent, unwritten
from regenv.data.io.resampling import matrix_to_sitk, sitk_to_matrix
from regenv.data.io.transform_files import linear_transform

_TRANSFORMS = (".tfm", ".txt", ".h5", ".hdf5", ".mat")
_HDF5_BYTES = 1 << 16   # that a file of HDF5 has beside its numbers
_ROUNDING = 1e-9
_LEAST_DETERMINANT = 1e-12


def write_transform(path: str | Path, transform: NDArray[np.float64] | sitk.Transform) -> None:
    """Write a transform as SimpleITK and 3D Slicer read it (it maps fixed to moving world points).

    Args:
        path: .tfm or .txt; .h5 for one with a displacement field.
        transform: affine pull-back (D+1, D+1), world mm, LPS; or SimpleITK's.

    Raises:
        ImageError: the matrix is not a finite, invertible, affine one, or the suffix is wrong, or the disk does not
            take the file.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    check_utf8(path)
    suffixes = (".tfm", ".txt", ".h5") if isinstance(transform, sitk.Transform) else (".tfm", ".txt")
    if path.suffix.lower() not in suffixes:
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be {' or '.join(suffixes)}.")
    if not isinstance(transform, sitk.Transform):
        _check_matrix(path, np.asarray(transform, dtype=np.float64))
        transform = matrix_to_sitk(transform)
    with atomic(path) as temporary:
        if path.suffix.lower() == ".h5" and hasattr(os, "posix_fallocate"):
            _reserve(temporary, 8 * sum(map(len, _numbers(transform))) + _HDF5_BYTES)
        try:
            with silent():
                sitk.WriteTransform(transform, str(temporary))
                found = sitk.ReadTransform(str(temporary))
        except RuntimeError as error:
            raise unwritten(path, reason(error)) from error
        whole = path.suffix.lower() == ".h5" or temporary.read_bytes().endswith(b"\n")
        if not whole or _numbers(found) != _numbers(transform):
            raise unwritten(path, "what can be read back is not what was written")


def _reserve(path: Path, size: int) -> None:
    """Raise OSError unless a file of so many bytes fits: after a write that fails, HDF5 crashes as Python ends."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


def _numbers(transform: sitk.Transform) -> list[tuple[float, ...]]:
    """All parameters of a transform, of a composite one's parts in turn."""
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        parts = [composite.GetNthTransform(i) for i in range(composite.GetNumberOfTransforms())]
        return [numbers for part in parts for numbers in _numbers(part)]
    return [transform.GetParameters(), transform.GetFixedParameters()]


def read_transform(path: str | Path) -> NDArray[np.float64]:
    """Read any linear transform that SimpleITK can (rigid, similarity, affine, or a composite of such).

    Returns:
        Pull-back, (D+1, D+1) float64, world mm, LPS.

    Raises:
        ImageError: the file is missing or unreadable, or the transform is not linear or not invertible.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    if path.suffix.lower() not in _TRANSFORMS:
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be one of {', '.join(_TRANSFORMS)}.")
    transform = linear_transform(path)
    matrix = _stored_matrix(transform)
    _check_matrix(path, matrix)
    return matrix


def _stored_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """The matrix (D+1, D+1) of a linear SimpleITK transform from its parameters, so that what was written is read
    without rounding; :func:`sitk_to_matrix`, which maps points, rounds."""
    n = transform.GetDimension()
    matrix = np.eye(n + 1)
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        for i in range(composite.GetNumberOfTransforms()):      # the last one added is applied first
            matrix = matrix @ _stored_matrix(composite.GetNthTransform(i))
        return matrix
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
