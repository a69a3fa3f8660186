"""Dice and Hausdorff distances against brute force and MONAI."""

import numpy as np
import pytest
import torch

from regenv.ops import overlap

SHAPES = [(18, 21), (9, 11, 10)]
SPACING = (0.7, 1.9, 3.0)  # mm, x, y, z
CLASSES = (1, 2, 3)

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])


def blobs(shape, lanes=3, seed=0):
    """Label images with touching, holed and ragged classes 1 to 3: (lanes, 1, *shape) int16."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(lanes, 1, *(4,) * len(shape), generator=generator), size=shape,
                                             mode="nearest")
    noisy = smooth + 0.12 * torch.rand(lanes, 1, *shape, generator=generator)
    return (noisy * 4).floor().clamp(0, 3).to(torch.int16)


def brute_surface(mask):
    """Voxels with a face neighbour outside the mask or the image, by looking at each."""
    points = []
    for point in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = point.copy()
                other[axis] += step
                if not (0 <= other[axis] < mask.shape[axis]) or not mask[tuple(other)]:
                    points.append(point)
    return np.unique(points, axis=0)


def brute_distances(a, b, spacing):
    scale = np.asarray(spacing[: a.ndim])[::-1]
    x, y = brute_surface(a) * scale, brute_surface(b) * scale
    pairwise = np.linalg.norm(x[:, None] - y[None], axis=-1)
    return pairwise.min(1), pairwise.min(0)


@each_shape
def test_dice_agrees_with_counting(shape):
    a, b = blobs(shape), blobs(shape, seed=1)
    scores = overlap.dice(a, b, CLASSES)
    assert scores.shape == (3, 3)
    for lane in range(3):
        for column, label in enumerate(CLASSES):
            x, y = a[lane].numpy() == label, b[lane].numpy() == label
            assert scores[lane, column].item() == pytest.approx(2 * (x & y).sum() / (x.sum() + y.sum()), abs=1e-6)


@each_shape
def test_dice_agrees_with_monai(shape):
    metrics = pytest.importorskip("monai.metrics")
    a, b = blobs(shape), blobs(shape, seed=1)
    one_hot = [torch.cat([labels == label for label in (0, *CLASSES)], 1).float() for labels in (a, b)]
    expected = metrics.compute_dice(*one_hot, include_background=False)
    torch.testing.assert_close(overlap.dice(a, b, CLASSES), expected)


def test_dice_takes_any_labels_in_any_order_and_type():
    a = torch.tensor([[[[-5, 0, 4000, 4000, 7, 7]]]])
    b = torch.tensor([[[[-5, -5, 4000, 0, 9, 7]]]])
    scores = overlap.dice(a, b, (4000, -5, 7))
    torch.testing.assert_close(scores, torch.tensor([[2 / 3, 2 / 3, 2 / 3]]))
    narrow = overlap.dice(torch.tensor([[[[0, 255, 255, 3]]]], dtype=torch.uint8),
                          torch.tensor([[[[255, 255, 0, 3]]]], dtype=torch.uint8), (255, 3))
    torch.testing.assert_close(narrow, torch.tensor([[0.5, 1.0]]))


@pytest.mark.parametrize("measure", [overlap.dice, lambda a, b, c: overlap.hausdorff(a, b, c, SPACING[:2])],
                         ids=["dice", "hausdorff"])
def test_a_class_absent_from_either_image_is_nan(measure):
    a, b = torch.zeros(2, 1, 6, 6, dtype=torch.int16), torch.zeros(2, 1, 6, 6, dtype=torch.int16)
    a[..., 1, 1], b[..., 1, 1] = 1, 1  # class 1 in both
    a[:, :, 4, 4] = 2                  # class 2 in a only
    b[1, :, 4, 4] = 3                  # class 3 in the second lane of b only
    expected = torch.tensor([[False, True, True, True]] * 2)
    assert torch.equal(measure(a, b, (1, 2, 3, 4)).isnan(), expected)
    assert torch.equal(measure(b, a, (1, 2, 3, 4)).isnan(), expected)


@each_shape
def test_hausdorff_distances_agree_with_brute_force(shape):
    a, b = blobs(shape), blobs(shape, seed=1)
    spacing = SPACING[: len(shape)]
    largest, most = overlap.hausdorff(a, b, CLASSES, spacing), overlap.hd95(a, b, CLASSES, spacing)
    assert (largest > most).any()
    for lane in range(3):
        for column, label in enumerate(CLASSES):
            there, back = brute_distances(a[lane, 0].numpy() == label, b[lane, 0].numpy() == label, spacing)
            assert largest[lane, column].item() == pytest.approx(max(there.max(), back.max()), abs=1e-5)
            expected = max(np.percentile(there, 95), np.percentile(back, 95))
            assert most[lane, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@each_shape
def test_hausdorff_distances_agree_with_monai(shape):
    metrics = pytest.importorskip("monai.metrics")
    a, b = blobs(shape), blobs(shape, seed=1)
    one_hot = [torch.cat([labels == label for label in (0, *CLASSES)], 1).float() for labels in (a, b)]
    for percentile, measure in ((None, overlap.hausdorff), (95, overlap.hd95)):
        expected = metrics.compute_hausdorff_distance(*one_hot, percentile=percentile,
                                                      spacing=list(SPACING[: len(shape)][::-1]))
        torch.testing.assert_close(measure(a, b, CLASSES, SPACING[: len(shape)]).float(), expected.float(),
                                   rtol=0, atol=1e-4)


def test_distance_between_two_voxels_is_pythagoras():
    a, b = torch.zeros(1, 1, 8, 9, 10, dtype=torch.int16), torch.zeros(1, 1, 8, 9, 10, dtype=torch.int16)
    a[0, 0, 1, 1, 1], b[0, 0, 3, 5, 7] = 1, 1
    expected = np.linalg.norm(np.array([6, 4, 2]) * SPACING)
    assert overlap.hausdorff(a, b, (1,), SPACING).item() == pytest.approx(expected, abs=1e-5)


@each_shape
def test_identical_labels_are_perfect_and_measures_are_symmetric(shape):
    a, b = blobs(shape), blobs(shape, seed=1)
    spacing = SPACING[: len(shape)]
    assert torch.equal(overlap.dice(a, a, CLASSES), torch.ones(3, 3))
    assert torch.equal(overlap.hausdorff(a, a, CLASSES, spacing), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(overlap.dice(a, b, CLASSES), overlap.dice(b, a, CLASSES))
    torch.testing.assert_close(overlap.hd95(a, b, CLASSES, spacing), overlap.hd95(b, a, CLASSES, spacing))


def test_errors_name_the_argument_and_its_value():
    a = torch.zeros(1, 1, 4, 4, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"labels are \(1, 1, 4, 4\) and \(1, 1, 4, 5\)"):
        overlap.dice(a, torch.zeros(1, 1, 4, 5, dtype=torch.int16), (1,))
    with pytest.raises(ValueError, match=r"classes is \(\)"):
        overlap.dice(a, a, ())
    with pytest.raises(ValueError, match=r"classes is \(1, 1\)"):
        overlap.dice(a, a, (1, 1))
    with pytest.raises(ValueError, match=r"spacing is \(1.0,\)"):
        overlap.hausdorff(a, a, (1,), (1.0,))


@each_shape
def test_dice_does_not_depend_on_the_numbers_of_the_labels(shape):
    """Atlases number regions by nine digits; a table with a row for each number would not fit in memory."""
    a, b = blobs(shape), blobs(shape, seed=1)
    numbers = torch.tensor([0, 2**62 + 3, 40_001, 312_782_604])
    named = [numbers[labels.long()] for labels in (a, b)]
    torch.testing.assert_close(overlap.dice(*named, numbers[1:].tolist()), overlap.dice(a, b, CLASSES), rtol=0, atol=0,
                               equal_nan=True)
    assert overlap.classes(named[0]) == tuple(sorted(numbers[1:].tolist()))
