"""Tags of small TIFF files in little-endian order."""

from __future__ import annotations

import struct


def entry(raw: bytes, tag: int) -> int | None:
    """Where the twelve bytes of a tag of the first page stand; None where there is no such tag."""
    at, = struct.unpack_from("<I", raw, 4)
    count, = struct.unpack_from("<H", raw, at)
    places = range(at + 2, at + 2 + 12 * count, 12)
    return next((place for place in places if struct.unpack_from("<H", raw, place) == (tag,)), None)


def with_tag(raw: bytes, tag: int, value: int) -> bytes:
    """The file with another value, one long number, of a tag that is there."""
    changed, at = bytearray(raw), entry(raw, tag)
    assert at is not None
    struct.pack_into("<HII", changed, at + 2, 4, 1, value)
    return bytes(changed)


def first_strip(raw: bytes) -> tuple[int, int]:
    """Where the first of several strips, or the only one, begins, and its bytes."""
    found = []
    for tag in (273, 279):
        at = entry(raw, tag)
        assert at is not None
        kind, count, value = struct.unpack_from("<HII", raw, at + 2)
        found.append(value if count == 1 else struct.unpack_from("<H" if kind == 3 else "<I", raw, value)[0])
    return found[0], found[1]
