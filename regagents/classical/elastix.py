"""Registration by elastix (Klein et al. 2010), where its Python package ``itk-elastix`` is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regagents.classical.common import Result, checked, is_flat
from regenv.data.io.resampling import sitk_to_matrix
from regenv.grid import Grid

_TRANSFORMS = {"rigid": "EulerTransform", "similarity": "SimilarityTransform", "affine": "AffineTransform"}
INITIALIZERS = ("GeometricalCenter", "CenterOfGravity")


@dataclass(frozen=True)
class Elastix:
    """elastix's own multi-resolution mutual information with adaptive stochastic gradient descent.

    Args:
        motion: "rigid", "similarity" or "affine".
        resolutions: levels of the pyramid. iterations: of each. samples: of each iteration. bins: of the histogram.
        initializer: elastix's own, of :data:`INITIALIZERS`, which then takes the place of the initial pose.
    """

    motion: str = "similarity"
    resolutions: int = 4
    iterations: int = 500
    samples: int = 4096
    bins: int = 32
    initializer: str | None = None

    def __post_init__(self) -> None:
        if self.initializer not in (None, *INITIALIZERS):
            raise ValueError(f"Elastix: initializer is {self.initializer!r}; it must be one of "
                             f"{', '.join(INITIALIZERS)}, or None.")
        if self.motion not in _TRANSFORMS:
            raise ValueError(f"Elastix: motion is {self.motion!r}; it must be one of {', '.join(_TRANSFORMS)}.")

    @staticmethod
    def available() -> bool:
        """Whether ``itk-elastix`` is installed."""
        return importlib.util.find_spec("itk") is not None

    def register(self, fixed: sitk.Image, moving: sitk.Image, initial: NDArray[np.float64],
                 center: NDArray[np.float64]) -> Result:
        """Register from a pose; see :class:`~regagents.classical.common.PoseMethod`.

        Returns: the pose found; the initial one with metric ``inf`` if elastix gives up (too little overlap).
        Raises: ModuleNotFoundError: ``itk-elastix`` is not installed.
        """
        import itk

        began = perf_counter()
        initial = checked("Elastix", fixed, moving, initial)
        if is_flat(fixed, moving):
            return Result(initial, float("inf"), perf_counter() - began, 0)
        settings, given = itk.ParameterObject.New(), {}
        settings.AddParameterMap(self._settings(itk))
        if self.initializer is None:
            given["initial_transform_parameter_object"] = itk.ParameterObject.New()
            given["initial_transform_parameter_object"].AddParameterMap(_affine_map(itk, initial, fixed))
        try:
            _, found = itk.elastix_registration_method(
                _itk(itk, fixed), _itk(itk, moving), parameter_object=settings, log_to_console=False,
                number_of_threads=1, **given)
        except RuntimeError:
            return Result(initial, float("inf"), perf_counter() - began, 0)
        motion = _matrix(found.GetParameterMap(found.GetNumberOfParameterMaps() - 1), fixed.GetDimension())
        pull_back = motion @ initial if self.initializer is None else motion
        return Result(pull_back, 0.0, perf_counter() - began, self.iterations * self.resolutions)

    def _settings(self, itk: Any) -> Any:
        settings = itk.ParameterObject.New().GetDefaultParameterMap("rigid", self.resolutions)
        own = {} if self.initializer is None else {"AutomaticTransformInitializationMethod": self.initializer}
        changes = {"Transform": _TRANSFORMS[self.motion],
                   "AutomaticTransformInitialization": "false" if self.initializer is None else "true",
                   "AutomaticScalesEstimation": "true", "MaximumNumberOfIterations": self.iterations,
                   "NumberOfSpatialSamples": self.samples, "NumberOfHistogramBins": self.bins,
                   "NewSamplesEveryIteration": "true", "HowToCombineTransforms": "Compose",
                   "WriteResultImage": "false", "RequiredRatioOfValidSamples": 0.05, **own}
        for key, value in changes.items():
            settings[key] = [str(value)]
        return settings


def _itk(itk: Any, image: sitk.Image) -> Any:
    """SimpleITK's image as ITK's."""
    copy = itk.image_view_from_array(sitk.GetArrayFromImage(sitk.Cast(image, sitk.sitkFloat32)))
    n = image.GetDimension()
    copy.SetOrigin(image.GetOrigin())
    copy.SetSpacing(image.GetSpacing())
    copy.SetDirection(np.reshape(image.GetDirection(), (n, n)))
    return copy


def _affine_map(itk: Any, matrix: NDArray[np.float64], fixed: sitk.Image) -> Any:
    """An affine pull-back as elastix's parameter map: row-major matrix, then translation, about the origin."""
    n = len(matrix) - 1
    grid = Grid.from_sitk(fixed)
    entries: dict[str, list[Any]] = {
        "Transform": ["AffineTransform"], "NumberOfParameters": [n * n + n],
        "TransformParameters": [*matrix[:n, :n].ravel().tolist(), *matrix[:n, n].tolist()],
        "CenterOfRotationPoint": [0.0] * n, "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"], "FixedImageDimension": [n], "MovingImageDimension": [n],
        "FixedInternalImagePixelType": ["float"], "MovingInternalImagePixelType": ["float"],
        "Size": list(grid.size), "Index": [0] * n, "Spacing": list(grid.spacing), "Origin": list(grid.origin),
        "Direction": np.reshape(grid.direction, (n, n)).T.ravel().tolist(), "UseDirectionCosines": ["true"]}
    found = itk.ParameterObject.New().GetDefaultParameterMap("rigid", 1)
    found.clear()
    for key, values in entries.items():
        found[key] = [str(value) for value in values]
    return found


def _matrix(parameters: Any, n: int) -> NDArray[np.float64]:
    """The matrix (D+1, D+1) of elastix's parameter map of an Euler, similarity or affine transform."""
    numbers = [float(value) for value in parameters["TransformParameters"]]
    kind = {name: key for key, name in _TRANSFORMS.items()}[parameters["Transform"][0]]
    makers: dict[tuple[str, int], Any] = {
        ("rigid", 2): sitk.Euler2DTransform, ("rigid", 3): sitk.Euler3DTransform,
        ("similarity", 2): sitk.Similarity2DTransform, ("similarity", 3): sitk.Similarity3DTransform,
        ("affine", 2): lambda: sitk.AffineTransform(2), ("affine", 3): lambda: sitk.AffineTransform(3)}
    transform = makers[kind, n]()
    transform.SetCenter([float(value) for value in parameters["CenterOfRotationPoint"]])
    transform.SetParameters(numbers)
    return sitk_to_matrix(transform)
