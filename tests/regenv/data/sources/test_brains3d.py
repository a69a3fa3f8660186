"""What is true of pairs of real heads in 3D: people held out, changed in training only, tissues in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from regenv.data.banks import downloads
from regenv.data.banks.brains import VERSION
from regenv.data.sources.brains3d import TEST, TRAIN, Brains3D
from regenv.grid import Grid
from regenv.ops.overlap import dice
from tests.regenv.data.drawing import CPU

GRID = Grid.centered((32, 40, 32), 5.0)


def skip_unprepared(*names: str) -> None:
    """Skip where a person is not in the cache folder: preparing takes about a minute each."""
    for name in names:
        if not (downloads.cache_dir() / "brains" / f"{name}-v{VERSION}.safetensors").is_file():
            pytest.skip(f"{name} is not prepared; draw once from Brains3D")


def draw(seed: int, **arguments: Any) -> Any:
    return Brains3D(**arguments).draw([np.random.default_rng(seed)], GRID, CPU)


def test_every_test_pair_has_a_person_of_no_training_pair() -> None:
    trained = {name for pair in Brains3D().pairs() for name in pair}
    assert trained == set(TRAIN) and not trained & set(TEST)
    pairs = Brains3D(split="test").pairs()
    assert len(pairs) == len(set(pairs)) == 14
    assert all(set(pair) & set(TEST) and pair[0] != pair[1] for pair in pairs)


@pytest.mark.parametrize(("arguments", "told"), [
    ({"subjects": ("csi3",)}, "subject is 'csi3'"), ({"split": "test", "subjects": ("csi1", "csi2")}, "no pair"),
    ({"skull": 1.5}, "skull is 1.5"), ({"bending": 30.0}, "bending is 30"), ({"split": "val"}, "split is 'val'")])
def test_a_wrong_argument_is_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Brains3D(**arguments)


def test_a_person_bent_is_still_that_person() -> None:
    skip_unprepared("csi1", "mni2009c")
    pair = draw(0, subjects=("csi1",), skull=0.0)
    overlap = dice(pair.fixed_labels, pair.moving_labels, (2, 3)).mean()
    assert 0.3 < overlap < 0.9
    outside = pair.fixed_labels == 0
    assert pair.fixed[outside].mean() < 0.1 * pair.fixed[~outside].mean()


def test_the_head_is_about_the_same_brain() -> None:
    """With the skull, what lies in the brain agrees with the stripped image, and much lies outside."""
    skip_unprepared("csi1", "csi3", "mni2009c")
    stripped, whole = (draw(3, split="test", subjects=("csi1", "csi3"), skull=skull) for skull in (0.0, 1.0))
    inside = stripped.fixed_labels > 0
    both = torch.stack([stripped.fixed[inside], whole.fixed[inside]])
    assert torch.corrcoef(both)[0, 1] > 0.85
    assert whole.fixed[~inside].mean() > 5 * stripped.fixed[~inside].mean()
