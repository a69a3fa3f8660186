"""Training of agents from presets: resumable, seeded, logged to TensorBoard and CSV."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

import regenv  # noqa: F401  registers the ids
from regagents.a3c import A3C
from regagents.agents import ALGORITHMS, create, resolve
from regagents.common import checkpoints
from regagents.common import distributed as parallel
from regagents.common.supervised import FreshPoses
from regagents.l2o import L2O
from regagents.spac import SPAC
from regagents.training.presets import PRESETS


class _Keeper(BaseCallback):
    """Writes the training state every few minutes, and the weights without target networks, which only train."""

    def __init__(self, path: Path, card: dict[str, Any], every_seconds: float) -> None:
        super().__init__()
        self.path, self.card, self.every = path, card, every_seconds
        self.last = self.begun = time.monotonic()
        self.before = float(card.get("seconds", 0.0))

    def _on_step(self) -> bool:
        if time.monotonic() - self.last > self.every and self.model.resumable:  # type: ignore[attr-defined]
            self.write()
        return True

    def write(self) -> None:
        agent: Any = self.model
        self.last = time.monotonic()
        self.card |= {"samples": agent.num_timesteps, "updates": agent.updates,
                      "seconds": round(self.before + self.last - self.begun)}
        state = {f"network.{k}": v for k, v in agent.network.state_dict().items()}
        state |= {f"optimizer.{k}": v for k, v in checkpoints.flatten_optimizer(agent.optimizer).items()}
        checkpoints.save(self.path.with_name("state.safetensors"), state, self.card)
        played = {k: v for k, v in agent.network.state_dict().items() if not k.startswith("target")}
        checkpoints.save(self.path, checkpoints.halved(played), self.card)


def train(preset: str, out: str | Path, steps: int | None = None, seed: int = 0, device: str = "cpu",
          init: str | None = None, resume: bool = False, amp: bool = True, keep_every: float = 120.0,
          command: str = "", progress_bar: bool = False) -> Path:
    """Train a preset into folder ``out``; returns the weights' path.

    Args: steps: samples in all; init: checkpoint (or name of shipped weights) whose tensors are taken over where name
    and shape agree, default the preset's; resume: go on from ``out``. Under torchrun its processes train together, see
    :mod:`regagents.common.distributed`.
    Raises ValueError for an unknown preset or device; CheckpointError where resume or init do not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"train: preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    try:
        missing = torch.device(device).type == "cuda" and not torch.cuda.is_available()
    except RuntimeError as error:
        raise ValueError(f"train: device is {device!r} ({error}); use cpu or cuda.") from None
    if missing:
        raise ValueError(f"train: device is {device!r}, but PyTorch finds no CUDA device; use cpu.")
    with parallel.group(device) as device:
        return _train(preset, Path(out), steps, seed, device, init, resume, amp, keep_every, command, progress_bar)


def _train(preset: str, out: Path, steps: int | None, seed: int, device: str, init: str | None, resume: bool,
           amp: bool, keep_every: float, command: str, progress_bar: bool) -> Path:
    """As :func:`train`, by each of its processes; the first of them writes."""
    config = PRESETS[preset]
    total, init = steps or config["steps"], init or config.get("init")
    kind = config.get("agent", "DSL")
    if parallel.world() > 1 and kind == "A3C":
        raise ValueError("train: A3C has workers of its own; run it without torchrun.")
    mixed = issubclass(ALGORITHMS[kind][0], (FreshPoses, SPAC, L2O))
    agent = create(config, seed=seed, device=device, **({"amp": amp} if mixed else {}))
    together = "" if parallel.world() == 1 else f", {parallel.world()} processes"
    card: dict[str, Any] = {
        "name": preset, "algorithm": kind, "env": config["env"], "config": config, "command": command, "seed": seed,
        "init": init, "steps": total, "samples": 0, "seconds": 0,
        "machine": f"{_processor()}, {torch.get_num_threads()} thread(s){together}, torch {torch.__version__}",
        "licence": "Apache-2.0"}
    path = out / f"{preset}.safetensors"
    if resume and (out / "state.safetensors").is_file():
        tensors, old = checkpoints.load(out / "state.safetensors")
        if _trained(old["config"]) != _trained(config):
            raise checkpoints.CheckpointError(f"{out}: config differs from preset {preset!r}; train into a new folder.")
        agent.adopt(_under("network.", tensors), out)
        checkpoints.fit_optimizer(agent.optimizer, _under("optimizer.", tensors))
        agent.num_timesteps, agent.updates = old["samples"], old["updates"]
        card["seconds"] = old["seconds"]
        card["init"] = old["init"]
    elif init is not None:
        tensors, _ = checkpoints.load(resolve(init))
        checkpoints.fit_shared(agent.network, tensors, init)
    first = parallel.rank() == 0
    out.mkdir(parents=True, exist_ok=True)
    agent.set_logger(configure(str(out), ["csv", "tensorboard"]) if first else configure(None, []))
    keeper = _Keeper(path, card, keep_every)
    try:
        agent.learn(total - agent.num_timesteps if resume else total, callback=keeper if first else None,
                    reset_num_timesteps=not resume, progress_bar=progress_bar and first)
    finally:
        agent.logger.close()
    if isinstance(agent, A3C):
        algorithm = {**config.get("algorithm", {}), "stop_values": list(agent.calibrate())}
        card["config"] = {**config, "algorithm": algorithm}
    if first:
        keeper.write()
    return path


def _processor() -> str:
    """The processor's model where the system tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()


def _trained(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what is found after training."""
    algorithm = {name: value for name, value in config.get("algorithm", {}).items() if name != "stop_values"}
    return {**config, "algorithm": algorithm}


def _under(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
