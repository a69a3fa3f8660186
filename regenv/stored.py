"""JSON and tensors on disk: bounded before they are parsed, checked before they are used. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

JSON_BYTES = 1 << 20        # of a document or of a line
JSON_DEPTH = 32             # of lists and objects in each other
JSON_DIGITS = 40            # of a number; a float64 needs 17, and an exponent
TENSOR_BYTES = 1 << 31      # of a file of tensors
DTYPES = ("F16", "BF16", "F32", "F64", "I64", "I32", "I16", "U8", "BOOL")
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


class StoredError(ValueError):
    """A file or text that is damaged or too large: names it, what is wrong and the way out."""


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The bytes of a file. Raises StoredError for one that is missing, no file, or longer than ``limit``."""
    path = Path(path)
    if not path.is_file():
        raise StoredError(f"{path}: no such file.")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise StoredError(f"{path}: size is more than {limit:,} bytes; that is too much here. Check the path.")
    return content


def parse_json(text: str | bytes, name: str, limit: int = JSON_BYTES, finite: bool = True) -> Any:
    """The value of a JSON text that may come from anywhere.

    Args: name: of the text, for messages; limit: of its length; finite: refuse NaN and infinite numbers.
    Raises StoredError: it is no JSON, too long, too deep, repeats a key, or has a number of too many digits.
    """
    if len(text) > limit:
        raise StoredError(f"{name}: JSON is {len(text):,} characters long; {limit:,} are allowed. Fix the file.")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        depth = 0
        for token in _BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth > JSON_DEPTH:
                raise ValueError(f"more than {JSON_DEPTH} lists and objects are in each other")

        def number(digits: str) -> float:
            value = float(_short(digits))
            if finite and not math.isfinite(value):
                raise ValueError(f"number {digits} is not finite")
            return value

        return json.loads(text, object_pairs_hook=_object, parse_float=number, parse_constant=number,
                          parse_int=lambda digits: int(_short(digits)))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise StoredError(f"{name}: it is not JSON ({error}); restore it or fix it.") from None


def read_json(path: str | Path, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file. Raises StoredError as :func:`parse_json` and :func:`read_bytes` do."""
    return parse_json(read_bytes(path, limit), str(path), limit)


def _short(digits: str) -> str:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"number {digits[:12]}... has {len(digits)} digits; {JSON_DIGITS} are allowed")
    return digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} stands there twice")
    return found


def read_tensors(path: str | Path, limit: int = TENSOR_BYTES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Numbers are finite.

    Raises StoredError: the file is missing, larger than ``limit``, damaged, or holds types or numbers that no network
    has.
    """
    path = Path(path)
    if not path.is_file():
        raise StoredError(f"{path}: no such file.")
    if path.stat().st_size > limit:
        raise StoredError(f"{path}: size is {path.stat().st_size:,} bytes; {limit:,} are allowed.")
    try:
        _check_header(path)
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError, struct.error) as error:
        told = str(error).removeprefix(f"{path}: ")
        raise StoredError(f"{path}: it cannot be read ({told}); the file is damaged, truncated or no safetensors "
                          "file.") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StoredError(f"{path}: tensor {name} is not finite everywhere; the file is damaged.")
    return tensors, metadata


def _check_header(path: Path) -> None:
    """What safetensors does not check: keys that stand there twice, and types that torch barely knows."""
    with path.open("rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header = parse_json(file.read(min(length, JSON_BYTES + 1)), str(path))
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ValueError("its header is no table of tensors")
    for name, entry in header.items():
        if name != "__metadata__" and entry.get("dtype") not in DTYPES:
            raise ValueError(f"tensor {name} has type {entry.get('dtype')!r}, which is none of {', '.join(DTYPES)}")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: of their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
