"""Linear transforms on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.data.io.errors import ImageError, reason
from regenv.data.io.resampling import matrix_to_sitk, sitk_to_matrix

_TRANSFORMS = (".tfm", ".txt", ".h5", ".hdf5", ".mat")
_ROUNDING = 1e-9
_LEAST_DETERMINANT = 1e-12


def write_transform(path: str | Path, pull_back: NDArray[np.float64]) -> None:
    """Write an affine pull-back as SimpleITK and 3D Slicer read it (it maps fixed to moving world points).

    Args:
        path: .tfm or .txt.
        pull_back: (D+1, D+1), world mm, LPS.

    Raises:
        ImageError: the matrix is not a finite, invertible, affine one, or the suffix is wrong.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    matrix = np.asarray(pull_back, dtype=np.float64)
    if path.suffix.lower() not in (".tfm", ".txt"):
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be .tfm or .txt.")
    _check_matrix(path, matrix)
    with atomic(path) as temporary:
        try:
            sitk.WriteTransform(matrix_to_sitk(matrix), str(temporary))
        except RuntimeError as error:
            raise ImageError(f"{path}: SimpleITK cannot write it ({reason(error)}). "
                             "Check the folder and the free space.") from error


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
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ImageError(f"{path}: SimpleITK cannot read it as a transform ({reason(error)}). "
                         "Check that the file is complete.") from error
    if not transform.IsLinear():
        raise ImageError(f"{path}: transform is {transform.GetName()}; a linear one (rigid, similarity, affine) is "
                         "needed. Export the linear part.")
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
