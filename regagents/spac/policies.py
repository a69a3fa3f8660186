"""The networks of SPAC: planner, actor with skips, and critics on the plan (Luo et al. 2022, figure 1).

A plan is a displacement of the nodes of a coarse lattice, in (-1, 1) units of the largest that a step allows. It alone
makes the coarse field; the actor, which has the skips and so could do without a plan, adds no more than FINE voxels.
"""

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
from regagents.spac.plans import Proposal, squashed
from regenv.ops import bspline
from regenv.ops.warp import warp_dense

SLOPE = 0.2
LOG_STD = (-5.0, 2.0)
COARSEST = 7  # voxels along the shortest axis, at which the planner ends
FAR = 2       # convolutions on the plan's lattice
FINE = 0.25   # voxels that the actor may add along an axis


def column(ndim: int, channels: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """Strided convolutions, each half the size of the one before."""
    return nn.ModuleList(CONV[ndim](before, width, 3, 2, 1)
                         for before, width in zip((channels, *widths), widths, strict=False))


class Planner(nn.Module):
    """State to a distribution of plans: strided convolutions down to the plan's lattice, more there, which see far, and
    mean and log standard deviation of what is squashed.

    The lattice is the coarsest grid (7 x 7 for digits, as in the authors' code; 8 x 8 for images of 128 x 128). The
    deviation is the same in all states and nodes, one number an axis, which critics and entropy alone move: one that
    was read from the image ran away before the critics knew what noise costs.

    Args: sigma: the deviation at first.
    """

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], sigma: float) -> None:
        super().__init__()
        self.stages = column(ndim, channels, widths)
        self.far = nn.ModuleList(CONV[ndim](widths[-1], widths[-1], 3, 1, 1) for _ in range(FAR))
        self.mean = CONV[ndim](widths[-1], ndim, 3, 1, 1)
        self.log_std = nn.Parameter(torch.full((ndim,), math.log(sigma)))

    def forward(self, image: Tensor) -> Proposal:
        features = []
        for stage in self.stages:
            image = F.leaky_relu(stage(image), SLOPE)
            features.append(image)
        for layer in self.far:
            image = F.leaky_relu(layer(image), SLOPE)
        mean = self.mean(image)
        log_std = self.log_std.clamp(*LOG_STD).view(-1, *(1,) * (mean.ndim - 2)).expand_as(mean)
        return Proposal(mean, log_std, features)


class Actor(nn.Module):
    """Plan to displacement field: the lattice's cubic B-spline, and what a network with skips from the planner adds.

    The network also sees the moving image through the plan. The field keeps within its bound, so that the losses and
    the environment see the same action.
    """

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...], bound: float) -> None:
        super().__init__()
        self.bound, self.fine = bound, min(FINE, bound / 2)
        self.reach, width = bound - self.fine, widths[-1]
        self.begin = CONV[ndim](ndim, width, 3, 1, 1)
        self.stages = nn.ModuleList(CONV[ndim](width + skip, width, 3, 1, 1) for skip in reversed(widths))
        self.refine = CONV[ndim](width + channels + 1, 16, 3, 1, 1)
        self.smooth = CONV[ndim](16, 16, 3, 1, 1)
        self.field = CONV[ndim](16, ndim, 3, 1, 1)
        nn.init.normal_(self.field.weight, std=1e-3)
        nn.init.zeros_(self.field.bias)  # type: ignore[arg-type]

    def coarse(self, plan: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Fields (B, D, *shape), voxels, of plans (B, D, *lattice) in [-1, 1]: nothing is learnt in between."""
        return bspline.displacement(self.reach * plan.float(), shape)

    def forward(self, plan: Tensor, image: Tensor, features: list[Tensor]) -> Tensor:
        """Fields (B, D, *shape), voxels, within +-bound."""
        coarse = self.coarse(plan, tuple(image.shape[2:]))
        hidden = F.leaky_relu(self.begin(plan), SLOPE)
        for stage, skip in zip(self.stages, reversed(features), strict=True):
            hidden = F.interpolate(hidden, skip.shape[2:], mode="nearest")
            hidden = F.leaky_relu(stage(torch.cat([hidden, skip], 1)), SLOPE)
        hidden = F.interpolate(hidden, image.shape[2:], mode="nearest")
        hidden = torch.cat([hidden, image, through(image, coarse)], 1)
        hidden = F.leaky_relu(self.smooth(F.leaky_relu(self.refine(hidden), SLOPE)), SLOPE)
        field = coarse + self.fine * torch.tanh(self.field(hidden))
        return field.clamp(-self.bound, self.bound)     # which rounding may pass


def through(image: Tensor, field: Tensor) -> Tensor:
    """The moving one of images (B, 2, *shape), seen through a field (B, D, *shape): (B, 1, *shape)."""
    return warp_dense(image[:, 1:].float(), field.float())


def look(image: Tensor, field: Tensor | None = None) -> Tensor:
    """What critics see of images (B, 2, *shape) and of what is judged there, a field (B, D, *shape) or nothing: fixed
    and warped, the warped one displaced, and how far from the fixed one they are."""
    fixed, warped = image.split(1, 1)
    seen = [fixed, warped, (fixed - warped).square()]
    if field is not None:
        displaced = through(image, field)
        seen += [displaced, (fixed - displaced).square()]
    return torch.cat(seen, 1)


class Critic(nn.Module):
    """Value of a displacement in a state, or of the state: a column like the planner's on what :func:`look` gives."""

    def __init__(self, ndim: int, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = column(ndim, channels, widths)
        self.join = CONV[ndim](widths[-1], widths[-1], 3, 1, 1)
        self.value = nn.Linear(widths[-1], 1)

    def forward(self, seen: Tensor) -> Tensor:
        """Values (B,)."""
        for stage in self.stages:
            seen = F.leaky_relu(stage(seen), SLOPE)
        return self.value(F.leaky_relu(self.join(seen), SLOPE).flatten(2).mean(2)).squeeze(1)


class SPACPolicy(BasePolicy):
    """Planner, actor and twin critics with their targets.

    Args:
        widths: channels of the planner's stages, as many as halvings; default by the image's size, 16 then 32.
        critic_on: what the critics judge: "plan", by the coarse field that it makes; "action", the whole field (the
            paper's SPAC-action); or "state", nothing but the state.
        ent_coef: the temperature that training starts from, sigma: the plans' deviation before they are squashed; the
            learned ones are saved with the weights.
        candidates: plans that are weighed in a step of play: the mean and drawn ones, the critics choose.
    """

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box, lr_schedule: Any = None,
                 widths: tuple[int, ...] | None = None, critic_on: str = "plan", ent_coef: float = 1e-3,
                 sigma: float = 0.4, candidates: int = 1) -> None:
        super().__init__(observation_space, action_space, normalize_images=False, squash_output=False)
        channels, *shape = observation_space.shape
        if critic_on not in ("plan", "action", "state"):
            raise ValueError(f"SPACPolicy: critic_on is {critic_on!r}; it must be 'plan', 'action' or 'state'.")
        if not ent_coef > 0 or not sigma > 0:
            raise ValueError(f"SPACPolicy: ent_coef is {ent_coef} and sigma {sigma}; both must be positive.")
        if candidates < 1 or (candidates > 1 and critic_on != "plan"):
            raise ValueError(f"SPACPolicy: candidates is {candidates}; it must be at least 1, and 1 where critics do "
                             "not judge plans.")
        if channels != 2 or tuple(action_space.shape) != (len(shape), *shape):
            raise ValueError(f"SPACPolicy: observations have shape {observation_space.shape}, actions "
                             f"{action_space.shape}; it needs (fixed, moving) and a displacement of every voxel, "
                             f"{(len(shape), *shape)}: observation=\"pair\". Leave control_grid out.")
        self.byte = observation_space.dtype == np.uint8
        self.ndim, self.critic_on, self.candidates, self.sigma = len(shape), critic_on, candidates, sigma
        halvings = max(1, int(np.log2(min(shape) / COARSEST)))
        self.widths = (16,) + (32,) * (halvings - 1) if widths is None else tuple(widths)
        if min(self.lattice) <= bspline.ORDER:
            raise ValueError(f"SPACPolicy: widths are {self.widths}; halved so often, images of {tuple(shape)} leave a "
                             f"lattice of {self.lattice}, and it needs {bspline.ORDER + 1} nodes an axis. Give fewer.")
        self.log_alpha = nn.Parameter(torch.tensor([math.log(ent_coef)]))
        bound, seen = float(action_space.high.flat[0]), 3 if critic_on == "state" else 5
        self.planner = Planner(self.ndim, channels, self.widths, sigma)
        self.actor = Actor(self.ndim, channels, self.widths, bound)
        self.critics = nn.ModuleList(Critic(self.ndim, seen, self.widths) for _ in range(2))
        self.targets = nn.ModuleList(Critic(self.ndim, seen, self.widths) for _ in range(2))
        self.layout = CHANNELS_LAST[self.ndim]  # half the time of a convolution
        self.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)

    def followed(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that learn, each with the target that follows it."""
        yield from zip(self.critics.parameters(), self.targets.parameters(), strict=True)

    @property
    def lattice(self) -> tuple[int, ...]:
        """Nodes of a plan an axis."""
        _, *shape = self.observation_space.shape  # type: ignore[misc]
        for _ in self.widths:
            shape = [(n + 1) // 2 for n in shape]
        return tuple(shape)

    @property
    def plan_size(self) -> int:
        """Numbers in a plan."""
        return self.ndim * int(np.prod(self.lattice))

    def act(self, image: Tensor, noise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Plan (B, D, *lattice), its log density (B,), and field (B, D, *shape), all with gradients.

        Args: image (B, 2, *shape) float in [0, 1]; noise: draw the plan (reparameterised), or take its mean.
        """
        image = image.contiguous(memory_format=self.layout)
        proposal = self.planner(image)
        raw = self.raw(proposal, noise)
        plan = squashed(raw)
        return plan, proposal.log_prob(raw), self.actor(plan, image, proposal.features)

    def raw(self, proposal: Proposal, noise: bool) -> Tensor:
        """A plan before it is squashed, drawn (reparameterised) or the mean."""
        return proposal.drawn() if noise else proposal.mean

    def weighed(self, image: Tensor, plan: Tensor, field: Tensor | None = None, targets: bool = False) -> Tensor:
        """The lower of both critics' values (B,) of plans; where they judge actions, of the whole ``field``."""
        field = self.actor.coarse(plan, tuple(image.shape[2:])) if field is None else field
        seen = look(image, field)
        return torch.stack([critic(seen) for critic in (self.targets if targets else self.critics)]).amin(0)

    def proposed(self, proposal: Proposal, count: int, seed: int = 0) -> Tensor:
        """The mean plan and ``count`` - 1 drawn ones (count, B, D, *lattice); always the same ones, and a lane's plans
        do not depend on the other lanes."""
        shape = (count - 1, 1, *proposal.mean.shape[1:])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(proposal.mean.device)
        drawn = proposal.mean + proposal.log_std.exp() * noise
        return squashed(torch.cat([proposal.mean[None], drawn]))

    def chosen(self, image: Tensor) -> Tensor:
        """The field (B, D, *shape) of the plan that the critics value most among ``candidates``."""
        image = image.contiguous(memory_format=self.layout)
        proposal = self.planner(image)
        plans = self.proposed(proposal, self.candidates)
        values = torch.stack([self.weighed(image, plan) for plan in plans])
        best = plans[values.argmax(0), torch.arange(len(image), device=image.device)]
        return self.actor(best, image, proposal.features)

    def scaled(self, observation: Tensor) -> Tensor:
        """Observations as float images in [0, 1]."""
        image = observation.to(torch.float32)
        return image / 255 if self.byte else image

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        return self._predict(observation, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        image = self.scaled(observation)
        if deterministic and self.candidates > 1:
            return self.chosen(image)
        return self.act(image, noise=not deterministic)[2]

    def play(self, observation: Any, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`: the field of the mean plan, or of the best candidate."""
        return self._predict(observation, deterministic=True), None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "lr_schedule": None, "widths": self.widths, "critic_on": self.critic_on, "sigma": self.sigma,
            "candidates": self.candidates}


class StateValuePolicy(SPACPolicy):
    """Critics of the state alone, for PPO on the plan."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "critic_on": "state"})


class DeterministicPolicy(SPACPolicy):
    """The plan is the planner's mean, explored with noise of a fixed standard deviation; the planner has a target too.

    Args: exploration: that standard deviation, before the plan is squashed.
    """

    def __init__(self, *args: Any, exploration: float = 0.2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not exploration >= 0:
            raise ValueError(f"DeterministicPolicy: exploration is {exploration}; it must not be negative.")
        self.exploration = exploration
        self.target_planner = copy.deepcopy(self.planner).requires_grad_(False)

    def raw(self, proposal: Proposal, noise: bool) -> Tensor:
        """As of SPACPolicy."""
        return proposal.mean + self.exploration * torch.randn_like(proposal.mean) if noise else proposal.mean

    def followed(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """As of SPACPolicy, and the planner's parameters."""
        yield from super().followed()
        yield from zip(self.planner.parameters(), self.target_planner.parameters(), strict=True)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"exploration": self.exploration}
