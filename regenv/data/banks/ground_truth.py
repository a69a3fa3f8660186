"""Known deformations between the organs of different subjects (Krebs et al. 2017, section 2.3).

They are found by registrations that know the organ: they use intensities, bending energy and corresponding points of
its surface. The statistical deformation model is fitted to them; its amplitudes then relate every pair of subjects.

The paper's weights (1, 3, 0.2) belong to elastix's metrics. Our bending energy is a mean over voxels and components:
with a weight of 3 the deformations folded (4 % of the voxels in 3D) and 25 modes lost 12 % of the organ's Dice; with
1000 they lose 2 % and hardly fold, and the registrations themselves have 2 % less Dice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regenv.atomic import atomic
from regenv.data.banks.pelvises import Population, surface_points
from regenv.ops import bspline, regularity
from regenv.ops.sampling import identity, sample
from regenv.ops.similarity import mi
from regenv.ops.warp import warp_points
from regenv.transforms.deformation_model import DeformationModel, ModelError

MODELS = Path(__file__).parents[2] / "models"
MODES = {2: 15, 3: 25}
CONTROL_VOXELS = {2: (16.0, 16.0), 3: (8.0, 16.0, 16.0)}
WEIGHTS = (1.0, 1000.0, 0.2)  # of mutual information, bending energy (mm^-2), point distance (mm)
SURFACE_POINTS = {2: 64, 3: 256}
SAMPLES = 4096              # voxels per iteration, for the mutual information
BENDING_VOXELS = 4          # distance of the points at which the bending energy is summed
BATCH = 33                  # pairs registered at a time


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A deformation model and the amplitudes that relate the training subjects.

    Attributes:
        model: fitted to the registrations' deformations.
        pairs: (N, 2) int64, fixed and moving subject.
        amplitudes: (N, K) mm, of each pair's deformation; the moving image seen through it looks like the fixed one.
    """

    model: DeformationModel
    pairs: Tensor
    amplitudes: Tensor

    @classmethod
    def of(cls, population: Population, iterations: int = 100, seed: int = 0,
           progress: Callable[[float], None] = lambda share: None) -> GroundTruth:
        """Register all ordered pairs of training subjects and fit the model to the deformations.

        The model is fitted to every deformation and its negative, which approximates its inverse (section 2.3). So its
        mean is zero: no amplitude means no deformation.
        """
        ndim = population.grid.ndim
        pairs = np.array(list(itertools.permutations(population.train, 2)))
        control = bspline.control_shape(population.grid.shape, CONTROL_VOXELS[ndim])
        found = register(population, pairs, control, iterations, seed, progress)
        model = DeformationModel.fit(torch.cat([found, -found]), MODES[ndim], population.grid.shape,
                                     population.grid.spacing)
        fields = (bspline.displacement(part, population.grid.shape) for part in found.split(BATCH))
        return cls(model, torch.from_numpy(pairs), torch.cat([model.project(field) for field in fields]))

    def save(self, path: str | Path) -> None:
        """Write the model to ``path`` and the pairs beside it, NAME-pairs.safetensors."""
        self.model.save(path)
        with atomic(pairs_path(path)) as temporary:
            save_file({"pairs": self.pairs, "amplitudes": self.amplitudes}, str(temporary))

    @classmethod
    def load(cls, path: str | Path) -> GroundTruth:
        """Read what :meth:`save` wrote. Raises ModelError for missing, damaged or other files."""
        model, beside = DeformationModel.load(path), pairs_path(path)
        if not beside.is_file():
            raise ModelError(f"{beside}: no such file; the model {path} comes without its pairs. Build it again.")
        try:
            with safe_open(str(beside), framework="pt") as file:
                pairs, amplitudes = file.get_tensor("pairs"), file.get_tensor("amplitudes")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{beside}: it cannot be read ({error}). Build it again.") from None
        if pairs.ndim != 2 or pairs.shape[1] != 2 or amplitudes.shape != (len(pairs), model.count):
            raise ModelError(f"{beside}: pairs is {tuple(pairs.shape)} and amplitudes {tuple(amplitudes.shape)}; they "
                             f"must be (N, 2) and (N, {model.count}). Build it again.")
        return cls(model, pairs, amplitudes)


def pairs_path(path: str | Path) -> Path:
    """The file of a model's pairs, beside it."""
    return Path(path).with_name(f"{Path(path).stem}-pairs.safetensors")


def register(population: Population, pairs: np.ndarray, control_shape: Sequence[int], iterations: int = 100,
             seed: int = 0, progress: Callable[[float], None] = lambda share: None) -> Tensor:
    """Organ-constrained B-spline registrations: Adam on the coefficients.

    Args: pairs (N, 2), fixed and moving subject; control_shape; iterations; seed: of the sampled voxels.
    Returns: coefficients (N, D, *control_shape), voxels.
    """
    ndim, grid = population.grid.ndim, population.grid
    points = surface_points(population.labels, SURFACE_POINTS[ndim], grid.spacing)
    found, generator = [], torch.Generator().manual_seed(seed)
    for first in range(0, len(pairs), BATCH):
        fixed, moving = pairs[first:first + BATCH].T
        found.append(_optimised(population.images[fixed], population.images[moving], points[fixed], points[moving],
                                control_shape, grid.spacing, iterations, generator))
        progress(min(1.0, (first + BATCH) / len(pairs)))
    return torch.cat(found)


def _optimised(fixed: Tensor, moving: Tensor, fixed_points: Tensor, moving_points: Tensor,
               control_shape: Sequence[int], spacing: Sequence[float], iterations: int,
               generator: torch.Generator) -> Tensor:
    """Coefficients of one batch: images (B, 1, *shape), points (B, N, D)."""
    shape, ndim = tuple(fixed.shape[2:]), fixed.ndim - 2
    steps = torch.tensor(tuple(spacing)[::-1])
    coarse = tuple(max(4, round(n / BENDING_VOXELS)) for n in shape)
    stretch = torch.tensor([n / c for n, c in zip(shape, coarse, strict=True)])
    coarse_spacing = tuple((steps * stretch).flip(0).tolist())
    coefficients = torch.zeros(len(fixed), ndim, *control_shape, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=1.0)
    voxels = identity(shape).flatten(2).transpose(1, 2)
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = 1.0 - 0.9 * iteration / iterations
        chosen = torch.randint(voxels.shape[1], (min(SAMPLES, voxels.shape[1]),), generator=generator)
        field = bspline.displacement(coefficients, shape)
        places = voxels[:, chosen] + field.flatten(2)[:, :, chosen].transpose(1, 2)
        warped = sample(moving, places.view(len(fixed), *(1,) * (ndim - 1), -1, ndim), padding="border")
        seen = fixed.flatten(2)[:, :, chosen].view_as(warped)
        bent = regularity.bending(bspline.displacement(coefficients, coarse) / stretch.view(-1, *(1,) * ndim),
                                  coarse_spacing)
        apart = ((warp_points(fixed_points, field) - moving_points) * steps).square().sum(-1).add(1e-6).sqrt().mean(-1)
        loss = -WEIGHTS[0] * mi(seen, warped) + WEIGHTS[1] * bent + WEIGHTS[2] * apart
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return coefficients.detach()


def shipped(ndim: int) -> GroundTruth:
    """The ground truth of the synthetic population that comes with the package."""
    return GroundTruth.load(MODELS / f"organ{ndim}d.safetensors")


def build(population: Population, path: str | Path, command: str, seed: int = 0,
          progress: Callable[[float], None] = lambda share: None) -> GroundTruth:
    """Compute and save a population's ground truth, with a JSON card that says how it was made."""
    truth = GroundTruth.of(population, seed=seed, progress=progress)
    truth.save(path)
    card = {"command": command, "seed": seed, "subjects": [population.names[i] for i in population.train],
            "pairs": len(truth.pairs), "modes": truth.model.count, "weights": WEIGHTS, "licence": "Apache-2.0"}
    with atomic(Path(path).with_suffix(".json")) as temporary:
        Path(temporary).write_text(json.dumps(card, indent=2) + "\n")
    return truth
