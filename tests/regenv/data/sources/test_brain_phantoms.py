"""What is true of pairs of a synthetic head: contrasts that vary with difficulty, and one right orientation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.regenv.data.drawing import CPU, PAINTED, generators, similarity


def test_brain_without_difficulty_has_one_contrast_and_with_it_many() -> None:
    source, grid = PAINTED["brain2d"]
    plain, hard = (source.draw(generators(12), grid, CPU, d) for d in (0.0, 1.0))
    assert (similarity(plain, 0) > 0.99).all()
    inside = [np.corrcoef(f[c].numpy(), m[c].numpy())[0, 1]
              for f, m, c in zip(hard.fixed, hard.moving, hard.fixed > 0.12, strict=True)]
    assert min(inside) < 0


@pytest.mark.parametrize("turn", [(0,), (1,), (0, 1)])
def test_brain_orientation_is_unique(turn: tuple[int, ...]) -> None:
    source, grid = PAINTED["brain2d"]
    batch = source.draw(generators(6), grid, CPU, 0.0)
    flipped = batch.fixed.flip([2 + a for a in turn])
    assert ((flipped - batch.fixed).abs().flatten(1).mean(1) > 0.01).all()
