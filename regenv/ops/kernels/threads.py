"""How many threads a kernel on the CPU uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

SERIAL_BELOW = 1 << 20  # voxels: for less, waking threads costs more than it saves; ten times so on a busy machine


@contextmanager
def threads_for(voxels: int) -> Iterator[int]:
    """Run kernels on one thread for little work and on all for more; gives their number."""
    threads = numba.get_num_threads()
    if voxels < SERIAL_BELOW and threads > 1:
        numba.set_num_threads(1)
    try:
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(threads)
