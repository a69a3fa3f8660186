"""Contexts that limit the number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK and torch on one thread; both settings are restored.

    Several threads add up in another order each time. Many small operations are slower on several threads: on a busy
    machine, ten times. SimpleITK's global default is set because the registration method's own setting does not reach
    all of its parts.
    """
    before, torch_before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), torch.get_num_threads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
        torch.set_num_threads(torch_before)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes that are started in this context have one thread each.

    Setting torch's threads once a process runs is not enough, and several pools of threads on few cores are ten times
    slower than one thread each.
    """
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
