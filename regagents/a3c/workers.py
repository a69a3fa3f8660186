"""A3C's workers: what each of them does, and the pools by which the main process runs them."""

from __future__ import annotations

import copy
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium as gym
import torch
import torch.multiprocessing as mp
from gymnasium.vector import AutoresetMode
from torch import Tensor

from regagents.a3c.loss import a3c_loss
from regagents.a3c.policies import A3CPolicy, Memory, chosen
from regagents.common.curriculum import Curriculum, options_at
from regagents.common.jobs import ray_started
from regagents.common.threads import single_threaded
from regenv.shell import PlainError

PATIENCE = 60.0   # seconds that workers have to end by themselves
LOOK_EVERY = 1.0  # seconds between checks of workers that report nothing
Gradients = list[Tensor | None]
Episode = tuple[float, int, float]
"""Return, length, and 1 where it ended by arrival."""
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class WorkerError(PlainError):
    """A worker died: the message names it, how it ended, and the way out."""


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker needs to know.

    Args: as A3C's; env_id, env_kwargs: of its environments; learning_rate: of the shared Adam.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    n_steps: int
    gamma: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    lanes: int
    episodes_per_pair: int
    supervised: bool
    reward_scale: float
    learning_rate: float
    decay: bool
    value_first: float
    curriculum: Curriculum | None
    seed: int


def shared_adam(policy: A3CPolicy, learning_rate: float, moments: list[dict[str, Tensor]] | None = None
                ) -> torch.optim.Adam:
    """Adam with its state in shared memory: new, or the ``moments`` of another process's Adam."""
    policy.share_memory()
    optimizer = torch.optim.Adam(policy.parameters(), learning_rate)
    for number, parameter in enumerate(policy.parameters()):
        optimizer.state[parameter] = moments[number] if moments is not None else {
            "step": torch.zeros(()).share_memory_(), "exp_avg": torch.zeros_like(parameter.data).share_memory_(),
            "exp_avg_sq": torch.zeros_like(parameter.data).share_memory_()}
    return optimizer


# ------------------------------------------------------------------------------------------------- the main process

@dataclass
class WorkerPool:
    """Worker processes: started on entry, ended on exit, also after an error."""

    policy: A3CPolicy
    optimizer: torch.optim.Adam
    config: WorkerConfig
    progress: Tensor
    rounds: int
    count: int
    pipes: dict[Any, int] = field(default_factory=dict)
    processes: list[Any] = field(default_factory=list)
    lock: Any = None
    stop: Tensor = field(default_factory=lambda: torch.zeros(1).share_memory_())

    def __enter__(self) -> WorkerPool:
        context: Any = mp.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])
        self.lock = context.Lock()  # kept alive: workers open it by name later
        moments = [{key: value.share_memory_() for key, value in self.optimizer.state[p].items()}
                   for p in self.policy.parameters()]
        with single_threaded():
            self._start(context, moments)
        return self

    def _start(self, context: Any, moments: list[dict[str, Tensor]]) -> None:
        for number in range(self.count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, daemon=True, name=f"a3c-worker-{number}", args=(
                number, self.policy, moments, self.config, self.progress, self.rounds, self.stop, self.lock, theirs))
            process.start()
            theirs.close()
            self.pipes[ours] = number
            self.processes.append(process)

    def reports(self) -> Iterator[dict[str, Any]]:
        """The reports that have arrived; waits for the first. Raises WorkerError where a worker has ended."""
        ready: list[Any] = wait(list(self.pipes), timeout=LOOK_EVERY)
        for pipe in ready:
            try:
                report = pipe.recv()
            except (EOFError, OSError):
                self._died(self.pipes[pipe], "")
            if "error" in report:
                self._died(self.pipes[pipe], report["error"])
            yield report
        for number, process in enumerate(self.processes):
            if not process.is_alive():
                self._died(number, "")

    def _died(self, number: int, error: str) -> None:
        self.processes[number].join(5)
        code = self.processes[number].exitcode
        how = error or (f"it was killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}")
        raise WorkerError(_death(number, self.count, how))

    def __exit__(self, *failure: Any) -> None:
        self.stop[0] = 1
        for pipe in self.pipes:
            pipe.close()
        deadline = time.monotonic() + (PATIENCE if failure[0] is None else 0.0)
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


@dataclass
class RayWorkerPool:
    """Workers as actors of a Ray cluster, on any of its machines.

    Each is sent the weights before a round of ``n_steps`` steps in ``lanes`` lanes and returns its gradient, which this
    process applies to the network.
    """

    policy: A3CPolicy
    optimizer: torch.optim.Adam
    config: WorkerConfig
    progress: Tensor
    rounds: int
    count: int
    actors: list[Any] = field(default_factory=list)
    running: dict[Any, int] = field(default_factory=dict)
    ray: Any = None

    def __enter__(self) -> RayWorkerPool:
        self.ray = ray_started()
        actor = self.ray.remote(num_cpus=1)(Worker)
        policy = copy.deepcopy(self.policy)  # out of the shared memory
        self.actors = [actor.remote(self.config, policy, seed_of(self.config, number, self.rounds))
                       for number in range(self.count)]
        for number in range(self.count):
            self._send(number)
        return self

    def _send(self, number: int) -> None:
        weights = {name: value.detach().clone() for name, value in self.policy.state_dict().items()}
        self.running[self.actors[number].round.remote(weights, float(self.progress[0]))] = number

    def reports(self) -> Iterator[dict[str, Any]]:
        """The reports that have arrived; waits for the first. Raises WorkerError where an actor has failed or died."""
        for done in self.ray.wait(list(self.running), num_returns=1, timeout=LOOK_EVERY)[0]:
            number = self.running.pop(done)
            try:
                gradients, report = self.ray.get(done)
            except self.ray.exceptions.RayError as error:
                how = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                raise WorkerError(_death(number, self.count, how)) from None
            mine = [None if gradient is None else gradient.clone() for gradient in gradients]  # Ray's cannot be written
            apply(mine, self.policy, self.optimizer, self.config, report["progress"])
            yield report
            self._send(number)

    def __exit__(self, *failure: Any) -> None:
        for actor in self.actors:
            self.ray.kill(actor)


def _death(number: int, count: int, how: str) -> str:
    return f"A3C: worker {number} of {count} died ({how}). Training has ended; go on from the last checkpoint."


POOLS: dict[str, type[WorkerPool] | type[RayWorkerPool]] = {"processes": WorkerPool, "ray": RayWorkerPool}


# ------------------------------------------------------------------------------------------------------- the workers

def seed_of(config: WorkerConfig, number: int, rounds: int) -> int:
    """The seed of a worker, another one after resuming. Args: rounds: updates before."""
    return (config.seed * 10_007 + number) * 10_007 + rounds


def _work(number: int, shared: A3CPolicy, moments: list[dict[str, Tensor]], config: WorkerConfig, progress: Tensor,
          rounds: int, stop: Tensor, lock: Any, pipe: Connection) -> None:
    """What a worker process does until it is stopped or its parent ends, even if the parent was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    try:
        optimizer = shared_adam(shared, config.learning_rate, moments)
        worker = Worker(config, copy.deepcopy(shared), seed_of(config, number, rounds))
        while not stop[0] and parent is not None and parent.is_alive():
            gradients, report = worker.round(shared.state_dict(), float(progress[0]))
            with lock:
                apply(gradients, shared, optimizer, config, report["progress"])
            pipe.send(report)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


class Worker:
    """One worker's episodes, and the gradient of each ``n_steps`` of them.

    Args: config; policy: its own copy of the network; seed: of its pairs, poses and actions.
    """

    def __init__(self, config: WorkerConfig, policy: A3CPolicy, seed: int) -> None:
        self.config, self.policy = config, policy
        self.env = gym.make_vec(config.env_id, num_envs=config.lanes, output="torch", privileged=config.supervised,
                                autoreset_mode=AutoresetMode.DISABLED, **config.env_kwargs)
        self.generator = torch.Generator().manual_seed(seed)
        self.seed: int | None = seed
        self.memory: Memory = policy.begin(config.lanes)
        self.starts = torch.ones(config.lanes, dtype=torch.bool)
        self.played = torch.zeros(config.lanes, dtype=torch.int64)
        self.returns, self.lengths = torch.zeros(config.lanes, dtype=torch.float64), torch.zeros(config.lanes)
        self.observations: Tensor | None = None
        self.best: Tensor | None = None

    def round(self, weights: Mapping[str, Tensor], progress: float) -> tuple[Gradients, dict[str, Any]]:
        """Take over the shared network's weights and play ``n_steps``: their gradient, and the report."""
        self.policy.load_state_dict(weights)
        loss, report = self.loss(progress)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        return [parameter.grad for parameter in self.policy.parameters()], {**report, "progress": progress}

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Any]]:
        """Play ``n_steps`` steps in every lane: their loss (eq. 1 and 2, or the supervised one), and the report."""
        config, episodes = self.config, []
        if self.observations is None:
            self._fresh(torch.ones(config.lanes, dtype=torch.bool), progress)
        self.memory = self.memory[0].detach(), self.memory[1].detach()
        steps: list[dict[str, Tensor]] = []
        for _ in range(config.n_steps):
            logits, value, self.memory = self.policy(self.observations, self.memory, self.starts)
            action = self.best if config.supervised else chosen(logits.detach(), False, self.generator)
            assert action is not None
            self.observations, reward, terminated, truncated, info = self.env.step(action)
            self.returns += reward
            self.lengths += 1
            done = terminated | truncated
            step = {"logits": logits, "value": value, "action": action, "done": done,
                    "reward": (reward * config.reward_scale).float()}
            if (truncated & ~terminated).any():  # not terminated: the next state's value counts as reward
                with torch.no_grad():
                    beyond = self.policy(self.observations, self.memory)[1]
                step["reward"] = step["reward"] + config.gamma * beyond * (truncated & ~terminated)
            steps.append(step)
            self.starts = done
            if config.supervised:
                self.best = info["q_star"].argmax(1)
            if done.any():
                episodes += [(float(self.returns[i]), int(self.lengths[i]), float(terminated[i]))
                             for i in torch.nonzero(done).flatten().tolist()]
                self._fresh(done, progress)
        with torch.no_grad():
            ahead = self.policy(self.observations, self.memory, self.starts)[1]
        loss, parts = a3c_loss(steps, ahead, config.gamma, config.ent_coef, config.vf_coef, config.supervised)
        return loss, {"steps": config.n_steps * config.lanes, "losses": parts, "episodes": episodes}

    def _fresh(self, mask: Tensor, progress: float) -> None:
        """Begin episodes in the lanes of ``mask``: on their pairs or, after ``episodes_per_pair``, on new ones."""
        self.played[mask] += 1
        self.returns[mask], self.lengths[mask] = 0.0, 0.0
        first = self.observations is None
        renew = mask & ((self.played - 1) % self.config.episodes_per_pair == 0) | (mask & first)
        options = options_at(self.config.curriculum, progress)
        for which, same in ((renew, False), (mask & ~renew, True)):
            if which.any():
                self.observations, info = self.env.reset(seed=self.seed, options={
                    **options, "reset_mask": which, **({"same_pairs": True} if same else {})})
                self.seed = None
                if self.config.supervised:
                    self.best = info["q_star"].argmax(1)


def apply(gradients: Gradients, shared: A3CPolicy, optimizer: torch.optim.Optimizer, config: WorkerConfig,
          progress: float) -> None:
    """A step of the shared network by a worker's gradient; the caller makes sure that nobody else takes one now."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * (max(0.0, 1 - progress) if config.decay else 1.0)
    waiting = progress < config.value_first
    for (name, parameter), gradient in zip(shared.named_parameters(), gradients, strict=True):
        parameter.grad = None if waiting and not name.startswith("value_head.") else gradient
    optimizer.step()
