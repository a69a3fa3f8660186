"""NIfTI: files lie where nibabel says, and every bad one is one clear error."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    SINGLE_PRECISION_MM,
    VOLUME,
    BadFiles,
    Maker,
    assert_header_keeps_its_spacing,
    assert_one_clear_error,
    cut,
    rotation,
    written,
)

DIM, PIXDIM, DATATYPE, OFFSET, QFORM_CODE, SFORM_CODE, QUATERNION, SFORM = 40, 76, 70, 108, 252, 254, 256, 280
SLOPE, UNITS, MAGIC = 112, 123, 344
bad = BadFiles()


def nifti(path: Path, *patches: tuple[int, str, object], name: str = "a.nii") -> Path:
    """A NIfTI-1 file with header fields overwritten: (offset, struct code, value)."""
    raw = bytearray(written(path / "good.nii").read_bytes())
    for offset, code, value in patches:
        struct.pack_into("<" + code, raw, offset, value)
    (path / name).write_bytes(raw if name.endswith(".nii") else gzip.compress(bytes(raw)))
    return path / name


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1)])
def test_nifti_from_nibabel_lies_where_nibabel_says(tmp_path: Path, rng, shape) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[:3, :3] = rotation(3, rng, left_handed=True) * (1.5, 0.7, 3.0)
    affine[:3, 3] = (10, -20, 30)
    nibabel.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine).to_filename(tmp_path / "a.nii.gz")
    image = read_image(tmp_path / "a.nii.gz")
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
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").array.transpose(),
                               nibabel.load(tmp_path / "a.nii").get_fdata(), rtol=1e-6)


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


@bad("voxel data is 740 bytes", "840", "truncated")
def truncated_nifti(p): return cut(nifti(p), 100)


@bad("compressed data is cut short", "truncated")
def truncated_nifti_gz(p): return cut(nifti(p, name="a.nii.gz"), 200)


@bad("decompressed size is 1092 bytes", "1192", "truncated")
def short_nifti_gz(p):
    (p / "a.nii.gz").write_bytes(gzip.compress(cut(nifti(p, name="b.nii"), 100).read_bytes()))
    return p / "a.nii.gz"


@bad("compressed data is damaged")
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


@bad("dim is 7 x 6 x 5 x 3", "3 times", "time=N", "--time N", "0 to 2")
def four_dimensions(p):
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(VOLUME)] * 3), str(p / "a.nii"))
    return p / "a.nii"


@bad("dim is 7 x 6 x 1", "use a 2D id")
def one_slice(p): return written(p / "a.nii", VOLUME[:1])


@bad("pixdim is (0.0, 1.0, 1.0) mm", "positive")
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


@bad("voxel (1, 2, 3) is nan", "1 of 210", "finite")
def nan_voxel(p):
    array = VOLUME.copy()
    array[1, 2, 3] = np.nan
    return written(p / "a.nii.gz", array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "words"), bad.cases)
def test_bad_file_is_one_line_that_names_file_field_and_value(tmp_path: Path, make: Maker, words) -> None:
    assert_one_clear_error(make(tmp_path), words)


@pytest.mark.parametrize("make", [zero_pixdim, negative_pixdim, nan_pixdim, contradicting_sform])
def test_the_spacing_argument_mends_no_header(tmp_path: Path, make: Maker) -> None:
    with pytest.raises(ImageError, match="pixdim is"):
        read_image(make(tmp_path), spacing=1)


def test_a_header_keeps_its_spacing(tmp_path: Path) -> None:
    assert_header_keeps_its_spacing(written(tmp_path / "a.nii.gz"))


@pytest.mark.parametrize(("patches", "words"), [
    ([(MAGIC, "4s", b"ni1\0")], "magic is b'ni1\\x00'"), ([(MAGIC, "4s", b"xxxx")], "magic is b'xxxx'"),
    ([(OFFSET, "f", 1e30)], "vox_offset is 1e+30"), ([(OFFSET, "f", 352.5)], "vox_offset is 352.5"),
    ([(OFFSET, "f", float("nan"))], "vox_offset is nan"), ([(OFFSET, "f", -1.0)], "vox_offset is -1"),
    ([(OFFSET, "f", 353.0)], "voxel data is 839 bytes"), ([(OFFSET, "f", 351.0)], "more than the 840 bytes"),
    ([(SLOPE, "f", float("nan"))], "scl_slope and scl_inter are (nan, 0.0)"),
    ([(SLOPE, "2f", 1.0, float("inf"))], "scl_slope and scl_inter are (1.0, inf)"),
    ([(PIXDIM + 4, "f", 1e30)], "pixdim is (1.0000000150474662e+30, 1.0, 1.0) mm"),
    ([(PIXDIM, "f", 0.5)], "pixdim[0] is 0.5"), ([(QUATERNION, "f", 1.5)], "quaternion of length 1"),
    ([(QUATERNION + 12, "f", 1e20)], "mm apart"),
    ([(SFORM + 12, "f", 0.5)], "qform and sform place voxels 0.5 mm apart"),
    ([(QUATERNION, "3f", 0.6, 0.0, 0.8)], "qform and sform place voxels"),
    ([(QUATERNION, "f", 0.1)], "quaternion of length 1"),
    ([(PIXDIM + 4, "f", 2.0)], "sform's columns"),
    ([(QFORM_CODE, "h", 0), (SFORM + 12, "f", 1e20)], "offset of the sform is"),
    ([(SFORM_CODE, "h", 0), (QUATERNION + 12, "f", -1e20)], "offset of the qform is"),
    ([(UNITS, "B", 5)], "xyzt_units has 5"), ([(DATATYPE + 2, "h", 16)], "bitpix is 16"),
    ([(DIM + 6, "h", 4)], "more than the 672 bytes"), ([(DIM + 2, "h", 32767)], "voxel data is 840 bytes"),
])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.filterwarnings("error")
def test_a_field_that_makes_no_sense_or_contradicts_is_refused(tmp_path: Path, patches, words: str, name: str) -> None:
    raw = bytearray(written(tmp_path / "good.nii").read_bytes())
    for offset, code, *values in patches:
        struct.pack_into("<" + code, raw, offset, *values)
    (tmp_path / name).write_bytes(bytes(raw) if name == "a.nii" else gzip.compress(bytes(raw)))
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert words in str(caught.value) or (name == "a.nii.gz" and "decompressed size is" in str(caught.value))


def test_qform_and_sform_may_differ_by_rounding_and_then_the_scanners_counts(tmp_path: Path) -> None:
    path = nifti(tmp_path, (SFORM + 12, "f", 0.01), (SFORM_CODE, "h", 1))
    assert read_image(path).grid.origin[0] == pytest.approx(-0.01)
    path = nifti(tmp_path, (SFORM + 12, "f", 0.01), (SFORM_CODE, "h", 2), (QFORM_CODE, "h", 1))
    assert read_image(path).grid.origin[0] == 0


def test_a_tilted_plane_in_2d_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME[0]), str(tmp_path / "a.nii"))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2h3f", raw, QFORM_CODE, 1, 0, 0.5, 0.0, 0.0)         # a turn about x
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(ImageError, match=r"direction .qform.* orthonormal"):
        read_image(tmp_path / "a.nii")


def test_every_flipped_byte_of_a_zipped_file_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii.gz")
    raw, own = path.read_bytes(), read_image(path)
    for at in range(0, len(raw), 5):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1:])
        try:
            found = read_image(path)        # such as gzip's time stamp
        except ImageError:
            continue
        np.testing.assert_array_equal(found.array, own.array)
        assert found.grid == own.grid
