"""The 3D brain agent on people that it was not trained on: alone, before greedy, and against greedy alone.

    regenv data get mni2009c bold5000 colin27
    python benchmarks/brain3d.py [--pairs csi3:colin27 ...] [--skull] [--weights brain3d-oneshot]

Brains are skull-stripped and affinely aligned (whole heads with --skull); displacements are measured at 1 mm. Dice is
that of grey and white matter and fluid, from K-means of the intensities; seconds are of one core (process time).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch

from regagents.classical.greedy import SETTINGS, Greedy
from regagents.registration.deformation import Deformation, Optimiser, optimiser
from regenv.data.banks.brain_preparation import FRAME
from regenv.data.banks.brains import subject
from regenv.data.banks.downloads import t1_scan
from regenv.data.io.images import Image, normalize
from regenv.data.io.resampling import matrix_to_sitk
from regenv.data.sources.brains3d import Brains3D
from regenv.ops.overlap import dice
from regenv.ops.warp import warp_dense

TISSUES = (1, 2, 3)
BRIEF = (40, 20, 4)     # greedy's iterations at 4, 2 and 1 mm that take about as long as the agent and its refinement
GREEDY = SETTINGS["brain"].deep


def person(name: str, skull: bool) -> tuple[Image, torch.Tensor]:
    """A person on the frame of MNI space, and the tissue labels (1, 1, *shape)."""
    kept = subject(name)
    values = kept["image"].numpy().astype(np.float32)
    if skull:
        scan = sitk.ReadImage(str(t1_scan(name)), sitk.sitkFloat32)
        values = sitk.GetArrayFromImage(sitk.Resample(scan, FRAME.size, matrix_to_sitk(kept["pull_back"].numpy()),
                                                      sitk.sitkLinear, FRAME.origin, FRAME.spacing, FRAME.direction))
    return Image(normalize(values), FRAME, name), kept["labels"][None, None].to(torch.int16)


def full(found: Deformation) -> torch.Tensor:
    """Displacements on the frame, (1, 3, *shape) voxels of it."""
    field = sitk.TransformToDisplacementField(found.through(np.eye(4)), sitk.sitkVectorFloat64, FRAME.size,
                                              FRAME.origin, FRAME.spacing, FRAME.direction)
    along = sitk.GetArrayFromImage(field)[..., ::-1] / np.array(FRAME.spacing[::-1])
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(along, -1, 0), dtype=np.float32))[None]


def main() -> None:
    """Prints a line for each pair and method, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", nargs="*", help="FIXED:MOVING, default all pairs with CSI3 or Colin27")
    parser.add_argument("--skull", action="store_true", help="whole heads")
    parser.add_argument("--weights", default="brain3d-oneshot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [tuple(pair.split(":")) for pair in arguments.pairs or ()] or Brains3D(split="test").pairs()
    alone, refined = (optimiser(arguments.weights, 3, refine) for refine in (False, True))
    methods: dict[str, Optimiser | None] = {
        "start": None, "agent": alone, "greedy, brief": Optimiser(replace(GREEDY, iterations=BRIEF)),
        "agent + greedy": refined, "greedy": Optimiser(Greedy(**vars(GREEDY)))}
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for fixed, moving in pairs:
        (image, labels), (other, others) = (person(name, arguments.skull) for name in (fixed, moving))
        for name, method in methods.items():
            begun = time.process_time()
            found = None if method is None else method.register(image, other, np.eye(4))
            seconds = time.process_time() - begun
            warped = others if found is None else warp_dense(
                torch.cat([(others == k).float() for k in TISSUES], 1), full(found))
            if found is not None:
                warped = torch.where(warped.sum(1, keepdim=True) >= 0.5, warped.argmax(1, keepdim=True) + 1, 0)
            overlap = dice(labels, warped.to(torch.int16), TISSUES)[0].mean().item()
            folds = found.folding if found else 0.0
            scores[name].append((overlap, folds, seconds))
            print(f"{fixed} <- {moving}  {name:15} Dice {overlap:.3f}  folds {folds:.4%}  {seconds:.1f} s", flush=True)
    for name, rows in scores.items():
        overlap, folds, seconds = np.mean(rows, axis=0)
        print(f"mean of {len(rows)}  {name:15} Dice {overlap:.3f}  folds {folds:.4%}  {seconds:.1f} s")


if __name__ == "__main__":
    main()
