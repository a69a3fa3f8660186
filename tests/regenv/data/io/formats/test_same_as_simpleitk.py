"""Whole files mean here what they mean to SimpleITK: the same voxels, bit for bit, in the same place."""

from __future__ import annotations

import gzip
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import inspect
from regenv.data.io.images import read_image
from regenv.data.io.resampling import framed
from regenv.grid import Grid
from tests.regenv.data.io.helpers import grid_of, rotation

PLACE_MM = 1e-4                 # NIfTI's float32, up to 200 mm
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*INTEGERS, "float32", "float64")
SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr")
SHAPES = ((6, 7), (5, 6, 7))


def voxels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype.startswith("f"):
        return (rng.normal(size=shape) * 1000).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def assert_same(path: Path, array: np.ndarray | None = None) -> None:
    """That a file's voxels, as stored, and place are those that SimpleITK reads, and its voxels are an array's."""
    image = sitk.ReadImage(str(path))
    expected = sitk.GetArrayFromImage(image)
    while expected.ndim > 3:
        expected, image = expected[0], image[..., 0]
    header = inspect(path)
    found = header.voxels()
    assert found.dtype == expected.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, expected)
    if array is not None:
        np.testing.assert_array_equal(found, array)
    assert header.size == image.GetSize() and header.spacing is not None
    grid = Grid(header.size[::-1], header.spacing, header.origin, header.direction)
    np.testing.assert_allclose(header.spacing, image.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(grid.voxel_to_world, Grid.from_sitk(image).voxel_to_world, atol=PLACE_MM, rtol=0)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_simpleitk_writes(tmp_path: Path, rng, suffix: str, compressed: bool) -> None:
    for i, (dtype, shape, left) in enumerate(itertools.product(DTYPES, SHAPES, (False, True))):
        array = voxels(rng, shape, dtype)
        path = tmp_path / f"{i}{suffix}"
        sitk.WriteImage(framed(array, grid_of(shape, rng, left_handed=left)), str(path), useCompression=compressed)
        assert_same(path, array)


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
def test_what_nibabel_writes(tmp_path: Path, rng, suffix: str, endianness: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    kind = nibabel.Nifti1Pair if suffix == ".img" else nibabel.Nifti1Image
    for i, dtype in enumerate(DTYPES):
        for codes in ((1, 0), (0, 1), (2, 2), (1, 1), (0, 0)):
            affine = np.eye(4)
            affine[:3, :3] = rotation(3, rng, left_handed=bool(i % 2)) * rng.uniform(0.5, 4, 3)
            affine[:3, 3] = rng.uniform(-200, 200, 3)
            array = voxels(rng, (5, 6, 7), dtype)
            image = kind(array.T, affine, kind.header_class(endianness=endianness), dtype=array.dtype)
            image.set_qform(affine, codes[0])
            image.set_sform(affine if codes[1] else None, codes[1])
            image.header.set_xyzt_units(("mm", "micron", "meter")[i % 3])
            if i % 3 == 2:      # metres
                image.header["pixdim"][1:4] /= 1000
                for field in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
                    image.header[field] = image.header[field] / 1000
            path = tmp_path / f"{i}{suffix}"
            image.to_filename(path)
            assert_same(path, array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize(("slope", "inter"), [(0.1, 3.0), (2.0, 0.0), (-1.0, 5.0), (0.0, 0.0), (1.0, -1024.0)])
def test_scaled_nifti(tmp_path: Path, rng, dtype: str, slope: float, inter: float) -> None:
    path = tmp_path / "a.nii"
    array = np.clip(voxels(rng, (5, 6, 7), dtype), -2**20, 2**20).astype(dtype)
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(path))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array((slope, inter), "<f4").tobytes()
    path.write_bytes(raw)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_image(path).array, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_big_endian_text_headers(tmp_path: Path, rng, dtype: str) -> None:
    array = voxels(rng, (5, 6, 7), dtype)
    for suffix, little, big in ((".mha", b"MSB = False", b"MSB = True"), (".nrrd", b"endian: little", b"endian: big")):
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(path))
        raw = path.read_bytes()
        stored = array.tobytes()
        turned = array.astype(array.dtype.newbyteorder(">")).tobytes()
        path.write_bytes(raw[:-len(stored)].replace(little, big) + turned)
        assert_same(path, array)


NRRD_VARIANTS = {
    "RAS": ((b"left-posterior-superior", b"right-anterior-superior"),),
    "LAS": ((b"left-posterior-superior", b"LAS"),),
    "scanner": ((b"left-posterior-superior", b"scanner-xyz"),),
    "space dimension": ((b"space: left-posterior-superior", b"space dimension: 3"),),
    "no origin": ((rb"space origin.*\n", b""),),
    "no kinds": ((rb"kinds.*\n", b""),),
    "spacings": ((rb"space.*\n", b""), (rb"endian", b"spacings: 2 3 4\nendian")),
    "cells": ((rb"space.*\n", b""), (rb"endian", b"spacings: 2 3 4\naxis mins: 1 2 3\nendian")),
    "nodes": ((rb"space.*\n", b""),
              (rb"endian", b"spacings: 2 3 4\naxis mins: 1 2 3\ncenters: node node node\nendian")),
    "other words": ((b"type: short", b"Type: Signed Short Int"), (b"endian", b"# hi\nmodality:=CT\nmin: 3\nendian")),
    "line ends": ((b"\n", b"\r\n"),),
    "an axis of one number": ((b"dimension: 3", b"dimension: 4"), (b"sizes: ", b"sizes: 1 "),
                              (b"kinds: ", b"kinds: stub "), (b"directions: ", b"directions: none ")),
}


@pytest.mark.parametrize("variant", NRRD_VARIANTS)
def test_variants_of_nrrd_headers(tmp_path: Path, rng, variant: str) -> None:
    array = voxels(rng, (5, 6, 7), "int16")
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(tmp_path / "a.nrrd"))
    head, _, data = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    head += b"\n\n"
    for pattern, line in NRRD_VARIANTS[variant]:
        head = re.sub(pattern, line, head)
    (tmp_path / "b.nrrd").write_bytes(head + data)
    assert_same(tmp_path / "b.nrrd", array)


@pytest.mark.parametrize(("encoding", "encode", "field"), [
    (b"ascii", lambda a: " ".join(map(str, a.ravel())).encode(), b""),
    (b"text", lambda a: ",\n".join(map(str, a.ravel())).encode(), b""),
    (b"hex", lambda a: a.tobytes().hex().encode(), b""), (b"gz", lambda a: gzip.compress(a.tobytes()), b""),
    (b"gzip", lambda a: gzip.compress(a.tobytes()[:50]) + gzip.compress(a.tobytes()[50:]), b""),
    (b"gzip", lambda a: gzip.compress(b"skip" + a.tobytes()), b"byte skip: 4\n"),
    (b"raw", lambda a: b"skip" + a.tobytes(), b"byte skip: 4\n"),
    (b"raw", lambda a: b"skip" + a.tobytes(), b"byte skip: -1\n"),
    (b"raw", lambda a: b"a line\n" + a.tobytes(), b"line skip: 1\n"),
])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings_of_nrrd(tmp_path: Path, rng, encoding: bytes, encode, field: bytes, detached: bool) -> None:
    array = voxels(rng, (5, 6, 7), "int16")
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(tmp_path / "a.nrrd"))
    head = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")[0].replace(b"raw", encoding) + b"\n" + field
    if detached:
        (tmp_path / "voxels.bin").write_bytes(encode(array))
        (tmp_path / "b.nhdr").write_bytes(head + b"data file: voxels.bin\n")
    else:
        (tmp_path / "b.nhdr").write_bytes(head + b"\n" + encode(array))
    assert_same(tmp_path / "b.nhdr", array)


@pytest.mark.parametrize("change", [
    (rb"ElementSpacing", b"ElementSize"), (rb"BinaryDataByteOrderMSB", b"ElementByteOrderMSB"), (rb" = ", b"="),
    (rb"ObjectType.*\n", b""), (rb"TransformMatrix", b"Orientation"), (rb"Offset", b"Origin"), (b"\n", b"\r\n"),
    (rb"ObjectType", b"Comment = made by hand\nMyField = 3\nObjectType"), (rb"DimSize", b"HeaderSize = -1\nDimSize"),
])
def test_variants_of_metaimage_headers(tmp_path: Path, rng, change: tuple[bytes, bytes]) -> None:
    array = voxels(rng, (5, 6, 7), "int16")
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(tmp_path / "a.mha"))
    head, local, data = (tmp_path / "a.mha").read_bytes().partition(b"LOCAL\n")
    (tmp_path / "b.mha").write_bytes(re.sub(change[0], change[1], head + local) + data)
    assert_same(tmp_path / "b.mha", array)


@pytest.mark.parametrize(("name", "skipped", "stored"), [
    ("voxels.raw", b"5", b"12345"), ("voxels.raw", b"-1", b"any"), ("sub/voxels.raw", b"0", b""),
    ("50% done.raw", b"0", b"")])
def test_detached_voxels_of_metaimage(tmp_path: Path, rng, name: str, skipped: bytes, stored: bytes) -> None:
    array = voxels(rng, (5, 6, 7), "int16")
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(tmp_path / "a.mhd"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(stored + array.tobytes())
    head = (tmp_path / "a.mhd").read_bytes().replace(b"a.raw", name.encode())
    (tmp_path / "b.mhd").write_bytes(head.replace(b"DimSize", b"HeaderSize = " + skipped + b"\nDimSize"))
    if "%" in name:     # ITK takes it for a pattern of many names
        np.testing.assert_array_equal(inspect(tmp_path / "b.mhd").voxels(), array)
    else:
        assert_same(tmp_path / "b.mhd", array)


@pytest.mark.parametrize("rest", [b"", b"garbage", b"\x1f"])
def test_bytes_after_the_end_of_gzip_are_no_part_of_it_but_members_are(tmp_path: Path, rng, rest: bytes) -> None:
    array = voxels(rng, (5, 6, 7), "float32")
    sitk.WriteImage(framed(array, grid_of((5, 6, 7), rng)), str(tmp_path / "a.nii"))
    raw = (tmp_path / "a.nii").read_bytes()
    members = b"".join(gzip.compress(raw[at:at + 100]) for at in range(0, len(raw), 100))
    (tmp_path / "b.nii.gz").write_bytes(members + rest)
    assert_same(tmp_path / "b.nii.gz", array)
    (tmp_path / "b.nii.gz").write_bytes(members[:-30])
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "b.nii.gz")
