"""Registration time per pair and accuracy of every shipped agent beside classical methods.

    python benchmarks/times.py                                            # all agents and methods
    python benchmarks/times.py --agents head similarity-rl --methods mi   # some of them
    python benchmarks/times.py --pairs 1 --repeats 1 --out DIR/NAME       # a first look

All methods of a task register the same pairs from the same starts, one pair at a time and in turn, so the ratios hold
whatever else the machine does. No pair needs a download; digits and real slices need the extra ``data``. SyN, elastix
and the ConvexAdam of its authors have rows where ``antspyx``, ``itk-elastix`` and ``convexadam`` are installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"))

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, machine, publish
from times_methods import AUTHORS, CLASSICAL, PACKAGES, REFINED, Counted, absent, method_run

from regagents.agents import shipped
from regagents.evaluation.dense import field_measures
from regagents.evaluation.methods import Found
from regagents.evaluation.pairs import HELD_OUT, Chunk, drawn
from regenv.data.banks.downloads import DatasetError
from regenv.registry import build
from regenv.task import Task

RESULTS = Path(__file__).parent / "results"
SEED = 700_000                      # of the first pair
TRE, DICE = "tre_mm", "dice"
PLANE = ("bspline", "demons", "syn", "adam", "convexadam")
SPACE = (*PLANE, AUTHORS)


@dataclass(frozen=True)
class Setting:
    """Pairs on which some of the shipped agents are measured.

    Args:
        pairs: what they show. env, env_kwargs: the id that draws them.
        methods: the classical ones that apply.
        measure: TRE or DICE.
        more: what is measured beside the weights alone.
        loading: arguments of the environment that agents are loaded with.
    """

    pairs: str
    env: str
    env_kwargs: Mapping[str, Any]
    methods: tuple[str, ...]
    measure: str = TRE
    more: tuple[str, ...] = ()
    loading: Mapping[str, Any] = field(default_factory=dict)

    def task(self) -> Task:
        """The task that draws the pairs."""
        return build(self.env, **self.env_kwargs)

    def draw(self, count: int) -> list[Chunk]:
        """Pairs one by one."""
        return [drawn(self.env, self.env_kwargs, 0, 1, SEED + i) for i in range(count)]


SETTINGS = {                        # by the beginning of their agents' names
    "rigid2d": Setting("synthetic heads", "RegRigid2D-v0", {"source": {"name": "phantoms", "split": "test"}},
                       ("mi", "sift", "elastix"), more=(f"rigid2d{REFINED}",)),
    "head": Setting("synthetic heads", "RegRigid3D-v0",
                    {"size": 64, "spacing": 3.25, "source": {"name": "phantoms", "split": "test"}}, ("mi", "elastix"),
                    more=("head", f"head{REFINED}")),
    "spine-coarse": Setting("synthetic spines", *HELD_OUT["spine"], ("mi", "elastix"),
                            more=("spine", f"spine{REFINED}")),
    "spine-fine": Setting("parts of synthetic spines", "RegRigid3D-v0", {
        "size": 32, "spacing": 3.0, "ranges": [12, 12, 12, 8, 8, 8],
        "source": {"name": "spine", "split": "test", "moving_extent_mm": [150.0, 150.0, 150.0], "placement_mm": 80.0,
                   "lateral_mm": 30.0}}, ("mi", "elastix")),
    "similarity": Setting("slices of a head, MR and CT", "RegSimilarity2D-v0", {
        "source": {"name": "slices", "subjects": ["mni152"], "split": "test"}, "perturbation": "E2",
        "max_episode_steps": 150}, ("mi", "sift", "elastix"), more=("similarity-rl+mc",)),
    "organ2d": Setting("synthetic organs", "RegSDM2D-v0", {"source": {"name": "organs", "split": "test"}}, PLANE, DICE),
    "organ3d": Setting("synthetic organs", "RegSDM3D-v0", {"source": {"name": "organs", "split": "test"}}, SPACE, DICE),
    "digits": Setting("digits", "RegDenseDigits-v0", {"source": {"name": "digits", "split": "test"}}, PLANE, DICE),
    "brain2d": Setting("slices of a brain", "RegDense2D-v0", {
        "spacing": 1.5, "source": {"name": "brains", "subjects": ["mni152"]}}, PLANE, DICE),
    "liver32": Setting("synthetic livers", "RegDense3D-v0", {
        "size": 32, "spacing": 8.0, "source": {"name": "livers", "split": "test"}}, SPACE, DICE),
    "lung3d": Setting("synthetic lungs", "RegKeypoint3D-v0", {
        "size": 64, "observation": "dict", "source": {"name": "lungs", "split": "test"}}, SPACE, loading={"size": 64}),
}


def agents() -> dict[str, str]:
    """Setting of every shipped agent and of what is measured beside the weights alone."""
    weights = {path.stem: key for path, _ in shipped() for key in SETTINGS if path.stem.startswith(key)}
    return weights | {name: key for key, setting in SETTINGS.items() for name in setting.more}


def score(measure: str, chunk: Chunk, found: Found) -> float:
    """The mean landmark error, mm, or Dice, of what was found for the one pair of a chunk."""
    if chunk.core.task.transform.linear:
        return chunk.cases[0].error(found.pull_backs[0])
    [value] = field_measures(chunk.state, found.displacements, chunk.core.task.grid, [measure])[measure]
    assert value is not None
    return value


@dataclass(frozen=True)
class Row:
    """A method on the pairs of a setting: seconds of every run, steps and scores of every pair."""

    setting: str
    env: str
    pairs: str
    grid: str
    method: str
    agent: bool
    threads: int
    measure: str
    seconds: list[float]
    steps: list[int | None]
    before: list[float]
    after: list[float]

    @property
    def time(self) -> float:
        """Seconds a pair, median."""
        return float(np.median(self.seconds))

    @property
    def helps(self) -> bool:
        """Whether the mean score is better than at the start."""
        gain = np.mean(self.after) - np.mean(self.before)
        return bool(gain > 0 if self.measure == DICE else gain < 0)

    def shown(self, scores: Sequence[float]) -> str:
        """The mean of scores, as text."""
        return f"Dice {np.mean(scores):.3f}" if self.measure == DICE else f"{np.mean(scores):.2f} mm"


def measured(key: str, names: Sequence[str], pairs: int, repeats: int) -> list[Row]:
    """Rows of some agents and classical methods, run in turn; the first run of each, which may compile, is not
    counted."""
    setting = SETTINGS[key]
    drawn_pairs, task = setting.draw(pairs), setting.task()
    methods = {name: method_run(name, task, setting.loading) for name in names}
    for method in methods.values():
        method(drawn_pairs[0])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[Counted]] = {name: [] for name in names}
    for pair in drawn_pairs:
        for name, method in [*methods.items()] * repeats:
            torch.manual_seed(0)
            begin = perf_counter()
            counted = method(pair)
            seconds[name].append(perf_counter() - begin)
            found[name].append(counted)
    before = [score(setting.measure, pair, Found.of(pair.state)) for pair in drawn_pairs]
    grid = f"{' x '.join(map(str, task.grid.shape))} of {task.grid.spacing[0]:.3g} mm"
    return [Row(key, setting.env, setting.pairs, grid, name, name not in CLASSICAL, torch.get_num_threads(),
                setting.measure, seconds[name], [steps for _, steps in found[name][::repeats]], before,
                [score(setting.measure, pair, answer)
                 for pair, (answer, _) in zip(drawn_pairs, found[name][::repeats], strict=True)]) for name in names]


def yardsticks(rows: Sequence[Row]) -> dict[str, Row]:
    """The fastest classical method of each setting that makes the start better."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.time):
        if not row.agent and row.helps:
            found.setdefault(row.setting, row)
    return found


def table(rows: Sequence[Row]) -> str:
    lines = ["| task | pairs | method | s/pair | of the fastest classical | threads | steps | before | after |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    fastest = yardsticks(rows)
    for row in rows:
        ratio = f"{row.time / fastest[row.setting].time:.3g} x" if row.setting in fastest else ""
        steps = "" if None in row.steps else f"{np.median(np.array(row.steps, dtype=float)):.0f}"
        lines.append(f"| {row.env} | {row.pairs}, {row.grid} | {CLASSICAL.get(row.method, f'`{row.method}`')} | "
                     f"{row.time:.3g} | {ratio} | {row.threads} | {steps} | {row.shown(row.before)} | "
                     f"{row.shown(row.after)} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Seconds a pair as bars, by setting; behind each the score after."""
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.21 * (len(rows) + 2 * len({row.setting for row in rows}))))
    place, ticks, setting = 0.0, {}, ""
    for row in rows:
        if row.setting != setting:
            place, setting = place + 2, row.setting
            axis.text(0.005, place - 1, f"{row.env}: {row.pairs}, before {row.shown(row.before)}", weight="bold",
                      fontsize=8, va="center", transform=axis.get_yaxis_transform())
        axis.barh(place, row.time, color="tab:blue" if row.agent else "0.65")
        axis.text(1.08 * row.time, place, row.shown(row.after), fontsize=7, va="center")
        ticks[place] = CLASSICAL.get(row.method, row.method)
        place += 1
    axis.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    axis.set_title(title, fontsize=8)
    axis.set(xscale="log", xlabel="seconds a pair; agents blue, behind each bar the score after", ylim=(place, 0),
             xlim=(0.5 * min(row.time for row in rows), 4 * max(row.time for row in rows)))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    keep(figure, path)


def page(made: Mapping[str, Any], rows: Sequence[Row], left_out: Sequence[str]) -> str:
    return (f"# Registration time per pair\n\nMade by `{made['command']}` on {made['date']}, {made['machine']}. "
            f"Seconds: median over {made['pairs']} pairs a task and {made['repeats']} runs of each, one pair at a time "
            "(in batches agents take less time a pair), methods in turn, after a run of each that is not counted, in "
            "which weights are loaded and kernels compiled. Before and after: mean landmark error, or Dice. Steps: of "
            "an agent in the environment (including the roll-outs of a look-ahead, without the refinement's), or an "
            "optimiser's iterations if it reports them. The fastest classical method is the fastest that improves on "
            "the start. No agent was trained on the subjects or phantoms of its pairs, except those for slices of a "
            "brain: that subject was in training, deformed in other ways. For the lungs only Adam, ConvexAdam and the "
            f"learned optimisers get masks.\n\n{table(rows)}"
            + "".join(f"\nLeft out: {reason}\n" for reason in left_out))


def main(argv: Sequence[str] | None = None) -> int:
    typed, known = list(sys.argv[1:] if argv is None else argv), agents()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", choices=known, default=list(known), metavar="NAME",
                        help="weights such as similarity-rl, pipelines such as head and head+refined")
    parser.add_argument("--methods", nargs="*", choices=CLASSICAL, default=list(CLASSICAL))
    parser.add_argument("--pairs", type=int, default=4, help="of each task")
    parser.add_argument("--repeats", type=int, default=1, help="of each pair")
    parser.add_argument("--out", type=Path, default=RESULTS / "times")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    rows: list[Row] = []
    left_out = [f"{path.stem}: no pairs of its task" for path, _ in shipped() if path.stem not in known]
    wanted = {key: [name for name in arguments.agents if known[name] == key] for key in SETTINGS}
    classical = {key: [name for name in SETTINGS[key].methods if name in arguments.methods]
                 for key, chosen in wanted.items() if chosen}
    missing = [name for name in absent() if any(name in names for names in classical.values())]
    left_out += [f"{CLASSICAL[name]}: `pip install {PACKAGES[name]}`" for name in missing]
    for key, names in classical.items():
        methods = [*wanted[key], *(name for name in names if name not in missing)]
        try:
            rows += measured(key, methods, arguments.pairs, arguments.repeats)
        except DatasetError as error:
            left_out.append(f"{', '.join(wanted[key])}: {error}")
            continue
        print(f"{key}: " + ", ".join(f"{row.method} {row.time:.3g} s" for row in rows if row.setting == key),
              flush=True)
    if not rows:
        print("\n".join(left_out), file=sys.stderr)
        return 2
    made = {"command": " ".join(["python benchmarks/times.py", *typed]), "date": str(date.today()),
            "machine": machine(), "pairs": arguments.pairs, "repeats": arguments.repeats}
    told = page(made, rows, left_out)
    publish(arguments.out, told, {**made, "left_out": left_out, "rows": [
        {**asdict(row), "median_seconds": row.time} for row in rows]})
    draw(arguments.out.with_suffix(".png"), rows, f"{made['date']}, {made['machine']}, one thread")
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
