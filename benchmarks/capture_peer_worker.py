"""One opponent in a process of its own: reads jobs as JSON lines, registers, and answers with a JSON line each.

Started by capture_peers.py. The folder of the opponents' packages comes last in the search path, so that NumPy and
SimpleITK are the project's own. What the opponents' libraries print is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])   # greedy's matrices are of the RAS world
GREEDY_OFFSET_MM = 20.0                 # standard deviation of its random search, after the centres lie on each other
GREEDY_DEGREES = 15.0                   # likewise, before an affine registration of heads that lie as headers say
COARSE_MM = 4.0                         # at which ANTs searches over rotations
Found = NDArray[np.float64]


def elastix(fixed: sitk.Image, moving: sitk.Image, motion: str, effort: int, seed: int) -> Found:
    """elastix from the images' centres of gravity; effort: iterations of each of four resolutions."""
    from regagents.classical import Elastix

    method = Elastix(motion, iterations=effort, initializer="CenterOfGravity")
    found = method.register(fixed, moving, np.eye(4), np.zeros(3))
    if not np.isfinite(found.metric):
        raise RuntimeError("elastix gave up")
    return found.pull_back


def ants(fixed: sitk.Image, moving: sitk.Image, motion: str, effort: int, seed: int) -> Found:
    """Rigid: ANTs' affine initialiser over all rotations in steps of ``effort`` degrees, on images averaged down to
    about 4 mm, as its own scripts do; then its rigid registration from the rotation found. Affine: its chain of
    translation, rigid, similarity and affine registrations (TRSAA)."""
    import ants as package

    images = [_as_ants(package, image) for image in (fixed, moving)]
    with tempfile.TemporaryDirectory() as folder:
        if motion == "affine":
            done = package.registration(*images, type_of_transform="TRSAA", outprefix=f"{folder}/a",
                                        random_seed=seed + 1)
        else:
            file = f"{folder}/start.mat"
            small = [_as_ants(package, _averaged(image)) for image in (fixed, moving)]
            package.affine_initializer(*small, search_factor=effort, radian_fraction=1.0, txfn=file)
            sitk.WriteTransform(_rotation_part(sitk.ReadTransform(file), fixed), file)
            done = package.registration(*images, type_of_transform="Rigid", initial_transform=file,
                                        outprefix=f"{folder}/a", random_seed=seed + 1)
        return _chained(done["fwdtransforms"])


def greedy(fixed: sitk.Image, moving: sitk.Image, motion: str, effort: int, seed: int) -> Found:
    """greedy from the images' centres on each other: a rigid registration after a random search of ``effort`` rigid
    transforms; for an affine one, then from there with twelve parameters."""
    from picsl_greedy import Greedy3D

    solver = Greedy3D()
    common = f"-i fixed moving -a -m NMI -n 100x50x10 -seed {seed + 1} -threads 1 -V 0"
    turns = "any" if motion == "rigid" else GREEDY_DEGREES
    solver.execute(f"{common} -dof 6 -ia-image-centers -search {effort} {turns} {GREEDY_OFFSET_MM} -o found",
                   fixed=fixed, moving=moving, found=None)
    if motion == "affine":
        rigid, solver = np.array(solver["found"], dtype=np.float64), Greedy3D()
        with tempfile.TemporaryDirectory() as folder:
            np.savetxt(f"{folder}/rigid.mat", rigid, fmt="%.12g")
            solver.execute(f"{common} -dof 12 -ia {folder}/rigid.mat -o found", fixed=fixed, moving=moving, found=None)
    return RAS @ np.array(solver["found"], dtype=np.float64) @ RAS


def _as_ants(package: Any, image: sitk.Image) -> Any:
    array = sitk.GetArrayFromImage(sitk.Cast(image, sitk.sitkFloat32)).transpose()
    return package.from_numpy(np.ascontiguousarray(array), image.GetOrigin(), image.GetSpacing(),
                              np.reshape(image.GetDirection(), (3, 3)))


def _averaged(image: sitk.Image) -> sitk.Image:
    """An image averaged over whole blocks of voxels, up to about 4 mm."""
    return sitk.BinShrink(image, [max(1, int(COARSE_MM / spacing + 0.01)) for spacing in image.GetSpacing()])


def _rotation_part(transform: sitk.Transform, fixed: sitk.Image) -> sitk.Transform:
    """A linear transform's nearest rotation, about the middle of the fixed image, as an affine transform."""
    linear = sitk.AffineTransform(transform)
    matrix = np.reshape(linear.GetMatrix(), (3, 3))
    u, _, vt = np.linalg.svd(matrix)
    rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    middle = fixed.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in fixed.GetSize()])
    rigid = sitk.AffineTransform(3)
    rigid.SetCenter(middle)
    rigid.SetMatrix(rotation.ravel().tolist())
    rigid.SetTranslation((np.array(linear.TransformPoint(middle)) - middle).tolist())
    return rigid


def _chained(files: list[str]) -> Found:
    """The matrix of ANTs' list of transform files; the last of them is applied to a fixed point first."""
    whole = np.eye(4)
    for file in files:
        transform = sitk.AffineTransform(sitk.ReadTransform(file))
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
        matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
        whole = whole @ matrix
    return whole


METHODS: dict[str, Callable[[sitk.Image, sitk.Image, str, int, int], Found]] = {
    "elastix": elastix, "ants": ants, "greedy": greedy}
PACKAGES = {"elastix": "itk", "ants": "ants", "greedy": "picsl_greedy"}


def _warm_up(name: str) -> None:
    """Load the package and what it loads when it first registers, so that no job's time holds that."""
    __import__(PACKAGES[name])
    ticks = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij"))
    blob = sitk.GetImageFromArray(np.exp(-((ticks - 15) ** 2).sum(0) / 60).astype(np.float32))
    with contextlib.suppress(Exception):
        METHODS[name](blob, blob, "rigid", {"ants": 120}.get(name, 50), 0)


def main(name: str, folder: str) -> None:
    """Answer jobs from standard input until it ends."""
    sys.path += [str(Path(__file__).parents[1]), *([folder] if folder else [])]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _warm_up(name)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        fixed, moving = (sitk.ReadImage(job[side], sitk.sitkFloat32) for side in ("fixed", "moving"))
        began, clock = process_time(), perf_counter()
        try:
            found = METHODS[name](fixed, moving, job["motion"], job["effort"], job["seed"]).tolist()
            told = ""
        except Exception as error:  # whatever an opponent's library raises, it has not found a pose
            found, told = None, f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"pull_back": found, "failed": told, "seconds": process_time() - began,
                          "wall_seconds": perf_counter() - clock}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:3])
