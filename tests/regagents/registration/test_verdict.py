"""Whether a pose is right: its evidence, the states that follow, and the model's file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from regagents.classical.common import shift
from regagents.registration import verdict as judge
from regagents.registration.candidates import Candidate, apart, ranked
from regagents.registration.score import Level, Score, stretches
from regagents.registration.verdict import FEATURES, WRONG, evidence, fitted, local, mirrored, verdict, wrong_poses
from regenv.data.io.images import Image
from tests.regagents.registration.phantoms import GRIDS, few, moved, seen
from tests.regagents.toys import rigid

NDIM = pytest.mark.parametrize("ndim", [2, 3])
MODEL = {"features": ["overlap", "mirror"], "mean": [0.5, 0.0], "deviation": [0.25, 0.12], "weights": [2.0, -1.0],
         "intercept": 0.5, "aligned": 0.8, "doubtful": 0.3}


def pose(ndim: int) -> np.ndarray:
    return rigid([30.0, -20.0, 10.0][:ndim] + [50.0, -35.0, 70.0][:1 if ndim == 2 else 3], np.zeros(ndim))


def scores(fixed: Image, moving: Image) -> tuple[Score, Score]:
    fine = Level({2: 60_000, 3: 250_000}, 4_000)
    return Score.of(fixed, moving, level=few(4_000)), Score.of(fixed, moving, None, fine)


def noise(ndim: int) -> tuple[Image, Image]:
    rng = np.random.default_rng(5)
    one, other = (Image(rng.normal(size=GRIDS[ndim].shape).astype(np.float32), GRIDS[ndim], "noise") for _ in range(2))
    return one, other


@NDIM
def test_wrong_poses_are_far_from_the_pose_and_as_stiff(ndim: int) -> None:
    score = Score.of(seen(GRIDS[ndim]), seen(GRIDS[ndim]), level=few(500))
    stretched = pose(ndim) @ np.diag([1.1] * ndim + [1.0])
    wrong = wrong_poses(stretched, score)
    assert len(wrong) == WRONG
    assert min(apart(one, stretched, score) for one in wrong) > 25.0
    assert all(stretches(one) == pytest.approx(np.log(1.1)) for one in wrong)
    assert np.array_equal(wrong, wrong_poses(stretched, score))


@NDIM
def test_a_mirrored_image_fits_its_mirror_better(ndim: int) -> None:
    fixed = seen(GRIDS[ndim])
    flipped = replace(fixed, array=np.ascontiguousarray(fixed.array[..., ::-1]))
    start = np.eye(ndim + 1)
    assert mirrored(Score.of(fixed, fixed, level=few(2_000)), start) < -0.3
    assert mirrored(Score.of(fixed, flipped, level=few(2_000)), start) > 0.3


@NDIM
@pytest.mark.parametrize("shows", ["an object", "noise"])
def test_evidence_is_finite_and_json(ndim: int, shows: str) -> None:
    fixed = seen(GRIDS[ndim])
    pair = (fixed, moved(fixed, pose(ndim))) if shows == "an object" else noise(ndim)
    truth = pose(ndim)
    found = evidence(*scores(*pair), truth, truth, [Candidate("one", truth, 0.5), Candidate("other", truth)], 0.25)
    assert set(found) == {*FEATURES, "folding"}
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
    told = verdict(found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert (found["share"], found["folding"], found["stretch"]) == pytest.approx((0.5, 0.25, 0.0), abs=1e-6)


@NDIM
def test_evidence_speaks_for_the_truth_and_against_another_pose(ndim: int) -> None:
    fixed = seen(GRIDS[ndim])
    truth = pose(ndim)
    other = truth @ rigid([5.0] * ndim + [90.0] * (1 if ndim == 2 else 3), np.zeros(ndim))
    both = scores(fixed, moved(fixed, truth))
    right, wrong = (evidence(*both, each, each, [Candidate("one", each)]) for each in (truth, other))
    for name in ("contrast", "local", "distance", "information", "overlap"):
        assert right[name] > wrong[name], name
    assert right["contrast"] > 5 and right["distance"] > 0.5
    assert right["covered"] == pytest.approx(1.0, abs=0.02)


@NDIM
def test_parts_agree_where_they_lie_at_the_truth_alone(ndim: int) -> None:
    """At a wrong pose the parts would rather lie elsewhere, however well the whole may fit."""
    fixed = seen(GRIDS[ndim])
    truth = pose(ndim)
    fine = scores(fixed, moved(fixed, truth))[1]
    half = truth @ rigid([0.0] * ndim + [180.0, 0.0, 0.0][:1 if ndim == 2 else 3], np.zeros(ndim))
    best = fine.climb(fine.climb(half, "similarity"), "affine")
    assert local(fine, truth) > 2.0
    assert local(fine, best) < 0.6 * local(fine, truth)
    assert local(fine, best @ shift(np.full(ndim, 1e4))) == pytest.approx(0.0, abs=1e-6)


def test_far_away_poses_have_evidence_too() -> None:
    fixed = seen(GRIDS[2])
    away = np.eye(3)
    away[0, 2] = 1e4
    found = evidence(*scores(fixed, fixed), away, away, [Candidate("one", away)])
    assert all(np.isfinite(value) for value in found.values())
    assert found["overlap"] == pytest.approx(0.0, abs=1e-6) and found["covered"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("overlap", "mirror", "state"), [(0.8, 0.0, "aligned"), (0.5, 0.2, "doubtful"),
                                                          (0.1, 0.25, "failed"), (0.1, 2.0, "failed")])
def test_the_state_follows_from_the_models_probability(monkeypatch: pytest.MonkeyPatch, overlap: float, mirror: float,
                                                       state: str) -> None:
    monkeypatch.setattr(judge, "fitted", lambda: MODEL)
    found = dict.fromkeys([*FEATURES, "folding"], 0.0) | {"overlap": overlap, "mirror": mirror}
    told = verdict(found)
    logit = 0.5 + 2 * (overlap - 0.5) / 0.25 - min(mirror, 0.12) / 0.12
    assert told["probability"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert told["state"] == state and told["evidence"] == found
    assert told["reasons"] == {"aligned": [], "doubtful": [FEATURES["mirror"]],
                               "failed": [FEATURES["overlap"], FEATURES["mirror"]]}[state]


def test_a_deformation_that_folds_is_doubtful_at_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "fitted", lambda: MODEL)
    found = dict.fromkeys(FEATURES, 0.0) | {"overlap": 1.0}
    assert verdict(found | {"folding": 0.0})["state"] == "aligned"
    told = verdict(found | {"folding": 0.04})
    assert told["state"] == "doubtful" and told["reasons"] == ["4.0% of the deformation's voxels fold"]


def test_each_feature_speaks_in_the_direction_that_it_means() -> None:
    for name, weight in zip(fitted()["features"], fitted()["weights"], strict=True):
        assert (weight < 0) == (name in ("mirror", "stretch")), name


def test_the_models_file_is_sound() -> None:
    model: dict[str, Any] = fitted()
    names = model["features"]
    assert names and set(names) <= set(FEATURES) and len(set(names)) == len(names)
    for key in ("mean", "deviation", "weights"):
        assert len(model[key]) == len(names)
        assert np.isfinite(model[key]).all()
    assert min(model["deviation"]) > 0
    assert np.isfinite(model["intercept"])
    assert 0 < model["doubtful"] < model["aligned"] < 1


def test_noise_is_not_aligned_in_3d_either() -> None:
    pair = noise(3)
    both = scores(*pair)
    found = ranked(*pair, both[0], np.eye(4), [], ("header", "center"))
    assert verdict(evidence(*both, found[0].climbed, found[0].climbed, found))["state"] != "aligned"
