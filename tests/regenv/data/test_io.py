"""Reading and writing: geometry agrees with SimpleITK and nibabel, and every bad file is one clear error."""

from __future__ import annotations

import gzip
import locale
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io import images as io
from regenv.data.io.images import ImageError
from regenv.grid import Grid

SINGLE_PRECISION_MM = 1e-4      # NIfTI stores geometry in float32
TRANSFORM_MM = 1e-9


def rotation(ndim: int, rng: np.random.Generator, *, left_handed: bool = False) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(ndim, ndim)))
    q = q * np.sign(np.diag(r))
    if (np.linalg.det(q) < 0) != left_handed:
        q[:, 0] *= -1
    return q


def grid_of(shape: tuple[int, ...], rng: np.random.Generator, *, left_handed: bool = False) -> Grid:
    n = len(shape)
    return Grid(shape, tuple(rng.uniform(0.5, 4, n).tolist()), tuple(rng.uniform(-200, 200, n).tolist()),
                tuple(rotation(n, rng, left_handed=left_handed).ravel().tolist()))


def assert_same_place(a: Grid, b: Grid, tolerance: float) -> None:
    assert a.shape == b.shape
    np.testing.assert_allclose(a.voxel_to_world, b.voxel_to_world, atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------------------------ round trips

@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_written_image_comes_back(tmp_path: Path, rng, suffix: str, shape, left_handed: bool) -> None:
    array = rng.normal(size=shape).astype(np.float32)
    grid = grid_of(shape, rng, left_handed=left_handed)
    path = tmp_path / f"image{suffix}"
    io.write_image(path, array, grid)
    back = io.read_image(path)
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == np.float32 and back.path == str(path)
    assert_same_place(back.grid, grid, SINGLE_PRECISION_MM)
    assert_same_place(Grid.from_sitk(sitk.ReadImage(str(path))), back.grid, 0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]          # nothing temporary left


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".mha", ".nrrd"])
@pytest.mark.parametrize("pixel", [sitk.sitkUInt8, sitk.sitkInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32,
                                   sitk.sitkUInt32, sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64])
def test_every_pixel_type_and_detached_data(tmp_path: Path, rng, suffix: str, pixel: int) -> None:
    image = sitk.Cast(sitk.GetImageFromArray(rng.integers(0, 100, (4, 5, 6)).astype(np.float32)), pixel)
    sitk.WriteImage(image, str(tmp_path / f"image{suffix}"))
    np.testing.assert_array_equal(io.read_image(tmp_path / f"image{suffix}").array, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_pictures(tmp_path: Path, rng, suffix: str) -> None:
    picture = sitk.GetImageFromArray(rng.integers(0, 255, (20, 30)).astype(np.uint8))
    sitk.WriteImage(picture, str(tmp_path / f"p{suffix}"))
    back = io.read_image(tmp_path / f"p{suffix}", spacing=(0.5, 2))
    assert back.grid.spacing == (0.5, 2.0) and back.grid.shape == (20, 30)
    if suffix == ".png":
        np.testing.assert_array_equal(back.array, sitk.GetArrayFromImage(picture))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1)])
def test_nifti_from_nibabel_lies_where_nibabel_says(tmp_path: Path, rng, shape) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[:3, :3] = rotation(3, rng, left_handed=True) * (1.5, 0.7, 3.0)
    affine[:3, 3] = (10, -20, 30)
    nibabel.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine).to_filename(tmp_path / "a.nii.gz")
    image = io.read_image(tmp_path / "a.nii.gz")
    ijk = rng.uniform(0, 4, (20, 3))
    ras = ijk @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(image.grid.to_world(ijk[:, ::-1]) * (-1, -1, 1), ras, atol=SINGLE_PRECISION_MM)
    data = nibabel.load(tmp_path / "a.nii.gz").get_fdata().reshape(5, 6, 7)
    np.testing.assert_allclose(image.array, data.transpose(), rtol=1e-6)


def test_big_endian_and_scaled_nifti(tmp_path: Path, rng) -> None:
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, 3)
    stored = rng.normal(size=(4, 5, 6)) * 100
    nibabel.Nifti1Image(stored, np.eye(4), header).to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(io.read_image(tmp_path / "a.nii").array.transpose(),
                               nibabel.load(tmp_path / "a.nii").get_fdata(), rtol=1e-6)


def write_series(folder: Path, positions: list[float], rng, *, spacing: str = r"0.8\0.6",
                 position: str = r"{x}\-5\{z}") -> np.ndarray:
    """A DICOM series, written slice by slice; (slices, 16, 12) int16."""
    folder.mkdir()
    array = rng.integers(-1000, 1000, (len(positions), 16, 12)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
    for i, z in enumerate(positions):
        image = sitk.GetImageFromArray(array[i])
        for key, value in {
            "0008|0060": "CT", "0020|000e": "1.2.826.0.1.3680043.2.1125.1", "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0013": str(i), "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{i}",
            "0020|0037": r"1\0\0\0\1\0", "0020|0032": position.format(x=10 + 0.3 * z * ("{z}{z}" in position), z=z),
            "0028|0030": spacing, "0018|0050": "2.5",
        }.items():
            image.SetMetaData(key, value)
        image.SetSpacing([float(v) for v in reversed(spacing.split("\\"))] if float(spacing.split("\\")[0]) > 0 else
                         (1, 1))
        writer.SetFileName(str(folder / f"slice{(i * 7) % 97:03}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves "C", in which Python opens files as ASCII
    return array


def test_dicom_series(tmp_path: Path, rng) -> None:
    array = write_series(tmp_path / "ct", [-30 + 2.5 * i for i in range(6)], rng)
    image = io.read_image(tmp_path / "ct")
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_allclose(image.grid.spacing, (0.6, 0.8, 2.5))
    np.testing.assert_allclose(image.grid.origin, (10, -5, -30))
    assert io.read_image(tmp_path / "ct", spacing=1).grid.spacing == (1.0, 1.0, 1.0)


# --------------------------------------------------------------------------------------------------------- bad files

VOLUME = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
Spoil = Callable[[Path], Path]
BAD: list = []


def bad(*words: str) -> Callable[[Spoil], Spoil]:
    """Registers a maker of a bad file together with what the message must say besides the file's name."""
    def register(make: Spoil) -> Spoil:
        BAD.append(pytest.param(make, words, id=make.__name__))
        return make
    return register


def written(path: Path, array: np.ndarray = VOLUME, *, vector: bool = False, compressed: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path), useCompression=compressed)
    return path


def nifti(path: Path, *patches: tuple[int, str, object], name: str = "a.nii") -> Path:
    """A NIfTI-1 file with header fields overwritten: (offset, struct code, value)."""
    raw = bytearray(written(path / "good.nii").read_bytes())
    for offset, code, value in patches:
        struct.pack_into("<" + code, raw, offset, value)
    (path / name).write_bytes(raw if name.endswith(".nii") else gzip.compress(bytes(raw)))
    return path / name


def replaced(path: Path, pattern: bytes, line: bytes) -> Path:
    path.write_bytes(re.sub(pattern, line, path.read_bytes(), count=1))
    return path


def cut(path: Path, missing: int) -> Path:
    path.write_bytes(path.read_bytes()[:-missing])
    return path


DIM, PIXDIM, DATATYPE, OFFSET, QFORM_CODE, SFORM_CODE, QUATERNION, SFORM = 40, 76, 70, 108, 252, 254, 256, 280


@bad("no such file")
def missing(p): return p / "nothing.nii.gz"


@bad("format is '.txt'", "NIfTI")
def unknown_suffix(p):
    (p / "a.txt").write_text("x")
    return p / "a.txt"


@bad("not NIfTI")
def not_nifti(p):
    (p / "a.nii").write_bytes(b"x" * 1000)
    return p / "a.nii"


@bad("header is NIfTI-2", "Convert")
def nifti_2(p): return nifti(p, (0, "i", 540))


@bad("voxel (0, 0, 2) is -inf", "2 of 210")
def infinite_voxels_in_nifti(p):
    array = VOLUME.astype(np.float64)
    array[0, 0, 2] = array[4, 5, 6] = -np.inf
    return written(p / "a.nii", array)


@bad("header is 0 bytes")
def empty_nifti(p):
    (p / "a.nii").write_bytes(b"")
    return p / "a.nii"


@bad("gzip", "rename")
def gzip_named_nii(p):
    (p / "a.nii").write_bytes(gzip.compress(written(p / "g.nii").read_bytes()))
    return p / "a.nii"


@bad("file size is 1092 bytes", "1192", "truncated")
def truncated_nifti(p): return cut(nifti(p), 100)


@bad("gzip stream", "truncated")
def truncated_nifti_gz(p): return cut(nifti(p, name="a.nii.gz"), 200)


@bad("decompressed size is 1092 bytes", "1192", "truncated")
def short_nifti_gz(p):
    (p / "a.nii.gz").write_bytes(gzip.compress(cut(nifti(p, name="b.nii"), 100).read_bytes()))
    return p / "a.nii.gz"


@bad("gzip stream is damaged")
def damaged_nifti_gz(p):
    raw = bytearray(nifti(p, name="a.nii.gz").read_bytes())
    raw[-8:-4] = b"\0\0\0\0"
    (p / "a.nii.gz").write_bytes(raw)
    return p / "a.nii.gz"


@bad("decompressed size is more than")
def gzip_bomb(p):
    (p / "a.nii.gz").write_bytes(gzip.compress(nifti(p, name="b.nii").read_bytes() + bytes(8 << 20)))
    return p / "a.nii.gz"


@bad("dim is 7 x -6 x 5", "at least one voxel")
def negative_dim(p): return nifti(p, (DIM + 4, "h", -6))


@bad("dim is 7 x 0 x 5")
def zero_dim(p): return nifti(p, (DIM + 4, "h", 0))


@bad("dim[0] is 9")
def too_many_axes(p): return nifti(p, (DIM, "h", 9))


@bad("dim is 20000 x 20000 x 20000", "GiB", "max_bytes")
def huge(p): return nifti(p, *((DIM + 2 * i, "h", 20000) for i in (1, 2, 3)))


@bad("dim is 7 x 6 x 5 x 3", "4D", "Save one time point")
def four_dimensions(p):
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(VOLUME)] * 3), str(p / "a.nii"))
    return p / "a.nii"


@bad("dim is 7 x 6 x 1", "use a 2D id")
def one_slice(p): return written(p / "a.nii", VOLUME[:1])


@bad("DimSize is 1 x 6 x 5", "at least two voxels")
def one_voxel_axis(p): return written(p / "a.mha", VOLUME[:, :, :1])


@bad("sizes is 7 x 1", "at least two voxels")
def one_voxel_axis_2d(p): return written(p / "a.nrrd", VOLUME[0, :1])


@bad("pixdim is (0.0, 1.0, 1.0) mm", "pass spacing=")
def zero_pixdim(p): return nifti(p, (PIXDIM + 4, "f", 0.0))


@bad("pixdim is (1.0, -1.0, 1.0) mm", "positive")
def negative_pixdim(p): return nifti(p, (PIXDIM + 8, "f", -1.0))


@bad("pixdim is (1.0, 1.0, nan) mm", "finite")
def nan_pixdim(p): return nifti(p, (PIXDIM + 12, "f", float("nan")))


@bad("direction (sform)", "singular")
def singular_sform(p): return nifti(p, (QFORM_CODE, "h", 0), (SFORM + 20, "f", 0.0))


@bad("sform is", "nan", "finite")
def nan_sform(p): return nifti(p, (QFORM_CODE, "h", 0), (SFORM, "f", float("nan")))


@bad("qform is", "nan", "finite")
def nan_qform(p): return nifti(p, (QUATERNION, "f", float("nan")))


@bad("pixdim is (2.0, 1.0, 1.0)", "sform's columns")
def contradicting_sform(p): return nifti(p, (QFORM_CODE, "h", 0), (PIXDIM + 4, "f", 2.0))


@bad("orthonormal")
def sheared_sform(p): return nifti(p, (QFORM_CODE, "h", 0), (SFORM + 4, "f", 0.5), (PIXDIM + 8, "f", 1.1180340))


@bad("datatype is 1536")
def long_double(p): return nifti(p, (DATATYPE, "h", 1536))


@bad("channels is 2")
def complex_voxels(p): return nifti(p, (DATATYPE, "h", 32))


@bad("vox_offset is 12")
def wrong_offset(p): return nifti(p, (OFFSET, "f", 12.0))


@bad("channels is 3", "one intensity per voxel")
def vector_nifti(p): return written(p / "a.nii.gz", np.stack([VOLUME] * 3, -1), vector=True)


@bad("ElementNumberOfChannels is 3")
def vector_mha(p): return written(p / "a.mha", np.stack([VOLUME] * 3, -1), vector=True)


@bad("values per voxel (kinds) is 2")
def vector_nrrd(p): return written(p / "a.nrrd", np.stack([VOLUME] * 2, -1), vector=True)


@bad("channels is 3")
def rgb_png(p): return written(p / "a.png", np.zeros((8, 9, 3), np.uint8), vector=True)


@bad("channels is 4")
def rgba_png(p): return written(p / "a.png", np.zeros((8, 9, 4), np.uint8), vector=True)


@bad("channels is 3")
def rgb_jpeg(p): return written(p / "a.jpg", np.zeros((8, 9, 3), np.uint8), vector=True)


@bad("ElementSpacing is (0.0, 1.0, 1.0) mm", "pass spacing=")
def zero_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = 0 1 1")


@bad("ElementSpacing is (1.0, -2.0, 1.0) mm")
def negative_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = 1 -2 1")


@bad("ElementSpacing is one 1 1", "numbers")
def worded_spacing_mha(p): return replaced(written(p / "a.mha"), rb"ElementSpacing = .*", b"ElementSpacing = one 1 1")


@bad("TransformMatrix is 1 0 0 0 1 0 0 0 0", "singular")
def singular_mha(p):
    return replaced(written(p / "a.mha"), rb"TransformMatrix = .*", b"TransformMatrix = 1 0 0 0 1 0 0 0 0")


@bad("DimSize is 7 x -6 x 5")
def negative_mha(p): return replaced(written(p / "a.mha"), rb"DimSize = .*", b"DimSize = 7 -6 5")


@bad("DimSize is None")
def sizeless_mha(p): return replaced(written(p / "a.mha"), rb"DimSize = .*\n", b"")


@bad("ElementType is MET_COLOUR")
def typeless_mha(p): return replaced(written(p / "a.mha"), rb"MET_FLOAT", b"MET_COLOUR")


@bad("voxel data is 740 bytes", "840", "truncated")
def truncated_mha(p): return cut(written(p / "a.mha"), 100)


@bad("voxel data", "truncated")
def truncated_compressed_mha(p): return cut(written(p / "a.mha", compressed=True), 100)


@bad("ElementDataFile is a.raw", "does not exist")
def mhd_without_raw(p):
    written(p / "a.mhd")
    (p / "a.raw").unlink()
    return p / "a.mhd"


@bad("voxel data is 740 bytes", "truncated")
def mhd_with_short_raw(p):
    written(p / "a.mhd")
    cut(p / "a.raw", 100)
    return p / "a.mhd"


@bad("ElementDataFile is missing")
def not_mha(p):
    (p / "a.mha").write_bytes(b"x" * 1000)
    return p / "a.mha"


@bad("space directions", "(0.0, 1.0, 1.0) mm")
def zero_spacing_nrrd(p): return replaced(written(p / "a.nrrd"), rb"\(1,0,0\) \(0,1,0\)", b"(0,0,0) (0,1,0)")


@bad("space directions is (1,0,0) (1,0,0) (0,0,1)", "singular")
def singular_nrrd(p): return replaced(written(p / "a.nrrd"), rb"\(1,0,0\) \(0,1,0\)", b"(1,0,0) (1,0,0)")


@bad("voxel data is 740 bytes", "840", "truncated")
def truncated_nrrd(p): return cut(written(p / "a.nrrd"), 100)


@bad("cannot read it", "expected 840 bytes")
def truncated_compressed_nrrd(p): return cut(written(p / "a.nrrd", compressed=True), 100)


@bad("data file is a.raw", "does not exist")
def nhdr_without_raw(p):
    written(p / "a.nhdr")
    (p / "a.raw").unlink()
    return p / "a.nhdr"


@bad("header is not NRRD")
def not_nrrd(p):
    (p / "a.nrrd").write_bytes(b"x" * 1000)
    return p / "a.nrrd"


@bad("type is 'block'")
def block_nrrd(p): return replaced(written(p / "a.nrrd"), rb"type: float", b"type: block")


GREY = np.random.default_rng(2).integers(0, 255, (64, 64)).astype(np.uint8)


@bad("IEND", "truncated")
def truncated_png(p): return cut(written(p / "a.png", GREY), 2000)


@bad("EOI", "truncated")
def truncated_jpeg(p): return cut(written(p / "a.jpg", GREY), 2000)


@bad("SOF", "truncated")
def headless_jpeg(p):
    (p / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return p / "a.jpg"


@bad("not PNG")
def jpeg_named_png(p): return written(p / "a.jpg", GREY).rename(p / "a.png")


@bad("not JPEG")
def png_named_jpeg(p): return written(p / "a.png", GREY).rename(p / "a.jpg")


@bad("voxel (1, 2, 3) is nan", "1 of 210", "finite")
def nan_voxel(p):
    array = VOLUME.copy()
    array[1, 2, 3] = np.nan
    return written(p / "a.nii.gz", array)


@bad("voxel (0, 0, 1) is inf", "1 of 210")
def infinite_voxel(p):
    array = VOLUME.copy()
    array[0, 0, 1] = np.inf
    return written(p / "a.mha", array)


@bad("intensity is 3 everywhere", "constant")
def constant(p): return written(p / "a.nrrd", np.full_like(VOLUME, 3))


@bad("DICOM series found: none")
def folder_without_dicom(p):
    (p / "empty").mkdir()
    return p / "empty"


@bad("number of slices is 1", "2D id")
def one_dicom_slice(p):
    write_series(p / "ct", [0.0], np.random.default_rng(0))
    return p / "ct"


@bad("number of slices is 1")
def one_dicom_file(p):
    write_series(p / "ct", [0.0, 1.0], np.random.default_rng(0))
    return p / "ct" / "slice000.dcm"


@bad("gap of 5 mm between slices 3 and 4", "elsewhere 2.5 mm")
def missing_dicom_slice(p):
    write_series(p / "ct", [0, 2.5, 5, 10, 12.5], np.random.default_rng(0))
    return p / "ct"


@bad("ImagePositionPatient moves", "tilted gantries")
def tilted_gantry(p):
    write_series(p / "ct", [0, 1, 2, 3], np.random.default_rng(0), position=r"{x}\{z}\{z}")
    return p / "ct"


@bad("DICOM series found: 2")
def two_dicom_series(p):
    write_series(p / "ct", [0, 1, 2], np.random.default_rng(0))
    write_series(p / "other", [0, 1, 2], np.random.default_rng(0))
    for i, file in enumerate((p / "other").iterdir()):
        raw = file.read_bytes().replace(b"1.2.826.0.1.3680043.2.1125.1", b"1.2.826.0.1.3680043.2.1125.9")
        (p / "ct" / f"other{i}.dcm").write_bytes(raw)
    return p / "ct"


@bad("cannot")
def not_dicom(p):
    (p / "a.dcm").write_bytes(b"x" * 1000)
    return p / "a.dcm"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), BAD)
def test_bad_image_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Spoil, words) -> None:
    path = make(tmp_path)
    with pytest.raises(ImageError) as caught:
        io.read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)) or str(path.parent) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_truncated_dicom_slice_is_an_error(tmp_path: Path, rng, keep: float) -> None:
    write_series(tmp_path / "ct", [0, 1, 2, 3], rng)
    victim = tmp_path / "ct" / "slice007.dcm"
    raw = victim.read_bytes()
    victim.write_bytes(raw[:int(keep * len(raw))])
    with pytest.raises(ImageError, match=r"slice007\.dcm: .*truncated"):
        io.read_image(tmp_path / "ct")


@pytest.mark.parametrize("make", [zero_pixdim, negative_pixdim, nan_pixdim, contradicting_sform, zero_spacing_mha,
                                  negative_spacing_mha])
def test_spacing_argument_mends_a_bad_header(tmp_path: Path, make: Spoil) -> None:
    image = io.read_image(make(tmp_path), spacing=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal(image.array, VOLUME)
    assert image.grid.spacing == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(image.grid.direction, np.eye(3).ravel(), atol=1e-6)


def test_spacing_argument_mends_detached_files(tmp_path: Path) -> None:
    path = replaced(written(tmp_path / "a.mhd"), rb"ElementSpacing = .*", b"ElementSpacing = 0 1 1")
    np.testing.assert_array_equal(io.read_image(path, spacing=2).array, VOLUME)
    path = written(tmp_path / "b.nhdr")
    path.write_bytes(re.sub(rb"space[^\n]*\n", b"", path.read_bytes()).replace(b"endian", b"spacings: 0 1 1\nendian"))
    np.testing.assert_array_equal(io.read_image(path, spacing=2).array, VOLUME)
    with pytest.raises(ImageError, match=r"b\.nhdr: spacings is \(0\.0, 1\.0, 1\.0\) mm"):
        io.read_image(path)


@pytest.mark.parametrize(("spacing", "words"), [((1, 2), "needs 3 numbers"), ((1, 0, 1), "positive"),
                                                (float("nan"), "finite")])
def test_bad_spacing_argument(tmp_path: Path, spacing, words: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.mha: spacing=\.\.\. is .*{words}"):
        io.read_image(written(tmp_path / "a.mha"), spacing=spacing)


def test_size_limit_can_be_raised(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="max_bytes"):
        io.read_image(path, max_bytes=839)
    assert io.read_image(path, max_bytes=840).array.size == 210


# -------------------------------------------------------------------------------------------------- labels and masks

def test_labels_and_masks(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[1:3] = 7
    path = written(tmp_path / "l.nii.gz", labels)
    assert io.read_labels(path).array.dtype == np.int32 and set(np.unique(io.read_labels(path).array)) == {0, 7}
    assert io.read_mask(path).array.dtype == np.uint8 and io.read_mask(path).array.sum() == 60
    assert io.read_labels(written(tmp_path / "one.nii.gz", np.ones((4, 5, 6), np.uint8))).array.min() == 1


@pytest.mark.parametrize(("reader", "array", "words"), [
    (io.read_mask, np.zeros((4, 5, 6), np.uint8), "mask is 0 everywhere"),
    (io.read_labels, np.zeros((4, 5, 6), np.uint8), "labels are 0 everywhere"),
    (io.read_labels, np.full((4, 5, 6), 0.5, np.float32), "label is 0.5; labels must be whole"),
    (io.read_labels, np.full((4, 5, 6), 2**40, np.int64), "label is 1.09951e+12; labels must fit into 32 bits"),
    (io.read_labels, np.full((4, 5, 6), np.nan, np.float32), "voxel (0, 0, 0) is nan"),
    (io.read_mask, np.full((4, 5, 6), np.inf, np.float32), "voxel (0, 0, 0) is inf"),
])
def test_bad_labels(tmp_path: Path, reader, array: np.ndarray, words: str) -> None:
    path = written(tmp_path / "l.nrrd", array)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {words}")):
        reader(path)


# --------------------------------------------------------------------------------------------------------- landmarks

@pytest.mark.parametrize(("name", "text", "points"), [
    ("a.csv", "x,y,z\n1,2,3\n-4.5,5e1,6\n", [[1, 2, 3], [-4.5, 50, 6]]),
    ("a.csv", "name,z,y,x\ntip,3,2,1\n", [[1, 2, 3]]),
    ("a.csv", "1,2\n3,4\n", [[1, 2], [3, 4]]),
    ("a.txt", "# comment\n1 2 3\n\n4 5 6\n", [[1, 2, 3], [4, 5, 6]]),
    ("a.txt", "point\n1\n1 2 3\n", [[1, 2, 3]]),
    ("a.fcsv", "# CoordinateSystem = LPS\n# columns = id,x,y,z\n1,1,2,3,0\n", [[1, 2, 3]]),
    ("a.fcsv", "# CoordinateSystem = 0\n# columns = id,x,y,z\n1,1,2,3,0\n", [[-1, -2, 3]]),
])
def test_landmarks(tmp_path: Path, name: str, text: str, points) -> None:
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(io.read_landmarks(tmp_path / name), points)


def test_elastix_indices_need_the_grid(tmp_path: Path, rng) -> None:
    (tmp_path / "a.txt").write_text("index\n1\n1 2 3\n")
    grid = grid_of((9, 9, 9), rng)
    np.testing.assert_allclose(io.read_landmarks(tmp_path / "a.txt", grid), grid.to_world(np.array([[3, 2, 1]])))
    with pytest.raises(ImageError, match=r"a\.txt: kind is 'index'.*Pass grid="):
        io.read_landmarks(tmp_path / "a.txt")


@pytest.mark.parametrize(("text", "words"), [
    ("", "number of landmarks is 0"), ("x,y,z\n", "number of landmarks is 0"), ("1,2,3\n1,two,3\n", "line 2 has 'two'"),
    ("1,2,nan\n", "line 1 has 'nan'"), ("1,2,3\n1,2\n", "line 2 has 2 columns"), ("1,2,3,4\n", "line 1 has 4 columns"),
    ("x,y,z\n1,2\n", "line 2 has ''"), ("a,b,c\n1,2,3\n", "columns are a, b, c"), ("1\n", "line 1 has 1 columns"),
])
def test_bad_landmarks(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ImageError, match=re.escape(f"{path}: {words}")):
        io.read_landmarks(path)


def test_missing_and_binary_landmarks(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(ImageError, match=f"{name}: landmarks cannot be read"):
            io.read_landmarks(tmp_path / name)


# -------------------------------------------------------------------------------------------------------- transforms

@pytest.mark.parametrize("ndim", [2, 3])
def test_transform_round_trip(tmp_path: Path, rng, ndim: int) -> None:
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] = rotation(ndim, rng) @ (np.eye(ndim) + 0.1 * rng.normal(size=(ndim, ndim)))
    matrix[:ndim, ndim] = rng.normal(size=ndim) * 100
    path = tmp_path / "t.tfm"
    io.write_transform(path, matrix)
    np.testing.assert_allclose(io.read_transform(path), matrix, atol=TRANSFORM_MM, rtol=0)
    read = sitk.ReadTransform(str(path))
    for point in rng.normal(size=(5, ndim)) * 100:
        expected = matrix[:ndim, :ndim] @ point + matrix[:ndim, ndim]
        np.testing.assert_allclose(read.TransformPoint(point.tolist()), expected, atol=TRANSFORM_MM)
    assert f"AffineTransform_double_{ndim}_{ndim}" in path.read_text()


def _euler() -> sitk.Transform:
    return sitk.Euler3DTransform((10, -20, 30), 0.1, -0.2, 0.3, (5, 6, 7))


@pytest.mark.parametrize("transform", [
    _euler(), sitk.TranslationTransform(3, (1, 2, 3)), sitk.ScaleTransform(3, (1, 2, 3)),
    sitk.Transform(3, sitk.sitkIdentity),
    sitk.Similarity3DTransform(1.3, (0, 0, 1), 0.4, (1, 2, 3), (4, 5, 6)), sitk.Euler2DTransform((3, 4), 0.5, (1, 2)),
    sitk.CompositeTransform([_euler(), sitk.TranslationTransform(3, (1, 2, 3)), _euler()]),
], ids=lambda t: t.GetName())
def test_any_linear_transform_is_read(tmp_path: Path, rng, transform: sitk.Transform) -> None:
    sitk.WriteTransform(transform, str(tmp_path / "t.tfm"))
    matrix = io.read_transform(tmp_path / "t.tfm")
    n = transform.GetDimension()
    for point in rng.normal(size=(5, n)) * 100:
        np.testing.assert_allclose(matrix[:n, :n] @ point + matrix[:n, n], transform.TransformPoint(point.tolist()),
                                   atol=TRANSFORM_MM)


def test_bad_transforms(tmp_path: Path) -> None:
    (tmp_path / "bad.tfm").write_text("nothing")
    sitk.WriteTransform(sitk.DisplacementFieldTransform(sitk.Image(4, 4, 4, sitk.sitkVectorFloat64)),
                        str(tmp_path / "field.h5"))
    for name, words in (("bad.tfm", "cannot read it as a transform"), ("none.tfm", "no such file"),
                        ("field.h5", "a linear one")):
        with pytest.raises(ImageError, match=f"{name}: .*{words}"):
            io.read_transform(tmp_path / name)
    singular = np.diag([1.0, 1.0, 0.0, 1.0])
    for matrix, words in ((singular, "invertible"), (np.full((4, 4), np.nan), "finite"), (np.eye(5), "shape"),
                          (np.ones((4, 4)), "affine")):
        with pytest.raises(ImageError, match=f"t.tfm: matrix .*{words}"):
            io.write_transform(tmp_path / "t.tfm", matrix)
    with pytest.raises(ImageError, match=r"t\.nii: format is '\.nii'"):
        io.write_transform(tmp_path / "t.nii", np.eye(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tfm", "field.h5"]


# ------------------------------------------------------------------------------------------------- writing, intensities

def test_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.nii.gz"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), io.atomic(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"] and path.read_text() == "old"
    with io.atomic(path) as temporary:
        temporary.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"] and path.read_text() == "new"


@pytest.mark.parametrize(("name", "array", "words"), [
    ("no/a.nii", VOLUME, "does not exist"), ("a.mhd", VOLUME, "format is '.mhd'"), ("a.png", VOLUME, "PNG takes 2D"),
    ("a.nii", VOLUME[1:], "they must agree"), ("a.nii", VOLUME.astype(complex), "real numbers"),
])
def test_unwritable_images(tmp_path: Path, name: str, array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        io.write_image(tmp_path / name, array, Grid.centered(VOLUME.shape, 1.0))
    assert list(tmp_path.iterdir()) == []


def test_mask_and_vectors_are_written(tmp_path: Path) -> None:
    grid = Grid.centered(VOLUME.shape, 1.0)
    io.write_image(tmp_path / "m.nrrd", VOLUME > 0, grid)
    np.testing.assert_array_equal(io.read_mask(tmp_path / "m.nrrd").array, VOLUME > 0)
    io.write_image(tmp_path / "v.mha", np.stack([VOLUME] * 3, -1), grid)
    assert sitk.ReadImage(str(tmp_path / "v.mha")).GetNumberOfComponentsPerPixel() == 3


def test_normalize_ignores_padding_and_outliers(rng) -> None:
    ct = rng.uniform(-1000, 1000, (20, 20, 20))
    ct[:4] = -3024                                          # padding around the field of view
    ct[10, 10, 10] = 30000                                  # metal
    scaled = io.normalize(ct)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    middle = np.abs(ct) < 900
    np.testing.assert_allclose(scaled[middle], (ct[middle] + 1000) / 2000, atol=0.02)


def test_normalize_of_odd_arrays() -> None:
    np.testing.assert_array_equal(io.normalize(np.full((3, 3), 5)), np.zeros((3, 3)))
    np.testing.assert_array_equal(io.normalize(np.array([[0, 1], [1, 0]])), [[0, 1], [1, 0]])
    assert io.normalize(np.array([np.nan, 0, 1, 2])).tolist()[0] == 0
    assert np.isfinite(io.normalize(np.array([np.nan, np.inf, -np.inf]))).all()


def test_a_product_of_matrices_may_carry_rounding_in_its_last_row(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[3, 3] += 2e-16
    io.write_transform(tmp_path / "pose.tfm", matrix)
    assert np.allclose(io.read_transform(tmp_path / "pose.tfm"), np.eye(4), atol=1e-12)
