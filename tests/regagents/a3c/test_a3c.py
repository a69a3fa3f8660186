"""The A3C agent: network, loss, shared optimiser, look-ahead, and workers that live and die as stated."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

import regenv  # noqa: F401
from regagents.a3c import A3C, A3CPolicy, Lookahead, play
from regagents.a3c.lookahead import LEFT, best_threshold, weighted_mean
from regagents.a3c.loss import a3c_loss
from regagents.a3c.workers import Player, RayWorkerPool, WorkerConfig, WorkerError, apply, seed_of, shared_adam
from regagents.agents import load
from regagents.training import presets
from regagents.training.train import train
from regenv.core import RegistrationCore
from regenv.registry import build
from regenv.transforms.similarity import Similarity

ID = "RegSimilarity2DNormalized-v0"
SMALL = {"size": 44}


def make(**arguments: Any) -> gym.Env:
    return gym.make(ID, **SMALL, **arguments)


def agent(**arguments: Any) -> A3C:
    return A3C("CnnLstmPolicy", make(), **{"n_workers": 2, "lanes": 2, "n_steps": 8, "seed": 1, **arguments})


# --- network --------------------------------------------------------------------------------------------------------

def test_network_is_the_papers() -> None:
    """Sun et al. 2018, table 1, on 168 x 168: 168 -> 41 -> 19 -> 8, so 2048 numbers go into FC256."""
    policy = A3CPolicy(gym.make(ID).observation_space, gym.spaces.Discrete(8))
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items() if "weight" in name}
    assert list(shapes.values()) == [(16, 2, 8, 8), (16, 16, 4, 4), (32, 16, 4, 4), (256, 2048), (1024, 256),
                                     (1024, 256), (8, 256), (1, 256)]
    assert sum(isinstance(layer, torch.nn.ELU) for layer in policy.modules()) == 4


def test_memory_matters_and_a_new_episode_forgets_it() -> None:
    policy, image = agent().policy, torch.randint(0, 255, (3, 2, 44, 44), dtype=torch.uint8)
    first, value, memory = policy(image, policy.begin(3))
    second, *_ = policy(image, memory)
    again, *_ = policy(image, memory, torch.tensor([True, False, True]))
    assert value.shape == (3,)
    assert not torch.allclose(first, second)
    assert torch.allclose(again[[0, 2]], first[[0, 2]])
    assert torch.allclose(again[1], second[1])


def test_the_variant_without_lstm_has_no_memory() -> None:
    policy = A3C("CnnPolicy", make()).policy
    assert not any(isinstance(layer, torch.nn.LSTMCell) for layer in policy.modules())
    assert policy.policy_head.in_features == 128


def test_too_small_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(40, 40\); every axis needs at least 44"):
        A3C("CnnLstmPolicy", gym.make(ID, size=40))


def test_predict_carries_its_state_as_sb3_does() -> None:
    model = agent()
    observation, _ = make().reset(seed=0)
    action, state = model.predict(observation, deterministic=True)
    assert model.action_space.contains(int(action))
    assert [part.shape for part in state] == [(1, 256), (1, 256)]
    _, later = model.predict(observation, state, np.array([False]), deterministic=True)
    assert not np.allclose(later[0], state[0])
    _, fresh = model.predict(observation, later, np.array([True]), deterministic=True)
    np.testing.assert_allclose(fresh[0], state[0], atol=1e-6)
    rewards, _ = evaluate_policy(model, gym.make(ID, size=44, max_episode_steps=5), n_eval_episodes=2)
    assert np.isfinite(rewards)


# --- loss and optimiser ---------------------------------------------------------------------------------------------

def config(**changes: Any) -> WorkerConfig:
    values = {"env_id": ID, "env_kwargs": SMALL, "n_steps": 5, "gamma": 0.9, "ent_coef": 0.1, "vf_coef": 0.5,
              "max_grad_norm": 40.0, "lanes": 2, "episodes_per_pair": 2, "supervised": False, "reward_scale": 1.0,
              "learning_rate": 1e-3, "decay": True, "value_first": 0.0, "curriculum": None, "seed": 0}
    return WorkerConfig(**{**values, **changes})


@pytest.mark.parametrize("supervised", [False, True])
def test_loss_is_the_papers_by_hand(supervised: bool, rng: np.random.Generator) -> None:
    """Eq. 1 and 2 (and the supervised pair of losses), every return summed term by term in numpy."""
    t, b, a, gamma = 5, 3, 4, 0.9
    logits, value, reward = rng.normal(size=(t, b, a)), rng.normal(size=(t, b)), rng.normal(size=(t, b))
    action, done, ahead = rng.integers(0, a, (t, b)), rng.random((t, b)) < 0.3, rng.normal(size=b)
    steps = [{"logits": torch.tensor(logits[i]), "value": torch.tensor(value[i]), "action": torch.tensor(action[i]),
              "reward": torch.tensor(reward[i]), "done": torch.tensor(done[i])} for i in range(t)]
    loss, _ = a3c_loss(steps, torch.tensor(ahead), config(supervised=supervised))
    expected = 0.0
    for i in range(t):
        for lane in range(b):
            target, discount, ended = 0.0, 1.0, False
            for j in range(i, t):
                target += discount * reward[j, lane]
                discount *= gamma
                if done[j, lane]:
                    ended = True
                    break
            target += 0.0 if ended else discount * ahead[lane]
            chances = np.exp(logits[i, lane]) / np.exp(logits[i, lane]).sum()
            log_taken = np.log(chances[action[i, lane]])
            squared = (target - value[i, lane]) ** 2
            entropy = -(chances * np.log(chances)).sum()
            expected += -log_taken + 0.5 * squared if supervised else (
                -log_taken * (target - value[i, lane]) + 0.5 * squared - 0.1 * entropy)
    assert loss.item() == pytest.approx(expected / (t * b), abs=1e-9)


def test_shared_adam_is_adam_wherever_it_steps() -> None:
    torch.manual_seed(0)
    policy, plain = agent().policy, agent().policy
    plain.load_state_dict(policy.state_dict())
    first = shared_adam(policy, 1e-3)
    second = shared_adam(policy, 1e-3, [dict(first.state[p]) for p in policy.parameters()])
    reference = torch.optim.Adam(plain.parameters(), 1e-3)
    for optimizer in (first, second, first):
        for mine, theirs in zip(policy.parameters(), plain.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, theirs in zip(policy.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def turn(player: Player, shared: A3CPolicy, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """What a worker does again and again."""
    gradients, report = player.round(shared.state_dict(), progress)
    apply(gradients, shared, optimizer, player.config, report["progress"])


@pytest.mark.parametrize(("decay", "rate"), [(True, 0.75e-3), (False, 1e-3)])
def test_the_rate_falls_with_progress(decay: bool, rate: float) -> None:
    shared = agent().policy
    optimizer = shared_adam(shared, 1e-3)
    player = Player(config(decay=decay, n_steps=1), agent().policy, seed=0)
    turn(player, shared, optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_at_first_only_the_value_learns() -> None:
    shared = agent().policy
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    player = Player(config(value_first=0.3), agent().policy, seed=0)
    turn(player, shared, shared_adam(shared, 1e-3), 0.2)
    changed = {name for name, tensor in shared.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"value_head.weight", "value_head.bias"}
    turn(player, shared, shared_adam(shared, 1e-3), 0.3)
    assert not torch.equal(shared.policy_head.weight, before["policy_head.weight"])


def test_pairs_are_kept_for_the_stated_episodes() -> None:
    player = Player(config(env_kwargs={**SMALL, "max_episode_steps": 3}, n_steps=3, lanes=2), agent().policy, seed=4)
    seen = []
    for _ in range(6):
        player.play(0.0)
        seen.append(player.env.unwrapped.state.pair.fixed.sum((1, 2, 3)))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert same == [False, True, False, True, False]


def test_supervised_workers_take_the_optimal_action() -> None:
    player = Player(config(supervised=True, n_steps=30), agent().policy, seed=2)
    before = None
    for _ in range(4):
        player.play(0.0)
        state = player.env.unwrapped.state
        if before is not None:
            moved = state.steps == before.steps + 30
            assert (state.distance[moved] < before.distance[moved]).all()
        before = state


# --- inference ------------------------------------------------------------------------------------------------------

class Puppet:
    """A policy that does as told: always one action; its value rises by one a step."""

    def __init__(self, action: int) -> None:
        self.action = action

    def begin(self, lanes: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(lanes, 1), torch.zeros(lanes, 1)

    def __call__(self, observations: torch.Tensor, memory: Any, starts: Any = None) -> Any:
        logits = torch.full((len(observations), 8), -1e4)
        logits[:, self.action] = 0.0
        return logits, memory[0][:, 0] + 1, (memory[0] + 1, memory[1])


def started(lanes: int) -> tuple[RegistrationCore, Any]:
    core = RegistrationCore(build("RegSimilarity2D-v0", size=44, stop="never"))
    return core, core.reset([np.random.default_rng(i) for i in range(lanes)])


def test_play_stops_at_the_threshold_or_the_limit() -> None:
    core, state = started(3)
    pixel = core.task.grid.spacing[0]
    ended, reached = play(Puppet(0), core, state, threshold=4.0, steps=10)  # type: ignore[arg-type]
    assert reached.all()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 3 * pixel, dtype=torch.float64))
    ended, reached = play(Puppet(0), core, state, threshold=99.0, steps=10)  # type: ignore[arg-type]
    assert not reached.any()
    torch.testing.assert_close(ended.pose[:, 0] - state.pose[:, 0], torch.full((3,), 10 * pixel, dtype=torch.float64))


@pytest.mark.parametrize("argument", [{"rollouts": 0}, {"depth": 0}, {"settle": -1}])
def test_lookahead_refuses_what_it_cannot_do(argument: dict[str, int]) -> None:
    (name, value), = argument.items()
    with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
        Lookahead(**argument)


@pytest.mark.parametrize(("threshold", "steps", "settled"), [(4.0, 10, 3 + 6), (99.0, 10, 10)])
def test_lookahead_begins_after_the_policy_has_settled(threshold: float, steps: int, settled: int) -> None:
    """The puppet's value counts its steps: 3 of them to the threshold, then 6; or all that there are."""
    core, state = started(3)
    look = Lookahead(rollouts=4, depth=2, settle=6, seed=1)
    ended, reached = play(Puppet(0), core, state, threshold, steps, look)  # type: ignore[arg-type]
    assert reached.tolist() == [threshold == 4.0] * 3
    memory = Puppet(0).begin(3)
    for _ in range(settled):
        memory = Puppet(0)(core.observe(state), memory)[2]
        state = core.step(state, torch.zeros(3, dtype=torch.int64))[0]
    expected = look(Puppet(0), core, state, memory)  # type: ignore[arg-type]
    torch.testing.assert_close(ended.pose, expected)


def test_the_best_threshold_ends_where_the_error_is_smallest() -> None:
    """The puppet shifts by a pixel a step and its value counts the steps: brute force over every step to end at."""
    core, state = started(4)
    threshold = best_threshold(Puppet(0), core, state, 30)  # type: ignore[arg-type]
    means = [play(Puppet(0), core, state, step + 1.0, 30)[0].distance.mean().item()  # type: ignore[arg-type]
             for step in range(31)]
    ended = play(Puppet(0), core, state, threshold, 30)[0].distance.mean().item()  # type: ignore[arg-type]
    assert ended == pytest.approx(min(means), rel=0.02)
    assert min(means) < 0.98 * means[0] or min(means) == means[0]


def test_the_threshold_with_lookahead_lies_some_steps_before_the_nearest_pose() -> None:
    """The puppet's value counts its steps: of the thresholds tried none ends nearer, by playing each of them."""
    core, state = started(6)
    look = Lookahead(rollouts=5, depth=2, settle=3, seed=1)
    threshold = best_threshold(Puppet(1), core, state, 30, look)  # type: ignore[arg-type]
    walk, errors = state, []
    for _ in range(31):
        errors.append(walk.distance)
        walk = core.step(walk, torch.full((6,), 1))[0]
    nearest = torch.stack(errors).argmin(0)
    tried = [float((nearest - left).clamp(min=0).median()) + 1 for left in LEFT]
    assert threshold in tried
    ends = {each: play(Puppet(1), core, state, each, 30, look)[0].distance.mean().item() for each in tried}  # type: ignore[arg-type]
    assert ends[threshold] == min(ends.values())


def test_weighted_mean_is_equation_5(rng: np.random.Generator) -> None:
    """tx, ty, s, cos and sin averaged with the weights, the angle from the last two."""
    poses = rng.uniform([-5, -5, -20, 0.8], [5, 5, 20, 1.2], (4, 6, 4))
    weight = rng.dirichlet(np.ones(6), 4)
    mean = weighted_mean(Similarity(2).matrix(torch.from_numpy(poses)), torch.from_numpy(weight))
    found = Similarity(2).parameters(mean).numpy()
    angles = np.deg2rad(poses[..., 2])
    turned = np.arctan2((weight * np.sin(angles)).sum(1), (weight * np.cos(angles)).sum(1))
    expected = np.stack([(weight * poses[..., i]).sum(1) for i in (0, 1, 3)], 1)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, atol=1e-9)
    np.testing.assert_allclose(found[:, 2], np.rad2deg(turned), atol=1e-9)


def test_lookahead_is_one_uniform_step_and_then_the_policy() -> None:
    """Brute force for the puppet: its trajectories are one random action and nine shifts, all of one weight."""
    core, state = started(2)
    ahead = Lookahead(rollouts=20, depth=10, seed=3)(Puppet(0), core, state, Puppet(0).begin(2))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    first = torch.multinomial(torch.ones(40, 8) / 8, 1, generator=generator).flatten()
    deltas = torch.from_numpy(core.task.actions.deltas)
    transform = core.task.transform
    for lane in range(2):
        passed = []
        for action in first[20 * lane:20 * lane + 20].tolist():
            pose, here = state.pose[lane], transform.matrix(state.pose[lane]).inverse()
            for step in range(10):
                pose = transform.apply(pose, deltas[0 if step else action])
                passed.append(transform.parameters((transform.matrix(pose).inverse() @ here.inverse()).inverse()))
        mean = torch.stack(passed).mean(0)
        angles = torch.deg2rad(torch.stack(passed)[:, 2])
        mean[2] = torch.rad2deg(torch.atan2(angles.sin().mean(), angles.cos().mean()))
        pushed = transform.matrix(mean).inverse() @ transform.matrix(state.pose[lane]).inverse()
        torch.testing.assert_close(ahead[lane], transform.parameters(pushed.inverse()), rtol=0, atol=1e-8)


# --- workers --------------------------------------------------------------------------------------------------------

def test_it_trains_and_counts_every_step() -> None:
    class Count(BaseCallback):
        def _on_step(self) -> bool:
            return True

    model, callback = agent(), Count()
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(64, callback=callback)
    assert model.num_timesteps >= 64
    assert callback.n_calls * model.lanes == model.num_timesteps
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


def test_training_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"agent": "A3C", "env": ID, "env_kwargs": SMALL, "steps": 96,
              "algorithm": {"n_workers": 2, "lanes": 2, "n_steps": 8}}
    monkeypatch.setitem(presets.PRESETS, "tiny", config)
    path = train("tiny", tmp_path, steps=48)
    first = load(path, algorithm="A3C")
    train("tiny", tmp_path, steps=96, resume=True)
    second = load(path, algorithm="A3C")
    assert not torch.equal(first.policy.value_head.weight, second.policy.value_head.weight)
    with pytest.raises(ValueError, match="algorithm is 'A3C'; DSL is needed"):
        load(path)


def test_training_writes_the_stop_values_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"agent": "A3C", "env": ID, "env_kwargs": SMALL, "steps": 32,
              "algorithm": {"n_workers": 1, "lanes": 2, "n_steps": 8}}
    monkeypatch.setitem(presets.PRESETS, "tiny", config)
    monkeypatch.setattr(A3C, "calibrate", lambda agent: (0.25, -1.5))
    path = train("tiny", tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["config"]["algorithm"]["stop_values"] == [0.25, -1.5]
    assert tuple(load(path, algorithm="A3C").stop_values) == (0.25, -1.5)
    train("tiny", tmp_path, steps=64, resume=True)  # the same preset, whatever was found after it


KEEP_EVERY = 1.0  # seconds


def test_kill_9_then_resume_loses_at_most_one_checkpoint_interval(tmp_path: Path) -> None:
    """The trainer is killed in full flight; what it had counted KEEP_EVERY seconds before is in its last state."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import sys, time
        from regagents import presets, train
        from regagents.a3c import A3C
        presets.PRESETS["tiny"] = {{"agent": "A3C", "env": "{ID}", "env_kwargs": {{"size": 44}}, "steps": 10**9,
                                    "algorithm": {{"n_workers": 2, "lanes": 2, "n_steps": 8}}}}
        counted = A3C._counted
        def tell(agent, *arguments):
            going = counted(agent, *arguments)
            print(time.time(), agent.num_timesteps, flush=True)
            return going
        A3C._counted = tell
        if __name__ == "__main__":
            train("tiny", "{tmp_path}", steps=10**9, keep_every={KEEP_EVERY}, resume="resume" in sys.argv)
        """))
    seen: list[tuple[float, int]] = []

    def run_until(steps: int, *arguments: str) -> None:
        main = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
        try:
            assert main.stdout is not None
            for line in main.stdout:
                seen.append((float(line.split()[0]), int(line.split()[1])))
                if seen[-1][1] >= steps and seen[-1][0] > seen[0][0] + 2 * KEEP_EVERY:
                    break
        finally:
            main.kill()
            main.wait()

    def kept() -> int:
        return json.loads((tmp_path / "state.json").read_text())["samples"]

    run_until(64)
    killed_at, most = seen[-1]
    before = kept()
    due = max(steps for when, steps in seen if when <= killed_at - KEEP_EVERY - 0.5)
    assert due <= before <= most
    seen.clear()
    run_until(before + 64, "resume")
    assert seen[0][1] > before
    assert kept() >= before


class Assassin(BaseCallback):
    """Kills a worker in the middle of training."""

    def _on_step(self) -> bool:
        if self.n_calls == 8:
            import multiprocessing
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        return True


def test_a_dead_worker_ends_training_with_its_name() -> None:
    with pytest.raises(WorkerError, match=r"worker \d of 2 died \(.*signal 9.*last checkpoint"):
        agent().learn(100_000, callback=Assassin())
    import multiprocessing
    assert not [child for child in multiprocessing.active_children() if "a3c" in child.name]


@pytest.mark.clients
def test_ray_actors_learn_as_a_plain_loop_does() -> None:
    """One actor at one rate: no races."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        learner, plain = (agent(n_workers=1, engine="ray", decay=False) for _ in range(2))
        player = Player(plain._config(), copy.deepcopy(plain.policy), seed_of(plain._config(), 0, 0))
        for _ in range(6):
            turn(player, plain.policy, plain.optimizer, 0.0)
        assert learner.learn(96).updates == 6
        for mine, theirs in zip(learner.policy.parameters(), plain.policy.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
        both = agent(n_workers=2, engine="ray").learn(160)
        assert both.num_timesteps >= 160 and both.updates >= 10
    finally:
        ray.shutdown()


@pytest.mark.clients
def test_a_dead_actor_ends_training_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    enter, crews = RayWorkerPool.__enter__, []
    monkeypatch.setattr(RayWorkerPool, "__enter__", lambda pool: crews.append(pool) or enter(pool))

    class Killer(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 3:
                ray.kill(crews[0].actors[0])
            return True

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(WorkerError, match=r"worker \d of 2 died .*last checkpoint"):
            agent(engine="ray").learn(100_000, callback=Killer())
    finally:
        ray.shutdown()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """kill -9 on the main process leaves no orphan."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import gymnasium as gym, multiprocessing, regenv
        from stable_baselines3.common.callbacks import BaseCallback
        from regagents.a3c import A3C
        class Tell(BaseCallback):
            def _on_step(self):
                if self.n_calls == 1:
                    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                return True
        if __name__ == "__main__":
            A3C("CnnLstmPolicy", gym.make("{ID}", size=44), n_workers=2, n_steps=8).learn(10**9, callback=Tell())
        """))
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
    finally:
        main.kill()
        main.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(("arguments", "words"), [({"n_workers": 0}, "n_workers is 0"), ({"lanes": 0}, "lanes is 0"),
                                                  ({"device": "cuda"}, "device is 'cuda'")])
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agent(**arguments)
