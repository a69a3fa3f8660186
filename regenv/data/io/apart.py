"""SimpleITK in a process of its own, for files that may be damaged.

A damaged HDF5, MATLAB or MetaImage file can end the process that reads it, or keep it for ever. So a process with
little time and memory reads such a file, and leaves plain arrays and texts, which are looked at here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from regenv.data.io.formats.streams import INFLATION

_PROCESSOR_SECONDS, _SECONDS = 5, 300
_BYTES_PER_SECOND = 10 << 20        # that are read at least
_IDLE_BYTES, _MOST_BYTES = 4 << 30, 16 << 30    # of addresses (most are never used): without a file, and at all
_LIMITS = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
except (ImportError, ValueError, OSError):
    pass
import json
import numpy as np
import SimpleITK as sitk
arguments = sys.argv[4:]
"""
_HEADER_BYTES = 1 << 12


class TooSlow(Exception):
    """The process took longer than any sound file needs."""


def run(script: str, path: Path, arguments: Sequence[str | Path]) -> int:
    """The exit status of a script that finds ``json``, ``np``, ``sitk`` and its ``arguments``.

    Args: path: the file that it reads; the larger, the more time it has.
    Raises TooSlow.
    """
    size = path.stat().st_size
    content = (INFLATION + 2) * (size + _HEADER_BYTES)      # of a compressed file at most
    limits = (_PROCESSOR_SECONDS + size // _BYTES_PER_SECOND, min(_IDLE_BYTES + 3 * content, _MOST_BYTES),
              min(content, _MOST_BYTES))
    command = [sys.executable, "-c", _LIMITS + script, *map(str, (*limits, *arguments))]
    try:
        return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False,
                              env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}).returncode
    except subprocess.TimeoutExpired:
        raise TooSlow(f"reading takes more than {_SECONDS} s") from None
