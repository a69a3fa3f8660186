"""Bytes are read within a budget: what is no regular file is not opened, and an image costs three times its own memory
at most."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regenv.data.io.errors import ImageError
from regenv.data.io.formats import FORMATS, inspect
from regenv.data.io.formats.streams import filled, inflated
from regenv.data.io.images import read_image, read_labels
from regenv.data.io.landmarks import read_landmarks
from regenv.data.io.transforms import read_transform
from tests.regenv.data.io.helpers import written

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".jpg")
PEAK = 3.0                  # times the image, as float32 or as stored, whichever is more
SLACK_BYTES = 3 << 20       # pieces, headers, modules


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr"])
def test_reading_takes_three_times_the_image_at_most(tmp_path: Path, suffix: str, dtype: str, compressed: bool) -> None:
    array = np.random.default_rng(1).integers(0, 99, (100, 110, 120)).astype(dtype)
    path = written(tmp_path / f"a{suffix}", array, compressed=compressed)
    for read in (read_image, read_labels):
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < PEAK * max(array.nbytes, 4 * array.size) + SLACK_BYTES, f"{peak / array.nbytes:.2f} x"


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null", "folder"])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv", ".fcsv", ".tfm", ".h5"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    read = {".csv": read_landmarks, ".fcsv": read_landmarks, ".tfm": read_transform, ".h5": read_transform}
    with pytest.raises(ImageError, match=f"a{suffix}"):
        read.get(suffix, read_image)(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_a_bomb_costs_no_more_than_the_image(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", np.ones((40, 40, 40), np.uint8), compressed=True)
    bomb = gzip.compress(bytes(64 << 20), 1)
    path.write_bytes(path.read_bytes() + bomb if suffix == ".nii.gz" else
                     path.read_bytes().replace(b"CompressedDataSize", b"Comment").partition(b"\x78\x01")[0] + bomb)
    tracemalloc.start()
    with pytest.raises(ImageError):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SLACK_BYTES


def test_pieces_are_counted_and_checked() -> None:
    content = np.random.default_rng(2).bytes(3_000_000)
    two_members = gzip.compress(content[:9]) + gzip.compress(content[9:])
    for packed in (zlib.compress(content), gzip.compress(content), two_members):
        pieces = list(inflated(Path("a"), BytesIO(packed)))
        assert b"".join(pieces) == content and max(map(len, pieces)) <= 1 << 18
        found = filled(Path("a"), "data", iter(pieces), 1000, len(content) - 1000, len(content))
        assert found.tobytes() == content[1000:]
        for start, count in ((1000, len(content) - 999), (0, len(content) - 1)):
            with pytest.raises(ImageError, match="data is"):
                filled(Path("a"), "data", iter(pieces), start, count, len(content))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(SUFFIXES), start=st.sampled_from((b"", b"NRRD0004\n", b"\x5c\x01\0\0", b"\xff\xd8\xff")),
       content=st.lists(st.one_of(st.binary(max_size=400), st.sampled_from((
           b"NDims = 3\n", b"DimSize = 2 2 2\n", b"ElementType = MET_CHAR\n", b"ElementDataFile = LOCAL\n",
           b"type: int8\n", b"dimension: 3\n", b"sizes: 2 2 2\n", b"encoding: raw\n", b"\n", b"space: LPS\n",
           bytes(8)))), max_size=9))
def test_any_bytes_are_an_image_or_one_error(tmp_path: Path, suffix: str, start: bytes, content: list[bytes]) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(start + b"".join(content))
    try:
        voxels = inspect(path).voxels()
    except ImageError as error:
        assert str(tmp_path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert isinstance(voxels, np.ndarray)


def test_every_format_that_is_named_is_read(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        if suffix in FORMATS:
            plane = np.arange(64, dtype=np.uint8).reshape(8, 8)
            sitk.WriteImage(sitk.GetImageFromArray(plane), str(tmp_path / f"a{suffix}"))
            assert read_image(tmp_path / f"a{suffix}").array.shape == (8, 8)
