"""Episodes as pages: each becomes one HTML file with a slider over its steps, which opens without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.data.io.images import Image
from regenv.env import RegistrationEnv
from regenv.grid import Grid
from regenv.ops.regularity import folding
from regenv.state import EpisodeState
from regenv.viewer import Choice, DisplacementMap, Fact, Film, Page, Step, Volume

FILM = 400_000                  # displacement vectors, and determinants, of all steps of a page
VOXELS = 1_000_000              # of each of a page's images
NUMBERS = {"tre": "TRE, mm", "distance": "distance", "dice": "Dice", "score": "score"}
"""What a page tells of an info, and how it is called there."""


class RecordEpisode(gym.Wrapper[Any, Any, Any, Any]):
    """Writes episodes of an environment of regenv as pages: ``folder/episode-0.html`` and so on.

        env = RecordEpisode(gym.make("RegRigid2D-v0"), "episodes")

    A page, below 10 MB, shows every step in all planes: overlay, difference, the warped grid and the folds of a
    displacement, the action, the reward and the errors as curves. It is written when the episode ends, is reset, or the
    environment is closed.

    Args:
        env: of regenv; other wrappers may stand between.
        folder: is made if it is not there. None: nothing is written; :meth:`page` gives the page of the last episode.
        trigger: which episodes, by number from 0, are written; default all.
        prefix: of the files' names. player: who acts, as the page calls it.
    Raises ValueError: the environment is none of regenv.
    """

    def __init__(self, env: gym.Env[Any, Any], folder: str | Path | None,
                 trigger: Callable[[int], bool] = lambda number: True, prefix: str = "episode",
                 player: str = "agent") -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, RegistrationEnv):
            raise ValueError(f"RecordEpisode: the environment is {env.unwrapped!r}; it must be one of regenv.")
        self._inner = env.unwrapped
        self._folder = None if folder is None else Path(folder)
        self._trigger, self._prefix, self._player = trigger, prefix, player
        self._number, self._steps, self._choices, self._total = -1, list[Step](), "", 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._finish()
        observation, info = self.env.reset(seed=seed, options=options)
        self._number, self._total, self._choices = self._number + 1, 0.0, ""
        self._steps = [self._step("", {}, info)] if self._trigger(self._number) else []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._steps:
            self._total += float(reward)
            self._steps.append(self._step(self._inner.core.action_words(action),
                                          {"reward": float(reward), "return": self._total}, info))
            if terminated or truncated:
                self._finish()
        return observation, reward, terminated, truncated, info

    def note(self, title: str, values: Sequence[float], taken: int | None = None, names: Sequence[str] = (),
             value: float | None = None) -> None:
        """Tell what the agent thinks of its next actions, before it takes one.

        Args:
            title: what the values are, such as "Probability of each action". values: (A,), one an action.
            taken: the number of the action that it will take. names: of the values, default the actions' own.
            value: of the state, as a critic sees it.
        """
        if not self._steps:
            return
        told = names or [self._inner.core.action_words(number) for number in range(len(values))]
        choices = tuple(Choice(name, float(each), number == taken)
                        for number, (name, each) in enumerate(zip(told, values, strict=True)))
        numbers = self._steps[-1].numbers if value is None else {**self._steps[-1].numbers, "value": value}
        self._steps[-1] = replace(self._steps[-1], choices=choices, numbers=numbers)
        self._choices = title

    def close(self) -> None:
        self._finish()
        super().close()

    def page(self) -> Page:
        """The page of the episode as it is now. Raises RuntimeError where none is being recorded."""
        if not self._steps:
            raise RuntimeError("RecordEpisode: no episode is being recorded; call reset() first.")
        state, core = self._inner.state, self._inner.core
        grid, pair = core.task.grid, state.pair
        moving = _grid_of(np.linalg.inv(pair.world_to_moving[0].cpu().numpy()), tuple(pair.moving.shape[2:]))
        fixed, there, warped = (
            Volume.of(name, Image(image[0, 0].cpu().numpy(), lattice, name), (0.0, 1.0), VOXELS)
            for name, image, lattice in (("fixed", pair.fixed, grid), ("moving", pair.moving, moving),
                                         ("warped", state.warped, grid)))
        name = self.spec.id if self.spec is not None else "episode"
        return Page(
            kind="Episode", title=f"{name}: {self._player}", subtitle=f"{len(self._steps) - 1} steps",
            fixed=fixed, moving=there, warped=warped, pull_back=state.pull_back[0].cpu().numpy(),
            film=Film(tuple(self._steps), self._choices), displacement=self._map(state, 1),
            facts=self._facts(state), opens="path")

    def _finish(self) -> None:
        """Write the page of the episode, if one is being recorded."""
        if self._folder is None:
            return
        if len(self._steps) > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic(self._folder / f"{self._prefix}-{self._number}.html") as temporary:
                temporary.write_text(self.page().html(), encoding="ascii")
        self._steps = []

    def _step(self, action: str, numbers: Mapping[str, float], info: Mapping[str, Any]) -> Step:
        state = self._inner.state
        told = {NUMBERS[key]: float(info[key]) for key in NUMBERS if key in info}
        return Step(self._player, int(state.steps[0]), state.pull_back[0].cpu().numpy(), action, {**numbers, **told},
                    self._map(state, self._inner.core.task.max_episode_steps + 1))

    def _map(self, state: EpisodeState, parts: int) -> DisplacementMap | None:
        """The displacement, as fine as one of so many may be."""
        if state.displacement is None:
            return None
        most = max(1000, FILM // parts)
        return DisplacementMap.of(state.displacement[0].double().cpu().numpy(), self._inner.core.task.grid,
                                  min(most, 100_000), most)

    def _facts(self, state: EpisodeState) -> list[Fact]:
        first, last = self._steps[0].numbers, self._steps[-1].numbers
        facts = [Fact("Return", f"{self._total:.4g}", f"in {len(self._steps) - 1} steps")]
        for name in NUMBERS.values():
            if last.get(name) is not None and np.isfinite(last[name] or 0.0):
                facts.append(Fact(name, f"{last[name]:.3g}", f"{first[name]:.3g} at the start"))
        if state.displacement is not None:
            facts.append(Fact("Folded voxels", f"{float(folding(state.displacement)[0]):.2%}"))
        return facts


def _grid_of(voxel_to_world: NDArray[np.float64], shape: tuple[int, ...]) -> Grid:
    """The grid of a matrix (D+1, D+1) from voxel points, array-axis order, to world mm."""
    n = len(shape)
    steps = voxel_to_world[:n, :n][:, ::-1]
    spacing = np.linalg.norm(steps, axis=0)
    return Grid(shape, tuple(spacing.tolist()), tuple(voxel_to_world[:n, n].tolist()),
                tuple((steps / spacing).ravel().tolist()))
