"""The learned optimiser on small pairs: its promises, and that a little training already registers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import regenv  # noqa: F401  registers the ids
from regagents.agents import load
from regagents.common import checkpoints
from regagents.common.extractors import AVERAGE
from regagents.common.player import rollout
from regagents.l2o import L2O, L2OPolicy
from regagents.l2o.l2o import initial_displacement, mean_error, on_half_grid
from regagents.l2o.policies import Normalisation, paired, smoothed
from regenv.core import RegistrationCore
from regenv.ops.features import mind_ssc
from regenv.ops.sampling import identity, sample
from regenv.registry import build

NDIM = pytest.mark.parametrize("ndim", [2, 3])
SIZE = {2: 32, 3: 16}
BENT = {"source": "deformed", "spacing": 6.0, "observation": "dict"}


def env(ndim: int = 2, **arguments: Any) -> gym.Env:
    return gym.make(f"RegKeypoint{ndim}D-v0", **{"size": SIZE[ndim], **BENT, **arguments})


def agent(ndim: int = 2, **arguments: Any) -> L2O:
    return L2O(env=env(ndim), **{"lanes": 2, "accumulate": 1, "seed": 0, "policy_kwargs": {"pools": 2}, **arguments})


def seen(game: gym.Env, lanes: int = 2) -> dict[str, torch.Tensor]:
    """Observations of some episodes, batched."""
    each = [game.reset(seed=lane)[0] for lane in range(lanes)]
    return {name: torch.from_numpy(np.stack([one[name] for one in each])) for name in each[0]}


# --- the network ----------------------------------------------------------------------------------------------------

def test_the_network_has_the_papers_inputs_and_takes_any_shape() -> None:
    """45 channels in 3D: 3 of the estimate, 24 of corners, 10 hidden, 8 costs; 13 come out."""
    policy = agent(3, policy_kwargs={}).policy
    assert policy.network.down[0][0].in_channels == 45 and policy.network.head.out_channels == 13
    for shape in ((8, 16, 24), (7, 9, 10)):
        out = policy.network(torch.rand(1, 45, *shape))
        assert out.shape == (1, 13, *shape) and out.abs().max() <= 1


@NDIM
def test_an_iteration_is_that_of_a_literal_definition(ndim: int) -> None:
    """The network sees the residual, it plus every corner, the hidden state, and for every corner the mean over the
    channels of the squared feature difference at x + initial + residual + corner."""
    policy, game = agent(ndim).policy, env(ndim)
    memory = policy.begin(seen(game))
    memory = type(memory)(memory.fixed, memory.moving, torch.randn_like(memory.initial),
                          torch.randn_like(memory.residual), torch.rand_like(memory.hidden))
    corners = [[policy.offset * (2 * side - 1) for side in sides] for sides in np.ndindex(*(2,) * ndim)]
    around = [memory.residual + torch.tensor(corner).view(1, -1, *(1,) * ndim) for corner in corners]
    costs = []
    for moved in around:
        points = identity(tuple(moved.shape[2:])) + memory.initial + moved
        there = sample(memory.moving, points.movedim(1, -1), padding="border")
        costs.append((memory.fixed - there).square().mean(1, keepdim=True))
    entered = torch.cat([memory.residual / policy.reach, *(moved / policy.reach for moved in around), memory.hidden,
                         *costs], 1)
    out = policy.network(entered)
    expected = smoothed(smoothed(policy.reach * out[:, :ndim]))
    after = policy.advance(memory)
    torch.testing.assert_close(after.residual, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.hidden, out[:, ndim:], rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01


@NDIM
def test_features_are_masked_and_half_as_fine(ndim: int) -> None:
    policy, game = agent(ndim).policy, env(ndim)
    observation = seen(game)
    observation["fixed_mask"] = torch.zeros_like(observation["fixed_mask"])
    memory = policy.begin(observation)
    assert float(memory.fixed.abs().max()) == 0
    image = observation["moving"].float() / (255 if ndim == 2 else 1)
    pooled = {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[ndim](mind_ssc(image), 2)
    torch.testing.assert_close(memory.moving, pooled)


@NDIM
def test_fields_and_key_points_agree_on_both_grids(ndim: int) -> None:
    """A linear displacement, found on the half grid, is the same on the image's; odd sizes are padded."""
    shape = (13, 10, 12)[:ndim]
    game = env(ndim, size=list(shape))
    policy = L2OPolicy(game.observation_space, game.action_space)  # type: ignore[arg-type]
    ticks = identity(shape)
    linear = 0.1 * ticks + 0.05 * ticks.flip(1) + 1
    memory = policy.begin({**seen(game, 1), "displacement": linear})
    inner = (..., *(slice(2, n - 3) for n in shape))
    torch.testing.assert_close(policy.field(memory)[inner], linear[inner], rtol=0, atol=1e-4)
    points = torch.full((1, 1, ndim), 4.3)
    wanted = points + 0.15 * points + 1
    assert float(mean_error(on_half_grid(points), on_half_grid(wanted), memory.total)) == pytest.approx(0, abs=1e-4)


def test_costs_carry_no_gradient_but_residual_and_hidden_do() -> None:
    policy, game = agent().policy, env()
    memory = policy.begin(seen(game))
    leaves = {"residual": memory.residual.clone().requires_grad_(), "hidden": memory.hidden.clone().requires_grad_(),
              "moving": memory.moving.clone().requires_grad_()}
    after = policy.advance(type(memory)(memory.fixed, leaves["moving"], memory.initial, leaves["residual"],
                                        leaves["hidden"]))
    after.residual.square().sum().backward()
    assert leaves["residual"].grad.abs().sum() > 0 and leaves["hidden"].grad.abs().sum() > 0
    assert leaves["moving"].grad is None


def test_settling_adds_what_the_error_rises() -> None:
    """In the loss, though no gradient reaches the iteration before."""
    losses, rises = [], []
    for settle in (0.0, 2.0):
        learner, game = agent(settle=settle, augment=False), env(privileged=True)
        each = [game.reset(seed=lane) for lane in range(2)]
        points, targets = (torch.from_numpy(np.stack([info[name] for _, info in each]))
                           for name in ("keypoints", "keypoint_targets"))
        loss, errors = learner._unrolled(seen(game), points, targets, 4, np.random.default_rng(0))
        losses.append(float(loss))
        rises.append(float((errors[2:] - errors[1:-1]).clamp(min=0).sum()) / 2)
    assert rises[0] == pytest.approx(rises[1]) and rises[0] > 0
    assert losses[1] - losses[0] == pytest.approx(2 * rises[0], rel=1e-3)


def test_saving_memory_changes_no_gradient() -> None:
    learners = [agent(gradient_checkpointing=gradient_checkpointing) for gradient_checkpointing in (False, True)]
    grads = []
    for learner in learners:
        memory = learner.policy.begin(seen(env()))
        for _ in range(3):
            policy = learner.policy
            memory = (policy.advance_checkpointed if learner.gradient_checkpointing else policy.advance)(memory)
        memory.residual.square().sum().backward()
        grads.append([p.grad for p in learner.policy.parameters()])
    for kept, computed in zip(*grads, strict=True):
        torch.testing.assert_close(kept, computed)


# --- playing --------------------------------------------------------------------------------------------------------

@NDIM
def test_predict_is_recurrent_and_a_new_episode_forgets(ndim: int) -> None:
    learner, game = agent(ndim), env(ndim)
    observation, _ = game.reset(seed=0)
    first, state = learner.predict(observation)
    assert game.action_space.contains(np.clip(first, game.action_space.low, game.action_space.high))  # type: ignore[attr-defined]
    second, state = learner.predict(observation, state, np.array([False]))
    assert np.abs(second - first).max() > 0
    again, _ = learner.predict(observation, state, np.array([True]))
    np.testing.assert_array_equal(again, first)
    both = {name: np.stack([value, value]) for name, value in observation.items()}
    lanes, states = learner.predict(both)
    mixed, _ = learner.predict(both, states, np.array([True, False]))
    np.testing.assert_allclose(lanes[0], first, atol=1e-4)
    np.testing.assert_allclose(mixed, np.stack([first, second]), atol=1e-4)


def test_a_walk_is_what_predict_plays() -> None:
    learner = agent()
    core = RegistrationCore(build("RegKeypoint2D-v0", size=32, **BENT))
    start = core.reset([np.random.default_rng(0)])
    *_, last = rollout(learner.policy, core, start, 3)
    observation, state, now = {k: v.numpy() for k, v in core.observe(start).items()}, None, start
    for _ in range(3):
        action, state = learner.predict(observation, state)
        now = core.step(now, torch.from_numpy(action))[0]
    torch.testing.assert_close(last.displacement, now.displacement)


@NDIM
def test_path_is_the_walk_in_half_precision(ndim: int) -> None:
    trained = agent(ndim)
    core = RegistrationCore(trained.task())
    start = core.reset([np.random.default_rng(lane) for lane in range(2)])
    looked = core.observe(start)
    with torch.inference_mode():
        states = [start, *rollout(trained.policy, core, start, 2)]
    given = [looked[name].float() / (255 if ndim == 2 else 1) for name in ("fixed", "moving")]
    masks = {name: looked[name] for name in ("fixed_mask", "moving_mask")}
    path = trained.policy.path(*given, (2, 0, 1), **masks)
    for found, state in zip(path, (states[2], states[0], states[1]), strict=True):
        expected = torch.zeros_like(found) if state is start else state.displacement
        assert (found - expected).abs().mean() <= 0.1 * expected.abs().mean()
    begun = trained.policy.path(*given, (0,), initial=states[2].displacement, **masks)[0]
    assert (begun - states[2].displacement).abs().mean() < 0.2 * states[2].displacement.abs().mean()
    torch.testing.assert_close(trained.policy.solve(*given, **masks), trained.policy.path(*given, (8,), **masks)[0])


@NDIM
def test_solve_takes_any_shape_and_no_masks(ndim: int) -> None:
    shape = (13, 18, 11)[:ndim]
    found = agent(ndim).policy.solve(*torch.rand(2, 1, 1, *shape))
    assert found.shape == (1, ndim, *shape) and found.abs().max() > 0


@NDIM
def test_pooling_and_smoothing_are_torchs(ndim: int) -> None:
    image = torch.rand(2, 3, *(6, 4, 8)[:ndim])
    torch.testing.assert_close(paired(image), AVERAGE[ndim](image, 2))
    torch.testing.assert_close(smoothed(image), AVERAGE[ndim](image, 3, 1, 1, count_include_pad=False))


@pytest.mark.parametrize(("arguments", "words"), [
    ({"observation": "pair"}, "observations lack"), ({"lanes": 0}, "lanes is 0"),
    ({"halvings": -1}, "halvings is -1"), ({"settle": -1.0}, "settle is -1.0"),
    ({"update": "add"}, "update is 'add'"), ({"policy_kwargs": {"pools": 5}}, "pools 5"),
    ({"policy_kwargs": {"offset": 0.0}}, "offset 0.0")])
def test_what_it_cannot_do_is_named(arguments: dict[str, Any], words: str) -> None:
    game = env(**{name: arguments[name] for name in ("update", "observation") if name in arguments})
    own = {name: value for name, value in arguments.items() if name not in ("update", "observation")}
    with pytest.raises(ValueError, match=words):
        L2O(env=game, **own)


def test_pairs_without_key_points_are_refused() -> None:
    game = gym.make("RegKeypoint2D-v0", size=32, source="phantoms", observation="dict")
    with pytest.raises(ValueError, match="key-points"):
        L2O(env=game).learn(16)


# --- training -------------------------------------------------------------------------------------------------------

def test_initial_displacements_are_of_five_kinds(rng: np.random.Generator) -> None:
    points = torch.from_numpy(rng.uniform(0, 15, (60, 2))).float()
    motion = torch.stack([2 + 0.05 * points[:, 0], -1 + 0.1 * points[:, 1]], 1)
    errors = []
    for seed in range(60):
        field = initial_displacement(points, motion, (16, 16), np.random.default_rng(seed))
        assert field.shape == (1, 2, 16, 16) and field.isfinite().all()
        errors.append(float(mean_error(points[None], (points + motion)[None], field)))
    none = float(motion.norm(dim=1).mean())
    share = np.isclose(errors, none, atol=1e-5).mean()
    assert 0.08 < share < 0.35 and np.median(errors) < none


@pytest.mark.slow
def test_a_little_training_registers_pairs_never_seen() -> None:
    arguments: dict[str, Any] = {"size": 64, "observation": "dict"}
    learner = L2O(env=gym.make("RegKeypoint2D-v0", **arguments), lanes=4, accumulate=1, halvings=1, augment=False,
                  seed=0)
    core = RegistrationCore(build("RegKeypoint2D-v0", **arguments, source={"name": "lungs", "split": "test"}))
    start = core.reset([np.random.default_rng(lane) for lane in range(16)])
    learner.learn(4 * 8 * 80)
    with torch.inference_mode():
        *_, last = rollout(learner.policy, core, start)
    assert float(last.tre.mean()) < 0.6 * float(start.tre.mean())


def test_training_lowers_the_error_on_its_pairs() -> None:
    learner = L2O(env=gym.make("RegKeypoint2D-v0", size=32, observation="dict"), lanes=4, accumulate=1, halvings=0,
                  augment=False, seed=0, learning_rate=3e-3, policy_kwargs={"pools": 2})
    batch = gym.make_vec("RegKeypoint2D-v0", num_envs=4, size=32, observation="dict", privileged=True)
    observation, info = batch.reset(seed=0)
    errors = []
    for _ in range(40):
        loss, after = learner._unrolled(observation, info["keypoints"], info["keypoint_targets"], 8,
                                        np.random.default_rng(0))
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()
        errors.append(after.detach())
    assert float(errors[-1][-1]) < 0.5 * float(errors[0][0])


def test_two_runs_of_a_seed_are_the_same_and_weights_come_back(tmp_path: Path) -> None:
    one, two = agent().learn(32), agent().learn(32)
    for mine, theirs in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    config = {"agent": "L2O", "env": "RegKeypoint2D-v0", "env_kwargs": {"size": 32, **BENT},
              "policy_kwargs": {"pools": 2}}
    checkpoints.save(tmp_path / "a.safetensors", one.policy.state_dict(), {"algorithm": "L2O", "config": config})
    back = load(tmp_path / "a.safetensors")
    observation, _ = env().reset(seed=3)
    np.testing.assert_array_equal(back.predict(observation)[0], one.predict(observation)[0])


@NDIM
def test_normalisation_is_that_of_instances(ndim: int) -> None:
    layer = Normalisation(5)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    image = torch.rand(3, 5, *(6, 4, 8)[:ndim])
    expected = torch.nn.functional.instance_norm(image, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(layer(image), expected)
    torch.testing.assert_close(layer(image[1:2]), expected[1:2])
