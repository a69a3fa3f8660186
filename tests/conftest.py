"""What several test modules share."""

from __future__ import annotations

import locale
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: its CUDA kernels run on the CPU
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")   # windows without a screen, and without the drivers of one
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two workers on two cores: more threads only fight."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_locale() -> Iterator[None]:
    """GDCM's writer, by which some tests make files, leaves the process in locale C, where Python opens ASCII only."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20170211)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real images with known answers, beside a checkout where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real images at {SHARED_DATA}")
    return SHARED_DATA
