"""RegistrationVectorEnv: the core as a native Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from regenv.core import RegistrationCore
from regenv.inputs import ResetOptions, checked_options, checked_seeds, whole
from regenv.outputs import OutputArray, as_information, as_tensor
from regenv.registry import build
from regenv.render import Trail, check_modes
from regenv.state import EpisodeState
from regenv.task import Task

OUTPUTS = ("torch", "numpy")
RENDER_MODES = ("rgb_array",)


class RegistrationVectorEnv(gym.vector.VectorEnv):
    """Many registration episodes at once, on one device: ``gym.make_vec("RegRigid3D-v0", num_envs=64, device="cuda")``.

    Lane i seeded s equals the single environment seeded s + i, for any number of lanes.

    Args:
        task: a Task, or the catalogue's id of one.
        num_envs: lanes.
        device: where tensors live.
        output: "torch" (default) or "numpy": type of observations, rewards (float32 in torch, float64 in numpy as
            Gymnasium's) and flags. Infos of "torch" are tensors on a GPU, and on the CPU arrays that torch takes for
            tensors. Gymnasium's vector wrappers take both outputs on the CPU, on a GPU they need "numpy".
        autoreset_mode: NEXT_STEP (Gymnasium's default), SAME_STEP or DISABLED. SAME_STEP adds ``final_obs``,
            ``_final_obs``, ``final_info``, ``_final_info`` to the infos.
        max_episode_steps: time limit; default the task's.
        privileged: add ``target`` (pose) and ``q_star`` (targets for every action) to the infos.
        render_style: "overlay", "checkerboard" or "difference".
        render_mode: "rgb_array" or None; ``render()`` gives one frame a lane.
        arguments: passed to the id's builder (``size=``, ``spacing=``, ``source=``, ``observation=``, ...).

    ``reset(options=...)`` takes ``reset_mask`` (bool (num_envs,), numpy or torch; other lanes go on unchanged),
    ``difficulty`` in [0, 1] (how much the source varies), ``reach`` in (0, 1] (scales the starting range) and
    ``same_pairs`` (True: new starting poses on the pairs of the last reset). It never changes ``options``.
    """

    def __init__(self, task: Task | str, num_envs: int = 1, device: torch.device | str = "cpu", output: str = "torch",
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, max_episode_steps: int | None = None,
                 privileged: bool = False, render_mode: str | None = None, render_style: str = "overlay",
                 **arguments: Any) -> None:
        num_envs = whole("num_envs", num_envs)
        if output not in OUTPUTS:
            raise ValueError(f"RegistrationVectorEnv: output is {output!r}; it must be one of {OUTPUTS}.")
        check_modes(render_mode, render_style, RENDER_MODES)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": 10, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.render_style = render_style
        self.num_envs = num_envs
        self.output = output
        built = build(task, **arguments)
        if max_episode_steps is not None:
            built = built.limited(max_episode_steps)
        self.core = RegistrationCore(built, device, privileged)
        self.device = self.core.device
        self.single_observation_space = built.observation.space(built.grid.shape)
        self.single_action_space = self.core.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self._state: EpisodeState | None = None
        self._name = task if isinstance(task, str) else ""
        self._trails: list[Trail] = []      # of the lanes, where frames are asked for
        self._steps_taken = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=bool)

    @property
    def state(self) -> EpisodeState:
        """The running episodes. Raises RuntimeError before the first reset."""
        if self._state is None:
            raise RuntimeError("RegistrationVectorEnv: call reset() first.")
        return self._state

    def reset(self, *, seed: int | Sequence[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        chosen, seeds = checked_options(options, self.num_envs), checked_seeds(seed, self.num_envs)
        mask = np.ones(self.num_envs, dtype=bool) if chosen.reset_mask is None else chosen.reset_mask
        if self._state is None and (chosen.same_pairs or not mask.all()):
            raise ValueError("reset: the first reset must reset every lane and draw pairs; leave reset_mask and "
                             "same_pairs out.")
        super().reset(seed=seeds[0])
        for lane in np.flatnonzero(mask).tolist():
            if seeds[lane] is not None:
                self._rngs[lane] = seeding.np_random(seeds[lane])[0]
        self._restart(mask, chosen)
        return self._converted(self._observation()), self._masked(self.core.info(self.state), mask)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        after, reward, terminated, truncated = self.core.step(self.state, actions)
        if self._trails:
            self._trails = [
                trail.after(self.core.action_words(action), float(gain), self.core.reading(after, lane).value)
                for lane, (trail, action, gain) in enumerate(zip(self._trails, actions, reward, strict=True))]
        self._steps_taken += 1
        all_lanes = np.ones(self.num_envs, dtype=bool)
        extra: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._state = after
            if self._done.any():
                resetting = torch.from_numpy(self._done).to(self.device)
                self._restart(self._done, ResetOptions())
                reward = reward.masked_fill(resetting, 0.0)
                terminated, truncated = terminated & ~resetting, truncated & ~resetting
            self._done = self._ended(terminated)
        elif self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._state = after
            where = self._ended(terminated)
            if where.any():
                done = terminated | truncated
                extra = {"final_obs": self._information(self._observation()),
                         "_final_obs": self._information(done.clone()),
                         "final_info": self._masked(self.core.info(after), where),
                         "_final_info": self._information(done.clone())}
                self._restart(where, ResetOptions())
        else:
            if self._done.any():
                raise RuntimeError(f"step: lanes {np.flatnonzero(self._done).tolist()} have ended; with "
                                   "autoreset disabled call reset(options={'reset_mask': ...}) for them first.")
            self._state = after
            self._done = self._ended(terminated)
        infos = self._masked(self.core.info(self.state), all_lanes) | extra
        if self.output == "torch":
            reward = reward.to(torch.float32)
        return (self._converted(self._observation()), self._converted(reward), self._converted(terminated.clone()),
                self._converted(truncated.clone()), infos)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One (H, W, 3) uint8 frame per lane, see :func:`regenv.render.picture`."""
        if self.render_mode is None:
            return None
        return tuple(self.core.frame(self.state, lane, self.render_style, trail, self._name)
                     for lane, trail in enumerate(self._trails))

    def action_masks(self) -> Tensor | NDArray[np.bool_]:
        """Which discrete actions will have an effect in the next step, (num_envs, A) bool; named as in sb3-contrib."""
        mask = self.core.action_mask(self.state)
        if mask is None:
            mask = torch.ones(self.num_envs, len(self.core.deltas), dtype=torch.bool, device=self.device)
        return self._converted(mask)

    def _restart(self, where: NDArray[np.bool_], options: ResetOptions) -> None:
        """Fresh episodes in the lanes of ``where`` (num_envs,) bool: all of them at the first reset."""
        rngs = [self._rngs[lane] for lane in np.flatnonzero(where)]
        mask = torch.from_numpy(where).to(self.device)
        pair = None
        if options.same_pairs:
            pair = self.state.pair if where.all() else self.state.pair.select(mask)
        fresh = self.core.reset(rngs, options.difficulty, options.reach, pair)
        self._state = fresh if where.all() else self.state.put(mask, fresh)
        if self.render_mode is not None:
            self._trails = [Trail((self.core.reading(self._state, lane).value,)) if where[lane] else self._trails[lane]
                            for lane in range(self.num_envs)]
        self._done = self._done & ~where
        self._steps_taken[where] = 0

    def _ended(self, terminated: Tensor) -> NDArray[np.bool_]:
        """Lanes (num_envs,) bool whose episode is over; an endless task does not wait for flags of the device."""
        late = self._steps_taken >= self.core.task.max_episode_steps
        return late if self.core.task.endless else late | terminated.cpu().numpy()

    def _observation(self) -> Any:
        """The observation, whose memory the state no longer uses."""
        observation = self.core.observe(self.state)
        self._state = self.state.release_views()
        return observation

    def _converted(self, value: Any) -> Any:
        """A result as torch or numpy, as asked for; arrays take over the memory of tensors made for them."""
        if isinstance(value, dict):
            return {key: self._converted(part) for key, part in value.items()}
        return as_tensor(value) if self.output == "torch" else value.cpu().numpy()

    def _information(self, value: Any) -> Any:
        """A value of infos, likewise."""
        if isinstance(value, dict):
            return {key: self._information(part) for key, part in value.items()}
        return as_information(value) if self.output == "torch" else value.cpu().numpy()

    def _masked(self, numbers: dict[str, Tensor], where: NDArray[np.bool_]) -> dict[str, Any]:
        """Infos with Gymnasium's ``_key`` masks of the lanes they hold for; "is_success" holds where "tre" is known."""
        infos: dict[str, Any] = {}
        for key, value in numbers.items():
            infos[key] = self._information(value)
            infos["_" + key] = self._holds(where, numbers["tre"] if key == "is_success" else None)
        return infos

    def _holds(self, where: NDArray[np.bool_], known: Tensor | None) -> Any:
        """A mask of infos: the lanes of ``where``, less those where ``known`` is NaN."""
        if self.device.type == "cpu":
            lanes = where.copy() if known is None else where & ~np.isnan(known.numpy())
            return lanes.view(OutputArray) if self.output == "torch" else lanes
        mask = torch.from_numpy(where.copy()).to(self.device)
        return self._information(mask if known is None else mask & ~known.isnan())
