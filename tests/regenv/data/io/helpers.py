"""What the tests of reading and writing share: grids, good files, bad files and what is true of their errors."""

from __future__ import annotations

import locale
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from regenv.data.io.errors import ImageError
from regenv.data.io.images import read_image
from regenv.grid import Grid

SINGLE_PRECISION_MM = 1e-4      # NIfTI stores geometry in float32
TRANSFORM_MM = 1e-9
VOLUME = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
GREY = np.random.default_rng(2).integers(0, 255, (64, 64)).astype(np.uint8)
Maker = Callable[[Path], Path]


class BadFiles:
    """Makers of bad files, each registered together with what the message must say besides the file's name."""

    def __init__(self) -> None:
        self.cases: list[Any] = []

    def __call__(self, *words: str) -> Callable[[Maker], Maker]:
        def register(make: Maker) -> Maker:
            self.cases.append(pytest.param(make, words, id=make.__name__))
            return make
        return register


def assert_one_clear_error(path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)) or str(path.parent) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def assert_header_keeps_its_spacing(path: Path) -> None:
    """That the argument ``spacing`` changes nothing where the file has a spacing, and that a note says so."""
    own, image = read_image(path), read_image(path, spacing=7.5)
    assert image.grid == own.grid and not own.notes
    assert len(image.notes) == 1 and str(path) in image.notes[0] and "7.5" in image.notes[0]
    assert not read_image(path, spacing=own.grid.spacing).notes


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


def written(path: Path, array: np.ndarray = VOLUME, *, vector: bool = False, compressed: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path), useCompression=compressed)
    return path


def replaced(path: Path, pattern: bytes, line: bytes) -> Path:
    path.write_bytes(re.sub(pattern, line, path.read_bytes(), count=1))
    return path


def cut(path: Path, missing: int) -> Path:
    path.write_bytes(path.read_bytes()[:-missing])
    return path


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


def write_analyze(stem: Path, array: NDArray[Any], spacing: tuple[float, ...], order: str = "<") -> None:
    """Analyze 7.5 as LPBA40 has it, 4D with one time point; where NIfTI has other fields, Analyze's own are filled."""
    header = bytearray(348)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, 4, *array.shape[::-1], 1, 1, 1, 1)
    kind, code = (("u1", 2) if array.dtype == np.uint8 else (f"{order}i2", 4))
    struct.pack_into(f"{order}2h", header, 70, code, 8 * np.dtype(kind).itemsize)
    struct.pack_into(f"{order}8f", header, 76, 0, *spacing, 0, 0, 0, 0)
    struct.pack_into(f"{order}2f", header, 112, 7.0, 3.0)
    header[253:263] = bytes(range(10))       # originator
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".hdr").write_bytes(header)
    stem.with_name(stem.name + ".img").write_bytes(array.astype(kind).tobytes())
