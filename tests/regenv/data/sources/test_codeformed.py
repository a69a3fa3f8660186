"""What is true of co-deformation: reproducible lane by lane, and alignment is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.codeformed import CoDeformed
from regenv.data.sources.spine_phantoms import SpinePhantom
from regenv.grid import Grid
from regenv.ops.affine import homogeneous, invert_affine, matmul, transform_points
from regenv.ops.sampling import affine_coordinates, sample_labels
from tests.regenv.data.drawing import CPU, generators, tensors, warped_at_truth

GRIDS = {2: Grid.centered((40, 44), 4.0, center=(5.0, -8.0)),
         3: Grid.centered((24, 26, 28), (6.0, 6.5, 7.0), center=(5.0, -8.0, 20.0))}


@dataclass(frozen=True)
class Waves:
    """The same smooth pattern in both images, the moving one on another grid and shifted in its own world."""

    ndim: int

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        n = grid.ndim
        middle = torch.from_numpy(grid.center)
        shift = torch.arange(1, n + 1, dtype=torch.float64) * 3
        moving = Grid.centered((70,) * n, 5.0, (grid.center + shift.numpy()).tolist())
        phase = torch.from_numpy(np.stack([rng.uniform(0, 6, n) for rng in rngs]))

        def image(on: Grid, offset: Tensor) -> Tensor:
            ticks = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in on.shape), indexing="ij")
            voxels = torch.stack(ticks, -1).reshape(1, -1, n)
            points = transform_points(torch.from_numpy(on.voxel_to_world)[None], voxels)
            waves = torch.sin((points - middle - offset) / 20 + phase[:, None]).prod(-1)
            return (0.5 + 0.5 * waves).float().reshape(len(rngs), 1, *on.shape)

        fixed, there = image(grid, torch.zeros_like(shift)), image(moving, shift)
        eye = torch.eye(n, dtype=torch.float64).expand(len(rngs), n, n)
        return PairBatch(
            fixed=fixed, moving=there,
            fixed_to_world=torch.from_numpy(grid.voxel_to_world).expand(len(rngs), -1, -1).clone(),
            world_to_moving=torch.from_numpy(moving.world_to_voxel).expand(len(rngs), -1, -1).clone(),
            truth=homogeneous(eye, shift.expand(len(rngs), n)), known=torch.ones(len(rngs), dtype=torch.bool),
            center=middle.expand(len(rngs), n).clone(),
            landmarks=middle + torch.from_numpy(np.stack([rng.uniform(-30, 30, (9, n)) for rng in rngs])),
            fixed_labels=(fixed > 0.5).to(torch.int16), moving_labels=(there > 0.5).to(torch.int16))


# --- co-deformation -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ndim", [2, 3])
def test_codeformed_images_agree_at_the_truth_and_not_beside_it(ndim: int) -> None:
    grid = GRIDS[ndim]
    pair = CoDeformed(Waves(ndim), affine=0.25, mm=10.0, degrees=20.0, margin=2.0).draw(generators(4), grid, CPU)
    inside = (slice(None), slice(None), *(slice(4, -4),) * ndim)
    error = (pair.fixed - warped_at_truth(pair))[inside].abs()
    assert float(error.mean()) < 0.01
    assert float((pair.fixed - warped_at_truth(pair, 10.0))[inside].abs().mean()) > 5 * float(error.mean())
    assert pair.fixed.shape[2:] == grid.shape


@pytest.mark.parametrize("ndim", [2, 3])
def test_codeformed_labels_and_landmarks_go_with_the_images(ndim: int) -> None:
    grid, seeds = GRIDS[ndim], generators(3)
    pair = CoDeformed(Waves(ndim), affine=0.2, mm=10.0, degrees=20.0, margin=2.0).draw(seeds, grid, CPU)
    assert pair.fixed_labels is not None
    assert pair.moving_labels is not None
    inside = (slice(None), slice(None), *(slice(4, -4),) * ndim)
    assert float(((pair.fixed > 0.5) == pair.fixed_labels.bool())[inside].double().mean()) > 0.9
    matrix = matmul(pair.world_to_moving, matmul(pair.truth, pair.fixed_to_world))
    warped = sample_labels(pair.moving_labels, affine_coordinates(matrix, grid.shape))
    assert float((warped == pair.fixed_labels)[inside].double().mean()) > 0.9


@pytest.mark.parametrize("ndim", [2, 3])
def test_codeformation_shows_both_images_through_one_map(ndim: int) -> None:
    """fixed'(x) = fixed(A x) and moving'(y) = moving(A y): the same A undoes it on both sides."""
    grid = GRIDS[ndim]
    plain = Waves(ndim).draw(generators(3), grid, CPU)
    pair = CoDeformed(Waves(ndim), affine=0.25, mm=10.0, degrees=20.0).draw(generators(3), grid, CPU)
    through = matmul(invert_affine(plain.world_to_moving), pair.world_to_moving)
    torch.testing.assert_close(matmul(matmul(through, pair.truth), invert_affine(through)), plain.truth,
                               rtol=0, atol=1e-9)
    torch.testing.assert_close(transform_points(through, pair.landmarks), plain.landmarks, rtol=0, atol=1e-9)
    assert torch.equal(pair.moving, plain.moving)
    assert torch.equal(pair.center, plain.center)


def test_codeformation_grows_with_difficulty_from_none() -> None:
    grid = GRIDS[3]
    plain = Waves(3).draw(generators(2), grid, CPU)
    none = CoDeformed(Waves(3), affine=0.25, mm=10.0, degrees=20.0).draw(generators(2), grid, CPU, difficulty=0.0)
    torch.testing.assert_close(none.truth, plain.truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(none.landmarks, plain.landmarks, rtol=0, atol=1e-9)


@pytest.mark.parametrize("source", [Waves(3), SpinePhantom(patients=3, bank_spacing=6.0)], ids=["waves", "spine"])
def test_codeformed_lanes_are_independent_and_reproducible(source: PairSource) -> None:
    wrapped = CoDeformed(source, affine=0.2, mm=5.0, degrees=10.0)
    many = tensors(wrapped.draw(generators(3), GRIDS[3], CPU))
    for lane in range(3):
        one = tensors(wrapped.draw(generators(1, lane), GRIDS[3], CPU))
        assert one.keys() == many.keys()
        assert all(torch.equal(one[key][0], many[key][lane]) for key in one)
