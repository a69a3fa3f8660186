"""RegistrationEnv: the core as a standard single Gymnasium environment, numpy out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from regenv.core import RegistrationCore
from regenv.inputs import checked_options, checked_seed
from regenv.registry import build
from regenv.render import RENDER_MODES, check_modes
from regenv.state import EpisodeState
from regenv.task import Task


class RegistrationEnv(gym.Env):
    """One registration episode: ``gym.make("RegRigid3D-v0")``. The docstring of an id's builder describes it
    (``regenv.tasks.rigid.rigid``).

    Args:
        task: a Task, or the catalogue's id of one.
        render_style: "overlay", "checkerboard" or "difference".
        render_mode: "rgb_array" or None.
        device: where the core computes; observations are numpy.
        max_episode_steps: time limit; ``gym.make`` sets its own (TimeLimit) and leaves this at None.
        privileged: add ``target`` and ``q_star`` to the info.
        arguments: passed to the id's builder.

    ``reset(options=...)`` takes ``difficulty``, ``reach`` and ``same_pairs`` as RegistrationVectorEnv does.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: Task | str, render_mode: str | None = None, render_style: str = "overlay",
                 device: torch.device | str = "cpu", max_episode_steps: int | None = None,
                 privileged: bool = False, **arguments: Any) -> None:
        check_modes(render_mode, render_style)
        self.render_mode = render_mode
        self.render_style = render_style
        built = build(task, **arguments)
        self._limited = max_episode_steps is not None
        if max_episode_steps is not None:
            built = built.limited(max_episode_steps)
        self.core = RegistrationCore(built, device, privileged)
        self.observation_space = built.observation.space(built.grid.shape)
        self.action_space = self.core.action_space
        self._state: EpisodeState | None = None

    @property
    def state(self) -> EpisodeState:
        """The running episode, one lane. Raises RuntimeError before the first reset."""
        if self._state is None:
            raise RuntimeError("RegistrationEnv: call reset() first.")
        return self._state

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        chosen, number = checked_options(options), checked_seed(seed)
        pair = self.state.pair if chosen.same_pairs else None
        super().reset(seed=number)
        self._state = self.core.reset([self.np_random], chosen.difficulty, chosen.reach, pair)
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        one = action[None] if isinstance(action, (np.ndarray, torch.Tensor)) else [action]
        self._state, reward, terminated, truncated = self.core.step(self.state, one)
        return (self._observation(), float(reward), bool(terminated), self._limited and bool(truncated), self._info())

    def action_masks(self) -> NDArray[np.bool_]:
        """Which discrete actions will have an effect in the next step, (A,) bool; named as in sb3-contrib."""
        mask = self.core.action_mask(self.state)
        return np.ones(len(self.core.deltas), dtype=bool) if mask is None else mask[0].cpu().numpy()

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """A (H, W, 3) uint8 frame: fixed and warped in ``render_style``, with the step and the error written in."""
        return None if self.render_mode is None else self.core.frame(self.state, 0, self.render_style)

    def _observation(self) -> Any:
        observation = self.core.observe(self.state)
        self._state = self.state.release_views()
        if isinstance(observation, dict):
            return {key: value[0].cpu().numpy() for key, value in observation.items()}
        return observation[0].cpu().numpy()

    def _info(self) -> dict[str, Any]:
        values = {key: value[0].cpu().numpy() for key, value in self.core.info(self.state).items()}
        if np.isnan(values.get("tre", 0.0)):  # nobody knows whether it is one
            values.pop("is_success", None)
        return {key: value.item() if value.ndim == 0 else value for key, value in values.items()}
