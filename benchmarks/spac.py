"""Table 2 of Luo et al. 2022 with equal updates: what reinforcement learning on the plan adds, over several seeds.

    python benchmarks/spac.py                     # digits, all rows, three seeds
    python benchmarks/spac.py --seeds 5 --steps 20000
    python benchmarks/spac.py --rows spac spac-norl

Without reinforcement learning no plans are drawn while episodes are played either; where critics do not steer, they
are: the difference of these two rows is what other states to learn from are worth, not what critics are worth. Every
row is trained anew for the same number of steps and updates. A finished training is a line of spac.jsonl, which lets
the same command go on; the page is made of all lines that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from common import made_by, write
from scipy import stats
from torch import Tensor

from regagents.agents import create
from regagents.common.player import rollout
from regagents.spac import SPAC, SPACPolicy
from regagents.training.presets import PRESETS
from regenv.core import RegistrationCore
from regenv.ops.similarity import lncc
from regenv.ops.warp import warp_dense
from regenv.registry import build

OUT = Path(__file__).parent / "results" / "spac"
STEPS = 20              # of an episode
CANDIDATES = 8
FIRST = 700_000         # seed of the first held-out pair
ROWS = {"spac-norl": "without RL, stepwise", "spac": "SPAC, mean plan",
        "spac-unsteered": "SPAC whose critics do not steer", "oneshot": "without RL, one step", "ppo": "PPO-modified",
        "grpo": "GRPO on the plan", "ddpg": "DDPG-modified", "spac-action": "SPAC-action",
        "spac-noreg": "without registration loss"}
CHOICES = {"q": "the critics choose", "chance": "chance chooses", "lncc": "the local correlation chooses"}


@dataclass(frozen=True)
class Chooses:
    """Plays one of the plans that a policy proposes. Attributes: by: "q", "chance" or "lncc"."""

    policy: SPACPolicy
    by: str

    def play(self, observation: Tensor, allowed: Tensor | None, memory: None) -> tuple[Tensor, None]:
        """See :class:`regagents.common.player.Player`."""
        image = self.policy.scaled(observation)
        proposal = self.policy.planner(image)
        plans = self.policy.proposed(proposal, CANDIDATES)
        if self.by == "q":
            worth = torch.stack([self.policy.weighed(image, plan) for plan in plans])
        elif self.by == "lncc":
            coarse = [self.policy.actor.coarse(plan, tuple(image.shape[2:])) for plan in plans]
            worth = torch.stack([lncc(image[:, :1], warp_dense(image[:, 1:], field), window=9).flatten()
                                 for field in coarse])
        else:
            worth = torch.rand(len(plans), len(image), generator=torch.Generator().manual_seed(1))
        best = plans[worth.argmax(0), torch.arange(len(image))]
        return self.policy.actor(best, image, proposal.features), None


def played(player: Any, core: RegistrationCore, pairs: int) -> list[float]:
    """Mean Dice, %, after 1, 10 and 20 steps."""
    start = core.reset([np.random.default_rng(FIRST + lane) for lane in range(pairs)])
    with torch.inference_mode():
        states = list(rollout(player, core, start, STEPS))
        dice = [100 * core.info(states[step - 1])["dice"].nan_to_num().mean().item() for step in (1, 10, STEPS)]
    return dice


def trained(data: str, row: str, seed: int, steps: int, pairs: int) -> list[dict[str, Any]]:
    """Train a row and measure it: a line for each way of playing it."""
    preset = PRESETS[f"{data}-{row}"]
    begun = time.process_time()
    agent: SPAC = create({**preset, "steps": steps}, seed=seed)
    agent.learn(steps)
    took = time.process_time() - begun
    agent.policy.set_training_mode(False)
    agent.policy.candidates = 1
    held_out = {**PRESETS[f"{data}-spac"]["env_kwargs"]}
    source = {**held_out.get("source", {"name": "digits"}), "split": "test"}
    core = RegistrationCore(build(preset["env"], **{**held_out, "source": source}))
    same = {"seed": seed, "steps": steps, "updates": agent.updates, "seconds": round(took, 1)}
    lines = [{"row": row, **same, "dice": played(agent.policy, core, pairs)}]
    if row == "spac":
        lines[0]["gauges"] = asdict(agent.gauges(pairs=32))
        lines[0] |= {"sigma": agent.policy.planner.log_std.exp().mean().item(),
                     "alpha": agent.policy.log_alpha.exp().item()}
        lines += [{"row": f"spac-by-{by}", **same, "dice": played(Chooses(agent.policy, by), core, pairs)}
                  for by in CHOICES]
    return lines


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of Student's 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.1f} ± {half:.1f}"


def page(lines: Sequence[dict[str, Any]], typed: Sequence[str], pairs: int) -> str:
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(line["row"], []).append(line)
    base, watched = ({line["seed"]: line["dice"][-1] for line in rows.get(key, [])}
                     for key in ("spac-norl", "spac-unsteered"))
    told = [f"# Stochastic planner-actor-critic: what each part is worth\n\n{made_by('spac.py', typed)}: {pairs} "
            "held-out pairs. Intervals are Student's, 95 %, over seeds; differences are paired by seed.\n",
            "| row | seeds | updates | Dice after 1 step | 10 | 20 | less without RL, stepwise | CPU s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    names = {**ROWS, **{f"spac-by-{by}": f"SPAC, {text} of {CANDIDATES} plans" for by, text in CHOICES.items()}}
    for key, own in sorted(rows.items(), key=lambda item: -np.mean([line["dice"][-1] for line in item[1]])):
        better = [line["dice"][-1] - base[line["seed"]] for line in own if line["seed"] in base]
        told.append(f"| {names[key]} | {len(own)} | {own[0]['updates']} | " + " | ".join(
            interval([line["dice"][k] for line in own]) for k in range(3)) +
            f" | {interval(better) if better and key != 'spac-norl' else ''} | "
            f"{np.mean([line['seconds'] for line in own]):.0f} |")
    steered = [line["dice"][-1] - watched[line["seed"]] for line in rows.get("spac", []) if line["seed"] in watched]
    if steered:
        told.append(f"\nSPAC's mean plan less that of SPAC whose critics do not steer: {interval(steered)} points.")
    gauged = [line for line in rows.get("spac", []) if "gauges" in line]
    if gauged:
        told += ["\n## Gauges of SPAC\n", "| gauge | over seeds |", "| --- | ---: |"]
        for name in (*gauged[0]["gauges"], "sigma", "alpha"):
            values = [{**line, **line["gauges"]}[name] for line in gauged]
            told.append(f"| {name} | {', '.join(f'{value:.3g}' for value in values)} |")
    return "\n".join(told) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6_400, help="of a training, default 6,400")
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    record = OUT.with_suffix(".jsonl")
    lines = [json.loads(text) for text in record.read_text().splitlines()] if record.is_file() else []
    lines = [line for line in lines if line["steps"] == arguments.steps]
    for seed in range(arguments.seeds):
        for row in arguments.rows:
            if any(line["row"] == row and line["seed"] == seed for line in lines):
                continue
            new = trained("digits", row, seed, arguments.steps, arguments.pairs)
            lines += new
            with record.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
            print(*new, sep="\n", flush=True)
    write(OUT, page(lines, typed, arguments.pairs), ["row", "seed", "steps", "updates", "dice_1", "dice_10", "dice_20"],
          [[line["row"], line["seed"], line["steps"], line["updates"], *line["dice"]] for line in lines])
    print(OUT.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
