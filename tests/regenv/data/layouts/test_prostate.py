"""PROMISE12 and Prostate-3T in their own layout, on tiny files: read back, placed, and every way to be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.banks import pelvises
from regenv.data.io.images import ImageError
from regenv.data.layouts.prostate import promise12, prostate3t
from regenv.grid import Grid

SHAPE, SPACING = (18, 44, 48), (2.5, 2.5, 4.0)
NAMES = ("Case00", "Case01", "Case07")
PATIENTS = ("Prostate3T-01-0001", "Prostate3T-01-0002", "Prostate3T-01-0010")
ORGAN_MM = 16.0         # radius
SHIFT_MM = 2.0          # tolerance of a translation


def scan(index: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    """An organ with two zones among blobs, anywhere in the world: int16 image, labels 0 to 2, grid."""
    rng = np.random.default_rng(5)
    centers = rng.uniform(-50, 50, (40, 3))
    values = rng.uniform(100, 500, 40)
    grid = Grid.centered(SHAPE, SPACING, (10.0 * index, -4.0 * index, 7.0 * index))
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)) - grid.center
    points += np.array([3.0 * index, 2.0 * index, 0.0])    # in its image, the anatomy lies elsewhere
    image = sum(v * np.exp(-((points - c) ** 2).sum(-1) / 150) for c, v in zip(centers, values, strict=True))
    inside = np.linalg.norm(points, axis=-1) < ORGAN_MM
    labels = np.where(inside, np.where(points[..., 1] > 3, 1, 2), 0).astype(np.uint8)
    return (image + 300 * inside).astype(np.int16), labels, grid


def framed(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


@pytest.fixture
def mhd(tmp_path: Path) -> Path:
    """PROMISE12's training folder."""
    folder = tmp_path / "promise12"
    folder.mkdir()
    for index, name in enumerate(NAMES):
        image, labels, grid = scan(index)
        sitk.WriteImage(framed(image, grid), str(folder / f"{name}.mhd"))
        sitk.WriteImage(framed((labels > 0).astype(np.int8), grid), str(folder / f"{name}_segmentation.mhd"))
    return folder


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    """Prostate-3T as the archive unpacks it, the challenge's segmentations beside it."""
    for index, name in enumerate(PATIENTS):
        image, labels, grid = scan(index)
        write_series(tmp_path / "manifest" / "Prostate-3T" / name / "07-01-2012-prostaat" / "4.000000-t2tsetra", image,
                     grid, index)
        (tmp_path / "nrrd").mkdir(exist_ok=True)
        ending = "_truth" if index == 2 else ""
        sitk.WriteImage(framed(labels, grid), str(tmp_path / "nrrd" / f"{name}{ending}.nrrd"))
    return tmp_path


def write_series(folder: Path, array: np.ndarray, grid: Grid, index: int) -> None:
    folder.mkdir(parents=True)
    writer, root = sitk.ImageFileWriter(), f"1.2.826.0.1.3680043.2.1125.{index + 1}"
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(grid.spacing[:2])
        position = "\\".join(f"{v:g}" for v in grid.to_world(np.array([k, 0, 0])))
        for key, value in {"0008|0060": "MR", "0020|000d": f"{root}.1", "0020|000e": f"{root}.2", "0020|0013": str(k),
                           "0008|0018": f"{root}.3.{k}", "0020|0037": r"1\0\0\0\1\0", "0020|0032": position,
                           "0028|0030": f"{grid.spacing[1]}\\{grid.spacing[0]}", "0018|0050": "4"}.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"1-{k + 1:02}.dcm"))
        writer.Execute(image)


def of_3t(root: Path, **arguments):
    return prostate3t(root / "manifest", root / "nrrd", **arguments)


# -------------------------------------------------------------------------------------------------------- round trips

def assert_same(subjects, names) -> None:
    assert tuple(subject.name for subject in subjects) == tuple(names)
    for index, subject in enumerate(subjects):
        image, labels, grid = scan(index)
        np.testing.assert_array_equal(subject.image.array, image)
        np.testing.assert_array_equal(subject.labels.array, labels > 0)
        for field in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(getattr(subject.image.grid, field), getattr(grid, field), atol=1e-4)


def test_promise12_comes_back_as_written(mhd: Path) -> None:
    assert_same(promise12(mhd), NAMES)


def test_prostate3t_comes_back_as_written_both_zones_as_one_organ(dicom: Path) -> None:
    assert_same(of_3t(dicom), PATIENTS)


def test_segmentations_may_lie_among_the_series(dicom: Path) -> None:
    (dicom / "nrrd").rename(dicom / "manifest" / "segmentations")
    assert_same(prostate3t(dicom / "manifest"), PATIENTS)


def test_cases_are_chosen_and_ordered(mhd: Path, dicom: Path) -> None:
    (mhd / "Case01_segmentation.mhd").unlink()      # not asked for, so not missed
    assert [s.name for s in promise12(mhd, cases=["Case07", "Case00"])] == ["Case07", "Case00"]
    assert [s.name for s in of_3t(dicom, cases=[PATIENTS[1]])] == [PATIENTS[1]]


@pytest.mark.parametrize("ndim", [2, 3])
def test_both_are_prepared_like_the_synthetic_subjects(ndim: int, mhd: Path, dicom: Path) -> None:
    subjects = promise12(mhd) + of_3t(dicom)
    placed, kept = pelvises.prepared_population(subjects, ndim, tests=2), pelvises.FRAMES[ndim]
    assert placed.grid == kept and placed.images.shape == placed.labels.shape == (6, 1, *kept.shape)
    assert placed.names == NAMES + PATIENTS and len(placed.test) == 2 and len(placed.test_pairs) == 2
    assert placed.images.min() >= 0 and placed.images.max() <= 1 and set(placed.labels.unique().tolist()) == {0, 1}
    centers = np.array([placed.grid.to_world(np.argwhere(mask).mean(0)) for mask in (placed.labels[:, 0] == 1).numpy()])
    template = centers[placed.train[0]]
    assert np.abs(centers - template).max() < SHIFT_MM      # the same anatomy, so translation brings it together
    assert pelvises.prepared_population(subjects, ndim, "labels", tests=2).labels.shape == placed.labels.shape


# -------------------------------------------------------------------------------------------------------------- errors

def replace_labels(path: Path, change) -> None:
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(change(image), str(path))


def shifted(image: sitk.Image) -> sitk.Image:
    image.SetOrigin([v + 3 for v in image.GetOrigin()])
    return image


BAD_MHD = {
    "segmentation missing": (lambda p: (p / "Case01_segmentation.mhd").unlink(),
                             r"Case01.mhd: its segmentation .*Case01_segmentation.mhd is missing"),
    "raw missing": (lambda p: (p / "Case01.raw").unlink(), r"Case01\.mhd: .*Case01.raw"),
    "raw truncated": (lambda p: (p / "Case01.raw").write_bytes((p / "Case01.raw").read_bytes()[:-500]),
                      r"Case01\.mhd: .*truncated"),
    "segmentation truncated": (
        lambda p: (p / "Case07_segmentation.raw").write_bytes((p / "Case07_segmentation.raw").read_bytes()[:99]),
        r"Case07_segmentation\.mhd: .*truncated"),
    "unreadable": (lambda p: (p / "Case00.mhd").write_text("no header"), r"Case00\.mhd: "),
    "another shape": (lambda p: replace_labels(p / "Case07_segmentation.mhd", lambda i: i[:, :, :-1]),
                      r"Case07_segmentation\.mhd: shape is \(17, 44, 48\), but \(18, 44, 48\) in its image .*7\.mhd"),
    "another place": (lambda p: replace_labels(p / "Case00_segmentation.mhd", shifted),
                      r"Case00_segmentation\.mhd: origin is .*, but .* in its image"),
    "another organ": (lambda p: replace_labels(p / "Case00_segmentation.mhd", lambda i: i * 3),
                      r"Case00_segmentation\.mhd: labels are \[0, 3\]; the organ's, 1, are absent"),
    "empty segmentation": (lambda p: replace_labels(p / "Case00_segmentation.mhd", lambda i: i * 0),
                           r"Case00_segmentation\.mhd: labels are 0 everywhere"),
    "empty folder": (lambda p: [file.unlink() for file in p.iterdir()], r"promise12: number of cases is 0; .*CaseNN"),
    "no folder": (lambda p: p.rename(p.with_name("else")), r"promise12: no such folder"),
}


@pytest.mark.parametrize("spoil", list(BAD_MHD))
def test_bad_promise12_is_named(spoil: str, mhd: Path) -> None:
    change, told = BAD_MHD[spoil]
    change(mhd)
    with pytest.raises(ImageError, match=told) as error:
        promise12(mhd)
    assert "\n" not in str(error.value)


def series(root: Path, patient: int = 1) -> Path:
    return next((root / "manifest").rglob(f"{PATIENTS[patient]}/*/*"))


def second_series(root: Path) -> None:
    image, _, grid = scan(1)
    write_series(series(root).with_name("5.000000-t2tsesag"), image, grid, 8)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-800])


BAD_DICOM = {
    "segmentation missing": (lambda p: (p / "nrrd" / f"{PATIENTS[0]}.nrrd").unlink(),
                             r"t2tsetra: its segmentation .*Prostate3T-01-0001.nrrd is missing"),
    "no series": (lambda p: [file.unlink() for file in series(p).iterdir()],
                  r"Prostate3T-01-0002: number of DICOM series is 0"),
    "two series": (second_series, r"Prostate3T-01-0002: number of DICOM series is 2 .*t2tsesag"),
    "slice missing": (lambda p: (series(p) / "1-05.dcm").unlink(), r"gap of 8 mm between slices"),
    "slice truncated": (lambda p: truncate(series(p) / "1-05.dcm"), r"1-05\.dcm: .*truncated"),
    "segmentation truncated": (lambda p: truncate(p / "nrrd" / f"{PATIENTS[0]}.nrrd"), r"Prostate3T-01-0001\.nrrd: "),
    "another place": (lambda p: replace_labels(p / "nrrd" / f"{PATIENTS[1]}.nrrd", shifted),
                      r"Prostate3T-01-0002\.nrrd: origin is .*, but .* in its image"),
    "another organ": (lambda p: replace_labels(p / "nrrd" / f"{PATIENTS[1]}.nrrd", lambda i: (i > 0) * 3),
                      r"Prostate3T-01-0002\.nrrd: labels are \[0, 3\]; the organ's, 1 or 2, are absent"),
    "empty folder": (lambda p: (p / "manifest" / "Prostate-3T").rename(p / "away"),
                     r"manifest: number of cases is 0; .*Prostate3T-NN-NNNN"),
    "no folder of segmentations": (lambda p: (p / "nrrd").rename(p / "away"), r"nrrd: no such folder"),
}


@pytest.mark.parametrize("spoil", list(BAD_DICOM))
def test_bad_prostate3t_is_named(spoil: str, dicom: Path) -> None:
    change, told = BAD_DICOM[spoil]
    change(dicom)
    with pytest.raises(ImageError, match=told) as error:
        of_3t(dicom)
    assert "\n" not in str(error.value)


def test_unknown_case_is_named_with_what_there_is(mhd: Path, dicom: Path) -> None:
    with pytest.raises(ImageError, match=r"case 'Case99' is missing; the folder has Case00, Case01, Case07"):
        promise12(mhd, cases=["Case99"])
    with pytest.raises(ImageError, match=r"case 'Prostate3T-01-0099' is missing"):
        of_3t(dicom, cases=["Prostate3T-01-0099"])


def test_missing_segmentations_are_found_before_anything_is_read(mhd: Path) -> None:
    (mhd / "Case00.raw").unlink()
    (mhd / "Case07_segmentation.mhd").unlink()
    with pytest.raises(ImageError, match=r"Case07_segmentation\.mhd is missing"):
        promise12(mhd)
