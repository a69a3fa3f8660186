"""Feature extractors for image pairs in 2D and 3D, with their own scaling; SB3's own flatten volumes unscaled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE = {2: F.avg_pool2d, 3: F.avg_pool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def convolved(image: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int] = (1, 1, 1),
              stride: Sequence[int] = (1, 1, 1)) -> Tensor:
    """Convolution of volumes (B, C, *shape), which keeps the channels-last layout.

    A kernel of one voxel is computed as a linear layer; others, in float32 on the CPU, by oneDNN, which is several
    times as fast as torch's choice for small volumes.
    """
    if weight[0, 0].numel() == 1 and set(stride) == {1} and set(padding) == {0}:
        return F.linear(image.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    if image.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and image.dtype == torch.float32 \
            and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(image, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(image, weight, bias, stride, padding)  # type: ignore[arg-type]


class Conv3d(nn.Conv3d):
    """Convolution by :func:`convolved`."""

    def forward(self, image: Tensor) -> Tensor:
        return convolved(image, self.weight, self.bias, self.padding, self.stride)  # type: ignore[arg-type]


CONV = {2: nn.Conv2d, 3: Conv3d}


def flat_width(layers: Iterable[nn.Module], shape: Sequence[int]) -> int:
    """Features that convolutions and poolings make of an image (C, *shape). Layers of other kinds keep its shape.

    By arithmetic: an image without memory ("meta") would load much of torch's compiler, for seconds.

    Raises ValueError: the image is smaller than a kernel.
    """
    channels, sides = shape[0], list(shape[1:])
    for layer in layers:
        if not isinstance(layer, (*CONV.values(), *POOL.values())):
            continue
        settings: tuple[Any, ...] = (layer.kernel_size, layer.stride, layer.padding)
        each = ((value,) * len(sides) if isinstance(value, int) else value for value in settings)
        sides = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, *each, strict=True)]
        if min(sides) < 1:
            raise ValueError(f"the image's shape is {tuple(shape[1:])}; it is too small for the network's kernels.")
        channels = getattr(layer, "out_channels", channels)
    return channels * math.prod(sides)


class ImageExtractor(BaseFeaturesExtractor):
    """Base of the extractors: (B, C, *shape) observations, uint8 or float32, to features (B, features_dim).

    uint8 is scaled to [0, 1] here (policies must be built with ``normalize_images=False``). Channels lie last: with
    ``amp``, training in bfloat16 is then three times as fast as in float32 on a CPU that supports it.
    """

    def __init__(self, observation_space: gym.spaces.Box, layers: nn.Sequential, head: list[int], norm: bool,
                 activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(observation_space, features_dim=head[-1])
        self.ndim = len(observation_space.shape) - 1
        self.byte = observation_space.dtype == np.uint8
        width = flat_width(layers, observation_space.shape)
        dense: list[nn.Module] = []
        for before, after in zip([width, *head[:-1]], head, strict=True):
            dense += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), activation()]
        self.layers = nn.Sequential(*layers, *dense).to(memory_format=CHANNELS_LAST[self.ndim])  # type: ignore[call-overload]

    def forward(self, observations: Tensor) -> Tensor:
        image = observations.to(torch.float32)
        if self.byte:
            image = image / 255
        return self.layers(image.contiguous(memory_format=CHANNELS_LAST[self.ndim])).float()


class CompactCNN(ImageExtractor):
    """Strided 3^D convolutions from the first one on, then one dense layer: a hundredth of the paper's work.

    Args: widths: channels; strides: of each convolution; features_dim: width of the dense layer.
    """

    def __init__(self, observation_space: gym.spaces.Box, widths: tuple[int, ...] = (24, 48, 96, 96),
                 strides: tuple[int, ...] = (2, 2, 2, 1), features_dim: int = 256) -> None:
        ndim, channels = len(observation_space.shape) - 1, observation_space.shape[0]
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            layers += [CONV[ndim](channels, width, 3, stride, 1), nn.ReLU()]
            channels = width
        super().__init__(observation_space, nn.Sequential(*layers, nn.Flatten()), [features_dim], norm=False)


class DictCNN(BaseFeaturesExtractor):
    """CompactCNN on all images of a Dict observation, as channels; other entries are appended to its features.

    Images are entries (C, *shape) of one shape, uint8 from 0 to 255 or 0 to 1 (masks), or float32; each is scaled by
    its space's upper bound, so that displacements, too, are within [-1, 1]. Args: as of CompactCNN.
    Raises ValueError where there is no image, or images of several shapes.
    """

    def __init__(self, observation_space: gym.spaces.Dict, **kwargs: Any) -> None:
        spaces = observation_space.spaces
        images = {name: space for name, space in spaces.items() if len(space.shape or ()) > 2}
        shapes = {space.shape[1:] for space in images.values()}  # type: ignore[index]
        if len(shapes) != 1:
            raise ValueError(f"DictCNN: the images' shapes are {sorted(shapes)}; it needs images of one shape.")
        channels = sum(space.shape[0] for space in images.values())  # type: ignore[index, misc]
        cnn = CompactCNN(gym.spaces.Box(-1.0, 1.0, (channels, *shapes.pop()), np.float32), **kwargs)
        plain = {name: space for name, space in spaces.items() if name not in images}
        super().__init__(observation_space, cnn.features_dim + sum(map(gym.spaces.flatdim, plain.values())))
        self.cnn, self.plain = cnn, tuple(plain)
        self.bounds = {name: float(np.max(space.high)) for name, space in images.items()}  # type: ignore[attr-defined]

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        images = [observations[name].to(torch.float32) / bound for name, bound in self.bounds.items()]
        plain = [observations[name].flatten(1).to(torch.float32) for name in self.plain]
        return torch.cat([self.cnn(torch.cat(images, 1)), *plain], 1)


class LiaoCNN(ImageExtractor):
    """The network of Liao et al. 2017: five 3^D convolutions (8, 32, 32, 128, 128), max pooling after the first two,
    dense layers of 512, 512, 64; batch normalisation and ReLU after each layer."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        ndim, channels = len(observation_space.shape) - 1, observation_space.shape[0]
        layers: list[nn.Module] = []
        for number, width in enumerate((8, 32, 32, 128, 128)):
            layers += [CONV[ndim](channels, width, 3, padding=1), NORM[ndim](width), nn.ReLU()]
            layers += [POOL[ndim](2)] if number < 2 else []
            channels = width
        super().__init__(observation_space, nn.Sequential(*layers, nn.Flatten()), [512, 512, 64], norm=True)


class SunCNN(ImageExtractor):
    """The convolutions of Sun et al. 2018, table 1: C16-8-S4, C16-4-S2, C32-4-S2, FC256, each followed by ELU.

    Raises ValueError for images of fewer than 44 voxels along an axis, which are too small for the strides.
    """

    def __init__(self, observation_space: gym.spaces.Box, features_dim: int = 256) -> None:
        ndim, channels = len(observation_space.shape) - 1, observation_space.shape[0]
        if min(observation_space.shape[1:]) < 44:
            raise ValueError(f"SunCNN: image shape is {observation_space.shape[1:]}; every axis needs at least 44.")
        layers: list[nn.Module] = []
        for width, kernel, stride in ((16, 8, 4), (16, 4, 2), (32, 4, 2)):
            layers += [CONV[ndim](channels, width, kernel, stride), nn.ELU()]
            channels = width
        super().__init__(observation_space, nn.Sequential(*layers, nn.Flatten()), [features_dim], norm=False,
                         activation=nn.ELU)


class DualStreamCNN(BaseFeaturesExtractor):
    """The network of Krebs et al. 2017 (figure 1b): one stream for the fixed and one for the moving image, of three
    3^D convolutions (32, 64, 64) with max pooling after the first two, then dense layers of 128, 128, 64 on both
    together; batch normalisation and ReLU after each layer.

    uint8 is scaled to [0, 1] here; as in ImageExtractor the convolutions may run in bfloat16.

    Args: shrink: images are first averaged over blocks of this many voxels an axis, array order; 1 is the paper's.
    """

    def __init__(self, observation_space: gym.spaces.Box, widths: tuple[int, ...] = (32, 64, 64),
                 dense: tuple[int, ...] = (128, 128, 64), shrink: tuple[int, ...] | int = 1) -> None:
        super().__init__(observation_space, features_dim=dense[-1])
        channels, *shape = observation_space.shape
        if channels != 2:
            raise ValueError(f"DualStreamCNN: the observation has {channels} channels; it needs 2, fixed and moving.")
        self.ndim = ndim = len(shape)
        self.byte = observation_space.dtype == np.uint8
        self.shrink = (shrink,) * ndim if isinstance(shrink, int) else tuple(shrink)
        self.streams = nn.ModuleList(self._stream(ndim, widths) for _ in range(2)).to(
            memory_format=CHANNELS_LAST[ndim])  # type: ignore[call-overload]
        with torch.no_grad():
            self.eval()
            width = self._streamed(torch.zeros(1, *observation_space.shape)).shape[1]
            self.train()
        layers: list[nn.Module] = []
        for before, after in zip([width, *dense[:-1]], dense, strict=True):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.head = nn.Sequential(*layers)

    @staticmethod
    def _stream(ndim: int, widths: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((1, *widths[:-1]), widths, strict=True)):
            layers += [CONV[ndim](before, after, 3, padding=1), NORM[ndim](after), nn.ReLU()]
            layers += [POOL[ndim](2, ceil_mode=True)] if number < 2 else []
        return nn.Sequential(*layers, nn.Flatten())

    def _streamed(self, image: Tensor) -> Tensor:
        """Both streams' features (B, F)."""
        if max(self.shrink) > 1:
            image = AVERAGE[self.ndim](image, self.shrink, ceil_mode=True)
        sides = image.split(1, dim=1)
        return torch.cat([stream(side.contiguous(memory_format=CHANNELS_LAST[self.ndim]))
                          for stream, side in zip(self.streams, sides, strict=True)], dim=1)

    def forward(self, observations: Tensor) -> Tensor:
        image = observations.to(torch.float32)
        return self.head(self._streamed(image / 255 if self.byte else image)).float()
