"""Registration end to end: from any pose, from a pose that is given, what is written, measured and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.cli import main
from regagents.registration.pipeline import WINDOW, Pipeline
from regagents.registration.register import register
from regagents.registration.score import stretches
from regenv.data.io import Image, ImageError, write_image
from regenv.data.io.transforms import read_transform, write_transform
from regenv.grid import Grid
from tests.regagents.registration.phantoms import GRIDS, error_mm, moved, seen
from tests.regagents.toys import blobs, checkpoint, grids, image_pair, rigid

FILES = {"transform.tfm", "transform.json", "warped.nii.gz", "overlay.png", "trace.csv", "report.html", "metrics.json"}
POINTS = {"points_warped.csv"}
ANYWHERE = Pipeline((), rivals=("header", "center", "information"))     # every way but a network
FOUND_MM = 0.5
EXACT = 1e-9
SAME_VOXEL = 1e-3   # of intensities up to 800


@pytest.fixture(params=[2, 3])
def ndim(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def images(ndim: int) -> tuple[Image, Image]:
    fixed, moving = grids(ndim)
    return Image(blobs(fixed), fixed, "fixed.nii"), Image(blobs(moving), moving, "moving.nii")


def test_registers_files_and_writes_everything(tmp_path: Path, ndim: int) -> None:
    fixed, moving, truth = image_pair(tmp_path, ndim)
    points = grids(ndim)[0].center + np.random.default_rng(0).uniform(-25, 25, (12, ndim))
    result = register(fixed, moving, Pipeline((str(checkpoint(tmp_path / "toy.safetensors", ndim)),)),
                      landmarks=(points, points @ truth[:-1, :-1].T + truth[:-1, -1]))
    out = result.save(tmp_path / "a" / "out")
    assert {path.name for path in out.iterdir()} == FILES | POINTS
    assert result.metrics["tre_mm"]["before"] > 20
    assert result.metrics["tre_mm"]["after"] < FOUND_MM
    assert np.abs(read_transform(out / "transform.tfm") - result.pull_back).max() < EXACT

    reference, source = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (fixed, moving))
    again = sitk.Resample(source, reference, sitk.ReadTransform(str(out / "transform.tfm")), sitk.sitkLinear,
                          float(sitk.GetArrayFromImage(source).min()))
    warped = sitk.ReadImage(str(out / "warped.nii.gz"))
    assert np.abs(sitk.GetArrayFromImage(again) - sitk.GetArrayFromImage(warped)).max() < SAME_VOXEL
    assert np.allclose(warped.GetDirection(), reference.GetDirection())
    assert np.allclose(warped.GetOrigin(), reference.GetOrigin())

    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "overlay.png")))
    assert picture.ndim == 3 and picture.std() > 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["similarity"]["refinement"] >= metrics["similarity"]["start"]
    assert np.array_equal(metrics["pull_back"], result.pull_back)
    assert metrics["verdict"]["state"] in ("aligned", "doubtful", "failed")
    rows = list(csv.DictReader((out / "trace.csv").open()))
    assert [row["stage"] for row in rows[-3:]] == ["agent", "candidates", "refinement"]
    assert all(np.isfinite(float(row["score"])) for row in rows)
    last = [[float(rows[-1][f"m{i}{j}"]) for j in range(ndim + 1)] for i in range(ndim)]
    assert np.array_equal(last, result.pull_back[:-1])


def test_without_refinement_the_agents_pose_is_kept(tmp_path: Path, images: tuple[Image, Image]) -> None:
    agent = str(checkpoint(tmp_path / "toy.safetensors", images[0].ndim))
    result = register(*images, agent, refine=False, initial=np.eye(images[0].ndim + 1))
    expected = np.eye(images[0].ndim + 1)
    expected[0, -1] = 0.1 * np.mean(np.arange(1, WINDOW + 1))
    assert np.abs(result.pull_back - expected).max() < EXACT
    assert "refinement" not in result.metrics["similarity"]
    actions = [row["action"] for row in result.trace]
    assert actions == ["", *["tx +0.1"] * WINDOW, ""]
    assert [row["step"] for row in result.trace] == [*range(WINDOW + 1), 0]


def test_twice_the_same_bits(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    chain = Pipeline((str(checkpoint(tmp_path / "toy.safetensors", 2)),), turned=True)
    first, second = (register(fixed, moving, chain) for _ in range(2))
    assert np.array_equal(first.pull_back, second.pull_back)
    assert first.trace == second.trace and first.metrics["verdict"] == second.metrics["verdict"]


@pytest.mark.parametrize("degrees", [(163.0,), (180.0, 0.0, 0.0), (35.0, -80.0, 140.0)])
def test_an_image_comes_home_from_any_pose(degrees: tuple[float, ...]) -> None:
    """The moving image is turned and shifted by its header alone, so the truth is exact."""
    ndim = 2 if len(degrees) == 1 else 3
    truth = rigid([90.0, -70.0, 40.0][:ndim] + list(degrees), np.zeros(ndim))
    fixed = seen(GRIDS[ndim])
    result = register(fixed, moved(fixed, truth), ANYWHERE)
    assert error_mm(result.pull_back, truth) < FOUND_MM
    metrics = result.metrics
    assert metrics["verdict"]["state"] == "aligned" and metrics["verdict"]["probability"] > 0.5
    assert "information" in metrics["candidates"][0]["name"]
    told = [one["score"] for one in metrics["candidates"]]
    assert told == sorted(told, reverse=True)
    assert [row["stage"] for row in result.trace] == ["agent", "candidates", "refinement"]


def test_an_affine_map_is_found_where_it_is_asked_for() -> None:
    truth = rigid([20.0, -15.0, 100.0], np.zeros(2)) @ np.diag([1.15, 0.9, 1.0])
    fixed = seen(GRIDS[2])
    moving = seen(Grid.centered((80, 80), 2.0, truth[:2, 2]), truth)
    found = {name: register(fixed, moving, ANYWHERE, transform=name).pull_back
             for name in ("rigid", "similarity", "affine")}
    assert error_mm(found["affine"], truth) < FOUND_MM
    assert np.ptp(stretches(found["similarity"])) == pytest.approx(0.0, abs=1e-9)
    assert stretches(found["rigid"]) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="transform is 'elastic'; take one of rigid, similarity, affine"):
        register(fixed, moving, ANYWHERE, transform="elastic")


def test_the_search_begins_where_it_is_told_and_stays_near(tmp_path: Path) -> None:
    """An image turned upside down and back: another pose would fit, but the one that is given is near its own."""
    fixed = seen(GRIDS[2])
    truth = rigid([30.0, -20.0, 4.0], np.zeros(2))
    moving = moved(fixed, truth)
    write_transform(tmp_path / "start.tfm", truth)
    for initial, wanted in ((truth, truth), (str(tmp_path / "start.tfm"), truth), (tmp_path / "start.tfm", truth),
                            ("header", np.eye(3))):
        result = register(fixed, moving, ANYWHERE, initial=initial, refine=False)
        assert error_mm(result.pull_back, wanted) < 1e-6
        assert {one["name"] for one in result.metrics["candidates"]} == {"start"}
    centers = register(fixed, moving, ANYWHERE, initial="center", refine=False).pull_back
    assert error_mm(centers, truth) < 3.0 and centers[:2, :2] == pytest.approx(np.eye(2))
    assert error_mm(register(fixed, moving, ANYWHERE, initial="center").pull_back, truth) < FOUND_MM


def test_what_cannot_be_a_start_is_refused(tmp_path: Path) -> None:
    fixed = seen(GRIDS[2])
    write_transform(tmp_path / "volume.tfm", np.eye(4))
    with pytest.raises(ImageError, match=r"volume\.tfm: the transform is 3D, but the images are 2D"):
        register(fixed, fixed, ANYWHERE, initial=tmp_path / "volume.tfm")
    with pytest.raises(ImageError, match="nowhere"):
        register(fixed, fixed, ANYWHERE, initial="nowhere.tfm")
    for bad in (np.eye(4), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match=r"a 2D pose is a finite \(3, 3\) matrix"):
            register(fixed, fixed, ANYWHERE, initial=bad)


def test_a_mask_says_what_is_registered() -> None:
    """Beside the object lies another one that does not come along; the masks leave it out."""
    grid = Grid.centered((56, 112), 2.0)
    truth = rigid([8.0, -5.0, 12.0], np.zeros(2))
    beside = np.eye(3)
    beside[0, 2] = 78.0
    fixed, other = seen(grid), seen(grid, beside)
    moving = seen(grid, truth)
    masks = tuple(Image((image.array > 0.05).astype(np.uint8), grid, "mask") for image in (fixed, moving))
    both = [Image(image.array + other.array, grid, image.path) for image in (fixed, moving)]
    result = register(*both, "none", initial="header", masks=masks)
    assert error_mm(result.pull_back, truth) < FOUND_MM


def test_two_unlike_images_are_not_aligned(rng: np.random.Generator) -> None:
    one, other = (Image(rng.normal(size=(40, 44)).astype(np.float32), Grid.centered((40, 44), 2.0), "noise")
                  for _ in range(2))
    told = register(one, other, ANYWHERE).metrics["verdict"]
    assert told["state"] != "aligned" and told["reasons"]


def test_noise_is_registered_with_another_exit_status_where_that_is_asked_for(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b")):
        values = np.random.default_rng(seed).normal(size=(40, 44)).astype(np.float32)
        write_image(tmp_path / f"{name}.nii.gz", values, Grid.centered((40, 44), 2.0))
    command = ["register", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), "-o", str(tmp_path / "OUT"),
               "--agent", "none", "--no-refine"]
    assert main(command) == 0 and main([*command, "--strict"]) == 3
    state = json.loads((tmp_path / "OUT" / "metrics.json").read_text())["verdict"]["state"]
    assert state in ("doubtful", "failed") and f"verdict: {state}" in capsys.readouterr().out


def test_labels_give_dice(tmp_path: Path) -> None:
    fixed, moving, truth = image_pair(tmp_path, 3)
    paths = []
    for name, grid, pull_back in (("a", grids(3)[0], None), ("b", grids(3)[1], np.linalg.inv(truth))):
        paths.append(tmp_path / f"{name}_labels.nii.gz")
        write_image(paths[-1], (blobs(grid, pull_back) > 0.8).astype(np.uint8) * 7, grid)
    agent = str(checkpoint(tmp_path / "toy.safetensors", 3))
    scores = register(fixed, moving, agent, labels=(paths[0], paths[1])).metrics["dice"]
    assert scores["after"].keys() == {"7"}
    assert scores["after"]["7"] > 0.85
    assert scores["before"]["7"] is None or scores["before"]["7"] < 0.5


def test_flat_overlap_stays_json(tmp_path: Path) -> None:
    """No overlap has no mutual information: null, since JSON knows no infinity."""
    fixed, moving, _ = image_pair(tmp_path, 2)
    away = np.eye(3)
    away[0, 2] = 1e4
    result = register(fixed, moving, str(checkpoint(tmp_path / "toy.safetensors", 2)), initial=away)
    metrics = json.loads((result.save(tmp_path / "out") / "metrics.json").read_text())
    assert metrics["similarity"]["start"] is None


def test_saving_again_replaces_and_keeps_other_files(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    result = register(fixed, moving, str(checkpoint(tmp_path / "toy.safetensors", 2)), refine=False)
    out = result.save(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    (out / "metrics.json").write_text("old")
    result.save(out)
    assert json.loads((out / "metrics.json").read_text()) == result.metrics
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("existing", [False, True])
def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    result = register(fixed, moving, str(checkpoint(tmp_path / "toy.safetensors", 2)), refine=False)
    out = tmp_path / "out"
    if existing:
        out.mkdir()
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr("regagents.registration.result.json.dumps", lambda *a, **k: 1 / 0)  # the last of the files
    with pytest.raises(ZeroDivisionError):
        result.save(out)
    assert set(tmp_path.rglob("*")) == before


def test_images_of_two_dimensions_are_refused(tmp_path: Path) -> None:
    flat, _, _ = image_pair(tmp_path, 2)
    volume, _, _ = image_pair(tmp_path, 3)
    with pytest.raises(ImageError, match=r"moving image is 3D but fixed image .*fixed2d.* is 2D.*the matching"):
        register(flat, volume, "head")


def test_nan_in_an_array_is_refused(tmp_path: Path) -> None:
    array = np.ones((16, 16), np.float32)
    array[3, 4] = np.nan
    image = Image(array, Grid.centered((16, 16), 1.0), "array")
    with pytest.raises(ImageError, match="array: some voxels are NaN"):
        register(image, image, "rigid2d")


def test_an_agent_that_deforms_is_refused(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 3)
    with pytest.raises(ValueError, match=r"organ3d: agent deforms \(its poses are those of SDM\)"):
        register(fixed, moving, Pipeline(("organ3d",)))


def test_saving_again_removes_what_the_second_run_has_not(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    register(fixed, moving, "none", refine=False, deform="adam").save(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert (tmp_path / "out" / "transform.h5").is_file()
    register(fixed, moving, "none", refine=False).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"notes.txt"}


def test_an_atlas_with_labels_of_nine_digits_overlaps_itself(tmp_path: Path) -> None:
    fixed, _, _ = image_pair(tmp_path, 3)
    grid = grids(3)[0]
    ids = (312_782_604, 312_782_628, 40_001)
    labels = np.select([blobs(grid) > level for level in (0.9, 0.6, 0.3)], ids, 0)
    write_image(tmp_path / "ids.nii.gz", labels.astype(np.int32), grid)
    for given in (tmp_path / "ids.nii.gz", Image(labels + 2**60 * (labels > 0), grid, "ids")):
        scores = register(fixed, fixed, "none", refine=False, labels=(given, given)).metrics["dice"]["after"]
        assert list(scores.values()) == [1.0] * 3
        assert {int(label) % 2**60 for label in scores} == set(ids)


def test_labels_of_another_place_or_kind_are_refused(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    grid = Grid.centered((8, 8), 1.0)
    for image, words in ((Image(np.full((8, 8), 0.5), grid, "half"), "half: label is 0.5"),
                         (Image(np.zeros((8, 8), int), grid, "none"), "none: labels are 0 everywhere"),
                         (Image(np.ones((8, 8), int), Grid.centered((8, 8), 1.0, (1e4, 0.0)), "far"), "far: it is 0")):
        with pytest.raises(ImageError, match=words):
            register(fixed, moving, "none", labels=(image, image))
