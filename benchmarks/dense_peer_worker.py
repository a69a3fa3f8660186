"""One dense method in a process of its own: reads jobs as JSON lines, registers, and answers with a JSON line each.

Started by dense_peers.py. The folder of the opponents' packages comes last in the search path, so that NumPy and
SimpleITK are the project's own. What the opponents' libraries print is thrown away.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

Field = NDArray[np.float32]     # (D, *shape), voxels, array-axis order


def picsl(fixed: sitk.Image, moving: sitk.Image, metric: str = "NCC 4", smoothing: tuple[float, float] = (1.5, 0.7),
          iterations: str = "100x50x20") -> Field:
    """PICSL's greedy (Yushkevich et al. 2016). Args: metric: with the window's radius, voxels; smoothing: Gaussian
    sigmas of a step and of the whole field, voxels; iterations: of each level, coarsest first."""
    import picsl_greedy

    from regagents.classical.deformable import voxels
    from regenv.grid import Grid

    ndim = fixed.GetDimension()
    solver = {2: picsl_greedy.Greedy2D, 3: picsl_greedy.Greedy3D}[ndim]()
    name, _, radius = metric.partition(" ")
    measure = f"{name} {'x'.join([radius] * ndim)}" if radius else name
    solver.execute(f"-i fixed moving -m {measure} -n {iterations} -s {smoothing[0]}vox {smoothing[1]}vox -o warp "
                   "-threads 1 -V 0", fixed=fixed, moving=moving, warp=None)
    return voxels(sitk.GetArrayFromImage(solver["warp"]), Grid.from_sitk(fixed))


def elastix(fixed: sitk.Image, moving: sitk.Image, metric: str = "AdvancedNormalizedCorrelation", control: float = 5.0,
            iterations: int = 500, samples: int = 4096) -> Field:
    """elastix's B-spline by stochastic gradient descent (Klein et al. 2010). Args: control: distance of the control
    points on the last of three levels, voxels; iterations: of each; samples: of each iteration."""
    import itk

    from regagents.classical.deformable import voxels
    from regenv.grid import Grid

    grid = Grid.from_sitk(fixed)
    found = itk.ParameterObject.New()
    settings = found.GetDefaultParameterMap("bspline", 3)
    for key in ("FinalGridSpacingInPhysicalUnits", "GridSpacingSchedule"):
        if key in settings:
            del settings[key]
    changes = {"Metric": [metric], "FinalGridSpacingInVoxels": [str(control)] * grid.ndim,
               "GridSpacingSchedule": ["4", "2", "1"], "MaximumNumberOfIterations": [str(iterations)],
               "NumberOfSpatialSamples": [str(samples)], "NewSamplesEveryIteration": ["true"],
               "WriteResultImage": ["false"], "AutomaticTransformInitialization": ["false"]}
    for key, value in changes.items():
        settings[key] = value
    found.AddParameterMap(settings)
    images = [_itk(itk, image) for image in (fixed, moving)]
    _, result = itk.elastix_registration_method(*images, parameter_object=found, log_to_console=False,
                                                number_of_threads=1)
    field = itk.transformix_deformation_field(images[1], result)
    return voxels(np.asarray(itk.array_from_image(field)), grid)


def _itk(itk: Any, image: sitk.Image) -> Any:
    """SimpleITK's image, with its axes along the world's, as ITK's."""
    copy = itk.image_from_array(sitk.GetArrayFromImage(image))
    copy.SetOrigin(image.GetOrigin())
    copy.SetSpacing(image.GetSpacing())
    return copy


def ours(name: str, settings: dict[str, Any]) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """A method of this project by its name, as a function of images and masks."""
    from dataclasses import replace

    from regagents.classical.convexadam import AdamInstance, ConvexAdam
    from regagents.classical.deformable import BSpline, Demons
    from regagents.classical.greedy import SETTINGS
    from regagents.classical.levels import AdamLevels
    from regagents.classical.syn import SyN
    from regagents.registration.deformation import OPTIMISERS, Fields

    share, finest = settings.pop("share", 1.0), settings.pop("finest", 1)
    kinds: dict[str, Any] = {"demons": Demons, "bspline": BSpline, "syn": SyN, "adam": AdamInstance,
                             "adam-levels": AdamLevels, "convexadam": ConvexAdam}
    kind, _, tuned = name.partition(":")

    def solve(given: list[torch.Tensor]) -> torch.Tensor:
        if kind == "greedy":
            both = SETTINGS[tuned or "generic"]
            solver = replace(both.flat if given[0].ndim == 4 else both.deep, **settings)
            levels = [(stride, max(1, round(share * n)))
                      for stride, n in zip(solver.strides, solver.iterations, strict=True) if stride >= finest]
            solver = replace(solver, strides=tuple(stride for stride, _ in levels),
                             iterations=tuple(n for _, n in levels))
        elif name in kinds:
            made = kinds[name](**settings)
            solver = made if hasattr(made, "solve") else Fields(made)
        else:
            solver = OPTIMISERS[name].solver
        return solver.solve(*given)

    return solve


def theirs(name: str, settings: dict[str, Any]) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """An opponent, as a function of images and masks, outside of which the images are 0."""
    from regagents.registration.deformation import Fields

    class Method:
        def register(self, fixed: sitk.Image, moving: sitk.Image) -> Field:
            return {"picsl-greedy": picsl, "elastix": elastix}[name](fixed, moving, **settings)

    return lambda given: Fields(Method()).solve(*given)


def peak() -> int:
    """Most memory that the process has had since :func:`reset`, bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def reset() -> int:
    """Forget the most; returns the memory that is in use, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def main(folder: str) -> None:
    """Answer jobs from standard input until it ends."""
    sys.path += [str(Path(__file__).parents[1]), *([folder] if folder else [])]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        solve = (theirs if job["method"] in ("picsl-greedy", "elastix") else ours)(job["method"], job["settings"])
        given = [torch.from_numpy(array) for array in np.load(job["images"]).values()]
        try:
            if job["warm"]:     # loads and compiles
                solve([torch.rand(1, 1, *(24,) * (given[0].ndim - 2)) for _ in range(2)])
            before, began, clock = reset(), process_time(), perf_counter()
            field = solve(given)
            seconds, wall, memory = process_time() - began, perf_counter() - clock, peak() - before
            np.save(job["field"], field.numpy().astype(np.float32))
            answer = {"seconds": seconds, "wall_seconds": wall, "memory": memory}
        except Exception as error:  # whatever an opponent's library raises, it has found nothing
            answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
