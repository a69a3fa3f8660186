"""Training of agents from presets: resumable, seeded, logged to TensorBoard and CSV."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from regagents.agents import ALGORITHMS, algorithm_of, create, resolve
from regagents.common import checkpoints, distributed
from regagents.training.presets import PRESETS
from regagents.training.progress import progress_logger


@dataclass(frozen=True)
class Run:
    """What is trained, how, and where it is written: see :func:`train`."""

    preset: str
    out: Path
    steps: int | None
    seed: int
    device: str
    init: str | None
    resume: bool
    amp: bool
    keep_every: float
    command: str
    progress_bar: bool

    @property
    def config(self) -> dict[str, Any]:
        """The preset's entry."""
        return PRESETS[self.preset]

    @property
    def total(self) -> int:
        """Samples of the whole training."""
        return self.steps or self.config["steps"]

    @property
    def start(self) -> str | None:
        """The checkpoint whose tensors are taken over before training."""
        return self.init or self.config.get("init")

    @property
    def weights(self) -> Path:
        """Tensors that playing needs."""
        return self.out / f"{self.preset}.safetensors"

    @property
    def state(self) -> Path:
        """All tensors, and the optimizer's, that training continues from."""
        return self.out / "state.safetensors"


class CheckpointCallback(BaseCallback):
    """Writes the training state every few minutes, and the weights without target networks, which only train."""

    def __init__(self, run: Run, card: dict[str, Any]) -> None:
        super().__init__()
        self.run, self.card = run, card
        self.last = self.begun = time.monotonic()
        self.before = float(card["seconds"])

    def _on_step(self) -> bool:
        agent: Any = self.model
        if time.monotonic() - self.last > self.run.keep_every and agent.resumable:
            self.write({})
        return True

    def write(self, found: Mapping[str, Any]) -> None:
        """Write both checkpoints. Args: found: arguments of the algorithm that were found after training."""
        agent: Any = self.model
        self.last = time.monotonic()
        card = self.card | {"samples": agent.num_timesteps, "updates": agent.updates,
                            "seconds": round(self.before + self.last - self.begun)}
        network = agent.network.state_dict()
        state = {f"network.{name}": value for name, value in network.items()}
        state |= {f"optimizer.{name}": value for name, value in checkpoints.flatten_optimizer(agent.optimizer).items()}
        checkpoints.save(self.run.state, state, card)
        if found:
            config = card["config"]
            card["config"] = {**config, "algorithm": {**config.get("algorithm", {}), **found}}
        played = {name: value for name, value in network.items() if not name.startswith("target")}
        checkpoints.save(self.run.weights, checkpoints.half_precision(played), card)


def train(preset: str, out: str | Path, steps: int | None = None, seed: int = 0, device: str = "cpu",
          init: str | None = None, resume: bool = False, amp: bool = True, keep_every: float = 120.0,
          command: str = "", progress_bar: bool = False) -> Path:
    """Train a preset into folder ``out``; returns the weights' path.

    Under torchrun its processes train together, see :mod:`regagents.common.distributed`.

    Args:
        preset: a name in PRESETS.
        steps: samples in all; default the preset's.
        device: "cpu" or "cuda".
        init: checkpoint (or name of shipped weights) whose tensors are taken over where name and shape agree; default
            the preset's.
        resume: continue from the last state in ``out``, where there is one.
        amp: bfloat16 networks, where fast and where the algorithm has them.
        keep_every: seconds between two checkpoints.
        command: is noted in the card.
    Raises: ValueError: an unknown preset or device. CheckpointError: resume or init do not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"train: preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    _check_device(device)
    with distributed.group(device) as own_device:
        return _train(Run(preset, Path(out), steps, seed, own_device, init, resume, amp, keep_every, command,
                          progress_bar))


def _check_device(device: str) -> None:
    try:
        missing = torch.device(device).type == "cuda" and not torch.cuda.is_available()
    except RuntimeError as error:
        raise ValueError(f"train: device is {device!r} ({error}); use cpu or cuda.") from None
    if missing:
        raise ValueError(f"train: device is {device!r}, but PyTorch finds no CUDA device; use cpu.")


def _train(run: Run) -> Path:
    """As :func:`train`, by each of its processes; the first of them writes."""
    name = algorithm_of(run.config)
    algorithm = ALGORITHMS[name].algorithm
    if distributed.world() > 1 and not algorithm.distributed:
        raise ValueError(f"train: {name} has workers of its own; run it without torchrun.")
    agent = create(run.config, seed=run.seed, device=run.device, **({"amp": run.amp} if algorithm.amp_argument else {}))
    card = _card(name, run)
    _start(agent, card, run)
    first = distributed.rank() == 0
    run.out.mkdir(parents=True, exist_ok=True)
    with _alone(run.out) if first else nullcontext():
        agent.set_logger(progress_logger(run.out, agent.num_timesteps) if first else configure(None, []))
        callback = CheckpointCallback(run, card)
        try:
            agent.learn(run.total - agent.num_timesteps if run.resume else run.total,
                        callback=callback if first else None, reset_num_timesteps=not run.resume,
                        progress_bar=run.progress_bar and first)
        finally:
            agent.logger.close()
        found = agent.after_training()
        summary = agent.summary()
        if first:
            callback.card |= {"summary": summary} if summary else {}
            callback.write(found)
    return run.weights


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a folder for this process until it ends, however it ends. Raises ValueError where another one does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another training writes there at this moment. Wait until it has ended, or "
                             "choose another --out.") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _card(algorithm: str, run: Run) -> dict[str, Any]:
    """The card before training."""
    processes = "" if distributed.world() == 1 else f", {distributed.world()} processes"
    return {"name": run.preset, "algorithm": algorithm, "env": run.config["env"], "config": run.config,
            "command": run.command, "seed": run.seed, "init": run.start, "steps": run.total, "samples": 0, "seconds": 0,
            "machine": f"{_processor()}, {torch.get_num_threads()} thread(s){processes}, torch {torch.__version__}",
            "licence": "Apache-2.0"}


def _start(agent: Any, card: dict[str, Any], run: Run) -> None:
    """Give a fresh agent what it starts from: the last state of an interrupted run, or another agent's tensors."""
    if run.resume and run.state.is_file():
        tensors, old = checkpoints.load(run.state)
        for name in ("config", "samples", "updates", "seconds", "init"):
            if name not in old:
                raise checkpoints.CheckpointError(f"{run.state}: its card has no {name}; train into a new folder.")
        if old["config"] != run.config:
            raise checkpoints.CheckpointError(f"{run.out}: config differs from preset {run.preset!r}; train into a new "
                                              "folder.")
        agent.adopt(_under("network.", tensors), run.state)
        if old["updates"]:
            checkpoints.fit_optimizer(agent.optimizer, _under("optimizer.", tensors), run.state)
        agent.num_timesteps, agent.updates = old["samples"], old["updates"]
        card["seconds"], card["init"] = old["seconds"], old["init"]
    elif run.start is not None:
        checkpoints.fit_shared(agent.network, checkpoints.load(resolve(run.start))[0], run.start)


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors whose names begin with a prefix, without it."""
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()
