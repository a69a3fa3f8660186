"""How many threads a kernel on the CPU uses: as many as torch does, which is for the user to say.

Numba's own threads would change that: its OpenMP layer sets the number of threads of the whole process, so of torch,
when it starts. So kernels are compiled for one thread, without the lock of the interpreter, and a share of the work is
given to each of a few threads of Python's. These sleep between kernels and do not survive into forked processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from regenv.ops.kernels import notice

notice.install()
SERIAL_BELOW = 1 << 20  # voxels: for less, waking threads costs more than it saves; ten times so on a busy machine


def run(kernel: Callable[..., None], *arguments: Any, voxels: int) -> None:
    """Call ``kernel(*arguments, chunk, chunks)`` for every chunk: in one for little work, else in one a thread."""
    chunks = torch.get_num_threads() if voxels >= SERIAL_BELOW else 1
    others = [_pool().submit(kernel, *arguments, chunk, chunks) for chunk in range(1, chunks)]
    kernel(*arguments, 0, chunks)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """Threads that start when they are needed first."""
    return ThreadPoolExecutor(os.cpu_count(), "regenv-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
