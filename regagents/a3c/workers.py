"""A3C's worker processes: what each does, and the crew that the main process keeps."""

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
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from torch import Tensor

from regagents.a3c.policies import A3CPolicy, Memory, chosen
from regagents.common.curriculum import Curriculum
from regagents.common.threads import single_threaded
from regagents.engines import ray_started

PATIENCE = 60.0   # seconds that workers get to end by themselves
LOOK_EVERY = 1.0  # seconds between looks at silent workers
Gradients = list[Tensor | None]
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class WorkerError(RuntimeError):
    """A worker process died: names it, how it ended, and the way out."""


@dataclass(frozen=True)
class Recipe:
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
    """Adam whose state lies in shared memory from the start, or in the ``moments`` of another process's Adam."""
    policy.share_memory()
    optimizer = torch.optim.Adam(policy.parameters(), learning_rate)
    for number, parameter in enumerate(policy.parameters()):
        optimizer.state[parameter] = moments[number] if moments is not None else {
            "step": torch.zeros(()).share_memory_(), "exp_avg": torch.zeros_like(parameter.data).share_memory_(),
            "exp_avg_sq": torch.zeros_like(parameter.data).share_memory_()}
    return optimizer


# ------------------------------------------------------------------------------------------------- the main process

@dataclass
class Crew:
    """The running workers: started on entry, ended on exit whatever happened."""

    policy: A3CPolicy
    optimizer: torch.optim.Adam
    recipe: Recipe
    progress: Tensor
    rounds: int
    count: int
    pipes: dict[Any, int] = field(default_factory=dict)
    processes: list[Any] = field(default_factory=list)
    lock: Any = None
    stop: Tensor = field(default_factory=lambda: torch.zeros(1).share_memory_())

    def __enter__(self) -> Crew:
        context: Any = mp.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])
        self.lock = context.Lock()  # kept: workers open it by name, some time after this
        moments = [{key: value.share_memory_() for key, value in self.optimizer.state[p].items()}
                   for p in self.policy.parameters()]
        with single_threaded():
            self._start(context, moments)
        return self

    def _start(self, context: Any, moments: list[dict[str, Tensor]]) -> None:
        for number in range(self.count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, daemon=True, name=f"a3c-worker-{number}", args=(
                number, self.policy, moments, self.recipe, self.progress, self.rounds, self.stop, self.lock, theirs))
            process.start()
            theirs.close()
            self.pipes[ours] = number
            self.processes.append(process)

    def reports(self) -> Iterator[dict[str, Any]]:
        """What has come in; waits for something. Raises WorkerError where a worker has ended."""
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
        raise WorkerError(f"A3C: worker {number} of {self.count} died ({how}). Training has ended; go on from the last "
                          "checkpoint.")

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
class RayCrew:
    """The same by actors of a Ray cluster, on any of its machines. Weights go to each of them before its round and its
    gradient comes back; this process adds it to the network. ``lanes`` and ``n_steps`` say how much is played between.
    """

    policy: A3CPolicy
    optimizer: torch.optim.Adam
    recipe: Recipe
    progress: Tensor
    rounds: int
    count: int
    actors: list[Any] = field(default_factory=list)
    running: dict[Any, int] = field(default_factory=dict)
    ray: Any = None

    def __enter__(self) -> RayCrew:
        self.ray = ray_started()
        actor = self.ray.remote(num_cpus=1)(Player)
        policy = copy.deepcopy(self.policy)  # out of the shared memory
        self.actors = [actor.remote(self.recipe, policy, seed_of(self.recipe, number, self.rounds))
                       for number in range(self.count)]
        for number in range(self.count):
            self._send(number)
        return self

    def _send(self, number: int) -> None:
        weights = {name: value.detach().clone() for name, value in self.policy.state_dict().items()}
        self.running[self.actors[number].round.remote(weights, float(self.progress[0]))] = number

    def reports(self) -> Iterator[dict[str, Any]]:
        """What has come in; waits for something. Raises WorkerError where an actor has failed or died."""
        for done in self.ray.wait(list(self.running), num_returns=1, timeout=LOOK_EVERY)[0]:
            number = self.running.pop(done)
            try:
                gradients, report = self.ray.get(done)
            except self.ray.exceptions.RayError as error:
                raise WorkerError(f"A3C: worker {number} of {self.count} died ({type(error).__name__}: "
                                  f"{str(error).strip().splitlines()[-1]}). Training has ended; go on from the last "
                                  "checkpoint.") from None
            mine = [None if gradient is None else gradient.clone() for gradient in gradients]  # Ray's cannot be written
            apply(mine, self.policy, self.optimizer, self.recipe,
                  report["progress"])
            yield report
            self._send(number)

    def __exit__(self, *failure: Any) -> None:
        for actor in self.actors:
            self.ray.kill(actor)


CREWS: dict[str, Any] = {"processes": Crew, "ray": RayCrew}


# ------------------------------------------------------------------------------------------------------- the workers

def seed_of(recipe: Recipe, number: int, rounds: int) -> int:
    """A worker's own, also after resuming."""
    return (recipe.seed * 10_007 + number) * 10_007 + rounds



def _work(number: int, shared: A3CPolicy, moments: list[dict[str, Tensor]], recipe: Recipe, progress: Tensor,
          rounds: int, stop: Tensor, lock: Any, pipe: Connection) -> None:
    """A worker's life. It ends with its parent, also where that was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    try:
        optimizer = shared_adam(shared, recipe.learning_rate, moments)
        player = Player(recipe, copy.deepcopy(shared), seed_of(recipe, number, rounds))
        while not stop[0] and parent is not None and parent.is_alive():
            gradients, report = player.round(shared.state_dict(), float(progress[0]))
            with lock:
                apply(gradients, shared, optimizer, recipe, report["progress"])
            pipe.send(report)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


class Player:
    """One worker's episodes, and the gradient of each ``n_steps`` of them.

    Args: recipe; policy: its own copy of the network; seed: of its pairs, poses and actions.
    """

    def __init__(self, recipe: Recipe, policy: A3CPolicy, seed: int) -> None:
        self.recipe, self.policy = recipe, policy
        self.env = gym.make_vec(recipe.env_id, num_envs=recipe.lanes, output="torch", privileged=recipe.supervised,
                                autoreset_mode=AutoresetMode.DISABLED, **recipe.env_kwargs)
        self.generator = torch.Generator().manual_seed(seed)
        self.seed: int | None = seed
        self.memory: Memory = policy.begin(recipe.lanes)
        self.starts = torch.ones(recipe.lanes, dtype=torch.bool)
        self.played = torch.zeros(recipe.lanes, dtype=torch.int64)
        self.returns, self.lengths = torch.zeros(recipe.lanes, dtype=torch.float64), torch.zeros(recipe.lanes)
        self.observations: Tensor | None = None
        self.best: Tensor | None = None

    def round(self, weights: Mapping[str, Tensor], progress: float) -> tuple[Gradients, dict[str, Any]]:
        """Take over the shared network's weights and play ``n_steps``: their gradient, and what happened."""
        self.policy.load_state_dict(weights)
        loss, report = self.play(progress)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.recipe.max_grad_norm)
        return [parameter.grad for parameter in self.policy.parameters()], {**report, "progress": progress}

    def play(self, progress: float) -> tuple[Tensor, dict[str, Any]]:
        """Loss of ``n_steps`` steps of every lane (eq. 1 and 2, or the supervised one), and the report."""
        recipe, episodes = self.recipe, []
        if self.observations is None:
            self._fresh(torch.ones(recipe.lanes, dtype=torch.bool), progress)
        self.memory = self.memory[0].detach(), self.memory[1].detach()
        steps: list[dict[str, Tensor]] = []
        for _ in range(recipe.n_steps):
            logits, value, self.memory = self.policy(self.observations, self.memory, self.starts)
            action = self.best if recipe.supervised else chosen(logits.detach(), False, self.generator)
            assert action is not None
            self.observations, reward, terminated, truncated, info = self.env.step(action)
            self.returns += reward
            self.lengths += 1
            done = terminated | truncated
            step = {"logits": logits, "value": value, "action": action, "done": done,
                    "reward": (reward * recipe.reward_scale).float()}
            if (truncated & ~terminated).any():  # a limit of time is no end: what would follow is worth its value
                with torch.no_grad():
                    beyond = self.policy(self.observations, self.memory)[1]
                step["reward"] = step["reward"] + recipe.gamma * beyond * (truncated & ~terminated)
            steps.append(step)
            self.starts = done
            if recipe.supervised:
                self.best = info["q_star"].argmax(1)
            if done.any():
                episodes += [(float(self.returns[i]), int(self.lengths[i]), float(terminated[i]))
                             for i in torch.nonzero(done).flatten().tolist()]
                self._fresh(done, progress)
        with torch.no_grad():
            ahead = self.policy(self.observations, self.memory, self.starts)[1]
        loss, parts = a3c_loss(steps, ahead, recipe)
        return loss, {"steps": recipe.n_steps * recipe.lanes, "losses": parts, "episodes": episodes}

    def _fresh(self, mask: Tensor, progress: float) -> None:
        """New episodes in the lanes of ``mask``, on their pairs or, after enough episodes, on new ones."""
        self.played[mask] += 1
        self.returns[mask], self.lengths[mask] = 0.0, 0.0
        first = self.observations is None
        renew = mask & ((self.played - 1) % self.recipe.episodes_per_pair == 0) | (mask & first)
        options = {} if self.recipe.curriculum is None else self.recipe.curriculum.at(progress)
        for which, same in ((renew, False), (mask & ~renew, True)):
            if which.any():
                self.observations, info = self.env.reset(seed=self.seed, options={
                    **options, "reset_mask": which, **({"same_pairs": True} if same else {})})
                self.seed = None
                if self.recipe.supervised:
                    self.best = info["q_star"].argmax(1)


def apply(gradients: Gradients, shared: A3CPolicy, optimizer: torch.optim.Optimizer, recipe: Recipe,
          progress: float) -> None:
    """Add a worker's gradient to the shared network; the caller sees to it that nobody else does so now."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * (max(0.0, 1 - progress) if recipe.decay else 1.0)
    waiting = progress < recipe.value_first
    for (name, parameter), gradient in zip(shared.named_parameters(), gradients, strict=True):
        parameter.grad = None if waiting and not name.startswith("value_head.") else gradient
    optimizer.step()


def a3c_loss(steps: list[dict[str, Tensor]], ahead: Tensor, recipe: Recipe) -> tuple[Tensor, list[float]]:
    """Sun et al. 2018, eq. 1 and 2 (or cross entropy on the action, where supervised), mean over lanes and steps.

    Args: steps: per step ``logits`` (B, A), ``value``, ``action``, ``reward``, ``done`` (B,); ahead: values (B,) of
    the states after the last step.
    Returns: the loss; policy loss, value loss and entropy as numbers.
    """
    returns, follow = [], ahead
    for step in reversed(steps):
        follow = step["reward"] + recipe.gamma * follow * ~step["done"]
        returns.append(follow)
    target = torch.stack(returns[::-1])
    logits, value, action = (torch.stack([step[key] for step in steps]) for key in ("logits", "value", "action"))
    chances = logits.log_softmax(-1)
    taken = chances.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    entropy = -(chances.exp() * chances).sum(-1).mean()
    if recipe.supervised:
        policy_loss = -taken.mean()
    else:
        policy_loss = -(taken * (target - value.detach())).mean()
    value_loss = F.mse_loss(value, target)
    loss = policy_loss + recipe.vf_coef * value_loss
    if not recipe.supervised:
        loss = loss - recipe.ent_coef * entropy
    return loss, [policy_loss.item(), value_loss.item(), entropy.item()]
