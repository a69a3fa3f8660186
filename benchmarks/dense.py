"""Tables 1 and 2 and figures 5 and 6 of Luo et al. 2022: stepwise dense registration of held-out pairs.

    python benchmarks/dense.py                            # scaled and rotated digits onto ten atlases
    python benchmarks/dense.py brain2d                    # slices of the brains of other subjects
    python benchmarks/dense.py liver32                    # livers, small volumes
    python benchmarks/dense.py digits --sb3 20000         # with SB3's PPO and SAC on a control grid, trained here
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, made_by, mean_interval, write
from stable_baselines3 import PPO, SAC
from torch import Tensor

from regagents.agents import load, resolve
from regagents.common.extractors import CompactCNN
from regagents.common.player import player_of, rollout
from regagents.evaluation.evaluate import evaluate
from regagents.evaluation.methods import Method, Policy, default_baselines
from regagents.evaluation.pairs import Chunk, chunks, task_of
from regagents.evaluation.report import Row
from regenv import render
from regenv.registry import build
from regenv.wrappers.sb3 import SB3VecEnv

RESULTS = Path(__file__).parent / "results"
STEPS, BEYOND = 20, 30      # of an episode, and how far figure 5 goes
SHOWN = (1, 2, 4, 7, 10, 20)    # steps in figure 6
MEASURES = ("dice", "hausdorff_mm", "folding", "sd_log_jacobian")
CLASSICAL = {"initial": "initial", "demons": "demons", "bspline": "B-spline FFD", "syn": "SyN"}


@dataclass(frozen=True)
class Data:
    """A set of held-out pairs, and the control grid of off-the-shelf agents."""

    env: str
    env_kwargs: dict[str, Any]
    held_out: dict[str, Any]
    pairs: int
    control_grid: tuple[int, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the environment that the held-out pairs come from."""
        return {**self.env_kwargs, "source": self.held_out}


SETS = {
    "digits": Data("RegDenseDigits-v0", {}, {"name": "digits", "split": "test"}, 1000, (6, 6)),
    "brain2d": Data("RegDense2D-v0", {"spacing": 1.5}, {"name": "brains", "split": "test"}, 200, (8, 8)),
    "liver32": Data("RegDense3D-v0", {"size": 32, "spacing": 8.0}, {"name": "livers", "split": "test"}, 100, (5, 5, 5)),
}
VARIANTS = {"oneshot": ("one-shot U-Net", (1, STEPS)), "spac-ssim": ("SPAC, SSIM reward", (STEPS,)),
            "ppo": ("PPO-modified", (STEPS,)), "ddpg": ("DDPG-modified", (STEPS,)),
            "spac-action": ("SPAC-action", (STEPS,)), "spac-norl": ("SPAC without RL", (STEPS,)),
            "spac-noreg": ("SPAC without registration loss", (STEPS,)), "spac": ("SPAC", (1, 10, STEPS))}
IN_TABLE_1 = ("oneshot", "spac-ssim", "spac")
Line = tuple[str, int | None, Row, int | None]
"""Of a table: title, steps, measures, and parameters of the networks."""


def measured(data: Data, pairs: int, seed: int, methods: Sequence[str | Method]) -> list[Row]:
    return list(evaluate(data.env, methods, pairs, seed, data.arguments, measures=MEASURES).rows)


def curve(agent: Any, drawn: Sequence[Chunk]) -> np.ndarray:
    """Mean Dice before and after every step."""
    total = np.zeros(BEYOND + 1)
    with torch.inference_mode():
        for chunk in drawn:
            states = [chunk.state, *rollout(player_of(agent), chunk.core, chunk.state, BEYOND)]
            total += [chunk.core.info(state)["dice"].nan_to_num().sum().item() for state in states]
    return total / sum(chunk.state.lanes for chunk in drawn)


def off_the_shelf(data: Data, budget: int) -> list[Policy]:
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
    found = []
    for name, make in makers.items():
        model = make(SB3VecEnv(gym.make_vec(data.env, num_envs=16, autoreset_mode="SameStep", source=source, **kwargs)))
        model.learn(budget)
        found.append(Policy(name, model, build(data.env, **kwargs, source=data.held_out), STEPS))
    return found


def numbers(line: Line) -> list[Any]:
    """Method, steps, mean and deviation of Dice, means of the other measures, seconds a pair, parameters."""
    title, steps, row, parameters = line
    dice, *others = (row.values(name) for name in MEASURES)
    return [title, steps or 0, dice.mean(), dice.std(), *(each.mean() for each in others), row.seconds, parameters or 0]


def table(lines: Sequence[Line]) -> str:
    told = ["| method | t | Dice, % | 95 % interval | HD, mm | folded voxels | SDlogJ | s/pair | parameters |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for line in lines:
        title, steps, mean, deviation, far, folding, spread, seconds, parameters = numbers(line)
        _, low, high = mean_interval(line[2].values("dice"))
        told.append(f"| {title} | {steps or ''} | {mean:.2%} ± {deviation:.2%} | {low:.2%} to {high:.2%} | {far:.1f} | "
                    f"{folding:.2%} | {spread:.3f} | {seconds:.3f} | {parameters or ''} |")
    return "\n".join(told).replace("%", " %").replace("  %", " %") + "\n"


def draw_curves(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Figure 5: mean Dice over the steps."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, values in curves.items():
        axis.plot(values, label=name, marker=".")
    axis.set(xlabel="step", ylabel="mean Dice")
    axis.axvline(STEPS, color="0.7", lw=1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    keep(figure, path)


def middle(image: Tensor) -> np.ndarray:
    """An image (H, W), or the middle coronal slice of a volume, head up."""
    return (image if image.ndim == 2 else image[:, image.shape[1] // 2].flip(0)).numpy()


def draw_steps(path: Path, agent: Any, chunk: Chunk) -> None:
    """Figure 6: the accumulated displacement and the image seen through it, one pair over its steps."""
    start = chunk.state.select(slice(0, 1))
    with torch.inference_mode():
        states = [start, *rollout(player_of(agent), chunk.core, start, SHOWN[-1])]
    longest = float(states[-1].displacement[0].norm(dim=0).amax())
    figure, axes = plt.subplots(3, len(SHOWN) + 1, figsize=(1.7 * (len(SHOWN) + 1), 5.4))
    for column, step in enumerate((0, *SHOWN)):
        now = states[step]
        fixed, warped = middle(now.pair.fixed[0, 0]), middle(now.warped[0, 0])
        axes[0][column].imshow(middle(now.displacement[0].norm(dim=0)), cmap="Blues", vmin=0, vmax=longest)
        axes[1][column].imshow(warped, cmap="gray", vmin=0, vmax=1)
        axes[2][column].imshow(render.frame(fixed, warped, "overlay"))
        axes[0][column].set_title("start" if step == 0 else f"t = {step}", fontsize=9)
        axes[1][column].set_title(f"Dice {chunk.core.info(now)['dice'][0]:.3f}", fontsize=8, color="firebrick")
    for row, label in enumerate(("|displacement|", "warped", "fixed and warped")):
        axes[row][0].set_ylabel(label, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    keep(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=SETS, default="digits")
    parser.add_argument("--pairs", type=int, help="default 1,000 digits, 200 slices, 100 livers")
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--sb3", type=int, metavar="STEPS", help="also train SB3's PPO and SAC, that many steps each")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/DATA")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    data, out = SETS[arguments.data], arguments.out or RESULTS / arguments.data
    pairs = arguments.pairs or data.pairs
    drawn = list(chunks(data.env, pairs, arguments.seed, data.arguments))
    classical = [name for name in default_baselines(task_of(data.env, data.arguments)) if name in CLASSICAL]
    first: list[Line] = [(CLASSICAL[row.method], None, row, None)
                         for row in measured(data, pairs, arguments.seed, classical)]
    second: list[Line] = []
    curves, agents = {}, {}
    for variant, (title, steps) in VARIANTS.items():
        path = resolve(f"{arguments.data}-{variant}")
        if not path.is_file():
            print(f"{title}: no weights {path}; its rows are left out", file=sys.stderr)
            continue
        agents[variant] = agent = load(path)
        curves[title] = curve(agent, drawn)
        parameters = sum(p.numel() for part in (agent.policy.planner, agent.policy.actor) for p in part.parameters())
        rows = measured(data, pairs, arguments.seed, [Policy(f"{title} {n}", agent, steps=n) for n in steps])
        lines: list[Line] = [(title, n, row, parameters) for n, row in zip(steps, rows, strict=True)]
        first += lines if variant in IN_TABLE_1 else []
        second += lines[-1:]
        print(table(lines), flush=True)
    if arguments.sb3:
        players = off_the_shelf(data, arguments.sb3)
        first += [(player.name, STEPS, row, sum(p.numel() for p in player.model.policy.parameters()))
                  for player, row in zip(players, measured(data, pairs, arguments.seed, players), strict=True)]
    page = (f"# Stepwise dense registration: {arguments.data}\n\n{made_by('dense.py', typed)}: {pairs} held-out pairs."
            f"\n\n## Table 1\n\n{table(first)}\n## Table 2, after {STEPS} steps\n\n{table(second)}")
    print(page)
    write(out, page, ["method", "steps", "dice_mean", "dice_sd", "hd_mm", "folding", "sd_log_jacobian",
                      "seconds_per_pair", "parameters"],
          [numbers(line) for line in {id(line): line for line in (*first, *second)}.values()])
    draw_curves(out.with_name(f"{out.name}-steps.png"), curves)
    if "spac" in agents:
        draw_steps(out.with_name(f"{out.name}-episode.png"), agents["spac"], drawn[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
