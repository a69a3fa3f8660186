"""LZW as TIFF has it: codes of 9 to 12 bits, the highest bit first, which grow one code early."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

CLEAR, END, TABLE, MOST = 256, 257, 4096, 12


@numba.njit(cache=True)
def expand(stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> int:
    """The bytes that are coded by ``stored``, written to ``out``.

    Returns: how many they are; -1 for a code that is none yet; more than ``out`` has room for where there are more.
    """
    before, last, length = np.empty(TABLE, np.int32), np.empty(TABLE, np.uint8), np.empty(TABLE, np.int32)
    for code in range(256):
        before[code], last[code], length[code] = -1, code, 1
    count, bits, buffer, held, previous, at = END + 1, 9, 0, 0, -1, 0
    for byte in stored:
        buffer, held = (buffer << 8 | byte) & 0xFFFFFF, held + 8
        if held < bits:
            continue
        held -= bits
        code = buffer >> held & (1 << bits) - 1
        if code == END:
            return at
        if code == CLEAR:
            count, bits, previous = END + 1, 9, -1
            continue
        if code > count or (code == count and (previous < 0 or count == TABLE)):
            return -1
        if previous >= 0 and count < TABLE:     # the entry that this code completes: its first byte is not known yet
            before[count], length[count] = previous, length[previous] + 1
        size = length[code]
        if at + size > len(out):
            return at + size
        first = code
        while before[first] >= 0:
            first = before[first]
        if previous >= 0 and count < TABLE:
            last[count] = last[first]
            count += 1
        entry = code
        for place in range(at + size - 1, at - 1, -1):
            out[place], entry = last[entry], before[entry]
        at += size
        if count >= (1 << bits) - 1 and bits < MOST:
            bits += 1
        previous = code
    return at
