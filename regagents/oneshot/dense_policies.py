"""The network of the dense one-shot agent: from two images and the forces between them to a smooth field."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from regagents.common.extractors import CHANNELS_LAST, CONV
from regenv.ops.features import pooled, spread
from regenv.ops.kernels.operators import central_force
from regenv.ops.similarity import lncc_force
from regenv.ops.smoothing import gaussian
from regenv.ops.warp import compose

SLOPE = 0.2
STRIDES = (1, 2, 4)     # of the levels on which forces are found, voxels
SQUARINGS = 4
FIELD_STRIDE = 2        # the network's grid is half as fine as the image's
SHORTEST = 4            # blocks along an axis: coarser levels have no forces


class FieldUNet(nn.Module):
    """U-Net of strided convolutions, without normalisation, for images of any shape.

    Args: channels: of the input; widths: of its levels, finest first; outputs: channels of the output.
    """

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        conv = CONV[ndim]
        self.begin = conv(channels, widths[0], 3, 1, 1)
        self.down = nn.ModuleList(conv(before, width, 3, 2, 1)
                                  for before, width in pairwise(widths))
        self.up = nn.ModuleList(conv(deep + skip, skip, 3, 1, 1)
                                for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.end = conv(widths[0], widths[0], 3, 1, 1)
        self.head = conv(widths[0], outputs, 3, 1, 1)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(B, outputs, *shape) of (B, channels, *shape)."""
        image = F.leaky_relu(self.begin(image), SLOPE)
        skips = []
        for stage in self.down:
            skips.append(image)
            image = F.leaky_relu(stage(image), SLOPE)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            image = F.interpolate(image, skip.shape[2:], mode="nearest")
            image = F.leaky_relu(stage(torch.cat([image, skip], 1)), SLOPE)
        return self.head(F.leaky_relu(self.end(image), SLOPE))


class DensePolicy(BasePolicy):
    """Fixed and warped image to the next displacement of every voxel, as an integrated velocity field.

    Beside both images the network sees where the local correlation would have the warped one move, on three levels: the
    closed-form force that greedy registration follows. It runs on a grid half as fine as the image's; its output is a
    stationary velocity (Arsigny et al. 2006; Dalca et al. 2019), so that a step is invertible.

    Args:
        widths: channels of the U-Net's levels, finest first. window: of the local correlation, voxels, odd.
        forces: whether the network sees them; without, only the images.
    """

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box, lr_schedule: Any = None,
                 widths: tuple[int, ...] = (16, 32, 32, 32), window: int = 7, forces: bool = True) -> None:
        super().__init__(observation_space, action_space, normalize_images=False, squash_output=False)
        channels, *shape = observation_space.shape
        if channels != 2 or tuple(action_space.shape) != (len(shape), *shape):
            raise ValueError(f"DensePolicy: observations are {observation_space.shape}, actions {action_space.shape}; "
                             "it needs two channels, and a displacement of every voxel: a RegDense id with "
                             'observation="pair" and without control_grid.')
        self.byte = observation_space.dtype == np.uint8
        self.ndim, self.widths, self.window, self.forces = len(shape), tuple(widths), window, forces
        self.bound = float(action_space.high.flat[0]) / FIELD_STRIDE
        seen = 2 + (len(STRIDES) * self.ndim if forces else 0)
        self.network = FieldUNet(self.ndim, seen, self.widths, self.ndim)
        self.layout = CHANNELS_LAST[self.ndim]
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def act(self, image: Tensor) -> Tensor:
        """Displacements (B, D, *shape), voxels, with gradients. Args: image (B, 2, *shape) float in [0, 1]."""
        shape = tuple(image.shape[2:])
        seen = self.seen(image).contiguous(memory_format=self.layout)
        velocity = self.bound * torch.tanh(self.network(seen).float())
        return spread(integrated(velocity), FIELD_STRIDE, shape)

    @torch.no_grad()
    def seen(self, image: Tensor) -> Tensor:
        """What the network sees of images (B, 2, *shape): averages and forces (B, C, *half)."""
        fixed, warped = image.split(1, 1)
        parts = [pooled(image, FIELD_STRIDE)]
        half = tuple(parts[0].shape[2:])
        for stride in STRIDES if self.forces else ():
            here, there = (each if stride == 1 else pooled(each, stride) for each in (fixed, warped))
            if min(here.shape[2:]) < SHORTEST:
                parts.append(parts[0].new_zeros(len(image), self.ndim, *half))
                continue
            slope = lncc_force(here, there, None, self.window)[1] * math.prod(here.shape[2:])
            force = gaussian(central_force(slope, there), 1.0)
            force = pooled(force, FIELD_STRIDE) if stride < FIELD_STRIDE else force
            parts.append(force if stride <= FIELD_STRIDE else F.interpolate(force, half, mode="nearest"))
        return torch.cat(parts, 1)

    def scaled(self, observation: Tensor) -> Tensor:
        """Observations as float images in [0, 1]."""
        image = observation.to(torch.float32)
        return image / 255 if self.byte else image

    def forward(self, observation: Tensor, deterministic: bool = True) -> Tensor:
        return self._predict(observation, deterministic)

    def _predict(self, observation: Any, deterministic: bool = True) -> Tensor:
        return self.act(self.scaled(observation))

    def play(self, observation: Tensor, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the next displacements."""
        return self._predict(observation), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"lr_schedule": None, "widths": self.widths,
                                                        "window": self.window, "forces": self.forces}


def integrated(velocity: Tensor) -> Tensor:
    """Displacements of the flow along a stationary velocity (B, D, *shape) for unit time, by scaling and squaring."""
    field = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        field = compose(field, field)
    return field
