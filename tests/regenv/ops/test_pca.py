"""Principal components against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as Reference

from regenv.ops import pca

TOLERANCE = 1e-5
SIZES = pytest.mark.parametrize(("rows", "features"), [(200, 12), (15, 300)])  # more rows than features, and fewer


def make_rows(rows: int, features: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(3.0, 1.0, features) + rng.normal(size=(rows, features)) @ np.diag(np.linspace(2, 0.5, features))


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_scikit_learn(rows, features, dtype):
    data = make_rows(rows, features)
    reference = Reference(n_components=6, svd_solver="full").fit(data)
    peaks = np.abs(reference.components_).argmax(1)
    signs = np.sign(reference.components_[np.arange(6), peaks])
    found = pca.fit(torch.from_numpy(data).to(dtype), 6)
    assert found.modes.dtype == dtype
    np.testing.assert_allclose(found.mean, reference.mean_, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.modes, reference.components_ * signs[:, None], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.deviations, np.sqrt(reference.explained_variance_), rtol=TOLERANCE)
    amplitudes = found.transform(torch.from_numpy(data).to(dtype))
    np.testing.assert_allclose(amplitudes, reference.transform(data) * signs, rtol=0, atol=5 * TOLERANCE)
    expected = reference.inverse_transform(reference.transform(data))
    np.testing.assert_allclose(found.mean + amplitudes @ found.modes, expected, rtol=0, atol=5 * TOLERANCE)


@SIZES
def test_modes_are_orthonormal_and_all_of_them_lose_nothing(rows, features):
    data = torch.from_numpy(make_rows(rows, features))
    found = pca.fit(data, min(rows - 1, features))
    torch.testing.assert_close(found.modes @ found.modes.T, torch.eye(len(found.modes), dtype=data.dtype))
    torch.testing.assert_close(found.mean + found.transform(data) @ found.modes, data)
    assert (found.deviations.diff() <= 0).all()


def test_signs_do_not_depend_on_the_order_of_the_rows_or_the_sign_of_the_data():
    data = torch.from_numpy(make_rows(40, 9))
    found, shuffled, mirrored = (pca.fit(rows, 5).modes for rows in (data, data.flip(0), -data))
    torch.testing.assert_close(shuffled, found)
    torch.testing.assert_close(mirrored, found)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_modes_than_directions_are_refused(dtype):
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(30, 3, generator=generator, dtype=dtype) @ torch.randn(3, 50, generator=generator, dtype=dtype)
    assert len(pca.fit(flat + 100, 3).modes) == 3
    with pytest.raises(ValueError, match="count is 4, but 30 rows of 50 features vary in 3 directions"):
        pca.fit(flat + 100, 4)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count is {count}"):
            pca.fit(torch.randn(5, 50, generator=generator), count)


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.full((4, 4), torch.nan)])
def test_rows_that_are_not_a_finite_matrix_are_refused(rows):
    with pytest.raises(ValueError, match=r"pca: rows is \("):
        pca.fit(rows, 1)
