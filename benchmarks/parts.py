"""What each part that gives a system its name is worth: the error with it and without it, on the same held-out pairs.

    python benchmarks/parts.py                          # every part
    python benchmarks/parts.py --pairs 32 --systems A3C # a first look

A system's parts are rows of PARTS. Differences are means over the pairs, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from common import made_by, mean_interval, publish
from similarity import ENV, HELD_OUT, LOST_PX, PIXEL_MM, STEPS
from torch import Tensor, nn
from tqdm import tqdm

from regagents.a3c import A3C
from regagents.agents import load_as
from regagents.evaluation.evaluate import measured
from regagents.evaluation.methods import Found, Method, ValueStop
from regagents.evaluation.pairs import Chunk, chunks
from regenv.core import RegistrationCore

RESULTS = Path(__file__).parent / "results"
SIMILARITY = "similarity-value"


class Forgetful(nn.Module):
    """An LSTM whose memory is zero at every step."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, features: Tensor, memory: Any) -> tuple[Tensor, Tensor]:
        hidden: tuple[Tensor, Tensor] = self.cell(features)
        return hidden


@dataclass(frozen=True)
class Unbounded:
    """A method whose poses may go any way from the start."""

    method: Method
    name: str = "unbounded"

    def __call__(self, chunk: Chunk) -> Found:
        start: Any = chunk.core.task.start
        anywhere = replace(start, ranges=(1e6,) * len(start.ranges))
        return self.method(replace(chunk, core=RegistrationCore(replace(chunk.core.task, start=anywhere))))


def a3c(forgetful: bool = False, plain: bool = False, **changes: Any) -> ValueStop:
    """The agent of Sun et al. 2018, changed. Args: plain: without look-ahead; changes: of its look-ahead."""
    agent = load_as(A3C, SIMILARITY)
    if forgetful:
        cell = agent.policy.core
        assert isinstance(cell, nn.LSTMCell)
        agent.policy.core = Forgetful(cell)
    return ValueStop(SIMILARITY, agent, None if plain else replace(agent.lookahead(), **changes))


def once() -> ValueStop:
    """The agent with one attempt."""
    return a3c(attempts=1)


@dataclass(frozen=True)
class Part:
    """A part of a system. Args: whole, without: make the method with it and without it."""

    system: str
    name: str
    whole: Callable[[], Any]
    without: Callable[[], Any]


PARTS = (
    Part("A3C", "values of the look-ahead (all poses weigh alike)", a3c, lambda: a3c(temperature=None)),
    Part("A3C", "Monte Carlo look-ahead (stops by the value)", a3c, lambda: a3c(plain=True)),
    Part("A3C", "LSTM memory (zeroed at every step)", a3c, lambda: a3c(forgetful=True)),
    Part("A3C", "further attempts where values say astray", a3c, once),
    Part("A3C", "poses within reach of the start (one attempt)", once, lambda: Unbounded(once())),
)
"""Every system here is measured on :data:`similarity.HELD_OUT`, E2; another one's part brings its own pairs with it."""


def errors_of(parts: Sequence[Part], pairs: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each part the errors of all pairs, pixels, with it and without it. Methods made alike run once."""
    makers = list(dict.fromkeys(maker for part in parts for maker in (part.whole, part.without)))
    methods = {maker: maker() for maker in makers}
    errors: dict[Callable[[], Any], list[float]] = {maker: [] for maker in makers}
    kwargs = {"source": HELD_OUT, "perturbation": "E2", "landmarks": "between", "max_episode_steps": STEPS}
    for chunk in tqdm(chunks(ENV, pairs, seed, kwargs), total=-(-pairs // 16), disable=None):
        for maker, method in methods.items():
            errors[maker] += [float(error or 0) / PIXEL_MM for error in measured(chunk, method(chunk))["tre_mm"]]
    return [(np.array(errors[part.whole]), np.array(errors[part.without])) for part in parts]


def row(part: Part, whole: np.ndarray, without: np.ndarray) -> dict[str, Any]:
    """The numbers of a part."""
    cost, low, high = mean_interval(without - whole)
    kept = np.maximum(whole, without) <= LOST_PX
    near, near_low, near_high = mean_interval((without - whole)[kept])
    return {"system": part.system, "part": part.name, "pairs": len(whole), "cost": cost, "low": low, "high": high,
            "near_cost": near, "near_low": near_low, "near_high": near_high,
            **{f"{name}_{key}": value for name, errors in (("whole", whole), ("without", without))
               for key, value in (("mean", float(errors.mean())), ("std", float(errors.std())),
                                  ("p50", float(np.percentile(errors, 50))), ("p90", float(np.percentile(errors, 90))),
                                  ("lost", float((errors > LOST_PX).mean())))}}


def page(rows: Sequence[dict[str, Any]], typed: Sequence[str]) -> str:
    """The table."""
    lines = ["| system | part (without it) | with: mean±std, 50th, 90th, lost | without | cost of leaving it out | "
             "cost where neither is lost |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for one in rows:
        told = [f"{one[f'{name}_mean']:.2f}±{one[f'{name}_std']:.2f}, {one[f'{name}_p50']:.2f}, "
                f"{one[f'{name}_p90']:.2f}, {one[f'{name}_lost']:.1%}" for name in ("whole", "without")]
        lines.append(f"| {one['system']} | {one['part']} | {told[0]} | {told[1]} | {one['cost']:.2f} "
                     f"({one['low']:.2f} to {one['high']:.2f}) | {one['near_cost']:.2f} ({one['near_low']:.2f} to "
                     f"{one['near_high']:.2f}) |")
    return (f"# What each part is worth\n\n{made_by('parts.py', typed)}.\nA3C: landmark errors in pixels of "
            f"{PIXEL_MM:.2f} mm, {rows[0]['pairs']} pairs of E2 from {', '.join(HELD_OUT['subjects'])}, slabs never "
            f"trained on; lost: more than {LOST_PX:.0f} pixels. Intervals: 95 %, bootstrap over the pairs.\n\n"
            + "\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--systems", nargs="+", default=sorted({part.system for part in PARTS}))
    parser.add_argument("--out", type=Path, default=RESULTS / "parts")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    parts = [part for part in PARTS if part.system in arguments.systems]
    if not parts:
        parser.error(f"--systems is {arguments.systems}; there are {sorted({part.system for part in PARTS})}")
    found = errors_of(parts, arguments.pairs, arguments.seed)
    rows = [row(part, *errors) for part, errors in zip(parts, found, strict=True)]
    publish(arguments.out, page(rows, typed), {"rows": rows})
    print(page(rows, typed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
