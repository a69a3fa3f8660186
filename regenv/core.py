"""RegistrationCore: batched reset, step and observe on EpisodeState. It knows neither Gymnasium nor any part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regenv import render
from regenv.data.pairs import PairBatch
from regenv.inputs import checked_actions, checked_amounts, checked_device, flag
from regenv.ops.affine import about, invert_affine, matmul, transform_points
from regenv.ops.regularity import jacobian
from regenv.placement import Compiled, accepted, error_of, measure_of, moved
from regenv.state import EpisodeState
from regenv.task import LinearTransform, Measure, Task

REDRAWS = 20    # of a start that already is a success


class RegistrationCore:
    """Batched episodes of a task on one device."""

    def __init__(self, task: Task, device: torch.device | str = "cpu", privileged: bool = False) -> None:
        self.task = task
        self.device = checked_device(device)
        self.privileged = flag("privileged", privileged)
        self.action_space = task.actions.space()
        self.deltas = torch.from_numpy(task.actions.deltas).to(self.device)
        self._compiled = Compiled.of(task, self.device)

    def reset(self, rngs: Sequence[np.random.Generator], difficulty: float = 1.0, reach: float = 1.0,
              pair: PairBatch | None = None) -> EpisodeState:
        """Fresh episodes, one per generator. A start that already is a success is drawn anew, after all other draws,
        where ``task.start`` says so.

        Args: difficulty: 0 to 1, how much the source varies; reach: (0, 1], scales the range of starting poses;
        pair: draw only starting poses, for these pairs.
        """
        difficulty, reach = checked_amounts(difficulty, reach)
        pair = pair or self.task.source.draw(rngs, self.task.grid, self.device, difficulty)
        pose = self._starts(rngs, reach, pair)
        guard_seed = None if self.task.guard is None else torch.tensor([int(rng.integers(1 << 62)) for rng in rngs])
        if self.task.start.redrawn:
            pose = self._redrawn(rngs, reach, pair, pose)
        return self.begin(pair, pose, guard_seed=guard_seed)

    def _starts(self, rngs: Sequence[np.random.Generator], reach: float, pair: PairBatch) -> Tensor:
        draws = torch.from_numpy(self.task.start.draw(rngs, reach, pair)).to(self.device)
        return self.task.transform.from_draws(draws)

    def _redrawn(self, rngs: Sequence[np.random.Generator], reach: float, pair: PairBatch, pose: Tensor) -> Tensor:
        """Poses in place of those that already are a success, each from its own lane's generator; where a range has
        hardly any other, the last draw stays."""
        transform = self.task.transform
        for _ in range(REDRAWS):
            pull_back = matmul(pair.truth, about(pair.center, transform.matrix(pose)))
            error = error_of(pair, pull_back, transform.displacement(pose))
            again = (error <= self.task.success_mm).nonzero()[:, 0]
            if not len(again):
                break
            chosen = [rngs[lane] for lane in again.tolist()]
            pose = pose.index_copy(0, again, self._starts(chosen, reach, pair.select(again)))
        return pose

    def begin(self, pair: PairBatch, pose: Tensor, anchor: Tensor | None = None,
              guard_seed: Tensor | None = None) -> EpisodeState:
        """Episodes on given pairs from given poses (B, P), about ``anchor`` (default the truth).

        Args: guard_seed (B,) int64: seeds of the guard's random numbers, default zeros.
        """
        if self.task.guard is not None:
            guard_seed = torch.zeros(pair.lanes, dtype=torch.int64) if guard_seed is None else guard_seed
            guard_seed = guard_seed.to(self.device)
        nothing = torch.zeros(pair.lanes, dtype=torch.float64, device=self.device)
        state = EpisodeState(pair=pair, anchor=pair.truth if anchor is None else anchor, pose=pose,
                             pull_back=pair.truth, displacement=None, guard_seed=guard_seed,
                             distance=nothing, tre=nothing, score=nothing,
                             arrived=torch.zeros_like(pair.known),
                             steps=torch.zeros_like(pair.known, dtype=torch.int64))
        return self._moved(state, None, state.steps)

    def step(self, state: EpisodeState, action: Any) -> tuple[EpisodeState, Tensor, Tensor, Tensor]:
        """One action per lane: the state after it, rewards (B,) float64, terminated (B,), truncated (B,) bool.

        Args: action (B, *action_space.shape), a tensor or an array. Raises ValueError where it does not fit.
        """
        chosen = checked_actions(action, self.action_space, state.lanes, state.pose.device)
        delta = self.task.actions.delta(chosen, self.deltas)
        after = self._moved(state, delta, state.steps + 1)
        return after, self.task.reward(state, after), after.arrived, after.steps >= self.task.max_episode_steps

    def observe(self, state: EpisodeState) -> Tensor | dict[str, Tensor]:
        """Observations (B, *observation shape), or a dict of them.

        They may share memory with the cached view; call ``state.release_views()`` afterwards.
        """
        return self.task.observation(state)

    def info(self, state: EpisodeState) -> dict[str, Tensor]:
        """Numbers about the state, each (B, ...), in memory of their own; the same keys at reset and at step.

        "score" is what the reward is made of, NaN where it is unknown. Where "tre" is NaN, "is_success" says nothing.
        """
        numbers = {"score": state.score.clone()}
        if state.pair.landmarks is not None:
            numbers |= {"tre": state.tre.clone(), "is_success": state.tre <= self.task.success_mm}
        if self.task.distance is not None:
            numbers["distance"] = state.distance.clone()
        if state.dice is not None:
            numbers["dice"] = state.dice.clone()
        mask = self.action_mask(state)
        if mask is not None:
            numbers["action_mask"] = mask
        if self.privileged and state.pair.landmarks is not None and state.pair.targets is not None:
            numbers |= {"keypoints": transform_points(invert_affine(state.pair.fixed_to_world), state.pair.landmarks),
                        "keypoint_targets": transform_points(state.pair.world_to_moving, state.pair.targets)}
        if self.privileged and self.task.expert is not None:
            goal = state.pair.target_pose
            numbers["target"] = state.pose.clone() if goal is None else state.pose - goal
            numbers["q_star"] = self.task.expert(self.task.transform, self.measure(state.pair), state.pose,
                                                 self.deltas)
        return numbers

    def action_mask(self, state: EpisodeState) -> Tensor | None:
        """Which discrete actions will have an effect in the next step, (B, A) bool; None for a task without a guard."""
        if self.task.guard is None:
            return None
        if self._compiled is not None and state.pose.device.type == "cpu":
            return self._compiled.passing(state)
        return accepted(self.task, state, state.pose, self.deltas.expand(state.lanes, -1, -1)).all(-1)

    def frame(self, state: EpisodeState, lane: int, style: str = "overlay", trail: render.Trail | None = None,
              name: str = "") -> NDArray[np.uint8]:
        """A picture (H, W, 3) uint8 of a lane, see :func:`regenv.render.picture`.

        Args:
            style: "overlay", "checkerboard" or "difference".
            trail: what has happened; default nothing is known of it. name: the environment's, to be shown.
        """
        scene = self._scene(state, lane, name)
        unknown = (float("nan"),) * int(state.steps[lane])
        return render.picture(scene, trail or render.Trail((*unknown, scene.reading.value)), style)

    def reading(self, state: EpisodeState, lane: int) -> render.Reading:
        """How far a lane is from its end: its landmark error in mm, else the distance of its pose, else its score."""
        error, distance = float(state.tre[lane]), float(state.distance[lane])
        if np.isfinite(error):
            return render.Reading("TRE, mm", error, self.task.success_mm)
        return (render.Reading("score", float(state.score[lane])) if np.isnan(distance)
                else render.Reading("distance", distance))

    def action_words(self, action: Any) -> str:
        """A lane's action in words, see :func:`regenv.render.action_words`."""
        given = action.cpu().numpy() if isinstance(action, Tensor) else action
        return render.action_words(given, self.task.actions.deltas, self.task.transform.names)

    def _scene(self, state: EpisodeState, lane: int, name: str) -> render.Scene:
        """What a frame of a lane shows."""
        one = state.select(torch.arange(state.lanes, device=self.device) == lane)
        pair, field = one.pair, one.displacement
        masks = (None if labels is None else (labels[0, 0] > 0).cpu().numpy()
                 for labels in (pair.fixed_labels, one.labels))
        target, moved = masks
        return render.Scene(
            name, self.task.grid, pair.fixed[0, 0].cpu().numpy(), one.warped[0, 0].cpu().numpy(), target, moved,
            None if field is None else field[0].cpu().numpy(),
            None if field is None else jacobian(field)[0].cpu().numpy(), self.reading(state, lane),
            self.task.max_episode_steps)

    def measure(self, pair: PairBatch) -> Measure:
        """D of poses (B, ..., P) of these pairs, as a function."""
        return measure_of(self.task, pair)

    def _moved(self, state: EpisodeState, delta: Tensor | None, steps: Tensor) -> EpisodeState:
        """The state after changes ``delta`` of its poses, or None for what its poses are, with all that follows."""
        task = self.task
        if self._compiled is not None and state.pose.device.type == "cpu":
            seen = self._compiled.moved(state, delta, steps)
            return seen.after(score=task.reward.score(seen))
        seen = moved(task, state, delta, steps)
        scored = seen.after(score=task.reward.score(seen))
        return scored.after(arrived=task.termination(task.transform, self.measure(state.pair), scored, self.deltas))


def landmark_error(state: EpisodeState) -> Tensor:
    """Mean distance (B,) of the landmarks from where they belong, mm; NaN where that is unknown."""
    return error_of(state.pair, state.pull_back, state.displacement)


def pose_of(transform: LinearTransform, anchor: Tensor, center: Tensor, pull_back: Tensor) -> Tensor:
    """Poses (B, P) whose residual about ``center``, appended to ``anchor``, is ``pull_back`` (B, D+1, D+1)."""
    return transform.parameters(about(-center, matmul(invert_affine(anchor), pull_back)))
