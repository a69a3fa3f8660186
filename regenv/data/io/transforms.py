"""Linear transforms on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from regenv.atomic import atomic
from regenv.data.io.headers import ImageError
from regenv.data.io.images import _reason

_TRANSFORMS = (".tfm", ".txt", ".h5", ".hdf5", ".mat")
_ROUNDING = 1e-9
_LEAST_DETERMINANT = 1e-12


def write_transform(path: str | Path, pull_back: np.ndarray) -> None:
    """Write an affine pull-back as SimpleITK and 3D Slicer read it (it maps fixed to moving world points).

    Args:
        path: .tfm or .txt.
        pull_back: (D+1, D+1), world mm, LPS.

    Raises:
        ImageError: the matrix is not a finite, invertible, affine one, or the suffix is wrong.
    """
    path = Path(path)
    matrix = np.asarray(pull_back, dtype=np.float64)
    if path.suffix.lower() not in (".tfm", ".txt"):
        raise ImageError(f"{path}: format is '{path.suffix}'; it must be .tfm or .txt.")
    _check_matrix(path, matrix)
    n = matrix.shape[0] - 1
    transform = sitk.AffineTransform(n)
    transform.SetMatrix(matrix[:n, :n].ravel().tolist())
    transform.SetTranslation(matrix[:n, n].tolist())
    with atomic(path) as temporary:
        try:
            sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise ImageError(f"{path}: SimpleITK cannot write it ({_reason(error)}). "
                             "Check the folder and the free space.") from error


def read_transform(path: str | Path) -> np.ndarray:
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
        raise ImageError(f"{path}: SimpleITK cannot read it as a transform ({_reason(error)}). "
                         "Check that the file is complete.") from error
    if not transform.IsLinear():
        raise ImageError(f"{path}: transform is {transform.GetName()}; a linear one (rigid, similarity, affine) is "
                         "needed. Export the linear part.")
    matrix = _matrix(transform)
    _check_matrix(path, matrix)
    return matrix


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """Homogeneous matrix of a linear SimpleITK transform, (D+1, D+1)."""
    n = transform.GetDimension()
    matrix = np.eye(n + 1)
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        for i in range(composite.GetNumberOfTransforms()):      # the last one added is applied first
            matrix = matrix @ _matrix(composite.GetNthTransform(i))
        return matrix
    concrete = transform.Downcast()
    if not (hasattr(concrete, "GetMatrix") and hasattr(concrete, "GetTranslation")):  # translation, scale
        shift = np.asarray(transform.TransformPoint((0.0,) * n))
        matrix[:n, :n] = np.stack([np.asarray(transform.TransformPoint(e)) - shift for e in np.eye(n).tolist()], axis=1)
        matrix[:n, n] = shift
        return matrix
    linear = np.asarray(concrete.GetMatrix()).reshape(n, n)
    center = np.asarray(concrete.GetCenter())
    matrix[:n, :n] = linear
    matrix[:n, n] = np.asarray(concrete.GetTranslation()) + center - linear @ center
    return matrix


def _check_matrix(path: Path, matrix: np.ndarray) -> None:
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ImageError(f"{path}: matrix shape is {matrix.shape}; it must be (3, 3) in 2D or (4, 4) in 3D.")
    n = matrix.shape[0] - 1
    if not np.isfinite(matrix).all() or not np.allclose(matrix[n], np.eye(n + 1)[n], rtol=0, atol=_ROUNDING) \
            or abs(np.linalg.det(matrix[:n, :n])) < _LEAST_DETERMINANT:
        raise ImageError(f"{path}: matrix is {matrix.tolist()}; it must be finite, affine and invertible. "
                         "Check where it comes from.")
