"""Ways to a pose, each alone from a known turn, and what becomes of their poses together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from regagents.registration import candidates
from regagents.registration.candidates import RIVALS, Candidate, apart, finals, ranked
from regagents.registration.pipeline import AGREE_MM, Ended, Visited, turns
from regagents.registration.score import Score
from regenv.data.io.images import Image
from regenv.grid import Grid
from tests.regagents.registration.phantoms import GRIDS, error_mm, few, moved, seen
from tests.regagents.toys import rigid

NDIM = pytest.mark.parametrize("ndim", [2, 3])
EVERY_WAY = tuple(RIVALS)


def motion(ndim: int, *degrees: float) -> np.ndarray:
    return rigid([60.0, -45.0, 30.0][:ndim] + list(degrees), np.zeros(ndim))


def found_by(name: str, fixed: Image, moving: Image) -> np.ndarray:
    """The best pose near what one way finds."""
    score = Score.of(fixed, moving).thinned(3_000)
    poses = np.stack([score.climb(pose, "similarity", 20) for pose in RIVALS[name](fixed, moving, score)])
    return poses[score.at(poses).score.argmax()]


@pytest.mark.parametrize("degrees", [(77.0,), (180.0, 0.0, 0.0), (0.0, 180.0, 0.0), (0.0, 0.0, 180.0),
                                     (50.0, -70.0, 110.0)])
def test_the_search_by_information_finds_a_turned_image(degrees: tuple[float, ...]) -> None:
    ndim = 2 if len(degrees) == 1 else 3
    truth = motion(ndim, *degrees)
    fixed = seen(GRIDS[ndim])
    assert error_mm(found_by("information", fixed, moved(fixed, truth)), truth) < 1.0


@pytest.mark.parametrize("name", ["phase", "sift"])
@pytest.mark.parametrize("degrees", [180.0, 90.0, -74.0])
def test_phase_correlation_and_key_points_find_a_turned_slice(name: str, degrees: float) -> None:
    truth = motion(2, degrees)
    fixed = seen(GRIDS[2])
    score = Score.of(fixed, moved(fixed, truth))
    poses = RIVALS[name](fixed, moved(fixed, truth), score)
    assert min(error_mm(pose, truth) for pose in poses) < 5.0
    assert error_mm(found_by(name, fixed, moved(fixed, truth)), truth) < 1.0


def test_the_header_and_the_centres_are_what_they_say() -> None:
    truth = motion(3, 0.0, 0.0, 0.0)
    fixed = seen(GRIDS[3])
    assert error_mm(found_by("center", fixed, moved(fixed, truth)), truth) < 1.0
    far = moved(fixed, truth)
    score = Score.of(fixed, far, level=few(500))
    assert np.array_equal(RIVALS["header"](fixed, far, score)[0], np.eye(4))
    assert RIVALS["phase"](fixed, far, score) == RIVALS["sift"](fixed, far, score) == []


def test_turns_of_the_cube_are_among_the_directions_that_are_searched() -> None:
    fixed = seen(Grid.centered((20, 21, 19), 6.0))
    for turn in turns(3)[1::4]:
        truth = np.eye(4)
        truth[:3, :3], truth[:3, 3] = turn, [80.0, -50.0, 20.0]
        moving = moved(fixed, truth)
        poses = RIVALS["information"](fixed, moving, Score.of(fixed, moving, level=few(500)))
        assert min(error_mm(pose, truth) for pose in poses) < 3.0


@NDIM
def test_the_best_comes_first_and_each_pose_once(ndim: int) -> None:
    truth = motion(ndim, *[170.0, 20.0, -30.0][:1 if ndim == 2 else 3])
    fixed = seen(GRIDS[ndim])
    score = Score.of(fixed, moved(fixed, truth))
    found = ranked(fixed, moved(fixed, truth), score, np.eye(ndim + 1), [], EVERY_WAY)
    assert error_mm(found[0].climbed, truth) < 1.0
    assert "information" in found[0].names
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(apart(one.climbed, other.climbed, score) >= AGREE_MM for one, other in combinations(found, 2))
    for one in found:
        again = score.at(one.climbed[None])
        assert (one.score, one.information, one.overlap) == pytest.approx(
            (again.score[0], again.information[0], again.overlap[0]), abs=1e-9)


@NDIM
def test_affine_maps_tell_the_right_pose_of_another_size_from_a_wrong_one(ndim: int) -> None:
    """The wrong one comes first, and two of four lead to the right map."""
    pose = motion(ndim, *[30.0, 20.0, -30.0][:1 if ndim == 2 else 3])
    truth = pose @ np.diag([*[1.2, 0.85, 1.1][:ndim], 1.0])
    fixed = seen(GRIDS[ndim])
    moving = seen(Grid.centered([n + 16 for n in fixed.grid.shape], fixed.grid.spacing[0], truth[:-1, -1]), truth)
    score = Score.of(fixed, moving)
    half, near = (pose @ rigid([2.0] * ndim + [degrees, 0.0, 0.0][:1 if ndim == 2 else 3], np.zeros(ndim))
                  for degrees in (180.0, 6.0))
    given = [Candidate("wrong", half, climbed=half), Candidate("near", near, climbed=near),
             Candidate("right", pose, climbed=pose)]
    found = finals(given, score)
    assert found[0].names == ("near", "right") or found[0].names == ("right", "near")
    assert [one.name for one in found[1:]] == ["wrong"]
    assert error_mm(found[0].affine, truth) < 2.0 and found[0].score > 1.2 * found[1].score
    assert all(apart(one.affine, other.affine, score) >= AGREE_MM for one, other in combinations(found, 2))


@NDIM
def test_the_start_is_not_left_for_something_worse(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight other ways lead anywhere; the start is the truth."""
    rng = np.random.default_rng(4)
    truth = motion(ndim, *[100.0, 20.0, -30.0][:1 if ndim == 2 else 3])
    wrong = [motion(ndim, *rng.uniform(-180, 180, 1 if ndim == 2 else 3)) for _ in range(8)]
    monkeypatch.setitem(candidates.RIVALS, "anywhere", lambda fixed, moving, score: wrong)
    fixed = seen(GRIDS[ndim])
    moving = moved(fixed, truth)
    score = Score.of(fixed, moving)
    ended = [Ended(pose, [], 0.25) for pose in wrong[:4]]
    found = ranked(fixed, moving, score, truth, ended, ("header", "center", "anywhere"))
    assert "start" in found[0].names and error_mm(found[0].climbed, truth) < 1.0


@NDIM
def test_of_noise_nothing_worse_than_the_start_is_chosen(ndim: int, rng: np.random.Generator) -> None:
    grid = Grid.centered((20,) * ndim, 3.0)
    one, other = (Image(rng.normal(size=grid.shape).astype(np.float32), grid, "noise") for _ in range(2))
    score = Score.of(one, other)
    start = rigid([*rng.uniform(-10, 10, ndim), *rng.uniform(-180, 180, 1 if ndim == 2 else 3)], np.zeros(ndim))
    best = ranked(one, other, score, start, [], ("header", "center"))[0]
    assert np.isfinite(best.climbed).all()
    assert best.score >= float(score.at(start[None]).score[0]) - 0.002     # of two sets of points


@NDIM
def test_ways_that_lead_to_one_pose_are_one_candidate_with_their_names(ndim: int) -> None:
    """The agent's two ends, 1 mm and 3 mm beside the truth, and the start; the shares add up, the path is kept."""
    truth = motion(ndim, *[40.0] * (1 if ndim == 2 else 3))
    fixed = seen(GRIDS[ndim])
    moving = moved(fixed, truth)
    near = [truth.copy(), truth.copy()]
    near[0][0, -1] += 1.0
    near[1][0, -1] += 9.0
    path = [Visited("toy", 0, "", near[0])]
    ended = [Ended(near[0], path, 0.5), Ended(near[1], [], 0.25)]
    found = ranked(fixed, moving, Score.of(fixed, moving), truth, ended, ())
    assert len(found) == 1
    assert set(found[0].names) == {"start", "agent"}
    assert found[0].share == pytest.approx(0.75)
    assert found[0].path == path


def test_poses_are_apart_by_what_a_cube_about_the_object_moves() -> None:
    score = Score.of(seen(GRIDS[3]), seen(GRIDS[3]), level=few(500))
    shift = np.eye(4)
    shift[:3, 3] = [3.0, 4.0, 12.0]
    assert apart(np.eye(4), shift, score) == pytest.approx(13.0)
    middle = score.fixed.points_mm[:, :-1].mean(0).numpy()
    turn = rigid([0.0, 0.0, 0.0, 0.0, 0.0, 90.0], middle)
    assert apart(np.eye(4), turn, score) == pytest.approx(60.0 * np.sqrt(2) * np.sqrt(2))    # corners go along an edge


def test_a_candidate_has_no_best_pose_before_it_is_sought() -> None:
    assert Candidate("header", np.eye(3)).climbed is None
