"""The network of the learned optimiser: a small recurrent U-Net from costs about the estimate to a new estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regagents.classical.convexadam import CoupledConvex
from regagents.common.extractors import CHANNELS_LAST, CONV, convolved
from regagents.common.precision import fast_dtype
from regenv.ops.features import costs, mind_ssc, pooled, spread
from regenv.ops.sampling import LINEAR

CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: convolved}
DOWN = (16, 24, 24, 32)     # channels on the way down, finest first
UP = (24, 24, 24, 32)       # on the way up, finest first
OUT = (16, 32)              # at the end, on the finest level
ITERATIONS = 8
SEEN = ("fixed", "moving", "displacement", "fixed_mask", "moving_mask")


class Normalisation(nn.GroupNorm):
    """Instance normalisation. With one image, batch norm equals instance norm, and is four times as fast for channels
    that lie last."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > 1:
            return super().forward(image)
        return F.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)


def convolutions(ndim: int, before: int, middle: int, after: int) -> nn.Sequential:
    """Convolution of 3^D, then of 1, each with instance normalisation and ReLU."""
    return nn.Sequential(CONV[ndim](before, middle, 3, padding=1, bias=False), Normalisation(middle),
                         nn.ReLU(inplace=True),
                         CONV[ndim](middle, after, 1, bias=False), Normalisation(after), nn.ReLU(inplace=True))


class RecurrentUNet(nn.Module):
    """U-Net over average pools whose output, within +-1, is the next estimate and the next hidden state.

    Args: channels: of the input; outputs: of the output; pools: how often the image is halved, 1 to 4.
    """

    def __init__(self, ndim: int, channels: int, outputs: int, pools: int = 4) -> None:
        super().__init__()
        self.ndim = ndim
        down, up = DOWN[:pools], UP[:pools]
        self.down = nn.ModuleList(convolutions(ndim, before, width, width)
                                  for before, width in zip((channels, *down), down, strict=False))
        self.bottom = convolutions(ndim, down[-1], down[-1], down[-1])
        self.up = nn.ModuleList(convolutions(ndim, deep + skip, width, width)
                                for deep, skip, width in zip((*up[1:], down[-1]), down, up, strict=True))
        self.end = convolutions(ndim, UP[0], *OUT)
        self.head = CONV[ndim](OUT[-1], outputs, 1)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def first(self) -> Tensor:
        """Weights of the first convolution (width, channels, 3, ...)."""
        return self.down[0][0].weight  # type: ignore[index]

    def forward(self, image: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, outputs, *shape) of (B, channels, *shape); any shape, padded to what the pools divide.

        Args: first: replaces the first convolution's weights, and may take fewer channels.
        """
        shape, unit = image.shape[2:], 2 ** len(self.down)
        lacking = [max(2 * unit, n + -n % unit) - n for n in shape]  # of one voxel there is no variance to normalise by
        margin = [side for n in reversed(lacking) for side in (n // 2, n - n // 2)]
        if any(margin):  # padding by nothing would lose the channels-last layout
            image = F.pad(image, margin)
        skips = []
        image = CONVOLVE[self.ndim](image, self.first if first is None else first, None, padding=(1,) * self.ndim)
        for number, block in enumerate(self.down):
            image = block(image) if number else block[1:](image)  # type: ignore[operator, index]
            skips.append(image)
            image = paired(image)
        image = self.bottom(image)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            image = F.interpolate(image, scale_factor=2, mode=LINEAR[self.ndim], align_corners=False)
            image = block(torch.cat([image, skip], 1))
        inside: Any = (..., *(slice(n // 2, n // 2 + size) for n, size in zip(lacking, shape, strict=True)))
        return torch.tanh(self.head(self.end(image)))[inside]


def paired(image: Tensor) -> Tensor:
    """Means over blocks of 2^D voxels (even axes only): average pooling that is fast where channels lie last."""
    for axis in range(2, image.ndim):
        pairs = image.unflatten(axis, (-1, 2))
        image = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
    return image / 2 ** (image.ndim - 2)


def smoothed(field: Tensor) -> Tensor:
    """Means over the cube of 3^D voxels about each voxel, of those that are in the image."""
    for axis in range(2, field.ndim):
        n = field.shape[axis]
        total = field.clone()
        total.narrow(axis, 1, n - 1).add_(field.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(field.narrow(axis, 1, n - 1))
        counts = torch.full((n,), 3.0, device=field.device)
        counts[0] = counts[-1] = 2
        field = total / counts.view(-1, *(1,) * (field.ndim - 1 - axis))
    return field


class Memory(NamedTuple):
    """What the optimiser keeps between its iterations, on the half grid: the features', half as fine as the image's.

    Attributes: fixed, moving: features (B, C, *half); initial, residual: displacements (B, D, *half), voxels of the
    half grid, whose sum is the estimate; hidden: hidden state (B, hidden, *half).
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

    In every iteration the costs (mean squared differences of masked MIND-SSC features) are sampled at the corners of a
    small cube about the present estimate; costs, corners, estimate and hidden state enter the U-Net, whose output is
    the new residual displacement. Gradients flow through residual and hidden state, not through costs and corners.

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
        self.ndim, self.hidden, self.extent = len(shape), hidden, tuple(shape)
        self.offset, self.reach, self.smoothings, self.pools = offset, reach, smoothings, pools
        corners = torch.tensor(list(product((-offset, offset), repeat=self.ndim)))  # (corners, D)
        self.register_buffer("corners", corners, persistent=False)
        channels = self.ndim + self.ndim * len(corners) + hidden + len(corners)
        self.network = RecurrentUNet(self.ndim, channels, self.ndim + hidden, pools)
        self.layout = CHANNELS_LAST[self.ndim]
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def begin(self, observation: Mapping[str, Tensor]) -> Memory:
        """The memory at the start of episodes, of observations (B, ...) with the initial displacement."""
        fixed, moving = (self._features(observation[name], observation[f"{name}_mask"]) for name in ("fixed", "moving"))
        initial = on_half_grid(observation["displacement"])
        hidden = torch.zeros(len(initial), self.hidden, *initial.shape[2:], device=initial.device)
        return Memory(fixed, moving, initial, torch.zeros_like(initial), hidden)

    @torch.no_grad()
    def searched(self, observation: Mapping[str, Tensor]) -> Tensor:
        """An initial displacement by a coupled convex search: (B, D, *half), voxels of the half grid."""
        return on_half_grid(CoupledConvex().solve(scaled(observation["fixed"]), scaled(observation["moving"]),
                                                  observation["fixed_mask"], observation["moving_mask"]))

    def advance(self, memory: Memory, network: nn.Module | None = None) -> Memory:
        """One iteration, with gradients. Args: network: replaces the policy's own, such as a copy of another dtype."""
        network = network or self.network
        dtype = next(network.parameters()).dtype
        with torch.no_grad():
            about = costs(memory.fixed, memory.moving, memory.total, self.corners)
        parts = memory.residual / self.reach, torch.ones_like(about[:, :1]), memory.hidden, about
        seen = torch.cat([part.to(dtype) for part in parts], 1).contiguous(memory_format=self.layout)
        out = network(seen, self._first().to(dtype)).float()
        residual, hidden = self.reach * out[:, : self.ndim], out[:, self.ndim:]
        for _ in range(self.smoothings):
            residual = smoothed(residual)
        return memory._replace(residual=residual, hidden=hidden)

    def _first(self) -> Tensor:
        """The first convolution's weights for an input with one channel of ones in place of the corners' channels.

        The corners are the residual plus a constant: the residual's weights take the first part, the ones' the second.
        """
        count, corners = len(self.corners), self.ndim * len(self.corners)
        residual, around, others = self.network.first.split(
            [self.ndim, corners, self.network.first.shape[1] - self.ndim - corners], 1)
        around = around.unflatten(1, (count, self.ndim))
        same = torch.einsum("wkd...,kd->w...", around, self.corners / self.reach)
        return torch.cat([residual + around.sum(1), same[:, None], others], 1)

    def advance_checkpointed(self, memory: Memory) -> Memory:
        """As :meth:`advance`, but activations are computed again for the gradient instead of being kept."""
        residual, hidden = checkpoint(self._advanced, *memory, use_reentrant=False)
        return memory._replace(residual=residual, hidden=hidden)

    def solve(self, fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None,
              moving_mask: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Displacements (B, D, *shape) after the 8 iterations of the paper. Arguments as of :meth:`path`."""
        return self.path(fixed, moving, (ITERATIONS,), fixed_mask, moving_mask, initial)[0]

    @torch.no_grad()
    def path(self, fixed: Tensor, moving: Tensor, at: Sequence[int], fixed_mask: Tensor | None = None,
             moving_mask: Tensor | None = None, initial: Tensor | None = None) -> Tensor:
        """Displacements after some iterations, for images of any shape, as of AdamInstance; bfloat16 where fast.

        Args:
            fixed, moving: (B, 1, *shape) float32, [0, 1], in voxels about as large as those of the training.
            at: iterations to report, in any order; 0 is the start. The last of them ends the run.
            fixed_mask, moving_mask: (B, 1, *shape), the organ whose features count; default everywhere.
            initial: (B, D, *shape), voxels, to begin from; default 0.
        Returns: (len(at), B, D, *shape), voxels.
        """
        start = fixed.new_zeros(len(fixed), self.ndim, *fixed.shape[2:]) if initial is None else initial
        masks = {f"{name}_mask": torch.ones_like(fixed) if mask is None else mask
                 for name, mask in (("fixed", fixed_mask), ("moving", moving_mask))}
        memory = self.begin({"fixed": fixed, "moving": moving, "displacement": start, **masks})
        network = deepcopy(self.network).to(fast_dtype(fixed.device))
        found: dict[int, Tensor] = {}
        for iteration in range(max(at) + 1):
            if iteration:
                memory = self.advance(memory, network)
            if iteration in at:
                found[iteration] = spread(memory.total, 2, tuple(fixed.shape[2:]))
        return torch.stack([found[iteration] for iteration in at])

    def field(self, memory: Memory) -> Tensor:
        """The estimate on the image's grid: (B, D, *shape), voxels of it."""
        return spread(memory.total, 2, tuple(self.action_space.shape[1:]))  # type: ignore[index]

    def predict(self, observation: Any, state: tuple[NDArray[Any], ...] | None = None,
                episode_start: NDArray[np.bool_] | None = None,
                deterministic: bool = False) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """Displacements for observations of one or many lanes, and the state for the next step.

        A lane begins anew where ``episode_start`` is true; without a ``state``, all lanes do.
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
        return action[0] if single else action, tuple(part.cpu().numpy() for part in memory)

    def _begun(self, seen: Mapping[str, Tensor], memory: Memory | None, starts: Any) -> Memory:
        fresh = self.begin(seen)
        if memory is None:
            return fresh
        new = torch.as_tensor(np.asarray(starts), dtype=torch.bool, device=self.device)
        return Memory(*(torch.where(new.view(-1, *(1,) * (mine.ndim - 1)), theirs, mine)
                        for mine, theirs in zip(memory, fresh, strict=True)))

    def _advanced(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        after = self.advance(Memory(*parts))
        return after.residual, after.hidden

    def _features(self, image: Tensor, mask: Tensor) -> Tensor:
        """Masked MIND-SSC features (B, C, *half) of images (B, 1, *shape)."""
        return pooled(mind_ssc(scaled(image)) * mask, 2).contiguous(memory_format=self.layout)

    def play(self, observation: Mapping[str, Tensor], allowed: Tensor | None,
             memory: Memory | None) -> tuple[Tensor, Memory]:
        """See :class:`regagents.common.player.Player`: the displacements after one more iteration."""
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


def scaled(image: Tensor) -> Tensor:
    """An observed image, float32 in [0, 1]."""
    return image.to(torch.float32) / (255 if image.dtype == torch.uint8 else 1)


def on_half_grid(displacement: Tensor) -> Tensor:
    """Displacements (B, D, *shape), voxels, on the half grid, in its voxels."""
    return pooled(displacement, 2) / 2
