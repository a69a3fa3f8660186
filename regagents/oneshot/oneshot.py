"""One-shot regression: a network states the whole correction at once ("pure SL", Sun et al. 2018, section 4)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from regagents.common.curriculum import Curriculum
from regagents.common.precision import mixed
from regagents.common.supervised import FreshPoses
from regagents.oneshot.policies import OneShotPolicy, scaled


class OneShot(FreshPoses):
    """Supervised regression of one action that aligns the images, on SB3's frame.

    Made for the Continuous ids with ``step_sizes`` that cover the starting range (``step_sizes=(45,)``): one step of
    the environment is then the whole registration, and more steps correct what is left. ``learn`` minimises the
    distance D that is left after the action, from fresh random poses; D is the environment's own (for the similarity
    ids the mean landmark error in pixels), so no weights between millimetres, degrees and scale have to be chosen.

    Args:
        policy: "CnnPolicy", or an OneShotPolicy subclass.
        env: id or environment with continuous actions.
        learning_rate: its peak.
        batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs: see FreshPoses.
        sb3: SB3's arguments, see Algorithm.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnPolicy": OneShotPolicy}  # type: ignore[assignment]
    steps_played: ClassVar[int | None] = 1
    policy: OneShotPolicy

    def __init__(self, policy: str | type[OneShotPolicy] = "CnnPolicy", env: Any = None, learning_rate: float = 1e-3,
                 batch_size: int = 64, schedule: str = "cosine", poses_per_image: int = 4,
                 curriculum: Curriculum | None = None, amp: bool = False,
                 sampler_kwargs: dict[str, Any] | None = None, **sb3: Any) -> None:
        self.settings(batch_size, schedule, poses_per_image, curriculum, amp, sampler_kwargs)
        super().__init__(policy, env, learning_rate, **sb3)

    def loss(self, observations: Tensor, infos: dict[str, Tensor]) -> Tensor:
        """Mean D that is left after the action."""
        with mixed(self.device, self.amp):
            outputs = self.policy(observations).float()
        env: Any = self.sampler().unwrapped
        core, state = env.core, env.state
        moved = core.task.transform.apply(infos["target"], scaled(outputs, core.deltas))
        return core.measure(state.pair)(moved).mean()
