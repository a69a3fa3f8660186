"""What is true of pairs of real heads: aligned at the truth, varied as asked, reproducible lane by lane."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv.data.catalogue import source_named
from regenv.data.phantoms.appearance import Appearance
from regenv.data.sources.heads import Heads
from regenv.grid import Grid
from regenv.ops.affine import invert_affine, transform_points
from tests.regenv.data.drawing import CPU, generators, tensors, warped_at_truth

pytest.importorskip("nilearn", reason="MNI152 comes with nilearn")
GRID = Grid.centered((32, 32, 32), 7.0)
NOTHING = Appearance(contrast=0.0, flat=0.0, skull=0.0, strip=0.0, bias=0.0, crop=0.0, noise=0.0)
PLAIN = Heads(affine=0.0, person=0.0, appearance=NOTHING)
HEADS = Heads()
ORTHOGONAL = 1e-12


def information(a: Tensor, b: Tensor) -> np.ndarray:
    """Mutual information of 16 x 16 bins, (B,)."""
    rows = []
    for x, y in zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True):
        joint = np.histogram2d(x, y, bins=16, range=[[0, 1]] * 2)[0] / x.size
        outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        rows.append((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())
    return np.array(rows)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_images_are_finite_in_range_and_placed(difficulty: float) -> None:
    pair = HEADS.draw(generators(4), GRID, CPU, difficulty)
    for image in (pair.fixed, pair.moving):
        assert image.dtype == torch.float32
        assert image.isfinite().all()
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert (image.flatten(1).amax(1) > 0.02).all()
    assert pair.fixed.shape == (4, 1, *GRID.shape)
    assert pair.known.all()
    assert torch.equal(pair.center, torch.from_numpy(GRID.center).expand(4, 3))
    torch.testing.assert_close(pair.fixed_to_world, torch.from_numpy(GRID.voxel_to_world).expand(4, 4, 4))


def test_the_truth_is_rigid() -> None:
    rotation = HEADS.draw(generators(6), GRID, CPU).truth[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(6, 3, 3),
                               rtol=0, atol=ORTHOGONAL)


def test_images_are_the_same_at_the_truth_when_nothing_varies() -> None:
    pair = PLAIN.draw(generators(4), GRID, CPU, 0.0)
    error, beside = ((pair.fixed - warped_at_truth(pair, offset)).abs().flatten(1).mean(1) for offset in (0.0, 14.0))
    assert (error < 0.02).all()
    assert (beside > 3 * error).all()


def test_a_shared_deformation_keeps_the_alignment() -> None:
    """Equation 6: both images are bent alike, so the rigid truth still makes them the same."""
    pair = replace(PLAIN, affine=0.15).draw(generators(4), GRID, CPU, 1.0)
    straight = PLAIN.draw(generators(4), GRID, CPU, 0.0)
    assert (pair.fixed - straight.fixed).abs().mean() > 0.01
    assert float((pair.fixed - warped_at_truth(pair)).abs().mean()) < 0.02


def test_images_tell_most_of_each_other_at_the_truth_at_full_difficulty() -> None:
    pair = HEADS.draw(generators(12), GRID, CPU, 1.0)
    best = information(pair.fixed, warped_at_truth(pair))
    assert np.mean(best > information(pair.fixed, warped_at_truth(pair, 28.0))) >= 0.9
    assert np.mean(best > information(pair.fixed, warped_at_truth(pair, -28.0))) >= 0.9


def test_landmarks_lie_on_the_head_of_the_fixed_image() -> None:
    """Placed like the head: a lattice of +-60 mm about the brain's centre, turned and shifted with it."""
    pair = HEADS.draw(generators(5), GRID, CPU)
    assert pair.landmarks.shape == (5, 27, 3)
    centre = pair.landmarks.mean(1)
    assert float(centre.norm(dim=1).max()) <= 2 * 20 * 3**0.5
    radius = (pair.landmarks - centre[:, None]).norm(dim=2)
    torch.testing.assert_close(radius.amax(1), torch.full((5,), 60 * 3**0.5, dtype=torch.float64), rtol=0, atol=1e-9)
    ticks = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in GRID.shape), indexing="ij")
    voxels = torch.stack(ticks, -1).reshape(1, -1, 3).expand(5, -1, -1)
    plain = PLAIN.draw(generators(5), GRID, CPU, 0.0)
    masses = plain.fixed.double().reshape(5, -1, 1)
    mass_centre = transform_points(plain.fixed_to_world, voxels).mul(masses).sum(1) / masses.sum(1)
    assert float((mass_centre - plain.landmarks.mean(1)).norm(dim=1).max()) < 12


def test_a_draw_is_reproducible_and_a_lane_independent() -> None:
    many = tensors(HEADS.draw(generators(3), GRID, CPU))
    again = tensors(HEADS.draw(generators(3), GRID, CPU))
    assert all(torch.equal(many[key], again[key]) for key in many)
    for lane in range(3):
        one = tensors(HEADS.draw(generators(1, lane), GRID, CPU))
        assert all(torch.equal(one[key][0], many[key][lane]) for key in many)


def test_different_seeds_differ_in_everything() -> None:
    a, b = HEADS.draw(generators(1, 0), GRID, CPU), HEADS.draw(generators(1, 1), GRID, CPU)
    assert not torch.equal(a.fixed, b.fixed)
    assert not torch.equal(a.moving, b.moving)
    assert not torch.isclose(a.truth[:, :3], b.truth[:, :3]).all()


def test_contrast_varies_only_in_the_moving_image_at_first() -> None:
    """The curriculum: at difficulty 0 the fixed image keeps its own look, the moving one does not."""
    pair, same = HEADS.draw(generators(6), GRID, CPU, 0.0), PLAIN.draw(generators(6), GRID, CPU, 0.0)
    assert torch.equal(pair.fixed, same.fixed)
    assert ((pair.moving - same.moving).abs().flatten(1).mean(1) > 0.001).all()


def test_plain_fixed_keeps_its_look_at_any_difficulty() -> None:
    plain_fixed = Heads(affine=0.0, person=0.0, appearance=Appearance(plain_fixed=True))
    torch.testing.assert_close(plain_fixed.draw(generators(4), GRID, CPU, 1.0).fixed,
                               PLAIN.draw(generators(4), GRID, CPU, 0.0).fixed, rtol=0, atol=0)


def test_random_contrast_may_invert() -> None:
    mapping = replace(PLAIN, appearance=replace(NOTHING, contrast=1.0))
    pair, same = (source.draw(generators(24), GRID, CPU, 1.0) for source in (mapping, PLAIN))
    signs = []
    for mapped, own in zip(pair.moving[:, 0], same.moving[:, 0], strict=True):
        brain = own > 0.1
        signs.append(np.corrcoef(mapped[brain].numpy(), own[brain].numpy())[0, 1])
    assert np.min(signs) < -0.5
    assert np.max(signs) > 0.5


def test_cropping_takes_away_part_of_the_field() -> None:
    cropped = replace(PLAIN, appearance=replace(NOTHING, crop=1.0))
    pair, whole = cropped.draw(generators(12), GRID, CPU, 1.0), PLAIN.draw(generators(12), GRID, CPU, 0.0)
    lost = (whole.moving > 0.05) & (pair.moving == 0)
    assert lost.flatten(1).any(1).double().mean() > 0.5
    kept = pair.moving > 0.05
    assert (pair.moving - whole.moving)[kept].abs().max() < 0.5


def test_anisotropic_and_uneven_grids_work() -> None:
    grid = Grid.centered((20, 33, 27), (6.0, 7.0, 9.0), center=(4.0, -3.0, 8.0))
    pair = PLAIN.draw(generators(2), grid, CPU, 0.0)
    assert pair.fixed.shape[2:] == grid.shape
    assert float((pair.fixed - warped_at_truth(pair)).abs().mean()) < 0.03


def test_unknown_subjects_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"subject is 'yorick'.*mni152.*colin27"):
        Heads(subjects=("yorick",)).draw(generators(1), GRID, CPU)
    with pytest.raises(TypeError, match="hair"):
        source_named({"name": "heads", "hair": 1}, 3)
    with pytest.raises(TypeError, match="glow"):
        source_named({"name": "heads", "appearance": {"glow": 1}}, 3)


def test_a_source_in_json_equals_the_object() -> None:
    named = source_named({"name": "heads", "subjects": ["mni152"], "affine": 0.1, "appearance": {"crop": 0.0}}, 3)
    assert named == Heads(affine=0.1, appearance=Appearance(crop=0.0))
    assert torch.equal(invert_affine(named.draw(generators(1), GRID, CPU).truth),
                       invert_affine(named.draw(generators(1), GRID, CPU).truth))
