"""What the classical methods share."""

from itertools import islice

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.classical import downsampled, random_starts
from regenv.data.io.resampling import framed, matrix_to_sitk, sitk_to_matrix
from regenv.grid import Grid
from tests.regagents.classical.images import EXACT


def test_downsampled_images_keep_their_place() -> None:
    grid = Grid.centered((20, 60, 62), (1.0, 1.0, 4.0), (5.0, -7.0, 11.0))
    small = downsampled(framed(np.random.default_rng(0).random(grid.shape), grid, np.float32), 20_000)
    assert small.GetSpacing() == (2.0, 2.0, 4.0)
    np.testing.assert_allclose(Grid.from_sitk(small).center, grid.center, atol=EXACT)
    assert downsampled(small, 20_000).GetSize() == small.GetSize()


@pytest.mark.parametrize("transform", [sitk.Euler2DTransform(), sitk.Similarity2DTransform(), sitk.Euler3DTransform(),
                                       sitk.VersorRigid3DTransform(), sitk.Similarity3DTransform()],
                         ids=lambda transform: transform.GetName())
def test_matrices_survive_simpleitk(transform: sitk.Transform) -> None:
    n = transform.GetDimension()
    rng = np.random.default_rng(n)
    transform.SetCenter(rng.uniform(-100, 100, n).tolist())
    # any rigid matrix; similarity with its scale of one
    matrix = next(islice(random_starts(np.eye(n + 1), np.zeros(n), rng, 100, 80), 1, None))
    center = np.asarray(transform.GetCenter())
    transform.SetMatrix(matrix[:n, :n].ravel().tolist())
    transform.SetTranslation((matrix[:n, n] - center + matrix[:n, :n] @ center).tolist())
    np.testing.assert_allclose(sitk_to_matrix(transform), matrix, atol=EXACT)
    np.testing.assert_allclose(sitk_to_matrix(matrix_to_sitk(sitk_to_matrix(transform))), matrix, atol=EXACT)
    point = rng.uniform(-100, 100, n)
    np.testing.assert_allclose(transform.TransformPoint(point.tolist()), matrix[:n, :n] @ point + matrix[:n, n],
                               atol=1e-8)
