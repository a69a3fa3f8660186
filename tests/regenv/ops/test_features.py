"""Self-similarity features against their definition written out voxel by voxel, and their invariances."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from regenv.ops.features import box_mean, costs, mind_ssc

SHAPES = [(7, 9), (5, 4, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
CHANNELS = {2: 4, 3: 12}
ROUNDING = 2e-5  # of float32, in features


def noise(shape, lanes=2, dtype=torch.float32):
    return torch.rand(lanes, 1, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def held(array, place):
    """The value at a place, or at the nearest one inside."""
    return array[tuple(np.clip(place, 0, np.array(array.shape) - 1))]


def literal_mind_ssc(image, radius, dilation):
    """The definition of one image (*shape), voxel by voxel, float64: (channels, *shape)."""
    neighbours = []
    for axis in range(image.ndim):
        for sign in (-1, 1):
            neighbours.append(sign * np.eye(image.ndim, dtype=int)[axis])
    pairs = [(a, b) for i, a in enumerate(neighbours) for b in neighbours[i + 1:] if ((a - b) ** 2).sum() == 2]
    places = [np.array(place) for place in np.ndindex(image.shape)]
    squares, distance = np.zeros((2, len(pairs), *image.shape))
    for channel, (a, b) in enumerate(pairs):
        for place in places:
            there = held(image, place + dilation * a) - held(image, place + dilation * b)
            squares[(channel, *place)] = there**2
        for place in places:
            patch = [held(squares[channel], place + np.array(step))
                     for step in product(range(-radius, radius + 1), repeat=image.ndim)]
            distance[(channel, *place)] = np.mean(patch)
    distance -= distance.min(0)
    variance = distance.mean(0)
    return np.exp(-distance / np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean()))


@each_shape
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1), (2, 3)])
def test_features_are_those_of_the_definition(shape, radius, dilation):
    image = noise(shape)
    image[1, ..., shape[-1] // 2:] *= 1e-3  # its variance there is below the least that counts
    features = mind_ssc(image, radius, dilation)
    assert features.shape == (2, CHANNELS[len(shape)], *shape) and features.dtype == torch.float32
    for lane in range(2):
        expected = literal_mind_ssc(image[lane, 0].double().numpy(), radius, dilation)
        np.testing.assert_allclose(features[lane].numpy(), expected, atol=ROUNDING)


@each_shape
def test_gain_offset_and_inversion_do_not_matter(shape):
    image = noise(shape)
    for gain, offset in ((100.0, -30.0), (1e-3, 0.5), (-1.0, 1.0)):
        torch.testing.assert_close(mind_ssc(gain * image.double() + offset), mind_ssc(image.double()))


def test_a_flat_region_is_alike_in_all_directions_and_so_is_a_flat_image():
    image = noise((24, 24))
    image[:, :, 8:, 8:] = 0.4
    features = mind_ssc(image)
    assert (features[:, :, 12:, 12:] == 1).all() and features[:, :, :8].min() < 0.5
    assert (mind_ssc(torch.full((1, 1, 6, 6, 6), 3.0)) == 1).all()


def test_features_move_with_the_image():
    image = noise((16, 16, 16), lanes=1, dtype=torch.float64)
    moved = image.roll((2, -1, 3), (2, 3, 4))
    raw, shifted = mind_ssc(image), mind_ssc(moved)
    inner = (..., slice(6, -6), slice(6, -6), slice(6, -6))
    torch.testing.assert_close(shifted.roll((-2, 1, -3), (2, 3, 4))[inner], raw[inner], atol=1e-12, rtol=1e-12)


@each_shape
def test_a_lane_does_not_depend_on_the_others(shape):
    image = noise(shape, lanes=3)
    image[2] *= 50
    torch.testing.assert_close(mind_ssc(image)[1:2], mind_ssc(image[1:2]), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=["2D", "3D"])
def test_gradients(shape):
    image = noise(shape, lanes=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mind_ssc, image)


@each_shape
def test_box_mean_is_the_mean_of_the_box(shape):
    image = noise(shape, dtype=torch.float64)
    mean = box_mean(image, 2)
    for place in np.ndindex(shape):
        box = [held(image[1, 0].numpy(), np.array(place) + np.array(step))
               for step in product(range(-2, 3), repeat=len(shape))]
        assert mean[(1, 0, *place)].item() == pytest.approx(np.mean(box))


@each_shape
@pytest.mark.parametrize("learning", [False, True], ids=["fast", "differentiable"])
def test_costs_are_those_of_the_features_as_scipy_warps_them(shape, learning):
    ndim, channels = len(shape), CHANNELS[len(shape)]
    rng = np.random.default_rng(5)
    fixed, moving = rng.random((2, 3, channels, *shape), dtype=np.float32)
    field = rng.normal(0, 2, (3, ndim, *shape)).astype(np.float32)  # far over the border, too
    offsets = rng.normal(0, 1, (5, ndim)).astype(np.float32)
    given = torch.from_numpy(fixed), torch.from_numpy(moving).requires_grad_(learning), torch.from_numpy(field)
    found = costs(*given, torch.from_numpy(offsets))
    assert found.requires_grad == learning
    for lane, (number, offset) in product(range(3), enumerate(offsets)):
        place = np.indices(shape) + field[lane] + offset.reshape(-1, *(1,) * ndim)
        seen = np.stack([map_coordinates(channel, place, order=1, mode="nearest") for channel in moving[lane]])
        np.testing.assert_allclose(found[lane, number].detach(), ((fixed[lane] - seen)**2).mean(0), atol=ROUNDING)


@pytest.mark.parametrize(("image", "arguments", "message"), [
    (torch.zeros(1, 2, 8, 8), {}, r"image is \(1, 2, 8, 8\)"),
    (torch.zeros(1, 1, 8), {}, r"image is \(1, 1, 8\)"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), {}, "type torch.uint8"),
    (torch.zeros(1, 1, 8, 8), {"radius": -1}, "radius is -1"),
    (torch.zeros(1, 1, 8, 8), {"dilation": 0}, "dilation is 0"),
])
def test_errors_name_the_value(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        mind_ssc(image, **arguments)
