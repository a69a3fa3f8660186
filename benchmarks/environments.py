"""Speed of the environments: rigid registration of volumes here and as SimpleITK would do it, under four vectorisers.

    python benchmarks/environments.py                                      # everything, about a quarter of an hour
    python benchmarks/environments.py --kinds native sitk-async --tiers 1  # steps alone, of two kinds
    python benchmarks/environments.py --size 16 --rounds 1 --no-growth     # a first look, two minutes

Three tiers, as in EnvPool's paper: steps with actions drawn beforehand; steps whose actions a policy of SB3's PPO
chooses; PPO learning. Every kind runs in its own processes, kinds in turn, round after round, so that other load on the
machine affects all of them. All play ``RegRigid3D-v0`` on one pair, and no episode ends meanwhile. A last part measures
how the time of a native step grows with voxels and with lanes.
"""

# Workers import this file: what not every process needs is imported where it is needed.
from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
from environment_kinds import CPUS, KINDS, TIERS, difference, keep_pair, native, vectorised

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-3                                   # of an observation, between SimpleITK's environment and ours
WARM_UP, ROLLOUT, BATCH, EPOCHS = 3, 8, 64, 2      # vector steps; PPO's n_steps, batch_size and n_epochs
WIDTHS, FEATURES = (8, 16, 32, 32), 64             # of the policy's network: convolutions of stride 2, dense layer
DRAWN = 256                                        # actions a lane, over and over
LOOK = 0.02                                        # seconds between two samples of the memory
GROWTH = {"sizes grow": [(size, 4) for size in (16, 24, 32, 48, 64, 96)],  # and lanes
          "lanes grow": [(32, lanes) for lanes in (1, 4, 16, 64)]}
GROWTH_STEPS = 5                                   # of a round
REFERENCE = "sitk-async"
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}           # threads that spin would take the CPUs from workers
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
Work = Callable[[int], int]
"""Does at least so many vector steps and returns how many it has done."""


def stepping(env: Any, lanes: int) -> Work:
    """Tier 1."""
    if isinstance(env, gym.vector.VectorEnv):
        env.reset(seed=0)
    else:
        env.seed(0)
        env.reset()
    drawn = itertools.cycle(np.random.default_rng(0).integers(12, size=(DRAWN, lanes)))

    def work(steps: int) -> int:
        for actions in itertools.islice(drawn, steps):
            env.step(actions)
        return steps
    return work


def learner(env: Any) -> Any:
    """SB3's PPO with a small network, on the GPU where there is one, else on all CPUs."""
    import torch
    from stable_baselines3 import PPO

    from regagents.common.extractors import CompactCNN
    from regenv.wrappers.sb3 import SB3VecEnv
    torch.set_num_threads(CPUS)
    network = {"features_extractor_class": CompactCNN, "normalize_images": False, "net_arch": [],
               "features_extractor_kwargs": {"widths": WIDTHS, "strides": (2,) * len(WIDTHS),
                                             "features_dim": FEATURES}}
    return PPO("MlpPolicy", SB3VecEnv(env) if isinstance(env, gym.vector.VectorEnv) else env, n_steps=ROLLOUT,
               batch_size=min(BATCH, ROLLOUT * env.num_envs), n_epochs=EPOCHS, policy_kwargs=network, seed=0)


def acting(env: Any, lanes: int) -> Work:
    """Tier 2."""
    model = learner(env)
    seen = [model.env.reset()]

    def work(steps: int) -> int:
        for _ in range(steps):
            seen[0] = model.env.step(model.policy.predict(seen[0])[0])[0]
        return steps
    return work


def learning(env: Any, lanes: int) -> Work:
    """Tier 3, in whole rollouts."""
    model = learner(env)

    def work(steps: int) -> int:
        before = model.num_timesteps
        model.learn(steps * lanes, reset_num_timesteps=False)
        return (model.num_timesteps - before) // lanes
    return work


WORKS = {1: stepping, 2: acting, 3: learning}


def family() -> set[int]:
    """Ids of this process and all its descendants; empty without /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {os.getpid()} & set(parents)
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found


def resident() -> int:
    """Bytes of memory of the family, with pages that processes share counted once (PSS); 0 if unknown."""
    total = 0
    for pid in family():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that the family held while ``work`` ran, sampled every ``LOOK`` seconds."""
    most, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            most.append(resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(*most, resident())


def timed(work: Work, steps: int, device: str = "cpu") -> tuple[int, float]:
    """Vector steps done, and their seconds."""
    begin = perf_counter()
    done = work(steps)
    if device == "cuda":
        import torch
        torch.cuda.synchronize()
    return done, perf_counter() - begin


def measured(name: str, tiers: Sequence[int], steps: int, lanes: int, size: int, pair: str) -> list[dict[str, Any]]:
    """A kind in its tiers: environment steps a second, and the peak of its memory during the warm-up."""
    kind, found = KINDS[name], []
    env = vectorised(kind, lanes, size, Path(pair))
    for tier in tiers:
        work = WORKS[tier](env, lanes)
        held = peak(partial(timed, work, WARM_UP, kind.device))
        done, taken = timed(work, steps, kind.device)
        found.append({"kind": name, "tier": tier, "lanes": lanes, "steps_per_second": done * lanes / taken,
                      "peak_bytes": held})
    env.close()
    return found


def growing(rounds: int, folder: str) -> dict[str, list[dict[str, float]]]:
    """Median seconds of a native step as sizes and as lanes grow, in turn."""
    works = {(size, lanes): stepping(native(lanes, size, keep_pair(Path(folder), size)), lanes)
             for size, lanes in dict.fromkeys(itertools.chain(*GROWTH.values()))}
    taken: dict[tuple[int, int], list[float]] = {case: [] for case in works}
    for work in works.values():
        work(WARM_UP)
    for _ in range(rounds):
        for case, work in works.items():
            taken[case] += [timed(work, 1)[1] for _ in range(GROWTH_STEPS)]
    return {name: [{"size": size, "lanes": lanes, "voxels": lanes * size**3,
                    "seconds": float(np.median(taken[size, lanes]))} for size, lanes in each]
            for name, each in GROWTH.items()}


JOBS: dict[str, Callable[..., Any]] = {"measured": measured, "growing": growing}


def alone(job: str, threads: int, **given: Any) -> Any:
    """A job's result from a process of its own. Raises RuntimeError where it fails."""
    run = subprocess.run([sys.executable, __file__, "--job", job, json.dumps(given)], capture_output=True, text=True,
                         env={**os.environ, **PATIENT, **dict.fromkeys(THREADS, str(threads))})
    if run.returncode:
        raise RuntimeError(f"{job} of {given} ended with {run.returncode}: {run.stderr.strip()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every tier and kind: medians over the rounds; ratios to the reference within each round."""
    rates = {(run["tier"], run["kind"], run["round"]): run["steps_per_second"] for run in runs}
    rows = []
    for tier, name in dict.fromkeys((run["tier"], run["kind"]) for run in sorted(runs, key=lambda run: run["tier"])):
        mine = [run for run in runs if (run["tier"], run["kind"]) == (tier, name)]
        each = [run["steps_per_second"] for run in mine]
        ratios = [rates[tier, name, run["round"]] / rates[tier, REFERENCE, run["round"]] for run in mine
                  if (tier, REFERENCE, run["round"]) in rates]
        rows.append({"tier": tier, "kind": name, "lanes": mine[0]["lanes"], "steps_per_second": float(np.median(each)),
                     "least": min(each), "most": max(each), "ratio": float(np.median(ratios)) if ratios else None,
                     "peak_bytes": float(np.median([run["peak_bytes"] for run in mine]))})
    return rows


def rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def table(rows: Sequence[dict[str, Any]], size: int) -> str:
    lines = [f"| tier | kind | lanes | steps/s | least to most | million voxels/s | peak memory, MB | "
             f"of {KINDS[REFERENCE].label} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        rate, held, ratio = row["steps_per_second"], row["peak_bytes"], row["ratio"]
        lines.append(f"| {row['tier']} | {KINDS[row['kind']].label} | {row['lanes']} | {rounded(rate)} | "
                     f"{rounded(row['least'])} to {rounded(row['most'])} | {rounded(rate * size**3 / 1e6)} | "
                     f"{f'{held / 1e6:.0f}' if held else '-'} | {f'{ratio:.2f} x' if ratio else '-'} |")
    return "\n".join(lines) + "\n"


def growth_table(growth: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| | size | lanes | ms | ns a voxel |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {name} | {point['size']} | {point['lanes']} | {1e3 * point['seconds']:.3g} | "
              f"{1e9 * point['seconds'] / point['voxels']:.3g} |" for name, each in growth.items() for point in each]
    return "\n".join(lines) + "\n"


def law(points: Sequence[dict[str, float]]) -> tuple[float, float, int]:
    """Exponent and factor of seconds over voxels, and the number of last points they were fitted to."""
    from common import power_law
    return power_law([point["voxels"] for point in points], [point["seconds"] for point in points])


def draw(path: Path, rows: Sequence[dict[str, Any]], growth: dict[str, list[dict[str, float]]]) -> None:
    """Steps a second of every kind in every tier; and how the time of a native step grows."""
    import matplotlib.pyplot as plt
    from common import keep
    figure, axes = plt.subplots(1, 2 if growth else 1, figsize=(12 if growth else 7, 4.5), squeeze=False)
    names, tiers = (list(dict.fromkeys(row[part] for row in rows)) for part in ("kind", "tier"))
    left, high = axes[0, 0], 0.8 / len(tiers)
    for number, tier in enumerate(tiers):
        shown = [row for row in rows if row["tier"] == tier]
        bars = left.barh([names.index(row["kind"]) + high * (number - (len(tiers) - 1) / 2) for row in shown],
                         [row["steps_per_second"] for row in shown], high, label=TIERS[tier])
        left.bar_label(bars, [rounded(row["steps_per_second"]) for row in shown], padding=2, fontsize=7)
    left.set(yticks=range(len(names)), yticklabels=[KINDS[name].label for name in names], xscale="log",
             xlabel="environment steps a second")
    left.invert_yaxis()
    left.margins(x=0.15)
    left.grid(alpha=0.3, axis="x")
    left.legend(fontsize=8, ncols=len(tiers), loc="lower center", bbox_to_anchor=(0.5, 1))
    for name, points in growth.items():
        power, factor, used = law(points)
        voxels = np.array([point["voxels"] for point in points])
        line, = axes[0, 1].plot(voxels, [1e3 * point["seconds"] for point in points], "o",
                                label=f"{name}: power {power:.2f} of the last {used}")
        axes[0, 1].plot(voxels[-used:], 1e3 * factor * voxels[-used:]**power, color=line.get_color())
    if growth:
        axes[0, 1].set(xlabel="voxels of a batch", ylabel="ms a native step, one thread", xscale="log", yscale="log")
        axes[0, 1].grid(alpha=0.3)
        axes[0, 1].legend(fontsize=8)
    keep(figure, path)


def page(command: str, size: int, rows: Sequence[dict[str, Any]], growth: dict[str, list[dict[str, float]]]) -> str:
    from common import ABOVE, machine
    tiers = "; ".join(f"{tier}, {TIERS[tier]}" for tier in dict.fromkeys(row["tier"] for row in rows))
    told = (f"# Speed of the environments\n\nMade by `{command}` on {date.today()}: {machine()}.\n\n"
            f"Rigid registration of one pair, {size} voxels an axis. Tiers: {tiers}. Medians over the rounds; ratios "
            "are taken within each round. A step is one of a single lane. In tier 1 the native environment and "
            "AsyncVectorEnv (shared memory) are stepped directly and give arrays, on CUDA tensors; in tiers 2 and 3 "
            "regenv's SB3VecEnv passes them to SB3. Workers compute on one thread each, the policy and everything "
            "else on all CPUs; waiting threads sleep (OMP_WAIT_POLICY). PPO is the same for all: rollouts of "
            f"{ROLLOUT} steps a lane, {EPOCHS} epochs in batches of {BATCH}, {len(WIDTHS)} strided convolutions of "
            f"{WIDTHS[0]} to {WIDTHS[-1]} channels. Memory is the peak on the host during the warm-up of a tier, of "
            f"all processes together, with shared pages counted once (PSS).\n\n{table(rows, size)}")
    if growth:
        laws = ", and ".join(f"with the power {power:.2f} of its voxels while {name} (the last {used} rows)"
                             for name, (power, _, used) in ((name, law(each)) for name, each in growth.items()))
        told += ("\n## Growth\n\nThe time of a native step on the CPU, on one thread, grows "
                 f"{laws}. The powers are fitted by least squares over the logarithms, to the rows that take at least "
                 f"{ABOVE:g} times as long as the fastest (overhead dominates the others), and to two or more.\n\n"
                 f"{growth_table(growth)}")
    return told


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all that this machine can run")
    parser.add_argument("--tiers", type=int, nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=16, help="of all lanes, a round; whole rollouts in tier 3")
    parser.add_argument("--size", type=positive, default=64, help="voxels an axis")
    parser.add_argument("--lanes", type=positive, default=16)
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="the last part")
    parser.add_argument("--out", type=Path, default=RESULTS / "environments")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(typed)
    if arguments.job:
        name, given = arguments.job
        print(json.dumps(JOBS[name](**json.loads(given))))
        return 0
    import torch
    from common import machine, publish
    able = {name for name, kind in KINDS.items() if kind.device == "cpu" or torch.cuda.is_available()}
    if lacking := set(arguments.kinds or ()) - able:
        parser.error(f"--kinds {' '.join(sorted(lacking))}: torch finds no CUDA device.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pair = keep_pair(Path(folder), arguments.size)
        if (off := difference(arguments.size, pair)) > TOLERANCE:
            raise RuntimeError(f"SimpleITK's environment is {off:.2g} off ours; at most {TOLERANCE} is the same work.")
        for turn in range(arguments.rounds):
            for name in arguments.kinds or [name for name in KINDS if name in able]:
                kind = KINDS[name]
                tiers = sorted(set(arguments.tiers) & set(kind.tiers))
                found = alone("measured", kind.threads, name=name, tiers=tiers, steps=arguments.steps,
                              lanes=kind.lanes or arguments.lanes, size=arguments.size, pair=str(pair))
                runs += [{"round": turn, **run} for run in found]
                print(f"round {turn + 1}, {kind.label}: " + ", ".join(
                    f"{rounded(run['steps_per_second'])} steps/s in tier {run['tier']}" for run in found), flush=True)
        growth = alone("growing", 1, rounds=arguments.rounds, folder=folder) if arguments.growth else {}
    rows, command = summary(runs), " ".join(["python benchmarks/environments.py", *typed])
    publish(arguments.out, page(command, arguments.size, rows, growth), {
        "command": command, "date": str(date.today()), "machine": machine(), "size": arguments.size, "rows": rows,
        "runs": runs, "growth": growth, "exponents": {name: law(each)[0] for name, each in growth.items()}})
    draw(arguments.out.with_suffix(".png"), rows, growth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
