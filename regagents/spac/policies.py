"""The networks of SPAC: planner, actor with skips, and critics on the plan (Luo et al. 2022, figure 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from regagents.common.extractors import CHANNELS_LAST, CONV

SLOPE = 0.2
LOG_STD = (-5.0, 2.0)
COARSEST = 7  # voxels along the shortest axis, at which the planner ends


def column(ndim: int, channels: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """Strided convolutions, each half the size of the one before."""
    return nn.ModuleList(CONV[ndim](before, width, 3, 2, 1)
                         for before, width in zip((channels, *widths), widths, strict=False))


class Planner(nn.Module):
    """State to plan: strided convolutions down to the plan's grid, there mean and log standard deviation.

    The plan is a map of few numbers on the coarsest grid (7 x 7 for digits, as in the authors' code; 8 x 8 for images
    of 128 x 128): a crude picture of the deformation.
    """

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], plan_channels: int) -> None:
        super().__init__()
        self.stages = column(ndim, channels, widths)
        self.head = CONV[ndim](widths[-1], 2 * plan_channels, 3, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean and log standard deviation of the plan (B, P, *coarse), and the stages' features, finest first."""
        features = []
        for stage in self.stages:
            image = F.leaky_relu(stage(image), SLOPE)
            features.append(image)
        mean, log_std = self.head(image).chunk(2, 1)
        low, high = LOG_STD
        return mean, low + (high - low) * (torch.tanh(log_std) + 1) / 2, features


class Actor(nn.Module):
    """Plan to displacement field: upsampling with skips from the planner. A scaled tanh keeps the field within its
    bound, so that the losses and the environment see the same action."""

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], plan_channels: int, bound: float) -> None:
        super().__init__()
        self.bound, width = bound, widths[-1]
        self.begin = CONV[ndim](plan_channels, width, 3, 1, 1)
        stages = []
        for skip in reversed(widths):
            stages.append(CONV[ndim](width + skip, width, 3, 1, 1))
        self.stages = nn.ModuleList(stages)
        self.refine = CONV[ndim](width + channels, 16, 3, 1, 1)
        self.smooth = CONV[ndim](16, 16, 3, 1, 1)
        self.field = CONV[ndim](16, ndim, 3, 1, 1)
        nn.init.normal_(self.field.weight, std=1e-3)
        nn.init.zeros_(self.field.bias)  # type: ignore[arg-type]

    def forward(self, plan: Tensor, image: Tensor, features: list[Tensor]) -> Tensor:
        """Fields (B, D, *shape), voxels, within +-bound."""
        hidden = F.leaky_relu(self.begin(plan), SLOPE)
        for stage, skip in zip(self.stages, reversed(features), strict=True):
            hidden = F.interpolate(hidden, skip.shape[2:], mode="nearest")
            hidden = F.leaky_relu(stage(torch.cat([hidden, skip], 1)), SLOPE)
        hidden = torch.cat([F.interpolate(hidden, image.shape[2:], mode="nearest"), image], 1)
        hidden = F.leaky_relu(self.smooth(F.leaky_relu(self.refine(hidden), SLOPE)), SLOPE)
        return self.bound * torch.tanh(self.field(hidden))


class Critic(nn.Module):
    """Value of a plan in a state: a second column like the planner's, joined by the plan on the coarsest grid.

    What is judged is squashed first. Otherwise a planner finds ever higher values far from every plan that the critic
    has seen.

    Args: judged: channels of what is judged beside the state; 0 for the value of the state itself.
    """

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], judged: int) -> None:
        super().__init__()
        self.judged = judged
        self.stages = column(ndim, channels, widths)
        self.join = CONV[ndim](widths[-1] + judged, widths[-1], 3, 1, 1)
        self.value = nn.Linear(widths[-1], 1)

    def forward(self, image: Tensor, plan: Tensor) -> Tensor:
        """(B,)."""
        for stage in self.stages:
            image = F.leaky_relu(stage(image), SLOPE)
        if self.judged:
            image = torch.cat([image, F.interpolate(torch.tanh(plan), image.shape[2:], mode="area")], 1)
        return self.value(F.leaky_relu(self.join(image), SLOPE).flatten(2).mean(2)).squeeze(1)


def log_prob_of(plan: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability densities (B,) of plans (B, ...) under diagonal Gaussians."""
    away = (plan - mean) * (-log_std).exp()
    return (-0.5 * away.square() - log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def divergence(plan: Tensor, log_prob: Tensor) -> Tensor:
    """KL divergence (B,) of the plans' distributions from the standard normal one, estimated by one plan each.

    The estimate and its gradient are unbiased. Args: plan (B, ...): drawn; log_prob (B,): its log density.
    """
    return log_prob - log_prob_of(plan, torch.zeros_like(plan), torch.zeros_like(plan))


class SPACPolicy(BasePolicy):
    """Planner, actor and twin critics with their targets.

    Args:
        widths: channels of the planner's stages, as many as halvings; default by the image's size, 16 then 32.
        plan_channels: of the plan's map.
        ent_coef: the temperature that training starts from; the learned one is saved with the weights.
        critic_on: what the critics judge: "plan"; "action", the actor's field (the paper's SPAC-action); or "state",
            nothing but the state.
    """

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box, lr_schedule: Any = None,
                 widths: tuple[int, ...] | None = None, plan_channels: int = 1, critic_on: str = "plan",
                 ent_coef: float = 1e-3) -> None:
        super().__init__(observation_space, action_space, normalize_images=False, squash_output=False)
        channels, *shape = observation_space.shape
        if critic_on not in ("plan", "action", "state"):
            raise ValueError(f"SPACPolicy: critic_on is {critic_on!r}; it must be 'plan', 'action' or 'state'.")
        if not ent_coef > 0:
            raise ValueError(f"SPACPolicy: ent_coef is {ent_coef}; it must be positive.")
        if tuple(action_space.shape) != (len(shape), *shape):
            raise ValueError(f"SPACPolicy: actions have shape {action_space.shape}; it needs a displacement of every "
                             f"voxel, {(len(shape), *shape)}. Leave control_grid out.")
        self.byte = observation_space.dtype == np.uint8
        self.ndim, self.critic_on = len(shape), critic_on
        halvings = max(1, int(np.log2(min(shape) / COARSEST)))
        self.widths = (16,) + (32,) * (halvings - 1) if widths is None else tuple(widths)
        self.plan_channels = plan_channels
        self.log_alpha = nn.Parameter(torch.tensor([math.log(ent_coef)]))
        bound = float(action_space.high.flat[0])
        judged = {"plan": plan_channels, "action": self.ndim, "state": 0}[critic_on]
        self.planner = Planner(self.ndim, channels, self.widths, plan_channels)
        self.actor = Actor(self.ndim, channels, self.widths, plan_channels, bound)
        self.critics = nn.ModuleList(Critic(self.ndim, channels, self.widths, judged) for _ in range(2))
        self.targets = nn.ModuleList(Critic(self.ndim, channels, self.widths, judged) for _ in range(2))
        self.layout = CHANNELS_LAST[self.ndim]  # half the time of a convolution
        self.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)

    def followed(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that learn, each with the target that follows it."""
        yield from zip(self.critics.parameters(), self.targets.parameters(), strict=True)

    @property
    def plan_size(self) -> int:
        """Numbers in a plan."""
        _, *shape = self.observation_space.shape  # type: ignore[misc]
        for _ in self.widths:
            shape = [(n + 1) // 2 for n in shape]
        return self.plan_channels * int(np.prod(shape))

    def act(self, image: Tensor, noise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Plan (B, P, *coarse), its log density (B,), and field (B, D, *shape), all with gradients.

        Args: image (B, 2, *shape) float in [0, 1]; noise: draw the plan (reparameterised), or take its mean.
        """
        image = image.contiguous(memory_format=self.layout)
        plan, log_prob, features = self.drawn(image, noise)
        return plan, log_prob, self.actor(plan, image, features)

    def drawn(self, image: Tensor, noise: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Plan and log density as of :meth:`act`, and the planner's features; no field."""
        mean, log_std, features = self.planner(image)
        plan = mean + torch.randn_like(mean) * log_std.exp() if noise else mean
        return plan, log_prob_of(plan, mean, log_std), features

    def scaled(self, observation: Tensor) -> Tensor:
        """Observations as float images in [0, 1]."""
        image = observation.to(torch.float32)
        return image / 255 if self.byte else image

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        return self._predict(observation, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.act(self.scaled(observation), noise=not deterministic)[2]

    def play(self, observation: Any, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the field of the mean plan."""
        return self._predict(observation, deterministic=True), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "lr_schedule": None, "widths": self.widths, "plan_channels": self.plan_channels,
            "critic_on": self.critic_on}


class StateValuePolicy(SPACPolicy):
    """Critics of the state alone, for PPO on the plan."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "critic_on": "state"})


class DeterministicPolicy(SPACPolicy):
    """The plan is the planner's mean, explored with noise of a fixed standard deviation; the planner has a target too.

    Args: exploration: that standard deviation.
    """

    def __init__(self, *args: Any, exploration: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not exploration >= 0:
            raise ValueError(f"DeterministicPolicy: exploration is {exploration}; it must not be negative.")
        self.exploration = exploration
        self.target_planner = copy.deepcopy(self.planner).requires_grad_(False)

    def drawn(self, image: Tensor, noise: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As of SPACPolicy; the log densities are 0."""
        mean, _, features = self.planner(image)
        plan = mean + self.exploration * torch.randn_like(mean) if noise else mean
        return plan, torch.zeros(len(plan), device=plan.device), features

    def followed(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """As of SPACPolicy, and the planner's parameters."""
        yield from super().followed()
        yield from zip(self.planner.parameters(), self.target_planner.parameters(), strict=True)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"exploration": self.exploration}
