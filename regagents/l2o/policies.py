"""The network of the learned optimiser: costs sampled about the estimate, a small recurrent U-Net, a new estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regagents.common.extractors import AVERAGE, CHANNELS_LAST, CONV
from regenv.ops.features import costs, mind_ssc, pooled, spread

INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
DOWN = (16, 24, 24, 32)     # channels on the way down, finest first
UP = (24, 24, 24, 32)       # on the way up, finest first
OUT = (16, 32)              # at the end, on the finest level
SEEN = ("fixed", "moving", "displacement", "fixed_mask", "moving_mask")


class Block(nn.Sequential):
    """Convolution of 3^D, then of 1, each with instance normalisation and ReLU."""

    def __init__(self, ndim: int, before: int, middle: int, after: int) -> None:
        norm = INSTANCE[ndim]
        super().__init__(CONV[ndim](before, middle, 3, padding=1, bias=False), norm(middle, affine=True),
                         nn.ReLU(inplace=True),
                         CONV[ndim](middle, after, 1, bias=False), norm(after, affine=True), nn.ReLU(inplace=True))


class RecurrentUNet(nn.Module):
    """U-Net over average pools whose output, within +-1, is the next estimate and the next hidden state.

    Args: channels: of input; outputs: of output; pools: how often the image is halved, 1 to 4.
    """

    def __init__(self, ndim: int, channels: int, outputs: int, pools: int = 4) -> None:
        super().__init__()
        self.ndim = ndim
        down, up = DOWN[:pools], UP[:pools]
        self.down = nn.ModuleList(Block(ndim, before, width, width)
                                  for before, width in zip((channels, *down), down, strict=False))
        self.bottom = Block(ndim, down[-1], down[-1], down[-1])
        self.up = nn.ModuleList(Block(ndim, deep + skip, width, width)
                                for deep, skip, width in zip((*up[1:], down[-1]), down, up, strict=True))
        self.end = Block(ndim, UP[0], *OUT)
        self.head = CONV[ndim](OUT[-1], outputs, 1)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(B, outputs, *shape) of (B, channels, *shape); any shape, padded to what the pools divide."""
        shape, unit = image.shape[2:], 2 ** len(self.down)
        lacking = [max(2 * unit, n + -n % unit) - n for n in shape]  # one voxel has no variance to be normalised by
        margin = [side for n in reversed(lacking) for side in (n // 2, n - n // 2)]
        image = F.pad(image, margin)
        skips = []
        for block in self.down:
            image = block(image)
            skips.append(image)
            image = AVERAGE[self.ndim](image, 2)
        image = self.bottom(image)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            image = F.interpolate(image, scale_factor=2, mode=LINEAR[self.ndim], align_corners=False)
            image = block(torch.cat([image, skip], 1))
        inside: Any = (..., *(slice(n // 2, n // 2 + size) for n, size in zip(lacking, shape, strict=True)))
        return torch.tanh(self.head(self.end(image)))[inside]


@dataclass(frozen=True)
class Memory:
    """What the optimiser knows between its steps, on the grid of the features, half as fine as the image's.

    Attributes: fixed, moving: features (B, C, *half); initial, residual: displacements (B, D, *half), voxels of the
    half grid, whose sum is the estimate; hidden (B, hidden, *half).
    """

    fixed: Tensor
    moving: Tensor
    initial: Tensor
    residual: Tensor
    hidden: Tensor

    @property
    def total(self) -> Tensor:
        """The estimate (B, D, *half)."""
        return self.initial + self.residual


class L2OPolicy(BasePolicy):
    """Recurrent policy of the RegKeypoint ids with ``update="replace"``.

    In every step the costs (mean squared differences of MIND-SSC features, masked) are sampled at the corners of a
    small cube about the present estimate; costs, corners, estimate and hidden state enter the U-Net, which states the
    whole residual displacement anew. Costs and corners carry no gradient; residual and hidden state do.

    Args:
        hidden: channels of the hidden state.
        offset: of the corners along each axis, voxels of the half grid.
        reach: largest residual, in voxels of the half grid.
        smoothings: 3^D averages of every residual.
        pools: of the U-Net, 1 to 4; half grids are padded to at least 2 * 2^pools voxels an axis.
    """

    corners: Tensor

    def __init__(self, observation_space: gym.spaces.Dict, action_space: gym.spaces.Box, lr_schedule: Any = None,
                 hidden: int = 10, offset: float = 0.75, reach: float = 12.0, smoothings: int = 2,
                 pools: int = 4) -> None:
        super().__init__(observation_space, action_space, normalize_images=False, squash_output=False)
        missing = [name for name in SEEN if name not in getattr(observation_space, "spaces", {})]
        if missing:
            raise ValueError(f"L2OPolicy: observations lack {', '.join(missing)}; it needs a RegKeypoint environment "
                             'with observation="dict".')
        if hidden < 0 or not offset > 0 or not reach > 0 or smoothings < 0 or not 1 <= pools <= len(DOWN):
            raise ValueError(f"L2OPolicy: hidden is {hidden}, offset {offset}, reach {reach}, smoothings {smoothings} "
                             f"and pools {pools}; offset and reach must be positive, pools 1 to {len(DOWN)}, the "
                             "others not negative.")
        shape = observation_space["fixed"].shape[1:]  # type: ignore[index]
        self.ndim, self.hidden = len(shape), hidden
        self.offset, self.reach, self.smoothings, self.pools = offset, reach, smoothings, pools
        self.byte = observation_space["fixed"].dtype == np.uint8
        corners = torch.tensor(list(product((-offset, offset), repeat=self.ndim)))  # (corners, D)
        self.register_buffer("corners", corners, persistent=False)
        channels = self.ndim + self.ndim * len(corners) + hidden + len(corners)
        self.network = RecurrentUNet(self.ndim, channels, self.ndim + hidden, pools)
        self.layout = CHANNELS_LAST[self.ndim]
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def begin(self, observation: Mapping[str, Tensor]) -> Memory:
        """The memory at the start of episodes, from observations (B, ...); their displacement is the initial one."""
        fixed, moving = (self._features(observation[name], observation[f"{name}_mask"]) for name in ("fixed", "moving"))
        initial = self.halved(observation["displacement"])
        hidden = torch.zeros(len(initial), self.hidden, *initial.shape[2:], device=initial.device)
        return Memory(fixed, moving, initial, torch.zeros_like(initial), hidden)

    def advance(self, memory: Memory) -> Memory:
        """One iteration, with gradients."""
        with torch.no_grad():
            about = costs(memory.fixed, memory.moving, memory.total, self.corners)
            around = memory.residual[:, None] + self.corners.view(-1, self.ndim, *(1,) * self.ndim)
        seen = torch.cat([memory.residual / self.reach, around.flatten(1, 2) / self.reach, memory.hidden, about], 1)
        out = self.network(seen.contiguous(memory_format=self.layout)).float()
        residual, hidden = self.reach * out[:, : self.ndim], out[:, self.ndim:]
        for _ in range(self.smoothings):
            residual = AVERAGE[self.ndim](residual, 3, 1, 1, count_include_pad=False)
        return replace(memory, residual=residual, hidden=hidden)

    def advance_cheaply(self, memory: Memory) -> Memory:
        """As :meth:`advance`, but what lies between is computed again for the gradient instead of being kept."""
        residual, hidden = checkpoint(self._advanced, *astuple_of(memory), use_reentrant=False)
        return replace(memory, residual=residual, hidden=hidden)

    def field(self, memory: Memory) -> Tensor:
        """The estimate on the image's grid: (B, D, *shape), voxels of it."""
        return spread(memory.total, 2, tuple(self.action_space.shape[1:]))  # type: ignore[index]

    def halved(self, displacement: Tensor) -> Tensor:
        """Displacements (B, D, *shape), voxels, on the half grid, in its voxels."""
        return pooled(displacement, 2) / 2

    def predict(self, observation: Any, state: tuple[np.ndarray, ...] | None = None,
                episode_start: np.ndarray | None = None,
                deterministic: bool = False) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Displacements for observations of one or many lanes, and the state for the next step.

        Where ``episode_start`` is true, or all along without a ``state``, what is seen is taken for a new pair.
        """
        single = np.ndim(observation["fixed"]) == self.ndim + 1
        seen = {name: torch.as_tensor(np.asarray(observation[name]), device=self.device) for name in SEEN}
        seen = {name: value[None] if single else value for name, value in seen.items()}
        with torch.inference_mode():
            memory = None if state is None else Memory(*(torch.from_numpy(part).to(self.device) for part in state))
            if memory is None or (episode_start is not None and np.any(episode_start)):
                memory = self._begun(seen, memory, episode_start)
            memory = self.advance(memory)
            action = self.field(memory).cpu().numpy()
        return action[0] if single else action, tuple(part.cpu().numpy() for part in astuple_of(memory))

    def _begun(self, seen: Mapping[str, Tensor], memory: Memory | None, starts: Any) -> Memory:
        fresh = self.begin(seen)
        if memory is None:
            return fresh
        new = torch.as_tensor(np.asarray(starts), dtype=torch.bool, device=self.device)
        return Memory(*(torch.where(new.view(-1, *(1,) * (mine.ndim - 1)), theirs, mine)
                        for mine, theirs in zip(astuple_of(memory), astuple_of(fresh), strict=True)))

    def _advanced(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        after = self.advance(Memory(*parts))
        return after.residual, after.hidden

    def _features(self, image: Tensor, mask: Tensor) -> Tensor:
        """Masked MIND-SSC features (B, C, *half) of images (B, 1, *shape)."""
        scaled = image.to(torch.float32) / (255 if self.byte else 1)
        return pooled(mind_ssc(scaled) * mask, 2)

    def play(self, observation: Mapping[str, Tensor], allowed: Tensor | None,
             memory: Memory | None) -> tuple[Tensor, Memory]:
        """See :class:`regagents.deformation.Player`: the displacements after one more iteration."""
        memory = self.advance(memory or self.begin(observation))
        return self.field(memory), memory

    def forward(self, observation: Mapping[str, Tensor], deterministic: bool = False) -> Tensor:
        return self._predict(observation, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """The first step's displacements."""
        return self.field(self.advance(self.begin(observation)))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "lr_schedule": None, "hidden": self.hidden, "offset": self.offset, "reach": self.reach,
            "smoothings": self.smoothings, "pools": self.pools}


def astuple_of(memory: Memory) -> tuple[Tensor, ...]:
    """Its tensors in order, not copied."""
    return memory.fixed, memory.moving, memory.initial, memory.residual, memory.hidden
