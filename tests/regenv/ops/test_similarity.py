"""Similarities against brute force, SimpleITK, scikit-image, scikit-learn and MONAI, and their invariances."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regenv.ops import similarity

SHAPES = [(24, 31), (14, 13, 15)]
ALL = [similarity.mse, similarity.ncc, similarity.lncc, similarity.ssim, similarity.mi, similarity.nmi]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
each_measure = pytest.mark.parametrize("measure", ALL, ids=lambda f: f.__name__)


def related_pair(shape, lanes=3, channels=1, seed=0, dtype=torch.float32):
    """Two noisy images in [0, 1] that share some of their content: (lanes, channels, *shape) each."""
    generator = torch.Generator().manual_seed(seed)
    common, own_a, own_b = (torch.rand(lanes, channels, *shape, generator=generator, dtype=dtype) for _ in range(3))
    return 0.7 * common + 0.3 * own_a, 0.6 * common + 0.4 * own_b


def random_mask(shape, lanes=3):
    return torch.rand(lanes, 1, *shape, generator=torch.Generator().manual_seed(9)) > 0.4


def box_around(center, radius, shape):
    return tuple(slice(max(0, c - radius), min(n, c + radius + 1)) for c, n in zip(center, shape, strict=True))


def brute_lncc(a, b, window, mask):
    """Avants' squared local correlation of one image pair, voxel by voxel, float64."""
    values = []
    for center in np.argwhere(mask):
        box = box_around(center, window // 2, a.shape)
        i, j = a[box][mask[box]].astype(np.float64), b[box][mask[box]].astype(np.float64)
        i, j = i - i.mean(), j - j.mean()
        variances = (i @ i) * (j @ j)
        values.append((i @ j) ** 2 / variances if variances > 0 else 0.0)
    return np.mean(values)


@each_shape
def test_mse_and_ncc_are_numpys(shape):
    a, b = related_pair(shape)
    for lane in range(3):
        x, y = a[lane, 0].numpy().ravel(), b[lane, 0].numpy().ravel()
        assert similarity.mse(a, b)[lane] == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
        assert similarity.ncc(a, b)[lane] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)


@each_shape
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [3, 5, 9])
def test_lncc_agrees_with_brute_force_borders_included(shape, masked, window):
    a, b = related_pair(shape, lanes=2)
    mask = random_mask(shape, lanes=2) if masked else None
    value = similarity.lncc(a, b, mask, window)
    for lane in range(2):
        counts = np.ones(shape, bool) if mask is None else mask[lane, 0].numpy()
        expected = brute_lncc(a[lane, 0].numpy(), b[lane, 0].numpy(), window, counts)
        assert value[lane] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("window", [1, 3, 7, 9, 15, 41])
@each_shape
def test_box_is_the_mean_of_the_window_inside_the_image(shape, window):
    image = torch.rand(1, 2, *shape, dtype=torch.float64)
    means = similarity._box(image, window)
    for center in itertools.product(*((0, n // 2, n - 1) for n in shape)):
        box = (0, 1, *box_around(center, window // 2, shape))
        assert means[(0, 1, *center)].item() == pytest.approx(image[box].mean().item(), abs=1e-12)


def as_sitk(image):
    return sitk.GetImageFromArray(image.numpy().astype(np.float64))


def sitk_metric(fixed, warped, setting, *arguments):
    method = sitk.ImageRegistrationMethod()
    getattr(method, f"SetMetricAs{setting}")(*arguments)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.TranslationTransform(fixed.ndim))
    return method.MetricEvaluate(as_sitk(fixed), as_sitk(warped))


def spanning(image):
    """Stretched to reach exactly 0 and 1, so that SimpleITK's histogram has our limits."""
    return (image - image.min()) / (image.max() - image.min())


@each_shape
def test_measures_agree_with_simpleitk(shape):
    a, b = (spanning(image[0, 0]) for image in related_pair(shape, lanes=1))
    lane = a[None, None], b[None, None]
    assert similarity.mse(*lane).item() == pytest.approx(sitk_metric(a, b, "MeanSquares"), rel=1e-5)
    assert similarity.ncc(*lane).item() ** 2 == pytest.approx(-sitk_metric(a, b, "Correlation"), abs=1e-5)
    for bins in (16, 32, 50):
        expected = -sitk_metric(a, b, "MattesMutualInformation", bins)
        assert similarity.mi(*lane, bins=bins).item() == pytest.approx(expected, abs=1e-5)
    for radius in (1, 4):
        expected = -sitk_metric(a, b, "ANTSNeighborhoodCorrelation", radius)
        assert similarity.lncc(*lane, window=2 * radius + 1).item() == pytest.approx(expected, abs=1e-4)


@each_shape
def test_hard_binned_mi_is_scikit_learns(shape):
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = related_pair(shape)
    inner = 28  # of 32 bins, four are margin
    value = similarity.mi(a, b, bins=32, order=0)
    normalised = similarity.nmi(a, b, bins=32, order=0)
    for lane in range(3):
        x, y = ((image[lane] * inner).floor().clamp(0, inner - 1).numpy().ravel() for image in (a, b))
        expected = metrics.mutual_info_score(x, y)
        assert value[lane] == pytest.approx(expected, abs=1e-5)
        entropies = metrics.mutual_info_score(x, x) + metrics.mutual_info_score(y, y)
        assert normalised[lane] == pytest.approx(entropies / (entropies - expected), abs=1e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_parzen_windows_share_a_voxel_wholly(order):
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(sum(share for _, share in similarity._parzen(u, order)), torch.ones_like(u))


def test_mi_with_a_mask_is_that_of_the_voxels_inside():
    a, b = related_pair((12, 40), lanes=1)
    mask = torch.zeros(1, 1, 12, 40, dtype=torch.bool)
    mask[..., :13] = True
    inside = similarity.mi(a[..., :13], b[..., :13])
    torch.testing.assert_close(similarity.mi(a, b, mask), inside)


def test_mi_counts_millions_of_voxels_exactly():
    """Float32 sums would stall here: a flat background fills one bin far beyond where 1/6 of a voxel still counts."""
    flat = torch.full((1, 1, 2000, 2000), 0.3)
    flat[..., :4] = 0.9
    share = 4 / 2000
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert similarity.mi(flat, flat, order=0).item() == pytest.approx(entropy, rel=1e-6)


@each_shape
def test_ssim_is_scikit_images(shape):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = related_pair(shape)
    for window in (5, 7):
        value = similarity.ssim(a, b, window=window)
        for lane in range(3):
            expected = metrics.structural_similarity(a[lane, 0].numpy(), b[lane, 0].numpy(), win_size=window,
                                                     data_range=1.0, use_sample_covariance=False)
            assert value[lane] == pytest.approx(expected, abs=1e-5)


@each_shape
def test_local_correlation_is_monais_of_images_with_a_margin(shape):
    """MONAI pads its windows with zeros, which makes no difference to images with a margin of zeros."""
    losses = pytest.importorskip("monai.losses")
    window = 5
    a, b = (torch.nn.functional.pad(image.double(), [window] * (2 * len(shape))) for image in related_pair(shape))
    monai = losses.LocalNormalizedCrossCorrelationLoss(spatial_dims=len(shape), kernel_size=window, smooth_nr=0.0,
                                                       smooth_dr=1e-9, reduction="none")
    theirs = -monai(a, b).flatten(1).mean(1)
    torch.testing.assert_close(similarity.lncc(a, b, window=window), theirs, rtol=0, atol=1e-6)


@each_measure
@each_shape
def test_an_image_is_most_similar_to_itself(measure, shape):
    a, b = related_pair(shape)
    better = measure(a, a) - measure(a, b)
    assert (better < 0).all() if measure is similarity.mse else (better > 0).all()
    perfect = {similarity.mse: 0.0, similarity.ncc: 1.0, similarity.lncc: 1.0, similarity.ssim: 1.0}
    if measure in perfect:
        torch.testing.assert_close(measure(a, a), torch.full((3,), perfect[measure]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("measure", [similarity.ncc, similarity.lncc], ids=lambda f: f.__name__)
@pytest.mark.parametrize("offset", [10.0, 100.0, 1000.0])
@each_shape
def test_correlations_do_not_change_with_offset_and_scale(measure, offset, shape):
    a, b = related_pair(shape)
    torch.testing.assert_close(measure(a, b + offset), measure(a, b), rtol=0, atol=2e-3)
    torch.testing.assert_close(measure(3 * a, 0.01 * b), measure(a, b), rtol=0, atol=1e-4)


@each_shape
def test_lncc_of_independent_noise_on_flat_ground_stays_small(shape):
    """Windows without contrast must count 0, not the ratio of two rounding errors."""
    flat = torch.full((1, 1, *shape), 0.7)
    flat[..., 0, 0] = 0.1
    texture = torch.rand(1, 1, *shape)
    values = similarity.lncc(flat, texture, window=3)
    assert 0 <= values.item() < 0.1


@each_measure
@each_shape
def test_a_constant_image_gives_a_finite_value_and_gradient(measure, shape):
    a = torch.rand(2, 1, *shape)
    constant = torch.full_like(a, 0.25).requires_grad_()
    value = measure(a, constant)
    value.sum().backward()
    assert value.isfinite().all()
    assert constant.grad is not None and constant.grad.isfinite().all()
    if measure in (similarity.ncc, similarity.lncc, similarity.mi):
        torch.testing.assert_close(value.detach(), torch.zeros(2), rtol=0, atol=1e-5)


@each_measure
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(measure, masked):
    a, b = related_pair((9, 10), lanes=2, dtype=torch.float64)
    mask = random_mask((9, 10), lanes=2) if masked else None
    assert torch.autograd.gradcheck(lambda warped: measure(a, warped, mask), (b.requires_grad_(),), atol=1e-4)


@each_measure
def test_a_mask_of_ones_changes_nothing(measure):
    for shape in SHAPES:
        a, b = related_pair(shape)
        torch.testing.assert_close(measure(a, b, torch.ones(3, 1, *shape, dtype=torch.bool)), measure(a, b))


@each_measure
def test_what_lies_outside_the_mask_is_not_seen(measure):
    a, b = related_pair((20, 22))
    mask = torch.zeros(3, 1, 20, 22, dtype=torch.bool)
    mask[..., 5:15, 5:15] = True
    changed = torch.where(mask, b, torch.rand_like(b))
    if measure is similarity.ssim:  # its mask chooses the windows, which look over the mask's edge
        mask, changed = torch.zeros_like(mask), b.clone()
        mask[..., 5:15, 5:15] = True
        changed[..., :1, :], changed[..., 19:, :] = 0, 1
    torch.testing.assert_close(measure(a, changed, mask), measure(a, b, mask), rtol=0, atol=1e-5)


@each_measure
def test_an_empty_mask_gives_nan_in_its_lane_only(measure):
    a, b = related_pair((16, 16), lanes=2)
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[1] = False
    value = measure(a, b, mask)
    assert value.isnan().tolist() == [False, True]


@each_measure
@each_shape
def test_a_lane_equals_the_pair_alone(measure, shape):
    a, b = related_pair(shape, lanes=5)
    mask = random_mask(shape, lanes=5)
    for lane in (0, 4):
        alone = measure(a[lane:lane + 1], b[lane:lane + 1], mask[lane:lane + 1])
        torch.testing.assert_close(measure(a, b, mask)[lane:lane + 1], alone, rtol=0, atol=1e-6)


@each_measure
def test_channels_are_averaged(measure):
    a, b = related_pair((16, 17), channels=3)
    each = torch.stack([measure(a[:, c:c + 1], b[:, c:c + 1]) for c in range(3)])
    torch.testing.assert_close(measure(a, b), each.mean(0), rtol=0, atol=1e-6)


def test_errors_name_the_argument_and_its_value():
    a = torch.rand(1, 1, 6, 6)
    with pytest.raises(ValueError, match="lncc: window is 4"):
        similarity.lncc(a, a, window=4)
    with pytest.raises(ValueError, match=r"ssim: the image is \(6, 6\)"):
        similarity.ssim(a, a)
    with pytest.raises(ValueError, match="bins is 4"):
        similarity.mi(a, a, bins=4)
    with pytest.raises(ValueError, match="order is 2"):
        similarity.mi(a, a, order=2)
    with pytest.raises(ValueError, match=r"limits is \(1.0, 0.0\)"):
        similarity.nmi(a, a, limits=(1.0, 0.0))
