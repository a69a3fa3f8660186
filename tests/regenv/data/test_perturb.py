"""What is true of perturbations: bounded, reproducible lane by lane, and honest: alignment is never lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch, PairSource
from regenv.data.sources.codeformed import CoDeformed
from regenv.data.sources.common import random_affine, random_rigid
from regenv.data.sources.spine_phantoms import SpinePhantom
from regenv.grid import Grid
from regenv.ops.affine import about, homogeneous, invert_affine, matmul, transform_points
from regenv.ops.sampling import affine_coordinates, sample_labels
from regenv.ops.warp import warp_affine
from regenv.parts.start import UniformStart

CPU = torch.device("cpu")
GRIDS = {2: Grid.centered((40, 44), 4.0, center=(5.0, -8.0)),
         3: Grid.centered((24, 26, 28), (6.0, 6.5, 7.0), center=(5.0, -8.0, 20.0))}


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed + i) for i in range(count)]


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


def at_truth(pair: PairBatch, offset_mm: float = 0.0) -> Tensor:
    """The moving image on the fixed grid at the truth, or ``offset_mm`` beside it."""
    pull_back = pair.truth.clone()
    pull_back[:, 0, -1] += offset_mm
    matrix = matmul(pair.world_to_moving, matmul(pull_back, pair.fixed_to_world))
    return warp_affine(pair.moving, matrix, tuple(pair.fixed.shape[2:]))


def tensors(pair: PairBatch) -> dict[str, Tensor]:
    return {key: value for key, value in vars(pair).items() if value is not None}


# --- starting poses -------------------------------------------------------------------------------------------------

def test_starts_are_uniform_within_their_ranges(rng: np.random.Generator) -> None:
    ranges = (30.0, 30.0, 150.0, 30.0, 30.0, 10.0)
    poses = UniformStart(ranges).draw([rng] * 8000)
    assert (np.abs(poses) <= ranges).all()
    np.testing.assert_allclose(poses.mean(0), 0, atol=0.05 * np.max(ranges))
    np.testing.assert_allclose(poses.std(0), np.array(ranges) / math.sqrt(3), rtol=0.03)


@pytest.mark.parametrize("near", [0.0, 0.4, 1.0])
def test_near_is_the_share_of_starts_near_the_solution(near: float, rng: np.random.Generator) -> None:
    poses = UniformStart((30.0,) * 6, near=near, near_scale=0.1).draw([rng] * 4000)
    within = (np.abs(poses) <= 3.0).all(1).mean()  # a wide start lies there once in a million
    assert within == pytest.approx(near, abs=0.03)


def test_whole_starts_are_integers_and_reach_scales(rng: np.random.Generator) -> None:
    poses = UniformStart((30.0,) * 3, whole=True).draw([rng] * 200)
    assert np.array_equal(poses, np.round(poses))
    assert np.abs(UniformStart((30.0,) * 3).draw([rng] * 500, 0.2)).max() <= 6.0


def test_a_start_depends_on_its_own_generator_only() -> None:
    many = UniformStart((30.0,) * 6, near=0.5).draw(generators(5))
    for lane in range(5):
        assert np.array_equal(UniformStart((30.0,) * 6, near=0.5).draw(generators(1, lane))[0], many[lane])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"ranges": (30.0, -1.0)}, r"ranges is \(30.0, -1.0\)"), ({"ranges": (math.nan,)}, "ranges"),
    ({"ranges": (1.0,), "near": 1.5}, "near is 1.5"), ({"ranges": (1.0,), "near_scale": -1.0}, "near_scale is -1.0")])
def test_wrong_starts_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UniformStart(**arguments)


# --- random maps ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_is_the_identity_plus_equation_6(ndim: int, rng: np.random.Generator) -> None:
    linear = random_affine([rng] * 3000, ndim, 0.25)
    c = linear[:, :ndim, :ndim] - torch.eye(ndim, dtype=torch.float64)
    assert float(c.abs().max()) <= 0.25
    assert float(c.abs().max()) > 0.24
    assert float(c.mean().abs()) < 0.01
    assert float(c.std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.03)
    assert not linear[:, :ndim, ndim].any()


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_rigid_is_rigid_and_bounded(ndim: int, rng: np.random.Generator) -> None:
    maps = random_rigid([rng] * 300, ndim, 20.0, 15.0)
    rotation = maps[:, :ndim, :ndim]
    eye = torch.eye(ndim, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-12)
    assert float(torch.linalg.det(rotation).min()) > 0
    assert 15 < float(maps[:, :ndim, ndim].abs().max()) <= 20.0
    cosine = (rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2 if ndim == 3 else rotation[:, 0, 0]
    assert float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).max()) <= 15.0 * (1 if ndim == 2 else 3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_about_keeps_the_centre(ndim: int, rng: np.random.Generator) -> None:
    matrix = random_affine([rng] * 4, ndim, 0.25)
    center = torch.from_numpy(rng.uniform(-50, 50, (4, ndim)))
    moved = about(center, matrix)
    torch.testing.assert_close(transform_points(moved, center[:, None])[:, 0], center, rtol=0, atol=1e-12)
    assert torch.equal(moved[:, :ndim, :ndim], matrix[:, :ndim, :ndim])
    torch.testing.assert_close(about(-center, moved), matrix, rtol=0, atol=1e-12)


# --- co-deformation -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ndim", [2, 3])
def test_codeformed_images_agree_at_the_truth_and_not_beside_it(ndim: int) -> None:
    grid = GRIDS[ndim]
    pair = CoDeformed(Waves(ndim), affine=0.25, mm=10.0, degrees=20.0, margin=2.0).draw(generators(4), grid, CPU)
    inside = (slice(None), slice(None), *(slice(4, -4),) * ndim)
    error = (pair.fixed - at_truth(pair))[inside].abs()
    assert float(error.mean()) < 0.01
    assert float((pair.fixed - at_truth(pair, 10.0))[inside].abs().mean()) > 5 * float(error.mean())
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
