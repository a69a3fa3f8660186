"""What is true of the bank of heads."""

from __future__ import annotations

import numpy as np
import pytest

from regenv.data.banks.heads import load_heads

pytest.importorskip("nilearn", reason="MNI152 comes with nilearn")


def test_the_bank_is_loaded_once_and_centred_on_the_brain() -> None:
    heads = load_heads(("mni152",), 4.0)
    assert load_heads(("mni152",), 4.0) is heads
    assert heads.subjects == ((0,),)
    assert heads.stripped.tolist() == [True]
    assert float(heads.volumes[:, 0].amax()) == 1.0
    brain = heads.volumes[0, 1] > 40.0
    middle = brain.nonzero().double().mean(0)
    np.testing.assert_allclose(middle, (np.array(heads.grid.shape) - 1) / 2, atol=1.0)
