"""The native vector environments keep Gymnasium's contract in every mode."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regenv.registry import CATALOGUE
from regenv.testing import check_vector_env
from regenv.vector import RegistrationVectorEnv
from tests.regenv.families import LINEAR, near, small, usual

MODES = list(AutoresetMode)
CONTINUOUS = "RegRigid2DContinuous-v0"


def make(name: str = "RegRigid2D-v0", **arguments: Any) -> RegistrationVectorEnv:
    return gym.make_vec(name, **{"num_envs": 3, **small(name), **near(name), **arguments})  # type: ignore[return-value]


# --- the contract ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_id_keeps_the_contract_in_all_modes(name: str, output: str) -> None:
    check_vector_env(name, output=output, privileged=output == "torch", **small(name), **near(name))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_id_keeps_the_contract_at_its_default_size(name: str) -> None:
    check_vector_env(name, num_envs=2, steps=6, modes=[AutoresetMode.NEXT_STEP], **usual(name))


@pytest.mark.parametrize("source", ["phantoms", "spine", "heads", {"name": "codeformed", "source": "spine", "mm": 5.0,
                                                                   "degrees": 10.0}], ids=str)
@pytest.mark.parametrize("lanes", [2, 5])
def test_a_lane_equals_the_single_env_for_every_source(source: Any, lanes: int) -> None:
    if source == "heads":
        pytest.importorskip("nilearn")
    check_vector_env("RegRigid3D-v0", num_envs=lanes, size=16, source=source, observation="pair", reward="mi",
                     seed=40, steps=6)


def test_whole_episodes_arrive_in_lockstep_with_single_envs() -> None:
    """Lanes that follow the expert end at their own times, restart, and never lose their single twin."""
    env = make(num_envs=4, ranges=[6.0] * 3, privileged=True, autoreset_mode="SameStep", output="numpy")
    alone = [gym.make("RegRigid2D-v0", **{**small("RegRigid2D-v0"), "ranges": [6.0] * 3}) for _ in range(4)]
    observation, infos = env.reset(seed=3)
    for lane, single in enumerate(alone):
        assert np.array_equal(observation[lane], single.reset(seed=3 + lane)[0])
    episodes = 0
    for _ in range(30):
        actions = infos["q_star"].argmax(1)
        observation, rewards, terminated, _, infos = env.step(actions)
        for lane, single in enumerate(alone):
            seen, reward, done, _, info = single.step(actions[lane])
            assert rewards[lane] == pytest.approx(reward, abs=1e-6)
            assert terminated[lane] == done
            if done:
                assert np.array_equal(infos["final_obs"][lane], seen)
                assert infos["final_info"]["tre"][lane] == pytest.approx(info["tre"], abs=1e-6)
                assert info["distance"] <= np.sqrt(3) / 2
                seen, _ = single.reset()
                episodes += 1
            assert np.array_equal(observation[lane], seen)
    assert episodes >= 4


# --- what the checker does not ask ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("output", "kind"), [("torch", Tensor), ("numpy", np.ndarray)])
def test_output_chooses_the_type_of_everything(output: str, kind: type) -> None:
    """Infos are arrays on the CPU, which Gymnasium's wrappers ask for; torch takes those of "torch" for tensors."""
    env = make(output=output, autoreset_mode="SameStep", max_episode_steps=1)
    observation, infos = env.reset(seed=0)
    result = env.step(env.action_space.sample())
    assert all(isinstance(value, kind) for value in (observation, *result[:4]))
    told = list(infos.values())
    for value in result[4].values():
        told += list(value.values()) if isinstance(value, dict) else [value]
    assert "final_obs" in result[4]
    assert all(isinstance(value, np.ndarray) for value in told)
    if output == "torch":
        assert isinstance(torch.clamp(infos["tre"], max=1.0), Tensor)
        assert isinstance(infos["tre"].cpu(), Tensor)


@pytest.mark.parametrize("mode", MODES)
def test_no_tensor_of_a_step_shares_memory_with_the_state_or_another(mode: AutoresetMode) -> None:
    env = make(autoreset_mode=mode, max_episode_steps=2, privileged=True)
    env.reset(seed=0)
    for _ in range(2):
        result = env.step(env.action_space.sample())
    given = list(result[:4])
    for value in result[4].values():
        given += list(value.values()) if isinstance(value, dict) else [value]
    held = [getattr(part, name) for part in (env.state, env.state.pair) for name in vars(part)]
    memory = [t.untyped_storage().data_ptr() for t in given]
    assert len(set(memory)) == len(memory)
    assert not set(memory) & {t.untyped_storage().data_ptr() for t in held if isinstance(t, Tensor)}


def test_actions_may_be_torch_numpy_or_lists() -> None:
    rewards = []
    for actions in (torch.tensor([0, 1, 2]), np.array([0, 1, 2]), [0, 1, 2]):
        env = make()
        env.reset(seed=0)
        rewards.append(env.step(actions)[1])
    assert torch.equal(rewards[0], rewards[1])
    assert torch.equal(rewards[0], rewards[2])


@pytest.mark.parametrize("actions", [[0], [0, 1], [[0, 1, 2]], 0])
def test_actions_of_a_wrong_shape_are_refused(actions: Any) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape .*\(3,\)"):
        env.step(np.array(actions))


@pytest.mark.parametrize("action", [-1, 6])
def test_actions_out_of_range_are_refused(action: int) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"{action}.*0 to 5"):
        env.step([0, action, 1])


def test_unknown_reset_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'reset_maks'; known are .*reset_mask"):
        make().reset(options={"reset_maks": np.ones(3, dtype=bool)})


def test_make_vec_takes_a_time_limit() -> None:
    env = make(max_episode_steps=2, ranges=[30.0] * 3)
    env.reset(seed=0)
    assert not env.step([0, 0, 0])[3].any()
    assert env.step([0, 0, 0])[3].all()
    assert make().core.task.max_episode_steps == 200
    assert make("RegRigid3DGeometric-v0").core.task.max_episode_steps == 60


def test_a_lane_does_not_depend_on_the_number_of_lanes() -> None:
    one, many = make(num_envs=1, ranges=[30.0] * 3), make(num_envs=7, ranges=[30.0] * 3)
    a, b = one.reset(seed=14)[0], many.reset(seed=10)[0]
    assert torch.equal(a[0], b[4])
    for action in range(6):
        a, b = one.step([action])[0], many.step([action] * 7)[0]
        assert torch.equal(a[0], b[4])


def test_disabled_refuses_to_step_an_ended_lane() -> None:
    env = make(autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=1)
    env.reset(seed=0)
    env.step([0, 0, 0])
    with pytest.raises(RuntimeError, match="reset_mask"):
        env.step([0, 0, 0])
    env.reset(options={"reset_mask": torch.tensor([True, True, True])})
    env.step([0, 0, 0])


@pytest.mark.parametrize("mode", MODES)
def test_reset_mask_works_in_every_mode(mode: AutoresetMode) -> None:
    env = make(autoreset_mode=mode, ranges=[30.0] * 3)
    before, _ = env.reset(seed=0)
    after, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert [torch.equal(before[i], after[i]) for i in range(3)] == [True, False, True]
    assert infos["_tre"].tolist() == [False, True, False]
    seeded, _ = env.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
    assert torch.equal(seeded, before)


def test_same_pairs_draws_new_starts_on_the_same_images() -> None:
    env = make("RegRigid3D-v0", ranges=[30.0] * 6)
    env.reset(seed=0)
    pair, pose = env.state.pair, env.state.pose
    env.reset(options={"same_pairs": True})
    assert torch.equal(env.state.pair.fixed, pair.fixed)
    assert not torch.isclose(env.state.pose, pose).any()
    env.reset(options={"same_pairs": True, "reset_mask": np.array([True, False, False])})
    assert torch.equal(env.state.pair.moving, pair.moving)


def test_seeds_may_be_numpy_integers_lists_or_none() -> None:
    env = make(ranges=[30.0] * 3)
    first = env.reset(seed=5)[0]
    assert torch.equal(env.reset(seed=np.int64(5))[0], first)
    assert torch.equal(env.reset(seed=[5, None, 7])[0][[0, 2]], first[[0, 2]])
    with pytest.raises(ValueError, match="2 entries"):
        env.reset(seed=[1, 2])


def test_use_before_reset_and_partial_first_reset_are_refused() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        make().step([0, 0, 0])
    with pytest.raises(ValueError, match="first reset"):
        make().reset(options={"reset_mask": np.array([True, False, False])})


@pytest.mark.parametrize(("arguments", "words"), [
    ({"num_envs": 0}, "num_envs is 0"), ({"output": "jax"}, "output is 'jax'"),
    ({"render_mode": "human"}, "render_mode is 'human'"), ({"autoreset_mode": "Sometimes"}, "Sometimes"),
    ({"max_episode_steps": 0}, "max_episode_steps is 0")])
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_copies_and_options_are_independent() -> None:
    env = make(ranges=[30.0] * 3)
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    assert torch.equal(env.step([0, 1, 2])[0], twin.step([0, 1, 2])[0])
    options = {"reset_mask": np.array([True, False, True]), "difficulty": 0.5, "reach": 0.5}
    kept = copy.deepcopy(options)
    env.reset(options=options)
    assert options.keys() == kept.keys()
    assert np.array_equal(options["reset_mask"], kept["reset_mask"])


def test_render_is_none_unless_asked_for() -> None:
    env = make()
    env.reset(seed=0)
    assert env.render() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_id_keeps_the_contract_on_cuda(name: str) -> None:
    check_vector_env(name, device="cuda", tolerance=1.0 if "2D" in name else 1e-3, **small(name), **near(name))


# --- the host -------------------------------------------------------------------------------------------------------

class Waits(TorchDispatchMode):
    """Notes operations that need the device's answer on the host: numbers read, sizes that depend on values."""

    names: ClassVar[set[str]] = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in self.names or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


DEFORMING = [name for name in CATALOGUE if name not in LINEAR]


@pytest.mark.parametrize("name", DEFORMING)
def test_a_step_of_a_deformation_reads_nothing_from_the_device(name: str) -> None:
    env = make(name, autoreset_mode="Disabled", max_episode_steps=9)
    env.reset(seed=0)
    actions = torch.as_tensor(env.action_space.sample())
    env.step(actions)  # what is looked up once
    with Waits() as waits:
        env.step(actions)
        env.step(actions)
    fields = isinstance(env.single_action_space, gym.spaces.Box)  # in which NaN is looked for, on the CPU only
    assert waits.seen == ["_local_scalar_dense"] * 2 * fields


def test_the_watch_notices_what_waits() -> None:
    with Waits() as waits:
        values = torch.arange(3)
        float(values[0])
        values[values > 1]
        torch.unique(values)
    assert {"_local_scalar_dense", "index", "_unique2"} <= set(waits.seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", DEFORMING)
def test_a_step_of_a_deformation_does_not_wait_for_cuda(name: str) -> None:
    env = make(name, autoreset_mode="Disabled", max_episode_steps=9, device="cuda")
    env.reset(seed=0)
    actions = torch.as_tensor(env.action_space.sample(), device="cuda")
    env.step(actions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        env.step(actions)
        env.step(actions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
