"""Other people's registration, each in a process of its own with packages from a folder of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from capture_peer_worker import PACKAGES

from regenv.data.io.images import Image
from regenv.data.io.resampling import framed

LABELS = {"elastix": "elastix, from the centres of gravity", "ants": "ANTs, affine initialiser + rigid",
          "greedy": "greedy, random rigid search"}
EFFORTS = {"elastix": (250, 500, 1000, 2000, 4000), "ants": (90, 60, 45, 30, 20, 15),
           "greedy": (250, 500, 1000, 2000, 4000, 8000, 16000)}
"""What a rigid registration may spend, least first: iterations of a resolution; degrees between two rotations; random
transforms."""
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS")


class PeerError(RuntimeError):
    """An opponent's process ended, or did not begin."""


def installed(folder: str) -> dict[str, bool]:
    """Of every opponent, whether its package is in ``folder`` ("" for none) or in this environment."""
    return {name: bool(folder and ((Path(folder) / package).is_dir() or any(Path(folder).glob(f"{package}.*"))))
            or importlib.util.find_spec(package) is not None for name, package in PACKAGES.items()}


def missing(folder: str) -> str:
    """A sentence about the opponents that are not installed; empty where all are."""
    absent = [name for name, there in installed(folder).items() if not there]
    return (f"Not installed, and left out: {', '.join(absent)} (pip install --target FOLDER -r "
            "benchmarks/requirements.txt, then --peers FOLDER)." if absent else "")


@dataclass
class Peer:
    """An opponent's process. It is started by the first job and once more after it has crashed."""

    name: str
    folder: str
    _process: subprocess.Popen[str] | None = None
    _files: Any = field(default_factory=tempfile.TemporaryDirectory)

    def register(self, fixed: Image, moving: Image, motion: str, effort: int, seed: int) -> dict[str, Any]:
        """Returns: "pull_back", (4, 4) as lists, or None where it gave up; "failed", why; "seconds" of CPU time and
        "wall_seconds", without reading and starting."""
        paths = {side: f"{self._files.name}/{side}.mha" for side in ("fixed", "moving")}
        for side, image in (("fixed", fixed), ("moving", moving)):
            sitk.WriteImage(framed(np.asarray(image.array, np.float32), image.grid), paths[side])
        job = json.dumps({**paths, "motion": motion, "effort": effort, "seed": seed})
        try:
            return self._answer(job)
        except PeerError as error:
            self.close()
            return {"pull_back": None, "failed": str(error), "seconds": 0.0, "wall_seconds": 0.0}

    def _answer(self, job: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job + "\n")
            process.stdin.flush()
        return self._line(process)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            worker = Path(__file__).with_name("capture_peer_worker.py")
            self._process = subprocess.Popen(
                [sys.executable, str(worker), self.name, self.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env={**os.environ, **dict.fromkeys(_THREADS, "1")})
            self._line(self._process)
        return self._process

    def _line(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name}: its process ended with {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@lru_cache(maxsize=8)
def peer(name: str, folder: str) -> Peer:
    """This process's opponent of that name; it ends with this process, whose end closes its input."""
    return Peer(name, folder)
