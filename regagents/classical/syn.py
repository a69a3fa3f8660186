"""Symmetric diffeomorphic registration by ANTs (Avants et al. 2008), where ``antspyx`` is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.classical.common import from_zero, is_flat
from regagents.classical.deformable import voxels
from regenv.grid import Grid

METRICS = {"mattes": 32, "CC": 4}   # ANTs' names, and its argument "sampling": bins, or the window's radius


@dataclass(frozen=True)
class SyN:
    """ANTs' SyN without its affine stages, coarse to fine.

    Args:
        metric: "mattes", mutual information; or "CC", local cross-correlation.
        iterations: of each level, coarsest first; each level is twice as fine as the one before.
        step: of the gradient. smoothing: variance of the Gaussian that smooths the update, voxels squared.
    """

    metric: str = "CC"
    iterations: tuple[int, ...] = (60, 40, 20)
    step: float = 0.2
    smoothing: float = 3.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"SyN: metric is {self.metric!r}; it must be one of {', '.join(METRICS)}.")

    @staticmethod
    def available() -> bool:
        """Whether ``antspyx`` is installed."""
        return importlib.util.find_spec("ants") is not None

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float32]:
        """See :class:`~regagents.classical.common.FieldMethod`.

        Raises ModuleNotFoundError: ``antspyx`` is not installed.
        """
        import ants

        grid = Grid.from_sitk(fixed)
        if is_flat(fixed, moving):
            return np.zeros((grid.ndim, *grid.shape), dtype=np.float32)
        with TemporaryDirectory() as folder:
            found = ants.registration(
                _ants(ants, fixed), _ants(ants, moving), type_of_transform="SyNOnly", initial_transform="Identity",
                outprefix=str(Path(folder) / "syn"), grad_step=self.step, flow_sigma=self.smoothing, total_sigma=0,
                reg_iterations=self.iterations, syn_metric=self.metric, syn_sampling=METRICS[self.metric],
                random_seed=1)
            [path] = [path for path in found["fwdtransforms"] if path.endswith(".nii.gz")]
            field = ants.image_read(path).numpy()
        return voxels(np.swapaxes(field, 0, grid.ndim - 1), grid)


def _ants(ants: Any, image: sitk.Image) -> Any:
    """SimpleITK's image as ANTs', whose arrays are indexed x first, and which takes 0 for what lies outside."""
    n = image.GetDimension()
    values = np.ascontiguousarray(sitk.GetArrayFromImage(from_zero(image)).T)
    return ants.from_numpy(values, origin=image.GetOrigin(), spacing=image.GetSpacing(),
                           direction=np.array(image.GetDirection()).reshape(n, n))
