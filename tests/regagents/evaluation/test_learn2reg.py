"""The challenge's measures, against its evaluation written out in its own axis order, and MONAI's surface elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.utils import get_edge_surface_distance
from scipy.ndimage import correlate, map_coordinates

from regagents.evaluation import learn2reg
from regenv.ops import regularity

SHAPE = (15, 13, 17)  # (X, Y, Z)


@pytest.fixture
def case(rng):
    """Of (X, Y, Z, ...) arrays, as the challenge has them."""
    smooth = np.stack([np.pad(np.kron(rng.normal(0, 0.7, (4, 4, 5)), np.ones((4, 4, 4))), 2)[:15, :13, :17]
                       for _ in range(3)], -1)
    x, y, z = np.indices(SHAPE)
    fixed = ((x - 7)**2 + (y - 6)**2 + (z - 8)**2 < 20) + 2 * ((x > 11) & (y > 3)) + 0
    moving = ((x - 8)**2 + (y - 6)**2 + (z - 7)**2 < 18) + 3 * ((x < 3) & (y > 3)) + 2 * ((x > 11) & (y > 4)) + 0
    points = rng.uniform(2, 11, (2, 20, 3))
    return {"field": smooth, "fixed": fixed, "moving": moving, "points": points, "mask": fixed == 0}


def theirs(case, spacing, masked):
    """Spec of evaluation.py, version 2.0."""
    field = case["field"].transpose(3, 0, 1, 2)
    found, slope = {}, np.array([-0.5, 0.0, 0.5])
    gradients = np.stack([[correlate(part, slope.reshape(np.roll([3, 1, 1], axis)), mode="constant")
                           for axis in range(3)] for part in field])
    jacobian = (gradients + np.eye(3).reshape(3, 3, 1, 1, 1))[:, :, 2:-2, 2:-2, 2:-2]
    determinant = np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1))
    logs = np.log(np.clip(determinant + 3, 1e-9, 1e9))
    found["sd_log_jacobian"] = logs[case["mask"][2:-2, 2:-2, 2:-2]].std() if masked else logs.std()
    warped = map_coordinates(case["moving"], np.indices(SHAPE) + field, order=0)
    overlaps, apart = [], []
    for label in (1, 2, 3):
        a, b = case["fixed"] == label, warped == label
        if a.any() and (case["moving"] == label).any():
            overlaps.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            edges, both, maps = get_edge_surface_distance(torch.from_numpy(a), torch.from_numpy(b), use_subvoxels=True,
                                                          spacing=(1, 1, 1), symmetric=True)
            ends = []
            for edge, distances, areas in zip(edges, both, maps, strict=True):
                order, area = np.argsort(distances.numpy()), areas[edge].numpy()
                share = np.cumsum(area[order]) / area.sum()
                ends.append(distances.numpy()[order][np.searchsorted(share, 0.95)])
            apart.append(max(ends))
    found |= {"dice": np.mean(overlaps), "hd95": np.mean(apart)}
    fixed, moving = case["points"]
    moved = fixed + np.stack([map_coordinates(part, fixed.T) for part in field], 1)
    found["tre"] = np.linalg.norm((moved - moving) * np.array(spacing), axis=1).mean()
    return found


def ours(case, spacing, masked):
    return learn2reg.measured(learn2reg.from_submission(case["field"]), case["fixed"].T, case["moving"].T,
                              *case["points"][..., ::-1], spacing, case["mask"].T if masked else None)


@pytest.mark.parametrize("masked", [False, True])
def test_all_measures_are_the_challenges(case, masked):
    spacing = (1.25, 1.5, 2.0)
    found, expected = ours(case, spacing, masked), theirs(case, spacing, masked)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_honest_measures_stand_beside_them(case):
    found = ours(case, (1, 1, 1), masked=True)
    field = torch.from_numpy(learn2reg.from_submission(case["field"]))[None]
    mask = torch.from_numpy(np.ascontiguousarray(case["mask"].T))[None, None]
    assert found["folding"] == regularity.folding(field, mask).item() > 0
    assert found["sd_log_jacobian_honest"] == regularity.sd_log_jacobian(field, mask).item()
    assert found["sd_log_jacobian_honest"] > 5 * found["sd_log_jacobian"]  # the challenge's offset hides the folds


def test_no_displacement_of_alike_images_is_perfect(case):
    found = learn2reg.measured(np.zeros((3, *SHAPE[::-1])), case["fixed"].T, case["fixed"].T, case["points"][0],
                               case["points"][0])
    assert found == {"sd_log_jacobian": 0, "sd_log_jacobian_honest": 0, "folding": 0, "dice": 1, "hd95": 0, "tre": 0}


def test_a_lost_label_has_no_overlap_and_lies_infinitely_far(case):
    away = np.full((3, *SHAPE[::-1]), 40.0)
    found = learn2reg.measured(away, case["fixed"].T, case["moving"].T)
    assert found["dice"] == 0 and found["hd95"] == np.inf


def test_summary_gives_means_and_what_the_worst_lie_beyond():
    cases = [{"tre": value, "dice": 1 - value / 20} for value in map(float, range(11))]
    found = learn2reg.summary(cases)
    assert found == pytest.approx({"tre": 5, "tre30": 7, "dice": 0.75, "dice30": 0.65})


def test_a_submission_goes_there_and_back(rng):
    field = rng.normal(size=(3, 4, 5, 6))
    sent = learn2reg.to_submission(field)
    assert sent.shape == (6, 5, 4, 3)
    assert sent[1, 2, 3, 0] == field[2, 3, 2, 1]
    np.testing.assert_array_equal(learn2reg.from_submission(sent), field)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"displacement": np.zeros((2, 5, 5))}, "must be"),
    ({"fixed_labels": np.zeros((6, 6, 6), int)}, "only one image has labels"),
    ({"fixed_labels": np.zeros((6, 6, 5), int), "moving_labels": np.zeros((6, 6, 6), int)}, r"\(6, 6, 5\)"),
    ({"fixed_points": np.zeros((4, 3)), "moving_points": np.zeros((5, 3))}, r"\(4, 3\) and \(5, 3\)"),
    ({"moving_points": np.zeros((5, 3))}, "only one image has points"),
])
def test_what_does_not_fit_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        learn2reg.measured(**{"displacement": np.zeros((3, 6, 6, 6)), **arguments})


def test_no_cases_have_no_summary():
    with pytest.raises(ValueError, match="no cases"):
        learn2reg.summary([])
