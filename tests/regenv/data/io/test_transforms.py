"""Transforms: they come back as written and map points as SimpleITK does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.transforms import read_transform, write_transform
from tests.regenv.data.io.helpers import (
    TRANSFORM_MM,
    rotation,
)


@pytest.mark.parametrize("ndim", [2, 3])
def test_transform_round_trip(tmp_path: Path, rng, ndim: int) -> None:
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] = rotation(ndim, rng) @ (np.eye(ndim) + 0.1 * rng.normal(size=(ndim, ndim)))
    matrix[:ndim, ndim] = rng.normal(size=ndim) * 100
    path = tmp_path / "t.tfm"
    write_transform(path, matrix)
    np.testing.assert_allclose(read_transform(path), matrix, atol=TRANSFORM_MM, rtol=0)
    read = sitk.ReadTransform(str(path))
    for point in rng.normal(size=(5, ndim)) * 100:
        expected = matrix[:ndim, :ndim] @ point + matrix[:ndim, ndim]
        np.testing.assert_allclose(read.TransformPoint(point.tolist()), expected, atol=TRANSFORM_MM)
    assert f"AffineTransform_double_{ndim}_{ndim}" in path.read_text()


def _euler() -> sitk.Transform:
    return sitk.Euler3DTransform((10, -20, 30), 0.1, -0.2, 0.3, (5, 6, 7))


@pytest.mark.parametrize("transform", [
    _euler(), sitk.TranslationTransform(3, (1, 2, 3)), sitk.ScaleTransform(3, (1, 2, 3)),
    sitk.Transform(3, sitk.sitkIdentity),
    sitk.Similarity3DTransform(1.3, (0, 0, 1), 0.4, (1, 2, 3), (4, 5, 6)), sitk.Euler2DTransform((3, 4), 0.5, (1, 2)),
    sitk.CompositeTransform([_euler(), sitk.TranslationTransform(3, (1, 2, 3)), _euler()]),
], ids=lambda t: t.GetName())
def test_any_linear_transform_is_read(tmp_path: Path, rng, transform: sitk.Transform) -> None:
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    matrix = read_transform(tmp_path / "t.tfm")
    n = transform.GetDimension()
    for point in rng.normal(size=(5, n)) * 100:
        np.testing.assert_allclose(matrix[:n, :n] @ point + matrix[:n, n], transform.TransformPoint(point.tolist()),
                                   atol=TRANSFORM_MM)


def test_bad_transforms(tmp_path: Path) -> None:
    (tmp_path / "bad.tfm").write_text("nothing")
    sitk.WriteTransform(sitk.DisplacementFieldTransform(sitk.Image(4, 4, 4, sitk.sitkVectorFloat64)),
                        str(tmp_path / "field.h5"))
    for name, words in (("bad.tfm", "cannot read it as a transform"), ("none.tfm", "no such file"),
                        ("field.h5", "a linear one")):
        with pytest.raises(ImageError, match=f"{name}: .*{words}"):
            read_transform(tmp_path / name)
    singular = np.diag([1.0, 1.0, 0.0, 1.0])
    for matrix, words in ((singular, "invertible"), (np.full((4, 4), np.nan), "finite"), (np.eye(5), "shape"),
                          (np.ones((4, 4)), "affine")):
        with pytest.raises(ImageError, match=f"t.tfm: matrix .*{words}"):
            write_transform(tmp_path / "t.tfm", matrix)
    with pytest.raises(ImageError, match=r"t\.nii: format is '\.nii'"):
        write_transform(tmp_path / "t.nii", np.eye(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tfm", "field.h5"]


def test_a_product_of_matrices_may_carry_rounding_in_its_last_row(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[3, 3] += 2e-16
    write_transform(tmp_path / "pose.tfm", matrix)
    assert np.allclose(read_transform(tmp_path / "pose.tfm"), np.eye(4), atol=1e-12)
