"""Asynchronous advantage actor-critic (Mnih et al. 2016) as Sun et al. 2018 train it for registration."""

from __future__ import annotations

import copy
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from regagents.a3c.policies import A3CPolicy, Lookahead, Memory, best_threshold, chosen
from regagents.common.curriculum import Curriculum
from regagents.common.tasks import PolicyTrained, made_with
from regenv.core import RegistrationCore
from regenv.tasks.termination import Never

PATIENCE = 60.0   # seconds that workers get to end by themselves
LOOK_EVERY = 1.0  # seconds between looks at silent workers
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


class A3C(PolicyTrained, BaseAlgorithm):
    """Asynchronous advantage actor-critic on SB3's frame.

    Worker processes share the network and Adam's moments. Each plays its own pairs with a copy of the network, and
    after ``n_steps`` adds its gradient of eq. 1 and 2 to what is shared. The main process counts steps, logs and runs
    callbacks. Scripts need ``if __name__ == "__main__":``.

    Args:
        policy: "CnnLstmPolicy", "CnnPolicy" (a dense layer for the LSTM), or an A3CPolicy subclass.
        env: id or environment of regenv with discrete actions; its spec is what the workers build theirs from.
        learning_rate: of the shared Adam. decay: whether it falls linearly to zero over training.
        n_steps: steps between updates (the paper's bootstrapping length). gamma: discount.
        ent_coef: weight of the entropy (eq. 1's beta). vf_coef: of the squared value error, 1/2 in eq. 2.
        max_grad_norm: bound of each gradient.
        n_workers: processes. lanes: episodes that each of them plays side by side.
        episodes_per_pair: episodes on a pair before a new one is drawn.
        supervised: the paper's SL twin: workers take the optimal action (largest decrease of D), the policy learns it
            by cross entropy, the value still by its squared error.
        reward_scale: factor of the rewards in training.
        value_first: share of training in which only the value's last layer learns: a policy that comes from elsewhere
            is not pushed about by a value that does not know it yet.
        stop_values: values at which a registration has arrived, without and with look-ahead; default the paper's 10
            and 9, which training replaces by :meth:`calibrate`.
        curriculum: see Curriculum; None plays at full difficulty from the start.
    """

    policy_aliases: ClassVar[dict[str, type]] = {"CnnLstmPolicy": A3CPolicy,  # type: ignore[assignment]
                                                 "CnnPolicy": A3CPolicy}
    policy: A3CPolicy

    def __init__(self, policy: str | type[A3CPolicy] = "CnnLstmPolicy", env: Any = None, learning_rate: float = 1e-4,
                 decay: bool = True, n_steps: int = 30, gamma: float = 0.99, ent_coef: float = 0.1,
                 vf_coef: float = 0.5, max_grad_norm: float = 40.0, n_workers: int = 8, lanes: int = 1,
                 episodes_per_pair: int = 2,
                 supervised: bool = False, reward_scale: float = 1.0, value_first: float = 0.0,
                 stop_values: tuple[float, float] = (10.0, 9.0), curriculum: Curriculum | None = None,
                 policy_kwargs: dict[str, Any] | None = None, stats_window_size: int = 100,
                 tensorboard_log: str | None = None, verbose: int = 0, seed: int | None = None, device: str = "cpu",
                 _init_setup_model: bool = True) -> None:
        for name, value in (("n_steps", n_steps), ("n_workers", n_workers), ("lanes", lanes),
                            ("episodes_per_pair", episodes_per_pair)):
            if value < 1:
                raise ValueError(f"A3C: {name} is {value}; it must be at least 1.")
        if torch.device(device).type != "cpu":
            raise ValueError(f"A3C: device is {device!r}; its workers share memory on the CPU, use 'cpu'.")
        if policy == "CnnPolicy":
            policy_kwargs = {**(policy_kwargs or {}), "recurrent": False}
        self.decay = decay
        self.n_steps, self.gamma, self.ent_coef, self.vf_coef = n_steps, gamma, ent_coef, vf_coef
        self.max_grad_norm, self.n_workers, self.lanes = max_grad_norm, n_workers, lanes
        self.episodes_per_pair, self.supervised, self.reward_scale = episodes_per_pair, supervised, reward_scale
        self.value_first = value_first
        self.stop_values, self.curriculum = stop_values, curriculum
        super().__init__(policy, env, learning_rate, policy_kwargs=policy_kwargs, stats_window_size=stats_window_size,
                         tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed,
                         support_multi_env=True, supported_action_spaces=(gym.spaces.Discrete,))
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule,  # type: ignore[assignment]
                                        **self.policy_kwargs)
        self.optimizer = shared_adam(self.policy, self.learning_rate)  # type: ignore[arg-type]
        self.updates = getattr(self, "updates", 0)

    def learn(self, total_timesteps: int, callback: MaybeCallback = None, log_interval: int = 100,
              tb_log_name: str = "A3C", reset_num_timesteps: bool = True, progress_bar: bool = False) -> A3C:
        """Train for ``total_timesteps`` environment steps of all workers together; log every ``log_interval`` updates.

        Raises WorkerError where a worker dies; the others are ended then, and what callbacks have saved stays.
        """
        total, callbacks = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callbacks.on_training_start(locals(), globals())
        begun, at_start = time.monotonic(), self.num_timesteps
        losses: deque[list[float]] = deque(maxlen=log_interval)
        episodes: deque[tuple[float, int, float]] = deque(maxlen=self._stats_window_size)
        progress = torch.tensor([self.num_timesteps / total]).share_memory_()
        with _Crew(self.policy, self.optimizer, self._recipe(), progress, self.updates, self.n_workers) as crew:
            while self.num_timesteps < total:
                for report in crew.reports():
                    self.updates += 1
                    losses.append(report["losses"])
                    episodes.extend(report["episodes"])
                    if not self._counted(report["steps"], callbacks, total):
                        total = self.num_timesteps
                        break
                    progress[0] = self.num_timesteps / total
                    if self.updates % log_interval == 0:
                        self._log(losses, episodes, begun, at_start)
        callbacks.on_training_end()
        return self

    def _counted(self, steps: int, callbacks: Any, total: int) -> bool:
        for _ in range(steps // self.lanes):
            self.num_timesteps += self.lanes
            self._update_current_progress_remaining(self.num_timesteps, total)
            callbacks.update_locals(locals())
            if not callbacks.on_step():
                return False
        return True

    def _log(self, losses: deque[Any], episodes: deque[Any], begun: float, at_start: int) -> None:
        for name, value in zip(("policy_loss", "value_loss", "entropy"), np.mean(losses, 0), strict=True):
            self.logger.record(f"train/{name}", float(value))
        if episodes:
            rewards, lengths, ends = np.mean(episodes, 0)
            self.logger.record("rollout/ep_rew_mean", float(rewards))
            self.logger.record("rollout/ep_len_mean", float(lengths))
            self.logger.record("rollout/ep_arrived", float(ends))
        self.logger.record("time/fps", (self.num_timesteps - at_start) / (time.monotonic() - begun))
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)

    def _recipe(self) -> Recipe:
        return Recipe(*made_with(self), self.n_steps, self.gamma, self.ent_coef, self.vf_coef, self.max_grad_norm,
                      self.lanes, self.episodes_per_pair, self.supervised, self.reward_scale,
                      float(self.learning_rate), self.decay, self.value_first, self.curriculum, self.seed or 0)  # type: ignore[arg-type]

    def calibrate(self, pairs: int = 128, steps: int = 150, seed: int = 9_000_000) -> tuple[float, float]:
        """Set ``stop_values`` to those that end nearest to alignment on training pairs from new random starts.

        Args: steps: at most so many a registration; the best path takes 40 on average and 85 at most.
        """
        core = RegistrationCore(replace(self.task(), termination=Never()))
        state = core.reset([np.random.default_rng(seed + i) for i in range(pairs)])
        self.stop_values = tuple(best_threshold(self.policy, core, state, steps, lookahead)  # type: ignore[assignment]
                                 for lookahead in (None, Lookahead()))
        return self.stop_values

    def predict(self, observation: Any, state: tuple[np.ndarray, ...] | None = None,
                episode_start: np.ndarray | None = None, deterministic: bool = False) -> Any:
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], []


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
class _Crew:
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

    def __enter__(self) -> _Crew:
        context: Any = mp.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])
        self.lock = context.Lock()  # kept: workers open it by name, some time after this
        moments = [{key: value.share_memory_() for key, value in self.optimizer.state[p].items()}
                   for p in self.policy.parameters()]
        with _environment(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1"):
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


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that new processes shall start with: setting torch's threads later is not enough, several
    pools of threads on few cores are ten times slower than one thread each."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ------------------------------------------------------------------------------------------------------- the workers

def _work(number: int, shared: A3CPolicy, moments: list[dict[str, Tensor]], recipe: Recipe, progress: Tensor,
          rounds: int, stop: Tensor, lock: Any, pipe: Connection) -> None:
    """A worker's life. It ends with its parent, also where that was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    try:
        optimizer = shared_adam(shared, recipe.learning_rate, moments)
        player = Player(recipe, copy.deepcopy(shared), seed=(recipe.seed * 10_007 + number) * 10_007 + rounds)
        while not stop[0] and parent is not None and parent.is_alive():
            report = player.round(shared, optimizer, lock, float(progress[0]))
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

    def round(self, shared: A3CPolicy, optimizer: torch.optim.Optimizer, lock: Any, progress: float) -> dict[str, Any]:
        """Take over the shared network, play ``n_steps``, add the gradient to it; what happened."""
        self.policy.load_state_dict(shared.state_dict())
        loss, report = self.play(progress)
        self.policy.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * (max(0.0, 1 - progress) if self.recipe.decay else 1.0)
        with lock:
            waiting = progress < self.recipe.value_first
            for (name, mine), theirs in zip(self.policy.named_parameters(), shared.parameters(), strict=True):
                theirs.grad = None if waiting and not name.startswith("value_head.") else mine.grad
            optimizer.step()
        return report

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
