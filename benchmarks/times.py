"""Registration time per pair of every shipped agent beside classical methods, and what the time buys.

    python benchmarks/times.py                                            # all agents and methods
    python benchmarks/times.py --agents head similarity-rl --methods mi   # some of them
    python benchmarks/times.py --pairs 1 --repeats 1 --out DIR/NAME       # a first look

All methods of a task register the same pairs from the same starts, one pair at a time and in turn, so the ratios hold
whatever else the machine does. No pair needs a download; digits and real slices need the extra ``data``. SyN, elastix
and the ConvexAdam of its authors have rows where ``antspyx``, ``itk-elastix`` and ``convexadam`` are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"))

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import keep, machine
from dense import SETS
from organs import DEMONS, FREE_FORM
from torch import Tensor

from regagents.a3c import A3C, Lookahead, play
from regagents.agents import load, shipped
from regagents.classical import Elastix, refine_pose
from regagents.classical.convexadam import AdamInstance, ConvexAdam, Solver
from regagents.classical.deformable import Demons, FreeForm
from regagents.classical.syn import SyN
from regagents.evaluation.compare import DICE, TRE
from regagents.evaluation.dense import Metrics, Search, deform, searched
from regagents.evaluation.methods import Chain, Classical, Policy, ValueStop, method_named, own_episodes
from regagents.evaluation.pairs import HELD_OUT, Chunk, chunks, drawn
from regagents.l2o.policies import ITERATIONS
from regagents.registration.pipeline import AGENTS, Pipeline, run
from regenv.atomic import atomic
from regenv.core import RegistrationCore
from regenv.data.banks.downloads import DatasetError
from regenv.data.io.resampling import to_sitk
from regenv.registry import build
from regenv.state import EpisodeState
from regenv.task import Task

RESULTS = Path(__file__).parent / "results"
SEED = 700_000                      # of the first pair
REFINED = "+refined"                # ends the name of a pipeline that the local refinement follows
CLASSICAL = {"mi": "SimpleITK, tuned MI", "sift": "SIFT", "elastix": "elastix", "b-spline": "SimpleITK, B-spline MI",
             "demons": "SimpleITK, demons", "syn": "ANTs, SyN", "adam": "Adam", "convexadam": "ConvexAdam",
             "convexadam-package": "ConvexAdam of its authors"}
PACKAGES = {"elastix": "itk-elastix", "syn": "antspyx", "convexadam-package": "convexadam"}
PLANE = ("b-spline", "demons", "syn", "adam", "convexadam")
SPACE = (*PLANE, "convexadam-package")
Found = tuple[Any, int | None]
"""A pull-back (D+1, D+1) or a displacement (1, D, *shape), voxels; and an agent's steps in the environment, or the
iterations of an optimiser that tells them."""
Method = Callable[[Chunk], Found]
"""Registers the one pair of a chunk."""


def tuned(b_spline: FreeForm, demons: Demons, syn: SyN) -> dict[str, Search]:
    return {"b-spline": b_spline, "demons": demons, "syn": syn}


@dataclass(frozen=True)
class Setting:
    """Pairs on which some of the shipped agents are measured.

    Args:
        pairs: what they show. env, env_kwargs: the id that draws them.
        methods: the classical ones that apply. searches: those of them that have settings for these pairs.
        measure: TRE or DICE.
        more: what is measured beside the weights alone.
        loading: arguments of the environment that agents are loaded with.
        masked: whether optimisers, classical and learned, are given the organs' masks.
    """

    pairs: str
    env: str
    env_kwargs: Mapping[str, Any]
    methods: tuple[str, ...]
    searches: Mapping[str, Search] = field(default_factory=dict)
    measure: str = TRE
    more: tuple[str, ...] = ()
    loading: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False

    def task(self) -> Task:
        return build(self.env, **self.env_kwargs)

    def draw(self, count: int) -> list[Chunk]:
        """Pairs one by one."""
        if is_linear(self.task()):
            return [next(chunks(self.env, 1, SEED + i, self.env_kwargs)) for i in range(count)]
        return [drawn(self.env, self.env_kwargs, 1, SEED + i)[0] for i in range(count)]


MI_SYN = SyN("mattes")              # in 3D: local correlation takes minutes
SETTINGS = {                        # by the beginning of their agents' names
    "rigid2d": Setting("made heads", "RegRigid2D-v0", {"source": {"name": "phantoms", "split": "test"}},
                       ("mi", "sift", "elastix"), more=(f"rigid2d{REFINED}",)),
    "head": Setting("made heads", "RegRigid3D-v0",
                    {"size": 64, "spacing": 3.25, "source": {"name": "phantoms", "split": "test"}}, ("mi", "elastix"),
                    more=("head", f"head{REFINED}")),
    "spine-coarse": Setting("made spines", *HELD_OUT["spine"], ("mi", "elastix"), more=("spine", f"spine{REFINED}")),
    "spine-fine": Setting("parts of made spines", "RegRigid3D-v0", {
        "size": 32, "spacing": 3.0, "ranges": [12, 12, 12, 8, 8, 8],
        "source": {"name": "spine", "split": "test", "moving_extent_mm": [150.0, 150.0, 150.0], "placement_mm": 80.0,
                   "lateral_mm": 30.0}}, ("mi", "elastix")),
    "similarity": Setting("slices of a head, MR and CT", "RegSimilarity2D-v0", {
        "source": {"name": "slices", "subjects": ["mni152"], "split": "test"}, "perturbation": "E2",
        "max_episode_steps": 150}, ("mi", "sift", "elastix"), more=("similarity-rl+mc",)),
    "organ2d": Setting("made organs", "RegSDM2D-v0", {"source": {"name": "organs", "split": "test"}}, PLANE,
                       tuned(FREE_FORM[2]["FFD-8"], DEMONS[2], SyN()), DICE),
    "organ3d": Setting("made organs", "RegSDM3D-v0", {"source": {"name": "organs", "split": "test"}}, SPACE,
                       tuned(FREE_FORM[3]["FFD-8"], DEMONS[3], MI_SYN), DICE),
    "digits": Setting("digits", SETS["digits"].env, {"source": SETS["digits"].held_out}, PLANE,
                      tuned(SETS["digits"].free_form, SETS["digits"].demons, SyN()), DICE),
    "brain2d": Setting("slices of a brain", SETS["brain2d"].env, {
        **SETS["brain2d"].env_kwargs, "source": {"name": "brains", "subjects": ["mni152"]}}, PLANE,
        tuned(SETS["brain2d"].free_form, SETS["brain2d"].demons, SyN()), DICE),
    "liver32": Setting("made livers", SETS["liver32"].env, {
        **SETS["liver32"].env_kwargs, "source": SETS["liver32"].held_out}, SPACE,
        tuned(SETS["liver32"].free_form, SETS["liver32"].demons, MI_SYN), DICE),
    "lung3d": Setting("made lungs", "RegKeypoint3D-v0", {
        "size": 64, "observation": "dict", "source": {"name": "lungs", "split": "test"}}, SPACE,
        tuned(FreeForm(control=8.0, sampling=0.1), Demons(), MI_SYN), loading={"size": 64}, masked=True),
}


def agents() -> dict[str, str]:
    """Every shipped agent and what is measured beside, by the setting that has its pairs."""
    weights = {path.stem: key for path, _ in shipped() for key in SETTINGS if path.stem.startswith(key)}
    return weights | {name: key for key, setting in SETTINGS.items() for name in setting.more}


def is_linear(task: Task) -> bool:
    """Whether poses are those of a matrix."""
    return hasattr(task.transform, "parameters")


def absent() -> list[str]:
    """The classical methods whose packages are not installed."""
    there = {"elastix": Elastix.available(), "syn": SyN.available(),
             "convexadam-package": importlib.util.find_spec("convexAdam") is not None}
    return [name for name, found in there.items() if not found]


class CountingCore(RegistrationCore):
    """A core that counts its steps."""

    steps = 0

    def step(self, state: EpisodeState, action: Tensor) -> tuple[EpisodeState, Tensor, Tensor, Tensor]:
        self.steps += 1
        return super().step(state, action)


def linear(name: str, task: Task) -> Method:
    """A baseline or an agent whose poses are those of a matrix."""
    match method_named(alone(name.removesuffix(REFINED)), task)[0]:
        case Classical(search):
            return lambda chunk: by_search(search, chunk)
        case Chain(chain, stages):
            return lambda chunk: by_chain(chain, stages, name.endswith(REFINED), chunk)
        case ValueStop(title, agent, lookahead):
            return lambda chunk: by_value(title, agent, lookahead, chunk)
        case Policy() as policy:
            return lambda chunk: by_policy(policy, chunk)
    raise ValueError(f"times: {name} tells no pose.")


def alone(name: str) -> str | Pipeline:
    """The stage of a pipeline by itself, from one start; other names as they are."""
    for chain in AGENTS.values():
        if name in chain.stages and name not in AGENTS:
            steps = chain.steps[chain.stages.index(name):][:1]
            return replace(chain, stages=(name,), starts=1, attention=False, steps=steps)
    return name


def by_search(search: Any, chunk: Chunk) -> Found:
    [case] = chunk.cases
    found = search.register(to_sitk(case.fixed), to_sitk(case.moving), case.start, case.center)
    return found.pull_back, found.iterations or None


def by_chain(chain: Pipeline, stages: Sequence[Any], refined: bool, chunk: Chunk) -> Found:
    [case] = chunk.cases
    pose, trace = run(chain, case.fixed, case.moving, case.start, case.seed, agents=stages)
    if refined:
        pose = refine_pose(to_sitk(case.fixed), to_sitk(case.moving), pose, case.center).pull_back
    return pose, sum(row["step"] > 0 for row in trace)


def by_value(title: str, agent: A3C, lookahead: Lookahead | None, chunk: Chunk) -> Found:
    core, state = own_episodes(title, agent.task(), chunk)
    counting = CountingCore(core.task)
    ended, _ = play(agent.policy, counting, state, agent.stop_values[lookahead is not None],
                    core.task.max_episode_steps, lookahead)
    return ended.pull_back[0].numpy(), counting.steps


def by_policy(policy: Policy, chunk: Chunk) -> Found:
    ended = policy.played(chunk)
    return ended.pull_back[0].numpy(), int(ended.steps)


def deforming(name: str, setting: Setting) -> Method:
    """A classical method or an agent that finds a displacement."""
    if name in setting.searches:
        return lambda chunk: (searched(setting.searches[name], chunk.state, chunk.core.task.grid), None)
    if name == "convexadam-package":
        return by_authors
    solvers: dict[str, tuple[Solver, int]] = {"adam": (AdamInstance(), AdamInstance().iterations),
                                              "convexadam": (ConvexAdam(), ConvexAdam().adam.iterations)}
    if name in solvers:
        return lambda chunk: by_solver(*solvers[name], setting.masked, chunk)
    algorithm = next(card["algorithm"] for path, card in shipped() if path.stem == name)
    agent = load(name, algorithm=algorithm, **setting.loading)
    if algorithm == "L2O":
        return lambda chunk: by_solver(agent.policy, ITERATIONS, setting.masked, chunk)
    core = RegistrationCore(agent.task())
    return lambda chunk: by_steps(agent, core, chunk)


def by_solver(solver: Solver, iterations: int, masked: bool, chunk: Chunk) -> Found:
    pair: Any = chunk.state.pair
    masks = (pair.fixed_labels > 0, pair.moving_labels > 0) if masked else ()
    return solver.solve(pair.fixed, pair.moving, *masks), iterations


def by_authors(chunk: Chunk) -> Found:
    from convexAdam.convex_adam_MIND import convex_adam_pt

    pair, iterations = chunk.state.pair, AdamInstance().iterations
    field = convex_adam_pt(pair.fixed[0, 0], pair.moving[0, 0], selected_niter=iterations, dtype=torch.float32,
                           device=torch.device("cpu"))
    return torch.from_numpy(field).float().movedim(-1, 0)[None], iterations


def by_steps(agent: Any, core: RegistrationCore, chunk: Chunk) -> Found:
    ended = deform(agent, core, core.begin(chunk.state.pair, torch.zeros_like(chunk.state.pose)))
    return ended.displacement, int(ended.steps)


def score(measure: str, chunk: Chunk, answer: Any) -> float:
    """The mean landmark error, mm, or Dice that an answer leaves; None: of the start."""
    if chunk.cases:
        return chunk.cases[0].error(chunk.cases[0].start if answer is None else answer)
    if measure == DICE:
        return float(Metrics.of(chunk.state, answer, chunk.core.task.grid).dice[0])
    return float((chunk.state if answer is None else chunk.core.begin(chunk.state.pair, answer)).tre)


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
        return f"Dice {np.mean(scores):.3f}" if self.measure == DICE else f"{np.mean(scores):.2f} mm"


def measured(key: str, names: Sequence[str], pairs: int, repeats: int) -> list[Row]:
    """Rows of some agents and classical methods, taken in turn; the first run of each, which may compile, is not
    counted."""
    setting = SETTINGS[key]
    drawn_pairs, task = setting.draw(pairs), setting.task()
    methods = {name: linear(name, task) if is_linear(task) else deforming(name, setting) for name in names}
    for method in methods.values():
        method(drawn_pairs[0])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[Found]] = {name: [] for name in names}
    for pair in drawn_pairs:
        for name, method in [*methods.items()] * repeats:
            torch.manual_seed(0)
            begin = perf_counter()
            answer = method(pair)
            seconds[name].append(perf_counter() - begin)
            found[name].append(answer)
    before = [score(setting.measure, pair, None) for pair in drawn_pairs]
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
            "(batches take agents less a pair), methods in turn, after a run of each that is not counted: weights are "
            "loaded and kernels compiled. Before and after: mean landmark error, or Dice. Steps: of an agent in the "
            "environment (with look-ahead, of its roll-outs too; without the refinement's), or an optimiser's "
            "iterations where it tells them. The fastest classical method is the fastest that improves on the start. "
            "No agent was trained on the people or phantoms of its pairs, except those for slices of a brain: that "
            "person was in training, bent otherwise. Of the lungs only Adam, ConvexAdam and the learned optimisers see "
            f"masks.\n\n{table(rows)}" + "".join(f"\nLeft out: {reason}\n" for reason in left_out))


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
    with atomic(arguments.out.with_suffix(".md")) as temporary:
        temporary.write_text(told)
    with atomic(arguments.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**made, "left_out": left_out, "rows": [
            {**asdict(row), "median_seconds": row.time} for row in rows]}, indent=1) + "\n")
    draw(arguments.out.with_suffix(".png"), rows, f"{made['date']}, {made['machine']}, one thread")
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
