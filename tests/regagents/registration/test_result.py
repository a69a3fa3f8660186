"""What a registration writes beside its pose and picture: labels, points, displacement and Jacobian."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regagents.registration.deformation import Deformation
from regagents.registration.result import WRITTEN, Result
from regenv.data.io.images import Image, normalize
from regenv.data.io.resampling import framed, resampled, sampled
from regenv.render import frame
from tests.regagents.toys import blobs, grids, rigid

ALWAYS = {"transform.tfm", "transform.json", "warped.nii.gz", "overlay.png", "trace.csv", "report.html", "metrics.json"}
IDS = (312_782_604, 2**40)


def outcome(ndim: int, *, deforms: bool = False, carries: bool = False) -> Result:
    fixed, moving = (Image(blobs(grid), grid, f"{name}.nii") for name, grid in zip(("fixed", "moving"), grids(ndim),
                                                                                 strict=True))
    pose = rigid([3.0, -2.0, 4.0, *[5.0] * 3][:6] if ndim == 3 else [3.0, -2.0, 5.0], np.zeros(ndim))
    pose[0, 0] *= 1.1
    coarse = fixed.grid.resized(spacing=7.0)
    waves = np.stack([np.sin(np.indices(coarse.shape)[c] / 2.0) for c in range(ndim)])
    points = fixed.grid.center + np.random.default_rng(0).uniform(-20, 20, (7, ndim))
    numbers = {f"m{i}{j}": pose[i, j] for i in range(ndim) for j in range(ndim + 1)}
    trace = [{"stage": "agent", "step": 0, **numbers}, {"stage": "refinement", "step": 0, "score": 1.0, **numbers}]
    result = Result(fixed, moving, pose, fixed, trace, {"seed": 0},
                    Deformation(waves, coarse) if deforms else None,
                    labels=Image(np.select([moving.array > 0.6, moving.array > 0.3], IDS, 0), moving.grid, "labels.nii")
                    if carries else None, landmarks=(points, points + 1.0) if carries else None)
    return Result(fixed, moving, pose, resampled(moving, fixed.grid, result.transform), result.trace, result.metrics,
                  result.deformation, labels=result.labels, landmarks=result.landmarks)


@pytest.mark.parametrize("ndim", [2, 3])
def test_everything_is_written_and_an_earlier_runs_rest_removed(tmp_path: Path, ndim: int) -> None:
    result = outcome(ndim, deforms=True, carries=True)
    result.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(WRITTEN)
    outcome(ndim).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALWAYS
    assert json.loads((tmp_path / "out" / "transform.json").read_text())["files"] == {"transform.tfm": "affine"}


@pytest.mark.parametrize("deforms", [False, True])
def test_labels_and_points_are_carried_as_by_simpleitk(tmp_path: Path, deforms: bool) -> None:
    result = outcome(3, deforms=deforms, carries=True)
    out = result.save(tmp_path / "out")
    transform = sitk.ReadTransform(str(out / ("transform.h5" if deforms else "transform.tfm")))
    assert result.labels is not None and result.landmarks is not None
    classes = framed(np.searchsorted((0, *IDS), result.labels.array).astype(np.uint8), result.labels.grid)
    wanted = sitk.Resample(classes, framed(result.fixed.array, result.fixed.grid), transform,
                           sitk.sitkNearestNeighbor)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labels_warped.nii.gz")))
    assert found.dtype.kind == "i" and set(np.unique(found)) == {0, *IDS}
    assert np.array_equal(found, np.array((0, *IDS))[sitk.GetArrayFromImage(wanted)])

    rows = list(csv.DictReader((out / "points_warped.csv").open()))
    columns = {name: np.array([[float(row[f"{name}_{axis}"]) for axis in "xyz"] for row in rows])
               for name in ("fixed", "in_moving", "moving", "in_fixed")}
    assert np.array_equal(columns["fixed"], result.landmarks[0])
    assert np.array_equal(columns["moving"], result.landmarks[1])
    for start, end in (("fixed", "in_moving"), ("in_fixed", "moving")):
        there = [transform.TransformPoint(point) for point in columns[start].tolist()]
        assert np.abs(there - columns[end]).max() < 1e-5
    distances = np.linalg.norm(columns["in_moving"] - columns["moving"], axis=1)
    assert np.allclose([float(row["distance_mm"]) for row in rows], distances)


def test_displacement_and_pose_are_the_transform_and_the_jacobian_is_of_both(tmp_path: Path) -> None:
    result = outcome(3, deforms=True)
    out = result.save(tmp_path / "out")
    field = sitk.ReadImage(str(out / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    pose = sitk.ReadTransform(str(out / "transform.tfm"))
    jacobian = sitk.ReadImage(str(out / "jacobian.nii.gz"))
    assert jacobian.GetSize() == result.fixed.grid.size
    both = sitk.CompositeTransform([pose, sitk.DisplacementFieldTransform(sitk.Image(field))])
    whole = sitk.ReadTransform(str(out / "transform.h5"))
    inner = np.array([[x, y, z] for x in (5, 9, 14) for y in (6, 11, 16) for z in (5, 8, 12)])
    for index in inner.tolist():
        point = np.array(jacobian.TransformIndexToPhysicalPoint(index))
        assert np.allclose(both.TransformPoint(point.tolist()), whole.TransformPoint(point.tolist()), atol=1e-4)
    # The volume of a small box about a voxel of the field, by SimpleITK's transform alone.
    steps = 7.0 * np.eye(3)
    for index in (np.array(field.GetSize()) // 2, np.array(field.GetSize()) // 3):
        point = np.array(field.TransformIndexToPhysicalPoint(index.tolist()))
        columns = [(np.array(whole.TransformPoint((point + step / 2).tolist()))
                    - whole.TransformPoint((point - step / 2).tolist())) / 7.0 for step in steps]
        near = jacobian.EvaluateAtPhysicalPoint(point.tolist())
        assert abs(near - np.linalg.det(np.stack(columns, -1))) < 0.15
        assert abs(near - 1.0) > 0.05


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = outcome(2, deforms=True, carries=True)
    monkeypatch.setattr("regagents.registration.result.report.write", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_picture_shows_the_fixed_image_and_the_moving_one_before_and_after(tmp_path: Path, ndim: int) -> None:
    """As drawn of whole images: saving looks at the middle slices alone."""
    result = outcome(ndim)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(result.save(tmp_path / "out") / "overlay.png")))
    grid = result.fixed.grid
    moving = framed(normalize(result.moving.array), result.moving.grid)
    shown = [frame(normalize(result.fixed.array), sampled(moving, grid, transform), spacing=grid.spacing, text=text)
             for text, transform in (("before", None), ("after", result.transform))]
    np.testing.assert_array_equal(written, np.concatenate(shown))
