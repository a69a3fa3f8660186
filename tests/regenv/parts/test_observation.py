"""What is true of observations: images, types and spaces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from regenv.parts.observation import OBSERVATIONS
from regenv.registry import CATALOGUE, build
from tests.regenv.families import begun, core_of, ndim


def test_observations_are_the_difference_or_the_pair() -> None:
    core = core_of("RegRigid3D-v0")
    state = begun(core, [[0.0] * 6, [9.0] * 6])
    fixed, warped = state.pair.fixed, state.look("warped")[0]["warped"]
    seen = {(kind, dtype): OBSERVATIONS[kind](dtype)(state) for kind in OBSERVATIONS for dtype in ("float32", "uint8")}
    assert torch.equal(seen["difference", "float32"], fixed - warped)
    both = torch.cat([fixed, warped], 1).clamp(0, 1)
    assert torch.equal(seen["pair", "float32"], both)
    assert torch.equal(seen["pair", "uint8"], torch.round(both * 255).to(torch.uint8))
    anew = {(kind, dtype): OBSERVATIONS[kind](dtype)(state.release_views()) for kind, dtype in seen}
    for (kind, dtype), observation in seen.items():
        atol = 1 if dtype == "uint8" else 1e-6
        torch.testing.assert_close(observation, anew[kind, dtype], rtol=0, atol=atol)
    coded = (seen["difference", "uint8"].float() - 128) / 127.5
    assert (coded - (fixed - warped)).abs().max() <= 1 / 127.5
    for (kind, dtype), observation in seen.items():
        space = OBSERVATIONS[kind](dtype).space(core.task.grid.shape)
        assert all(space.contains(lane) for lane in observation.numpy()), (kind, dtype)


def test_agreeing_images_have_a_grey_difference() -> None:
    state = begun(core_of("RegRigid2D-v0"), [[0.0] * 3])
    same = replace(state, pair=replace(state.pair, moving=state.pair.fixed), views={}, pull_back=torch.linalg.inv(
        state.pair.fixed_to_world @ state.pair.world_to_moving))
    assert (OBSERVATIONS["difference"]("uint8")(same) == 128).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_2d_is_shown_as_uint8_images_and_3d_as_floats(name: str) -> None:
    space = build(name).observation.space(build(name).grid.shape)
    shapes = {"Rigid2D": (128, 128), "Rigid3D": (64,) * 3, "Similarity2D": (168, 168), "Similarity3D": (64,) * 3,
              "SDM2D": (100, 100), "SDM3D": (20, 75, 75), "Dense2D": (128, 128), "Dense3D": (128,) * 3,
              "DenseDigits": (28, 28), "Keypoint2D": (128, 128), "Keypoint3D": (64,) * 3}
    family = next(key for key in shapes if name.startswith("Reg" + key))
    assert space.dtype == (np.uint8 if ndim(name) == 2 else np.float32)
    assert space.shape[1:] == shapes[family]
