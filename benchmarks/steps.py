"""Steps a second of the environments beside an older tree, on one thread: batches, single environments and resets.

    git archive COMMIT | tar x -C OLD
    python benchmarks/steps.py --against OLD                       # ten minutes
    python benchmarks/steps.py --against OLD --only RegSDM2D-v0    # some of the cases

Each tree has a process of its own, and both work in turn, round after round, so that other load affects them alike.
Times are of the CPU, not of the clock. Ratios are taken within a round; rows tell their medians. The page tells the
machine's load, which should be below 1.5: memory and caches are shared even where the CPU's time is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

HERE = Path(__file__).resolve().parents[1]
LANES, DRAWN, SECONDS, IDLE = 16, 32, 0.2, 1.5     # lanes of a batch, actions, of a measurement, load
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "RegRigid2D-v0, 48 x 48": ("RegRigid2D-v0", {"size": 48}), "RegRigid2D-v0, 128 x 128": ("RegRigid2D-v0", {}),
    "RegSimilarity2D-v0": ("RegSimilarity2D-v0", {}), "RegSDM2D-v0": ("RegSDM2D-v0", {}),
    "RegDenseDigits-v0": ("RegDenseDigits-v0", {}), "RegRigid3D-v0, 32^3": ("RegRigid3D-v0", {"size": 32}),
    "RegDense2D-v0": ("RegDense2D-v0", {})}
KINDS = ("step", "single", "reset")
TOLD = {"step": f"a step of {LANES} lanes, `gym.make_vec`", "single": "a step of `gym.make`",
        "reset": f"a reset of {LANES} lanes"}
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")


def work(case: str, kind: str) -> Callable[[], None]:
    """One step, or one reset, of a case."""
    import gymnasium as gym

    import regenv  # noqa: F401  registers the ids
    name, arguments = CASES[case]
    if kind == "single":
        single = gym.make(name, **arguments)
        single.reset(seed=0)
        single.action_space.seed(0)
        drawn = itertools.cycle([single.action_space.sample() for _ in range(DRAWN)])

        def one() -> None:
            _, _, terminated, truncated, _ = single.step(next(drawn))
            if terminated or truncated:
                single.reset()
        return one
    env = gym.make_vec(name, num_envs=LANES, autoreset_mode="SameStep", max_episode_steps=10**6, **arguments)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions, seeds = itertools.cycle([env.action_space.sample() for _ in range(DRAWN)]), itertools.count()

    def all_lanes() -> None:
        if kind == "reset":
            env.reset(seed=next(seeds))
        else:
            env.step(next(actions))
    return all_lanes


def serve() -> None:
    """Measure what the lines of the standard input ask for: seconds of the CPU a call."""
    import torch
    torch.set_num_threads(1)
    ready: dict[tuple[str, str], Callable[[], None]] = {}
    for line in sys.stdin:
        case, kind = json.loads(line)
        if (case, kind) not in ready:
            ready.clear()
            ready[case, kind] = work(case, kind)
            ready[case, kind]()
        call, count, begun, clock = ready[case, kind], 0, process_time(), perf_counter()
        while process_time() - begun < SECONDS:
            call()
            count += 1
        print(json.dumps([(process_time() - begun) / count, (perf_counter() - clock) / count]), flush=True)


def worker(tree: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": str(tree)}
    return subprocess.Popen([sys.executable, __file__, "--serve"], text=True, env=environment, cwd=tree,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def asked(one: subprocess.Popen[str], case: str, kind: str) -> float:
    assert one.stdin is not None and one.stdout is not None
    one.stdin.write(json.dumps([case, kind]) + "\n")
    one.stdin.flush()
    answer = one.stdout.readline()
    if not answer:
        raise RuntimeError(f"{kind} of {case}: the worker has ended, with {one.wait()}.")
    return float(json.loads(answer)[0])


def measured(old: Path, cases: Sequence[str], kinds: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Medians of CPU seconds of both trees, and of their ratios within the rounds."""
    trees, rows = (worker(old), worker(HERE)), []
    for case, kind in itertools.product(cases, kinds):
        for one in trees:
            asked(one, case, kind)      # it compiles, and fills the caches
        pairs = [tuple(asked(one, case, kind) for one in trees) for _ in range(rounds)]
        before, after = (median(side) for side in zip(*pairs, strict=True))
        ratios = [theirs / mine for theirs, mine in pairs]
        rows.append({"case": case, "kind": kind, "before": before, "after": after, "ratio": median(ratios),
                     "least": min(ratios), "most": max(ratios)})
        print(f"{kind:7s} {case:26s} {1e3 * before:8.3f} ms, now {1e3 * after:8.3f} ms: {median(ratios):.2f} x "
              f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    for one in trees:
        assert one.stdin is not None
        one.stdin.close()
        one.wait()
    return rows


def page(rows: Sequence[dict[str, Any]], command: str, rounds: int, load: tuple[float, float]) -> str:
    from common import machine
    told = [f"# Steps a second beside an older tree\n\nMade by `{command}` on {date.today()}: {machine()}; one thread, "
            f"CPU time, {rounds} rounds of {SECONDS:g} s each, the trees in turn. The load average was {load[0]:.1f} "
            f"at the start and {load[1]:.1f} at the end: the machine was "
            f"{'idle' if max(load) <= IDLE else '**not idle**'}."
            "\n"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lanes = 1 if kind == "single" else LANES
        told += [f"\n## {TOLD[kind][0].upper()}{TOLD[kind][1:]}\n",
                 "| environment | before, ms | now, ms | lanes a second now | before / now | least to most |",
                 "| --- | ---: | ---: | ---: | ---: | ---: |"]
        told += [f"| {row['case']} | {1e3 * row['before']:.3g} | {1e3 * row['after']:.3g} | "
                 f"{lanes / row['after']:,.0f} | **{row['ratio']:.2f} x** | {row['least']:.2f} to {row['most']:.2f} |"
                 for row in rows if row["kind"] == kind]
    return "\n".join(told) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="the older tree")
    parser.add_argument("--only", nargs="+", metavar="ID", help="ids, or parts of the names of cases")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "benchmarks" / "results")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        serve()
        return 0
    if arguments.against is None or not (arguments.against / "regenv").is_dir():
        parser.error(f"--against is {arguments.against}; it holds no folder regenv.")
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; at least 1 is needed.")
    cases = [case for case in CASES if arguments.only is None or any(part in case for part in arguments.only)]
    before = os.getloadavg()[0]
    rows = measured(arguments.against.resolve(), cases, arguments.kinds, arguments.rounds)
    from common import machine, publish
    command = " ".join(["python benchmarks/steps.py", *(sys.argv[1:] if argv is None else argv)])
    text = page(rows, command, arguments.rounds, (before, os.getloadavg()[0]))
    publish(arguments.out / "steps", text, {"command": command, "machine": machine(), "rows": rows})
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
