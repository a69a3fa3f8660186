"""Registration end to end: what is written, measured and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.registration import register as registration
from regagents.registration.pipeline import WINDOW, Pipeline
from regagents.registration.register import register
from regenv.data.io import Image, ImageError, write_image
from regenv.data.io.transforms import read_transform
from regenv.grid import Grid
from tests.regagents.toys import blobs, checkpoint, grids, image_pair

FILES = {"transform.tfm", "warped.nii.gz", "overlay.png", "trace.csv", "metrics.json"}
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
    result = register(fixed, moving, Pipeline((str(checkpoint(tmp_path / "toy.safetensors", ndim)),), starts=2),
                      landmarks=(points, points @ truth[:-1, :-1].T + truth[:-1, -1]))
    out = result.save(tmp_path / "a" / "out")
    assert {path.name for path in out.iterdir()} == FILES
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
    assert metrics["similarity"]["refinement"] >= metrics["similarity"]["agent"]
    rows = list(csv.DictReader((out / "trace.csv").open()))
    assert [row["stage"] for row in rows[-2:]] == ["agent", "refinement"]
    last = [[float(rows[-1][f"m{i}{j}"]) for j in range(ndim + 1)] for i in range(ndim)]
    assert np.array_equal(last, result.pull_back[:-1])


def test_without_refinement_the_agents_pose_is_kept(tmp_path: Path, images: tuple[Image, Image]) -> None:
    agent = str(checkpoint(tmp_path / "toy.safetensors", images[0].ndim))
    result = register(*images, agent, refine=False, initial=np.eye(images[0].ndim + 1))
    expected = np.eye(images[0].ndim + 1)
    expected[0, -1] = 0.1 * np.mean(np.arange(1, WINDOW + 1))
    assert np.abs(result.pull_back - expected).max() < EXACT
    assert "refinement" not in result.metrics["similarity"]


def test_same_seed_same_bits(tmp_path: Path) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    chain = Pipeline((str(checkpoint(tmp_path / "toy.safetensors", 2)),), starts=3)
    first, second = (register(fixed, moving, chain, seed=5) for _ in range(2))
    assert np.array_equal(first.pull_back, second.pull_back)


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
    assert json.loads((out / "metrics.json").read_text())["seed"] == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("existing", [False, True])
def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    fixed, moving, _ = image_pair(tmp_path, 2)
    result = register(fixed, moving, str(checkpoint(tmp_path / "toy.safetensors", 2)), refine=False)
    out = tmp_path / "out"
    if existing:
        out.mkdir()
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(registration.json, "dumps", lambda *a, **k: 1 / 0)  # the last file of the five
    with pytest.raises(ZeroDivisionError):
        result.save(out)
    assert set(tmp_path.rglob("*")) == before


def test_images_of_two_dimensions_are_refused(tmp_path: Path) -> None:
    flat, _, _ = image_pair(tmp_path, 2)
    volume, _, _ = image_pair(tmp_path, 3)
    with pytest.raises(ImageError, match=r"moving image is 3D but fixed image .*fixed2d.* is 2D"):
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
