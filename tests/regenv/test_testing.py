"""The checker of vector environments notices when one breaks Gymnasium's contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from regenv.testing import check_vector_env
from regenv.vector import RegistrationVectorEnv
from tests.regenv.families import small


class SharesObservations(RegistrationVectorEnv):
    def _observation(self) -> Tensor:
        self._buffer = getattr(self, "_buffer", super()._observation())
        return self._buffer.copy_(super()._observation())


class SharesItsState(RegistrationVectorEnv):
    def _masked(self, numbers: dict[str, Tensor], where: np.ndarray) -> dict[str, Any]:
        return super()._masked(numbers | {"distance": self.state.score, "tre": self.state.pose[:, 0]}, where)


class ResetsEveryLane(RegistrationVectorEnv):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(options=options)
        return super().reset(seed=seed)


class TakesAnyMask(RegistrationVectorEnv):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given = (options or {}).get("reset_mask", [True])
        mask = np.resize(np.asarray(given).astype(bool), self.num_envs)
        return super().reset(seed=seed, options={**(options or {}), "reset_mask": mask} if mask.any() else None)


class EatsOptions(RegistrationVectorEnv):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).pop("reset_mask", None)
        return super().reset(seed=seed, options=None if mask is None else {"reset_mask": mask})


class SeedsAllLanesAlike(RegistrationVectorEnv):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class IgnoresSeeds(RegistrationVectorEnv):
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(options=options)


class NeverTruncates(RegistrationVectorEnv):
    def __init__(self, *args: Any, max_episode_steps: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class TruncatesLate(RegistrationVectorEnv):
    def __init__(self, *args: Any, max_episode_steps: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, max_episode_steps=max_episode_steps + 1, **kwargs)


class NamesAnotherMode(RegistrationVectorEnv):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metadata["autoreset_mode"] = "NextStep"


class Changed(RegistrationVectorEnv):
    """A step whose result is then spoilt."""

    def spoil(self, result: list[Any]) -> None: ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.before = torch.from_numpy(self._done.copy())
        result = list(super().step(actions))
        self.spoil(result)
        return tuple(result)  # type: ignore[return-value]


class RewardsResets(Changed):
    def spoil(self, result: list[Any]) -> None:
        result[1] = result[1] + self.before


class ForgetsAKey(Changed):
    def spoil(self, result: list[Any]) -> None:
        del result[4]["tre"], result[4]["_tre"]


class ForgetsAMask(Changed):
    def spoil(self, result: list[Any]) -> None:
        del result[4]["_tre"]


class EndsWithColumns(Changed):
    def spoil(self, result: list[Any]) -> None:
        result[2] = result[2][:, None]


class GivesIntegerRewards(Changed):
    def spoil(self, result: list[Any]) -> None:
        result[1] = result[1].long()


class LeavesItsSpace(Changed):
    def spoil(self, result: list[Any]) -> None:
        result[0] = result[0].float()


class ShowsTheOldPicture(Changed):
    def spoil(self, result: list[Any]) -> None:
        if "final_obs" in result[4]:
            result[0] = result[4]["final_obs"].clone()


class HidesTheLastObservation(Changed):
    def spoil(self, result: list[Any]) -> None:
        if "final_obs" in result[4]:
            result[4]["final_obs"] = result[0].clone()


class RendersOneFrame(RegistrationVectorEnv):
    def render(self) -> Any:
        return super().render()[0]


@pytest.mark.parametrize(("broken", "mode", "words"), [
    (SharesObservations, "NextStep", "memory|differ"),
    (SharesItsState, "NextStep", "share memory"),
    (ResetsEveryLane, "Disabled", "reset_mask of lane 1"),
    (TakesAnyMask, "Disabled", "is accepted"),
    (EatsOptions, "Disabled", "changes the options"),
    (SeedsAllLanesAlike, "NextStep", "differs from the list"),
    (IgnoresSeeds, "NextStep", "two resets with seed"),
    (NeverTruncates, "NextStep", "truncated"),
    (TruncatesLate, "NextStep", "truncated"),
    (NamesAnotherMode, "NextStep", "autoreset_mode"),
    (RewardsResets, "NextStep", "ignores its action"),
    (ForgetsAKey, "NextStep", "infos have keys"),
    (ForgetsAMask, "NextStep", "needs a mask '_tre'"),
    (EndsWithColumns, "NextStep", "terminated has"),
    (GivesIntegerRewards, "NextStep", "rewards has"),
    (LeavesItsSpace, "NextStep", "the observation of step"),
    (ShowsTheOldPicture, "SameStep", "after the reset"),
    (HidesTheLastObservation, "SameStep", "in final_obs"),
    (RendersOneFrame, "NextStep", "tuple of 3 frames"),
])
def test_the_checker_catches_a_broken_environment(broken: Callable[..., RegistrationVectorEnv], mode: str,
                                                  words: str) -> None:
    def make_broken(**arguments: Any) -> RegistrationVectorEnv:
        return broken("RegRigid2D-v0", **small("RegRigid2D-v0"), **arguments)

    def single(**arguments: Any) -> gym.Env:
        return gym.make("RegRigid2D-v0", **small("RegRigid2D-v0"), **arguments)

    with pytest.raises(AssertionError, match=f"check_vector_env: .*({words})"):
        check_vector_env(make_broken, modes=[AutoresetMode(mode)], single=single)


def test_the_checker_passes_another_packages_environment() -> None:
    """Gymnasium's own SyncVectorEnv keeps NEXT_STEP; it empties the options of a reset, which the checker must say."""
    def sync(autoreset_mode: AutoresetMode, **arguments: Any) -> gym.vector.VectorEnv:
        return gym.make_vec("CartPole-v1", vectorization_mode="sync",
                            vector_kwargs={"autoreset_mode": autoreset_mode}, **arguments)

    check_vector_env(sync, modes=[AutoresetMode.NEXT_STEP], skip_render=True)
    with pytest.raises(AssertionError, match="changes the options"):
        check_vector_env(sync, modes=[AutoresetMode.DISABLED], skip_render=True)


def test_the_checker_needs_lanes_and_steps() -> None:
    with pytest.raises(ValueError, match="num_envs is 1"):
        check_vector_env("RegRigid2D-v0", num_envs=1)
