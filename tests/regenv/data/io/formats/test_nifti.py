"""NIfTI: files lie where nibabel says, and every bad one is one clear error."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.images import read_image
from tests.regenv.data.io.helpers import (
    SINGLE_PRECISION_MM,
    VOLUME,
    BadFiles,
    Maker,
    assert_one_clear_error,
    assert_spacing_mends,
    cut,
    rotation,
    written,
)

DIM, PIXDIM, DATATYPE, OFFSET, QFORM_CODE, SFORM_CODE, QUATERNION, SFORM = 40, 76, 70, 108, 252, 254, 256, 280
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
def test_spacing_argument_mends_a_bad_header(tmp_path: Path, make: Maker) -> None:
    assert_spacing_mends(make(tmp_path))
