"""How many threads a kernel on the CPU is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

SERIAL_BELOW = 1 << 20  # voxels: threads that wake for less cost more than they save, ten times so on a busy machine


@contextmanager
def threads_for(voxels: int) -> Iterator[int]:
    """Within, kernels run on as many threads as the work is worth; their number."""
    threads = numba.get_num_threads()
    if voxels < SERIAL_BELOW and threads > 1:
        numba.set_num_threads(1)
    try:
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(threads)
