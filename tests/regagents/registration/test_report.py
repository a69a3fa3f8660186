"""report.html: what it embeds, and that nothing in it can run or reach out."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regagents.registration import report
from regagents.registration.deformation import Deformation
from regagents.registration.result import Result, composed
from regenv import viewer
from regenv.data.io.images import Image
from regenv.data.io.resampling import resampled
from regenv.grid import Grid
from regenv.render import planes_of
from regenv.viewer.page import embedded
from regenv.viewer.volumes import MOST_DETERMINANTS, MOST_VECTORS, MOST_VOXELS, blocks, coded, shrunk
from tests.regagents.toys import blobs, grids, rigid

VERDICT = {"state": "doubtful", "probability": 0.62, "reasons": ["Two groups of lanes are 14 mm apart."],
           "evidence": {"overlap": 0.93, "agreement_mm": 14.0}}


def outcome(ndim: int = 3, deform: bool = False, **metrics: Any) -> Result:
    """A registration made by hand: five steps towards a known pose."""
    fixed_grid, moving_grid = grids(ndim)
    truth = rigid([*[40.0, -20.0, 15.0][:ndim], *([25.0] if ndim == 2 else [14.0, -9.0, 20.0])], np.zeros(ndim))
    fixed = Image(blobs(fixed_grid), fixed_grid, f"/data/fixed{ndim}d.nii.gz")
    moving = Image(blobs(moving_grid, np.linalg.inv(truth)) * 800, moving_grid, f"/data/moving{ndim}d.nii.gz")
    trace = []
    for step, share in enumerate(np.linspace(0, 1, 5)):
        pose = np.eye(ndim + 1) + share * (truth - np.eye(ndim + 1))
        trace.append({"stage": "first" if step < 3 else "second", "step": step, "action": f"+x {step}",
                      "score": None if step == 0 else 0.1 * step,
                      **{f"m{i}{j}": pose[i, j] for i in range(ndim) for j in range(ndim + 1)}})
    deformation = bent(fixed_grid) if deform else None
    warped = resampled(moving, fixed_grid, composed(truth, deformation))
    told = {"agent": ["first", "second"], "similarity": {"start": 0.1, "agent": 0.3}, "seconds": {"agent": 2.0}}
    return Result(fixed, moving, truth, warped, trace, told | metrics, deformation)


def bent(grid: Grid) -> Deformation:
    """Smooth waves of two voxels, and one voxel about which the map folds."""
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    displacement = np.stack([2 * np.sin(where[(axis + 1) % grid.ndim] / 4) for axis in range(grid.ndim)])
    displacement[(0, *(n // 3 for n in grid.shape))] += 6
    return Deformation(displacement, grid)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def voxels(told: dict[str, Any], dtype: str = "u1") -> np.ndarray:
    """What a browser unpacks."""
    return np.frombuffer(gzip.decompress(base64.b64decode(told["voxels"])), dtype)


# ----------------------------------------------------------------------------------------------------- what is embedded

@pytest.mark.parametrize("ndim", [2, 3])
def test_a_page_embeds_the_images_and_where_they_lie(ndim: int) -> None:
    result = outcome(ndim)
    data = data_of(report.render(result))
    for name in ("fixed", "moving", "warped"):
        image, told = getattr(result, name), data[name]
        low, high = told["window"]
        values = voxels(told).reshape(image.array.shape) / 255 * (high - low) + low
        np.testing.assert_allclose(values, image.array.clip(low, high), atol=(high - low) / 500)
        assert told["shape"] == [1] * (3 - ndim) + list(image.grid.shape)
        index = np.array([n - 1 for n in image.grid.shape])
        matrix = np.array(told["toWorld"]).reshape(3, 4)
        lifted = np.concatenate([np.zeros(3 - ndim), index, [1]])
        np.testing.assert_allclose((matrix @ lifted)[:ndim], image.grid.to_world(index))
    assert data["moving"]["window"] == data["warped"]["window"]


def test_the_window_lies_at_percentiles_of_what_is_not_background(rng: np.random.Generator) -> None:
    array = np.full((40, 50, 60), -1000.0, np.float32)
    array[10:30] = rng.uniform(0, 100, (20, 50, 60))
    low, high = viewer.Volume.of("ct", Image(array, Grid.centered(array.shape, 1.0), "ct.nii.gz")).window
    assert (low, high) == pytest.approx((0.5, 99.5), abs=0.2)


@pytest.mark.parametrize("shape", [(31, 17), (9, 40), (14, 17)])
def test_reduction_is_that_of_torch_with_antialiasing(shape: tuple[int, int], rng: np.random.Generator) -> None:
    array = rng.random((31, 40)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(array)[None, None], shape, mode="bilinear", antialias=True)[0, 0]
    np.testing.assert_allclose(shrunk(array, shape), expected.numpy(), atol=1e-5)


def test_a_grid_is_reduced_no_further_than_it_must() -> None:
    slabs = Grid.centered((24, 512, 400), (0.5, 0.5, 5.0))
    seen = viewer.view_grid(slabs, 1_000_000, 160)
    assert seen.shape[0] == 24 and max(seen.shape) <= 160 and np.prod(seen.shape) <= 1_000_000
    assert seen.shape[1] == 160 and seen.extent == pytest.approx(slabs.extent)
    assert viewer.view_grid(slabs, 10_000_000, 512) is slabs


def test_a_page_of_pure_noise_is_below_10_mb(rng: np.random.Generator) -> None:
    def noise(name: str) -> viewer.Volume:
        grid = Grid.centered((125, 125, 128), 1.0)
        assert np.prod(grid.shape) == MOST_VOXELS
        return viewer.Volume(name, rng.integers(0, 256, grid.shape, dtype=np.uint8), grid, (0.0, 1.0))

    vectors, determinants = Grid.centered((50, 50, 40), 2.0), Grid.centered((100, 50, 100), 1.0)
    assert np.prod(vectors.shape) == MOST_VECTORS and np.prod(determinants.shape) == MOST_DETERMINANTS
    displacement = viewer.DisplacementMap(rng.random((3, *vectors.shape)).astype(np.float32), vectors,
                                          rng.integers(0, 256, determinants.shape, dtype=np.uint8), determinants)
    page = viewer.Page("Report", "noise", "", noise("a"), noise("b"), noise("c"), np.eye(4), displacement=displacement)
    assert len(page.html()) < 10e6


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_film_plays_the_poses_of_the_trace(ndim: int) -> None:
    result = outcome(ndim)
    steps = data_of(report.render(result))["film"]["steps"]
    assert len(steps) == len(result.trace)
    for step, row in zip(steps, result.trace, strict=True):
        pose = np.array(step["pose"]).reshape(3, 4)
        for i, j in product(range(ndim), range(ndim)):
            assert pose[i, j] == row[f"m{i}{j}"]
        assert [pose[i, 3] for i in range(ndim)] == [row[f"m{i}{ndim}"] for i in range(ndim)]
        assert (step["stage"], step["step"], step["action"]) == (row["stage"], row["step"], row["action"])
        assert step["numbers"]["score"] == row["score"]
    remaining = [step["numbers"]["mm from the final pose"] for step in steps]
    assert remaining == sorted(remaining, reverse=True) and remaining[-1] == pytest.approx(0, abs=1e-9)


def test_a_displacement_is_embedded_in_millimetres_and_a_fold_survives_reduction() -> None:
    result = outcome(deform=True)
    assert result.deformation is not None
    told = data_of(report.render(result))["displacement"]
    vectors = voxels(told["vectors"], "<i2").reshape(3, *result.fixed.grid.shape) * told["vectors"]["largest"] / 32767
    index = (5, 11, 7)
    point = result.fixed.grid.to_world(np.array(index))
    moved = np.array(result.deformation.through(np.eye(4)).TransformPoint(point))
    np.testing.assert_allclose(vectors[(slice(None), *index)], moved - point, atol=2e-3)
    determinant = np.ones((200, 100, 100))
    determinant[33, 17, 4] = -0.1
    codes, grid = blocks(determinant, Grid.centered(determinant.shape, 1.0))
    assert codes.shape == grid.shape == (100, 50, 50) and (codes == 0).sum() == 1 and codes[16, 8, 2] == 0
    np.testing.assert_allclose(grid.to_world(np.array([0, 0, 0])), [-49.0, -49.0, -99.0])
    assert coded(np.array([-3.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 99.0])).tolist() == [0, 0, 1, 64, 128, 192, 255, 255]


# ----------------------------------------------------------------------------------------------------------- the planes

def test_planes_of_any_orientation_show_the_patients_right_on_the_left_and_the_top_on_top() -> None:
    towards = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    expected = {"Axial": "RLAP", "Coronal": "RLSI", "Sagittal": "APSI"}
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        direction = np.eye(3)[:, list(order)] * signs
        grid = Grid.centered((5, 6, 7), (1.0, 2.0, 3.0), direction=direction.ravel())
        for plane in planes_of(grid):
            assert "".join(plane.letters) == expected[plane.name]
            for axis, flipped, letter in zip(plane.axes[1:], plane.flipped, (plane.letters[3], plane.letters[1]),
                                             strict=True):
                step = grid.voxel_to_world[:3, axis] * (-1 if flipped else 1)
                assert step @ np.array(towards[letter]) > 0 and np.count_nonzero(step) == 1


def test_an_oblique_plane_tells_two_letters() -> None:
    turn = rigid([0, 0, 0, 0, 0, 30.0], np.zeros(3))[:3, :3]
    axial = planes_of(Grid.centered((5, 5, 5), 1.0, direction=turn.ravel()))[0]
    assert {axial.letters[0][0], axial.letters[1][0]} == {"R", "L"} and all(map(len, axial.letters))
    assert {len(letters) for letters in axial.letters} == {2}


# -------------------------------------------------------------------------------------------------------- what it tells

def test_a_page_tells_verdict_candidates_tre_and_dice() -> None:
    pose = np.eye(4).tolist()
    data = data_of(report.render(outcome(
        verdict=VERDICT, notes=["the spacing was left aside"],
        candidates=[{"name": "agent", "score": 0.4, "overlap": 0.9, "pull_back": pose},
                    {"name": "agent", "score": float("nan")}, {"name": "path", "score": 0.2, "pull_back": pose}],
        tre_mm={"before": 42.0, "start": 31.0, "pose": 4.0, "after": 2.0},
        dice={"before": {"1": 0.1, "2": None}, "after": {"1": 0.8, "2": 0.6}})))
    assert data["verdict"]["state"] == "doubtful" and data["verdict"]["evidence"]["agreement mm"] == 14.0
    tables = {table["title"]: table for table in data["tables"]}
    rows = [["agent", "0.4000", "90%"], ["agent 2", "-", "-"], ["path 2", "0.2000", "-"]]
    assert tables["Candidates"]["rows"] == rows and tables["Candidates"]["poses"] == ["agent", "", "path 2"]
    assert set(data["poses"]) == {"before", "agent", "path 2"}
    facts = {fact["name"]: (fact["value"], fact["detail"]) for fact in data["facts"]}
    assert facts["TRE"] == ("2.00 mm", "42.00 mm before") and facts["Dice, mean"] == ("0.700", "0.100 before")
    curves = {curve["title"]: curve["values"] for curve in data["curves"]}
    assert curves["TRE, mm"] == [42.0, 31.0, 4.0, 2.0] and curves["Dice, mean"] == pytest.approx([0.1, 0.7])
    assert data["notes"] == ["the spacing was left aside"]


def test_a_page_needs_no_metrics() -> None:
    data = data_of(report.render(replace(outcome(), metrics={})))
    assert data["verdict"] is None and data["curves"] == [] and {fact["name"] for fact in data["facts"]} == {
        "Shift", "Rotation"}


def test_the_pose_is_told_as_shift_rotation_and_scale() -> None:
    pose = rigid([3.0, 4.0, 0.0, 0.0, 0.0, 30.0], np.zeros(3))
    pose[:3, :3] *= 1.25
    fixed = Image(np.eye(4)[None].repeat(4, 0), Grid.centered((4, 4, 4), 1.0), "a")
    result = replace(outcome(), pull_back=pose, fixed=fixed)
    facts = {fact["name"]: fact["value"] for fact in data_of(report.render(result))["facts"]}
    assert (facts["Shift"], facts["Rotation"], facts["Scale"]) == ("5.0 mm", "30.0°", "1.250")


# ----------------------------------------------------------------------------------------------------------- its safety

def test_no_name_can_end_the_script_or_begin_markup() -> None:
    name = "/data/</script><script>alert(1)</script><!--"
    result = outcome()
    html = report.render(replace(result, moving=replace(result.moving, path=name)))
    assert html.count("<script") == html.count("</script>") == 2 and html.isascii()
    assert data_of(html)["tables"][0]["rows"][1][1] == name
    assert not set("<>&") & set(embedded({"<&>": ["<!--", "</script>"]}))
    assert json.loads(embedded([float("nan"), float("inf"), 1.5, "\udcff"])) == [None, None, 1.5, "\udcff"]


def test_a_page_names_no_address_and_its_policy_allows_its_own_script_alone() -> None:
    html = report.render(outcome(deform=True))
    assert not re.search(r"https?://|@import|src=|url\(", html)
    assert "default-src 'none'" in html and "unsafe-eval" not in html


def test_a_report_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(path, outcome(2))
    before = path.read_text()
    assert before.startswith("<!DOCTYPE html>") and before.rstrip().endswith("</html>")
    broken = replace(outcome(2), trace=[{"stage": "a", "step": 0}])
    with pytest.raises(KeyError):
        report.write(path, broken)
    assert path.read_text() == before and [each.name for each in tmp_path.iterdir()] == ["report.html"]
