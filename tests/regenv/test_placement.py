"""The compiled step against the parts of the task in torch, which are its reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regenv import EpisodeState, RegistrationCore, Task
from regenv.parts.distance import ParameterNorm
from regenv.parts.termination import Arrived
from regenv.placement import Compiled, accepted, error_by_torch, error_of, measure_of, moved
from regenv.registry import CATALOGUE, build
from regenv.transforms.rigid import Rigid

CPU = torch.device("cpu")
SIZES = {"RegSDM2D-v0": {}, "RegSDM2DContinuous-v0": {}, "RegSDM3D-v0": {}, "RegSDM3DContinuous-v0": {},
         "RegDenseDigits-v0": {}}
MORE: list[tuple[str, dict[str, Any]]] = [
    ("RegSimilarity2D-v0", {"reward": "matrix"}), ("RegSimilarity3D-v0", {"reward": "matrix"}),
    ("RegRigid2D-v0", {"motion": "disentangled"}), ("RegRigid3D-v0", {"stop": "never", "obs_dtype": "uint8"}),
    ("RegSDM2D-v0", {"fuzzy": False}), ("RegSDM2D-v0", {"wander": 1.0}), ("RegKeypoint2D-v0", {"update": "add"})]
CASES = [(name, SIZES.get(name, {"size": 20})) for name in CATALOGUE] + [
    (name, {**SIZES.get(name, {"size": 20}), **more}) for name, more in MORE]


def walk(core: RegistrationCore, steps: int = 4) -> Iterator[tuple[EpisodeState, Tensor]]:
    """States of three lanes, the truth of one of which is unknown, and the change that comes next."""
    state = core.reset([np.random.default_rng(seed) for seed in range(3)])
    state = core.begin(replace(state.pair, known=state.pair.known & torch.tensor([True, False, True])), state.pose,
                       guard_seed=torch.tensor([5, 6, 7]))
    space = core.task.actions.space()
    space.seed(0)
    for _ in range(steps):
        action = torch.stack([torch.as_tensor(space.sample()) for _ in range(3)])
        yield state, core.task.actions.delta(action, core.deltas)
        state = core.step(state, action)[0]


def agree(mine: EpisodeState, theirs: EpisodeState) -> None:
    for name in ("anchor", "pose", "pull_back", "distance", "displacement", "moments", "tre"):
        one, other = getattr(mine, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            # the interpolation of landmarks and the modes' sums round in float32
            loose = (name == "tre" and mine.displacement is not None) or name in ("moments", "displacement")
            torch.testing.assert_close(one, other, rtol=1e-4 if loose else 1e-11, atol=1e-4 if loose else 1e-9,
                                       equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
    for view, image in mine.views.items():
        other = theirs.views[view]
        assert image.dtype == other.dtype and image.shape == other.shape
        most = 1 if image.dtype == torch.uint8 else 1e-4
        assert (image.double() - other.double()).abs().max() <= most


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n} {a}" for n, a in CASES])
def test_the_compiled_step_is_the_step_of_the_parts(name: str, arguments: dict[str, Any]) -> None:
    core = RegistrationCore(build(name, **arguments))
    task, compiled = core.task, Compiled.of(core.task, CPU)
    assert compiled is not None
    for state, delta in walk(core):
        for change in (delta, None):
            mine, theirs = compiled.moved(state, change, state.steps), moved(task, state, change, state.steps)
            agree(mine, theirs)
            stop = task.termination(task.transform, measure_of(task, state.pair), theirs, core.deltas)
            assert torch.equal(mine.arrived, stop)
        if task.guard is not None:
            assert torch.equal(compiled.passing(state),
                               accepted(task, state, state.pose, core.deltas.expand(3, -1, -1)).all(-1))


@pytest.mark.parametrize("name", ["RegRigid2D-v0", "RegRigid3D-v0", "RegSimilarity2D-v0", "RegSimilarity3D-v0"])
def test_arrival_is_found_at_the_end_and_a_step_before_it(name: str) -> None:
    """No action lowers D at the solution, half a unit beside it, and at a bound of the scale; one does a unit off."""
    core = RegistrationCore(build(name, size=20, landmarks="lattice") if "Similarity" in name else build(name, size=20))
    task, compiled = core.task, Compiled.of(core.task, CPU)
    assert compiled is not None
    pair = core.reset([np.random.default_rng(0)]).pair
    still = torch.zeros(1, len(task.transform.names), dtype=torch.float64)
    still[:, -1] = 1.0 if "Similarity" in name else 0.0
    found = []
    for share in (0.0, 0.45, 0.55, 1.0, 3.0):
        state = core.begin(pair, still + share * core.deltas[0])
        stop = task.termination(task.transform, measure_of(task, pair), state, core.deltas)
        assert torch.equal(compiled.moved(state, None, state.steps).arrived, stop)
        found.append(bool(stop))
    assert found[0] and not found[-1]


@pytest.mark.parametrize("name", ["RegDense2D-v0", "RegDense3D-v0", "RegKeypoint3D-v0", "RegSDM2D-v0"])
def test_landmarks_are_displaced_as_torch_displaces_them(name: str) -> None:
    core = RegistrationCore(build(name, **SIZES.get(name, {"size": 24})))
    pair = core.reset([np.random.default_rng(seed) for seed in range(2)]).pair
    field = 4 * torch.rand(2, pair.ndim, *pair.fixed.shape[2:], generator=torch.Generator().manual_seed(0)) - 2
    mine, theirs = error_of(pair, pair.truth, field), error_by_torch(pair, pair.truth, field)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert (mine - error_of(pair, pair.truth, 0 * field)).abs().min() > 1e-3


@dataclass(frozen=True)
class Mirrored(Rigid):
    """A user's own transform: what it inherits must not make it another's."""

    def apply(self, pose: Tensor, delta: Tensor) -> Tensor:
        return pose - delta


class Never(Arrived):
    """A user's own rule."""

    def __call__(self, transform: Any, measure: Any, state: EpisodeState, deltas: Tensor) -> Tensor:
        return state.pair.known & False


class Twice(ParameterNorm):
    """A user's own distance."""

    def __call__(self, transform: Any, pair: Any, pose: Tensor) -> Tensor:
        return 2 * super().__call__(transform, pair, pose)


@pytest.mark.parametrize("parts", [{"transform": Mirrored(2)}, {"termination": Never()}, {"distance": Twice()}],
                         ids=["transform", "termination", "distance"])
def test_a_users_own_part_is_played_in_torch(parts: dict[str, Any]) -> None:
    task: Task = replace(build("RegRigid2D-v0", size=20), **parts)
    assert Compiled.of(task, CPU) is None
    core = RegistrationCore(task)
    state = core.reset([np.random.default_rng(0)])
    after = core.step(state, [0])[0]
    sign = -1 if "transform" in parts else 1
    assert float(after.pose[0, 0] - state.pose[0, 0]) == pytest.approx(sign)
    assert float(after.distance) == pytest.approx(float(after.pose.norm()) * (2 if "distance" in parts else 1))
    if "termination" in parts:
        assert not core.step(core.begin(state.pair, 0 * state.pose), [0])[2].any()


def test_torch_is_chosen_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGENV_KERNELS", "torch")
    assert Compiled.of(build("RegRigid2D-v0"), CPU) is None


def test_what_does_not_fit_is_named_before_a_kernel_reads_it() -> None:
    rigid, dense = (RegistrationCore(build(name, size=20)) for name in ("RegRigid2D-v0", "RegDense2D-v0"))
    pair = rigid.reset([np.random.default_rng(seed) for seed in range(2)]).pair
    with pytest.raises(ValueError, match=r"pose has shape \(2, 2\)"):
        rigid.begin(pair, torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="center has 1 lanes"):
        rigid.begin(replace(pair, center=pair.center[:1]), torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 channels, the moving one 2"):
        rigid.begin(replace(pair, moving=pair.moving.repeat(1, 2, 1, 1)), torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="the displacement must be"):
        dense.begin(dense.reset([np.random.default_rng(0)]).pair, torch.zeros(1, 2, 12, 12))
