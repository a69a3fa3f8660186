"""Statistical deformation models: the modes of B-spline deformations seen in training (Krebs et al. 2017)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from regenv.atomic import atomic
from regenv.ops import bspline, pca
from regenv.ops.affine import matmul
from regenv.ops.kernels import bspline_cpu, operators
from regenv.stored import StoredError, parse_json, read_tensors

_CARD = "regenv_deformation_model"  # key of the JSON card in the file's header
_CARD_VERSION = 1
_LONGEST = 2048  # voxels along an axis
_TENSORS = ("mean", "modes", "deviations", "mean_amplitudes", "largest_amplitudes")


class ModelError(ValueError):
    """A file that holds no deformation model: names the file, what is wrong and the way out."""


@dataclass(frozen=True, eq=False)
class DeformationModel:
    """Krebs et al. 2017, section 2.2: fields ``u = mean + sum_m theta_m mode_m``, theta the agent's parameters.

    The modes are the principal components of cubic B-spline coefficients (Rueckert et al. 2003), taken in millimetres,
    so that an axis of large voxels counts by its length. Amplitudes theta are (B, K), mm, with mean 0 over training.

    Args:
        mean: (D, *control_shape), mm, array-axis order.
        modes: (K, D, *control_shape), orthonormal, the largest first; the largest loading of each is positive.
        deviations: (K,), standard deviations of the amplitudes in training, mm: the paper's sigma_m.
        mean_amplitudes: (K,), means of ``|theta_m|`` in training, mm: "the mean value of each mode".
        largest_amplitudes: (K,), maxima of ``|theta_m|`` in training, mm.
        shape: of the fields.
        spacing: of the fields' voxels, mm, ITK order (x, y[, z]).

    Raises:
        ValueError: a field has the wrong shape or type, or is not finite (positive, where it must be).
    """

    mean: Tensor
    modes: Tensor
    deviations: Tensor
    mean_amplitudes: Tensor
    largest_amplitudes: Tensor
    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    def __post_init__(self) -> None:
        ndim, count = len(self.shape), len(self.deviations)
        if ndim not in (2, 3) or any(n < 1 for n in self.shape):
            raise ValueError(f"DeformationModel: shape is {self.shape}; it must be 2 or 3 positive numbers.")
        _check_spacing(self.spacing, ndim)
        if count < 1:
            raise ValueError("DeformationModel: number of modes is 0; a model needs at least one. Fit it again.")
        if self.mean.ndim != ndim + 1 or self.mean.shape[0] != ndim or min(self.control_shape) <= bspline.ORDER:
            raise ValueError(f"DeformationModel: mean is {tuple(self.mean.shape)}; it must be ({ndim}, and {ndim} axes "
                             f"of at least {bspline.ORDER + 1} control points).")
        wanted = {"modes": (count, *self.mean.shape)} | dict.fromkeys(_TENSORS[2:], (count,))
        for name, size in wanted.items():
            if tuple(getattr(self, name).shape) != size:
                raise ValueError(f"DeformationModel: {name} is {tuple(getattr(self, name).shape)}; it must be {size}.")
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != self.mean.dtype:
                raise ValueError(f"DeformationModel: {name} is {tensor.dtype}; all tensors must be float32 or float64, "
                                 "and of one type.")
            if not tensor.isfinite().all() or (name in _TENSORS[2:] and not (tensor > 0).all()):
                raise ValueError(f"DeformationModel: {name} is not {'positive and ' * (name in _TENSORS[2:])}finite "
                                 "everywhere; fit the model again.")

    # ---------------------------------------------------------------------------------------------------- training

    @classmethod
    def fit(cls, coefficients: Tensor, count: int, shape: Sequence[int],
            spacing: Sequence[float] | None = None) -> DeformationModel:
        """The model of B-spline deformations.

        Args:
            coefficients: (N, D, *control_shape), voxels, array-axis order (see :mod:`regenv.ops.bspline`).
            count: number of modes K (the paper: 15 in 2D, 25 in 3D); at most N - 1.
            shape: of the fields.
            spacing: mm, ITK order; default 1 on every axis.
        Raises:
            ValueError: the coefficients vary in fewer than ``count`` directions.
        """
        ndim = len(shape)
        if coefficients.ndim != ndim + 2 or coefficients.shape[1] != ndim:
            raise ValueError(f"DeformationModel: coefficients is {tuple(coefficients.shape)}; for fields of shape "
                             f"{tuple(shape)} it must be (N, {ndim}, and {ndim} axes).")
        steps = (1.0,) * ndim if spacing is None else tuple(float(s) for s in spacing)
        _check_spacing(steps, ndim)
        rows = (coefficients * _along_components(steps, coefficients)).flatten(1)
        parts = pca.fit(rows, count)
        amplitudes = parts.transform(rows).abs()
        return cls(parts.mean.view(coefficients.shape[1:]), parts.modes.view(count, *coefficients.shape[1:]),
                   parts.deviations, amplitudes.mean(0), amplitudes.amax(0), tuple(int(n) for n in shape), steps)

    # ------------------------------------------------------------------------------------------------- deformations

    @property
    def control_shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape[1:])

    @property
    def count(self) -> int:
        """Number of modes K, the parameters of a deformation."""
        return len(self.deviations)

    def coefficients(self, theta: Tensor) -> Tensor:
        """B-spline coefficients (B, D, *control_shape), voxels, of amplitudes (B, K)."""
        mean, modes = self._voxel_rows
        if operators.plain(theta, modes):
            return bspline_cpu.combined(mean, modes, theta).unflatten(1, self.mean.shape)
        # summed in a fixed order: a batched product would round a lane differently with the number of lanes
        return (mean + matmul(theta[:, None], modes)[:, 0]).unflatten(1, self.mean.shape)

    def displacement(self, theta: Tensor) -> Tensor:
        """Dense fields (B, D, *shape), voxels, of amplitudes (B, K). A lane does not depend on the number of lanes."""
        return bspline.displacement(self.coefficients(theta), self.shape)

    def project(self, displacement: Tensor) -> Tensor:
        """Amplitudes (B, K) of the model's fields nearest to dense ones, in the least squares over voxels, in mm.

        Args: displacement (B, D, *shape), voxels.
        Returns: (B, K), dtype of ``displacement``, computed in float64; not bounded.
        """
        if tuple(displacement.shape[1:]) != (len(self.shape), *self.shape):
            raise ValueError(f"DeformationModel: the displacement is {tuple(displacement.shape)}; this model's are "
                             f"(B, {len(self.shape)}, *{self.shape}).")
        origin, projector = self._projector
        rows = _mass_weighted(displacement.to(torch.float64), self.control_shape, self.spacing)
        return ((rows - origin)[:, None] * projector).sum(-1).to(displacement.dtype)

    def sample(self, rngs: Sequence[np.random.Generator], bound: float = 3.0) -> Tensor:
        """Random amplitudes (B, K), one lane a generator: normal, cut off (section 2.3; Rueckert et al. 2003).

        theta_m is N(0, sigma_m) given that ``|theta_m|`` exceeds neither ``bound`` times sigma_m nor the largest in
        training: the law of redrawing until it fits. It is drawn through the inverse of the distribution function, so
        that a lane takes K numbers of its generator whatever they are.

        Args: bound: in standard deviations, positive.
        """
        if not bound > 0:
            raise ValueError(f"DeformationModel: bound is {bound}; it must be positive, in standard deviations.")
        limits = torch.minimum(self.deviations * bound, self.largest_amplitudes)
        tails = torch.special.ndtr(-(limits / self.deviations).to("cpu", torch.float64)).numpy()
        draws = torch.from_numpy(np.stack([rng.uniform(tails, 1 - tails) for rng in rngs]))
        theta = torch.special.ndtri(draws).to(self.deviations) * self.deviations
        return torch.minimum(torch.maximum(theta, -limits), limits)

    def to(self, device: torch.device | str) -> DeformationModel:
        """The model with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    @cached_property
    @torch.inference_mode(False)  # cached tensors must serve autograd later
    def _voxel_rows(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and modes (K, F) in voxels."""
        steps = _along_components(self.spacing, self.mean)
        return (self.mean / steps).flatten(), (self.modes / steps).flatten(1)

    @cached_property
    @torch.inference_mode(False)
    def _projector(self) -> tuple[Tensor, Tensor]:
        """Mass-weighted row (F,) of the mean field, and the matrix (K, F) from such rows to amplitudes; float64.

        With B the basis and M the modes, least squares ask for ``(M B^T B M^T) theta = M B^T (u - mean)``.
        """
        steps = _along_components(self.spacing, self.mean).to(torch.float64)
        fields = bspline.displacement(torch.cat([self.mean[None], self.modes]).to(torch.float64) / steps, self.shape)
        rows = _mass_weighted(fields, self.control_shape, self.spacing)
        modes = self.modes.flatten(1).to(torch.float64)
        return rows[0], torch.linalg.solve(modes @ rows[1:].T, modes)

    # -------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file, its card as JSON in the header; it appears whole or not at all."""
        card = {"version": _CARD_VERSION, "shape": self.shape, "spacing": self.spacing}
        tensors = {name: getattr(self, name).detach().cpu().contiguous().clone() for name in _TENSORS}
        with atomic(path) as temporary:
            save_file(tensors, str(temporary), metadata={_CARD: json.dumps(card)})

    @classmethod
    def load(cls, path: str | Path) -> DeformationModel:
        """A model that :meth:`save` wrote, on the CPU. Nothing in the file is executed.

        Raises:
            ModelError: the file is missing, damaged, no deformation model or not a consistent one.
        """
        path = Path(path)
        try:
            tensors, metadata = read_tensors(path)
        except StoredError as error:
            raise ModelError(f"{error} Give a file that DeformationModel.save wrote.") from None
        shape, spacing = _read_card(path, metadata.get(_CARD))
        missing, extra = [n for n in _TENSORS if n not in tensors], sorted(set(tensors) - set(_TENSORS))
        if missing or extra:
            raise ModelError(f"{path}: tensor {missing[0] if missing else extra[0]} is "
                             f"{'missing' if missing else 'not part of a deformation model'}. Save the model again.")
        try:
            return cls(**tensors, shape=shape, spacing=spacing)
        except ValueError as error:
            raise ModelError(f"{path}: {error} The file is damaged, or not from DeformationModel.save.") from None


def _read_card(path: Path, card: str | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing in a file's header."""
    if card is None:
        raise ModelError(f"{path}: {_CARD} is missing in its header; it holds something else. Give a file that "
                         "DeformationModel.save wrote.")
    try:
        content = parse_json(card, str(path))
        version = content["version"]
        if version == _CARD_VERSION:
            shape, spacing = content["shape"], content["spacing"]
            if not all(type(n) is int and 0 < n <= _LONGEST for n in shape) or any(type(s) is bool for s in spacing):
                raise ValueError("shape")
            return tuple(shape), tuple(float(s) for s in spacing)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{path}: {_CARD} is {card!r:.200}; it must be JSON with version, shape and spacing. "
                         "Save the model again.") from None
    raise ModelError(f"{path}: version is {version!r:.80}; this release reads {_CARD_VERSION}. Save the model again.")


def _check_spacing(spacing: tuple[float, ...], ndim: int) -> None:
    if len(spacing) != ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"DeformationModel: spacing is {spacing} mm; a {ndim}D model needs {ndim} positive numbers "
                         "(x, y[, z]).")


def _along_components(spacing: Sequence[float], like: Tensor) -> Tensor:
    """The spacing (ITK order) of each component: (D, 1, ...), to scale coefficients or fields (..., D, *shape)."""
    steps = torch.tensor(tuple(spacing)[::-1], dtype=like.dtype, device=like.device)
    return steps.view(-1, *(1,) * len(spacing))


def _mass_weighted(displacement: Tensor, control_shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """Transpose of the basis applied to fields in mm, as rows: (B, D, *shape) voxels to (B, F)."""
    return bspline.adjoint(displacement * _along_components(spacing, displacement), control_shape).flatten(1)
