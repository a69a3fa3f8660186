"""A3C's workers: the shared optimiser, the episodes they play, and that they live and die as stated."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from regagents.a3c.workers import RayWorkerPool, Worker, WorkerError, seed_of, shared_adam
from tests.regagents.a3c.agents import ID, SMALL, agent, config, turn


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


@pytest.mark.parametrize(("decay", "rate"), [(True, 0.75e-3), (False, 1e-3)])
def test_the_rate_falls_with_progress(decay: bool, rate: float) -> None:
    shared = agent().policy
    optimizer = shared_adam(shared, 1e-3)
    worker = Worker(config(decay=decay, n_steps=1), agent().policy, seed=0)
    turn(worker, shared, optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_at_first_only_the_value_learns() -> None:
    shared = agent().policy
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    worker = Worker(config(value_first=0.3), agent().policy, seed=0)
    turn(worker, shared, shared_adam(shared, 1e-3), 0.2)
    changed = {name for name, tensor in shared.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"value_head.weight", "value_head.bias"}
    turn(worker, shared, shared_adam(shared, 1e-3), 0.3)
    assert not torch.equal(shared.policy_head.weight, before["policy_head.weight"])


def test_pairs_are_kept_for_the_stated_episodes() -> None:
    worker = Worker(config(env_kwargs={**SMALL, "max_episode_steps": 3}, n_steps=3, lanes=2), agent().policy, seed=4)
    seen = []
    for _ in range(6):
        worker.loss(0.0)
        seen.append(worker.env.unwrapped.state.pair.fixed.sum((1, 2, 3)))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert same == [False, True, False, True, False]


def test_supervised_workers_take_the_optimal_action() -> None:
    worker = Worker(config(supervised=True, n_steps=30), agent().policy, seed=2)
    before = None
    for _ in range(4):
        worker.loss(0.0)
        state = worker.env.unwrapped.state
        if before is not None:
            moved = state.steps == before.steps + 30
            assert (state.distance[moved] < before.distance[moved]).all()
        before = state


class Assassin(BaseCallback):
    """Kills a worker in the middle of training."""

    def _on_step(self) -> bool:
        if self.n_calls == 8:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        return True


def test_a_dead_worker_ends_training_with_its_name() -> None:
    with pytest.raises(WorkerError, match=r"worker \d of 2 died \(.*signal 9.*last checkpoint"):
        agent().learn(100_000, callback=Assassin())
    assert not [child for child in multiprocessing.active_children() if "a3c" in child.name]


@pytest.mark.clients
def test_ray_actors_learn_as_a_plain_loop_does() -> None:
    """One actor at one rate: no races."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        learner, plain = (agent(n_workers=1, engine="ray", decay=False) for _ in range(2))
        worker = Worker(plain._config(), copy.deepcopy(plain.policy), seed_of(plain._config(), 0, 0))
        for _ in range(6):
            turn(worker, plain.policy, plain.optimizer, 0.0)
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

    enter, pools = RayWorkerPool.__enter__, []
    monkeypatch.setattr(RayWorkerPool, "__enter__", lambda pool: pools.append(pool) or enter(pool))

    class Killer(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 3:
                ray.kill(pools[0].actors[0])
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
