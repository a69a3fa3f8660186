"""RegistrationEnv: the core as a standard single Gymnasium environment, numpy out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from regenv.core import RegistrationCore
from regenv.describe import page
from regenv.inputs import checked_options, checked_seed
from regenv.registry import build
from regenv.render import Trail, Window, check_modes
from regenv.state import EpisodeState
from regenv.task import Task


class RegistrationEnv(gym.Env):
    """One registration episode: ``gym.make("RegRigid3D-v0")``. ``help(env.unwrapped)`` and ``regenv describe ID`` show
    the page of an id.

    Args:
        task: a Task, or the catalogue's id of one.
        render_style: "overlay", "checkerboard" or "difference".
        render_mode: "rgb_array", "human" (a window, by pygame) or None.
        device: where the core computes; observations are numpy.
        max_episode_steps: time limit; ``gym.make`` sets its own (TimeLimit) and leaves this at None.
        privileged: add ``target`` and ``q_star`` to the info.
        arguments: passed to the id's builder.

    ``reset(options=...)`` takes ``difficulty``, ``reach`` and ``same_pairs`` as RegistrationVectorEnv does.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: Task | str, render_mode: str | None = None, render_style: str = "overlay",
                 device: torch.device | str = "cpu", max_episode_steps: int | None = None,
                 privileged: bool = False, **arguments: Any) -> None:
        check_modes(render_mode, render_style, tuple(self.metadata["render_modes"]))
        self.render_mode = render_mode
        self.render_style = render_style
        self._name = task if isinstance(task, str) else ""
        self._window = Window(self._name, self.metadata["render_fps"]) if render_mode == "human" else None
        self._trail: Trail | None = None
        built = build(task, **arguments)
        self._limited = max_episode_steps is not None
        if max_episode_steps is not None:
            built = built.limited(max_episode_steps)
        self.core = RegistrationCore(built, device, privileged)
        self.observation_space = built.observation.space(built.grid.shape)
        self.action_space = self.core.action_space
        self._state: EpisodeState | None = None
        if isinstance(task, str):
            self.__doc__ = page(task, built)

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
        if self.render_mode is not None:
            self._follow(Trail((self.core.reading(self._state, 0).value,)))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        one = action[None] if isinstance(action, (np.ndarray, torch.Tensor)) else [action]
        self._state, reward, terminated, truncated = self.core.step(self.state, one)
        if self._trail is not None:
            self._follow(self._trail.after(self.core.action_words(one[0]), float(reward),
                                           self.core.reading(self._state, 0).value))
        return (self._observation(), float(reward), bool(terminated), self._limited and bool(truncated), self._info())

    def action_masks(self) -> NDArray[np.bool_]:
        """Which discrete actions will have an effect in the next step, (A,) bool; named as in sb3-contrib."""
        mask = self.core.action_mask(self.state)
        return np.ones(len(self.core.deltas), dtype=bool) if mask is None else mask[0].cpu().numpy()

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """A (H, W, 3) uint8 frame, see :func:`regenv.render.picture`; None for "human", which shows every step itself.
        """
        return self._frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._window is not None:
            self._window.close()

    def _frame(self) -> NDArray[np.uint8]:
        return self.core.frame(self.state, 0, self.render_style, self._trail, self._name)

    def _follow(self, trail: Trail) -> None:
        """Keep what has happened, and show it where somebody watches."""
        self._trail = trail
        if self._window is not None:
            self._window.show(self._frame())

    def _observation(self) -> Any:
        observation = self.core.observe(self.state)
        self._state = self.state.release_views()
        if isinstance(observation, dict):
            return {key: value.cpu().numpy()[0] for key, value in observation.items()}
        return observation.cpu().numpy()[0]

    def _info(self) -> dict[str, Any]:
        values = {key: value.cpu().numpy()[0] for key, value in self.core.info(self.state).items()}
        if np.isnan(values.get("tre", 0.0)):  # nobody knows whether it is one
            values.pop("is_success", None)
        return {key: value.item() if value.ndim == 0 else value for key, value in values.items()}
