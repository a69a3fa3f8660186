"""What an agent sees of an episode. ``view`` names the image that the step's warp computes in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from regenv.ops.kernels.layout import quantized
from regenv.state import EpisodeState
from regenv.task import Observation


@dataclass(frozen=True)
class Difference:
    """The difference image ``fixed - warped`` (Liao et al. 2017).

    float32: (1, *shape) in [-1, 1]. uint8: (1, *shape), 128 where the images agree.
    """

    dtype: str = "float32"

    @property
    def view(self) -> str:
        return _view("difference", self.dtype)

    def space(self, shape: tuple[int, ...]) -> gym.spaces.Box:
        return _box(self.dtype, -1.0, (1, *shape))

    def __call__(self, state: EpisodeState) -> Tensor:
        """(B, 1, *shape)."""
        return _seen(state, self.view)


@dataclass(frozen=True)
class Pair:
    """The two images (fixed, warped) as channels, for images of different contrast or modality.

    float32: (2, *shape) in [0, 1]. uint8: (2, *shape).
    """

    dtype: str = "float32"

    @property
    def view(self) -> str:
        return _view("pair", self.dtype)

    def space(self, shape: tuple[int, ...]) -> gym.spaces.Box:
        return _box(self.dtype, 0.0, (2, *shape))

    def __call__(self, state: EpisodeState) -> Tensor:
        """(B, 2, *shape)."""
        return _seen(state, self.view)


MASKED = ("fixed", "moving")
FARTHEST = 10  # longest sides of the image: the bound of the observed displacements


@dataclass(frozen=True)
class DictObservation:
    """A dict: fixed, moving and warped image (1, *shape), and the displacement (D, *shape), voxels; float32 or uint8
    images. For pairs on one grid and dense poses.

    Args: dtype: of the images; masks: whether to add fixed_mask and moving_mask (1, *shape) uint8, 1 where a label is
    not background, and 1 everywhere for images without labels.
    """

    dtype: str = "float32"
    masks: bool = False
    view: ClassVar[str] = "warped"

    def space(self, shape: tuple[int, ...]) -> gym.spaces.Dict:
        images = {name: _box(self.dtype, 0.0, (1, *shape)) for name in ("fixed", "moving", "warped")}
        masks = {f"{name}_mask": gym.spaces.Box(0, 1, (1, *shape), np.uint8) for name in MASKED if self.masks}
        far = float(FARTHEST * max(shape))
        field = gym.spaces.Box(-far, far, (len(shape), *shape), np.float32)
        return gym.spaces.Dict({**images, **masks, "displacement": field})

    def __call__(self, state: EpisodeState) -> dict[str, Tensor]:
        """Each (B, ...)."""
        assert state.displacement is not None
        far = float(FARTHEST * max(state.displacement.shape[2:]))
        images = {"fixed": state.pair.fixed, "moving": state.pair.moving, "warped": state.warped}
        shown = {name: quantized(image, "warped") if self.dtype == "uint8" else image.clamp(0, 1)
                 for name, image in images.items()}
        masks = {f"{name}_mask": _mask(getattr(state.pair, name), getattr(state.pair, f"{name}_labels"))
                 for name in MASKED if self.masks}
        return {**shown, **masks, "displacement": state.displacement.clamp(-far, far)}


def _mask(image: Tensor, labels: Tensor | None) -> Tensor:
    return torch.ones_like(image[:, :1], dtype=torch.uint8) if labels is None else (labels > 0).to(torch.uint8)


def _box(dtype: str, low: float, shape: tuple[int, ...]) -> gym.spaces.Box:
    if dtype == "uint8":
        return gym.spaces.Box(0, 255, shape, np.uint8)
    return gym.spaces.Box(low, 1.0, shape, np.float32)


def _view(kind: str, dtype: str) -> str:
    """The name of a view of that type."""
    return f"{kind}_uint8" if dtype == "uint8" else kind


def _seen(state: EpisodeState, view: str) -> Tensor:
    """A view: of the last step, or made now."""
    return state.views[view] if view in state.views else state.look(view)[0][view]


OBSERVATIONS: dict[str, Callable[[str], Observation]] = {"difference": Difference, "pair": Pair}
