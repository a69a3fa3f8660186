"""Tables 1 and 2 and figures 5 and 6 of Luo et al. 2022: stepwise dense registration of held-out pairs.

    python benchmarks/dense.py                            # scaled and rotated digits onto ten atlases
    python benchmarks/dense.py brain2d                    # slices of other people's brains
    python benchmarks/dense.py liver32                    # livers, small volumes
    python benchmarks/dense.py digits --sb3 20000         # with SB3's PPO and SAC on a control grid, trained here
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep
from stable_baselines3 import PPO, SAC
from torch import Tensor

from regagents.agents import load, resolve
from regagents.classical.deformable import Demons, FreeForm
from regagents.classical.syn import SyN
from regagents.common.extractors import CompactCNN
from regagents.evaluation.dense import Metrics, searched, walk
from regenv import render
from regenv.atomic import atomic
from regenv.core import RegistrationCore
from regenv.registry import build
from regenv.state import EpisodeState
from regenv.wrappers.sb3 import SB3VecEnv

RESULTS = Path(__file__).parent / "results"
STEPS, SHOWN = 20, (1, 2, 5, 10, 20)
BEYOND = 30                 # steps that figure 5 goes to
BATCH = 50
CONFIDENCE, DRAWS = 95, 2000


@dataclass(frozen=True)
class Data:
    """A set of held-out pairs and the classical methods as tuned on training pairs."""

    env: str
    env_kwargs: dict[str, Any]
    held_out: dict[str, Any]
    pairs: int
    demons: Demons
    free_form: FreeForm
    control_grid: tuple[int, ...]


SETS = {
    "digits": Data("RegDenseDigits-v0", {}, {"name": "digits", "split": "test"}, 1000,
                   Demons(smoothing=0.5, iterations=200, levels=2), FreeForm(control=3.5), (6, 6)),
    "brain2d": Data("RegDense2D-v0", {"spacing": 1.5}, {"name": "brains", "split": "test"}, 200,
                    Demons(smoothing=0.7), FreeForm(control=6.0, levels=1), (8, 8)),
    "liver32": Data("RegDense3D-v0", {"size": 32, "spacing": 8.0}, {"name": "livers", "split": "test"}, 100,
                    Demons(smoothing=0.7, levels=2), FreeForm(control=4.0), (5, 5, 5)),
}
VARIANTS = {"oneshot": "one-shot U-Net", "spac-ssim": "SPAC, SSIM reward", "ppo": "PPO-modified",
            "ddpg": "DDPG-modified", "spac-action": "SPAC-action", "spac-norl": "SPAC without RL",
            "spac-noreg": "SPAC without registration loss", "spac": "SPAC"}


@dataclass(frozen=True)
class Row:
    """A method after some steps: its measures, seconds a pair, and parameters of its networks (0 for none)."""

    method: str
    steps: int
    measures: Metrics
    seconds: float
    parameters: int = 0

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean Dice."""
        dice, rng = self.measures.dice, np.random.default_rng(0)
        means = rng.choice(dice, (DRAWS, len(dice))).mean(1)
        low, high = np.percentile(means, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
        return float(low), float(high)


def begun(data: Data, pairs: int, seed: int) -> tuple[RegistrationCore, EpisodeState]:
    """The held-out episodes, all at their start."""
    core = RegistrationCore(build(data.env, **data.env_kwargs, source=data.held_out))
    return core, core.reset([np.random.default_rng(seed + i) for i in range(pairs)])


def stepwise(name: str, agent: Any, core: RegistrationCore, start: EpisodeState,
             steps: int = STEPS) -> tuple[list[Row], np.ndarray]:
    """Rows after the steps of SHOWN, and the mean Dice before and after every step."""
    fields: dict[int, list[Tensor]] = {step: [] for step in SHOWN if step <= steps}
    curve, seconds = np.zeros(steps + 1), dict.fromkeys(fields, 0.0)
    for first in range(0, start.lanes, BATCH):
        state = start.select(slice(first, first + BATCH))
        curve[0] += core.info(state)["dice"].nan_to_num().sum().item()
        spent = 0.0
        with torch.inference_mode():
            for step in range(1, steps + 1):
                begin = perf_counter()
                state = next(walk(agent, core, state, 1))
                spent += perf_counter() - begin
                curve[step] += core.info(state)["dice"].nan_to_num().sum().item()
                if step in fields:
                    assert state.displacement is not None
                    fields[step].append(state.displacement.clone())
                    seconds[step] += spent
    movers = [p for part in (agent.policy.planner, agent.policy.actor) for p in part.parameters()]
    return [Row(name, step, Metrics.of(start, torch.cat(each), core.task.grid), seconds[step] / start.lanes,
                sum(p.numel() for p in movers)) for step, each in fields.items()], curve / start.lanes


def classical(data: Data, core: RegistrationCore, start: EpisodeState) -> list[Row]:
    rows = [Row("initial", 0, Metrics.of(start, None, core.task.grid), 0.0)]
    searches: dict[str, Any] = {"demons": data.demons, "B-spline FFD": data.free_form}
    if SyN.available():
        searches["SyN"] = SyN()
    for name, search in searches.items():
        begin = perf_counter()
        field = searched(search, start, core.task.grid)
        seconds = (perf_counter() - begin) / start.lanes
        rows.append(Row(name, 0, Metrics.of(start, field, core.task.grid), seconds))
    return rows


def off_the_shelf(data: Data, core: RegistrationCore, start: EpisodeState, budget: int) -> list[Row]:
    """SB3's PPO and SAC on the control grid, trained for ``budget`` environment steps each."""
    look = {"features_extractor_class": CompactCNN, "normalize_images": False}
    makers: dict[str, Callable[[SB3VecEnv], Any]] = {
        "SB3 PPO, control grid": lambda env: PPO(
            "CnnPolicy", env, n_steps=64, batch_size=512, n_epochs=5, ent_coef=0.0, gamma=0.9, gae_lambda=0.8,
            learning_rate=1e-3, seed=0,
            policy_kwargs={**look, "log_std_init": -1.5,  # noise of a third of a voxel; SB3's own is of 1.5
                           "ortho_init": False}),  # torch cannot do it on weights that lie channels last
        "SB3 SAC, control grid": lambda env: SAC(
            "CnnPolicy", env, buffer_size=20_000, learning_starts=1_000, batch_size=128, gradient_steps=2, gamma=0.8,
            learning_rate=1e-3, ent_coef="auto_0.01", seed=0, policy_kwargs=look,
            target_entropy=-2.0 * math.prod(env.action_space.shape))}  # SB3's own, half as low, leaves too much noise
    kwargs = {**data.env_kwargs, "control_grid": data.control_grid, "reward_scale": 10.0, "max_displacement": 1.5}
    source = {key: value for key, value in data.held_out.items() if key != "split"}
    rows = []
    for name, make in makers.items():
        model = make(SB3VecEnv(gym.make_vec(data.env, num_envs=16, autoreset_mode="SameStep", source=source, **kwargs)))
        model.learn(budget)
        played = RegistrationCore(build(data.env, **kwargs, source=data.held_out))
        state, begin = played.begin(start.pair, torch.zeros_like(start.pose)), perf_counter()
        for _ in range(STEPS):
            action = model.predict(played.observe(state).numpy(), deterministic=True)[0]
            state = played.step(state, torch.from_numpy(action))[0]
        rows.append(Row(name, STEPS, Metrics.of(start, state.displacement, core.task.grid),
                        (perf_counter() - begin) / start.lanes, sum(p.numel() for p in model.policy.parameters())))
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = ["| method | t | Dice, % | 95 % interval | HD, mm | folded voxels | SDlogJ | s/pair | parameters |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        m, (low, high) = row.measures, row.interval()
        lines.append(f"| {row.method} | {row.steps or ''} | {m.dice.mean():.2%} ± {m.dice.std():.2%} | {low:.2%} to "
                     f"{high:.2%} | {m.hausdorff.mean():.1f} | {m.folding.mean():.2%} | "
                     f"{m.sd_log_jacobian.mean():.3f} | {row.seconds:.3f} | {row.parameters or ''} |")
    return "\n".join(lines).replace("%", " %").replace("  %", " %") + "\n"


def draw_curves(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Figure 5: mean Dice over the steps."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, curve in curves.items():
        axis.plot(curve, label=name, marker=".")
    axis.set(xlabel="step", ylabel="mean Dice")
    axis.axvline(STEPS, color="0.7", lw=1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    keep(figure, path)


def middle(image: Tensor) -> np.ndarray:
    """An image (H, W), or the middle coronal slice of a volume, head up."""
    return (image if image.ndim == 2 else image[:, image.shape[1] // 2].flip(0)).numpy()


def draw_steps(path: Path, agent: Any, core: RegistrationCore, state: EpisodeState) -> None:
    """Figure 6: the accumulated displacement and the image seen through it, one pair over its steps."""
    shown = (1, 2, 4, 7, 10, 20)
    states = {0: state}
    with torch.inference_mode():
        for step, after in enumerate(walk(agent, core, state, shown[-1]), 1):
            states[step] = after
    figure, axes = plt.subplots(3, len(shown) + 1, figsize=(1.7 * (len(shown) + 1), 5.4))
    for column, step in enumerate((0, *shown)):
        now = states[step]
        length = (torch.zeros(now.pair.fixed.shape[2:]) if now.displacement is None
                  else now.displacement[0].norm(dim=0))
        axes[0][column].imshow(middle(length), cmap="Blues", vmin=0, vmax=float(states[shown[-1]].displacement[0].norm(
            dim=0).amax()))
        axes[1][column].imshow(middle(now.warped[0, 0]), cmap="gray", vmin=0, vmax=1)
        axes[2][column].imshow(render.frame(middle(now.pair.fixed[0, 0]), middle(now.warped[0, 0]), "overlay"))
        axes[0][column].set_title("start" if step == 0 else f"t = {step}", fontsize=9)
        axes[1][column].set_title(f"Dice {core.info(now)['dice'][0]:.3f}", fontsize=8, color="firebrick")
    for row, label in enumerate(("|displacement|", "warped", "fixed and warped")):
        axes[row][0].set_ylabel(label, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    keep(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=SETS, default="digits")
    parser.add_argument("--pairs", type=int, help="default 1,000 digits, 200 slices")
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--sb3", type=int, metavar="STEPS", help="also train SB3's PPO and SAC, that many steps each")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/DATA")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    data, out = SETS[arguments.data], arguments.out or RESULTS / arguments.data
    core, start = begun(data, arguments.pairs or data.pairs, arguments.seed)
    first, second, curves, agents = classical(data, core, start), [], {}, {}
    for variant, title in VARIANTS.items():
        path = resolve(f"{arguments.data}-{variant}")
        if not path.is_file():
            print(f"{title}: no weights {path}; its rows are left out", file=sys.stderr)
            continue
        agents[variant] = load(path, algorithm={"ppo": "PPOModified", "ddpg": "DDPGModified"}.get(variant, "SPAC"))
        rows, curves[title] = stepwise(title, agents[variant], core, start, BEYOND)
        first += ([row for row in rows if row.steps in (1, 10, 20)] if variant == "spac" else
                  rows[-1:] if variant == "spac-ssim" else
                  [rows[0], rows[-1]] if variant == "oneshot" else [])
        second += rows[-1:]
        print(table(rows), flush=True)
    if arguments.sb3:
        first += off_the_shelf(data, core, start, arguments.sb3)
    told = (f"# Stepwise dense registration: {arguments.data}\n\nMade by `"
            f"{' '.join(['python benchmarks/dense.py', *typed])}` on {date.today()}, {platform.machine()}, 1 thread, "
            f"torch {torch.__version__}: {start.lanes} held-out pairs.\n\n## Table 1\n\n{table(first)}\n"
            f"## Table 2, after {STEPS} steps\n\n{table(second)}")
    print(told)
    with atomic(out.with_suffix(".md")) as temporary:
        temporary.write_text(told)
    with atomic(out.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "steps", "dice_mean", "dice_sd", "hd_mm", "folding", "sd_log_jacobian",
                         "seconds_per_pair", "parameters"])
        writer.writerows([row.method, row.steps, row.measures.dice.mean(), row.measures.dice.std(),
                          row.measures.hausdorff.mean(), row.measures.folding.mean(),
                          row.measures.sd_log_jacobian.mean(), row.seconds, row.parameters]
                         for row in {id(row): row for row in (*first, *second)}.values())
    draw_curves(out.with_name(f"{out.name}-steps.png"), curves)
    if "spac" in agents:
        draw_steps(out.with_name(f"{out.name}-episode.png"), agents["spac"], core, start.select(slice(0, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
