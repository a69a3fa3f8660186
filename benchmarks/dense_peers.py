"""Dense methods, our own and other people's, each in a process of its own, so that their memory can be told apart."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_pairs import Pair
from torch import Tensor

from regenv.ops.features import spread

PACKAGES = {"syn": "ants", "elastix": "itk", "picsl-greedy": "picsl_greedy"}
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes: kind: as dense_peer_worker.py knows it. settings: of it. stride: voxels over which images are averaged
    first; the field found is interpolated.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    stride: int = 1

    def installed(self, folder: str) -> bool:
        """Whether its package is in ``folder`` ("" for none) or in this environment."""
        package = PACKAGES.get(self.kind)
        return package is None or importlib.util.find_spec(package) is not None or bool(
            folder and ((Path(folder) / package).is_dir() or any(Path(folder).glob(f"{package}.*"))))


@dataclass(frozen=True)
class Run:
    """What a method found for a pair: field (1, D, *shape), voxels of the pair; seconds of CPU; memory, bytes, beyond
    what the process had with the images."""

    field: Tensor
    seconds: float
    memory: int


class Process:
    """The process of one method; it ends with the ``with`` statement."""

    def __init__(self, method: Method, folder: str = "") -> None:
        self.method, self._files = method, tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("dense_peer_worker.py")), folder], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, **dict.fromkeys(_THREADS, "1")})
        self._warm = True

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._files.cleanup()

    def register(self, pair: Pair) -> Run:
        """Raises RuntimeError where the method or its process fails."""
        seen = pair if self.method.stride == 1 else pair.averaged(self.method.stride)
        paths = {name: f"{self._files.name}/{name}" for name in ("images.npz", "field.npy")}
        np.savez(paths["images.npz"], *(image.numpy() for image in (seen.fixed, seen.moving, *(seen.masks or ()))))
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"method": self.method.kind, "settings": self.method.settings, "images": paths["images.npz"],
               "field": paths["field.npy"], "warm": self._warm}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        self._warm = False
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": f"its process ended with {self._process.wait()}"}
        if "failed" in answer:
            raise RuntimeError(f"{self.method.name}, {pair.name}: {answer['failed']}")
        found = torch.from_numpy(np.load(paths["field.npy"]))
        shape = tuple(pair.fixed.shape[2:])
        return Run(found if self.method.stride == 1 else spread(found, self.method.stride, shape), answer["seconds"],
                   answer["memory"])
