"""Wall time and memory of ``regagents register`` on two real heads, of this tree beside an older one.

    git worktree add OLD COMMIT
    python benchmarks/shell_time.py --against OLD

The trees take turns, so that whatever else the machine does meets both alike. Every run is a process of its own; its
time is the wall's, from its start to its end, its memory the largest resident set (getrusage of the ended child).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import machine, publish

from regenv.data.banks import downloads

HERE = Path(__file__).resolve().parents[1]
RUN = "import sys; from regagents.cli import main; sys.exit(main())"
LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": wall, "cpu_seconds": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024,
                  "status": done.returncode, "told": (done.stdout + done.stderr)[-600:]}))
"""
"""Starts the run from a small process: Linux counts the memory of the process that starts another to the other's."""


def timed(tree: Path, arguments: Sequence[str]) -> dict[str, float]:
    """One run of ``regagents``: wall seconds, CPU seconds, MiB. Raises RuntimeError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", LAUNCHER, sys.executable, "-P", "-c", RUN, *arguments],
                          capture_output=True, text=True, check=True, env=environment)
    run: dict[str, Any] = json.loads(done.stdout)
    status, told = run.pop("status"), run.pop("told")
    if status:
        raise RuntimeError(f"{tree}: regagents {' '.join(arguments)} ended with {status}: {told}")
    return run


def measured(trees: dict[str, Path], commands: dict[str, Sequence[str]], rounds: int) -> list[dict[str, Any]]:
    """Medians of every tree and command, after one run of each that does not count."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for what, words in commands.items():
            for name, tree in trees.items():
                with tempfile.TemporaryDirectory() as out:
                    run = timed(tree, [word.replace("OUT", f"{out}/out") for word in words])
                print(f"{number}/{rounds} {what}, {name}: {run['seconds']:.2f} s, {run['mib']:.0f} MiB", flush=True)
                if number:
                    runs.setdefault((what, name), []).append(run)
    return [{"what": what, "tree": name, "runs": those,
             **{key: median(run[key] for run in those) for key in ("seconds", "cpu_seconds", "mib")}}
            for (what, name), those in runs.items()]


def page(rows: Sequence[dict[str, Any]], command: str, rounds: int) -> str:
    """The Markdown page."""
    lines = [f"| {row['what']} | {row['tree']} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['mib']:.0f} |"
             for row in rows]
    ratios = []
    for what in dict.fromkeys(row["what"] for row in rows):
        wall = {row["tree"]: row["seconds"] for row in rows if row["what"] == what}
        if len(wall) == 2:
            new, old = wall["this tree"], wall["older tree"]
            ratios.append(f"{what}: {new / old:.2f} of the older tree's time.")
    return "\n".join(["# Time and memory of the shell", "",
                      f"Made by `{command}` on {machine()}, one thread. MNI152 (brain only) and Colin27, 1 mm, read "
                      f"from their files; medians of {rounds} runs, the trees in turn, after one that does not count.",
                      "", "| command | tree | seconds, wall | seconds, CPU | peak memory, MiB |",
                      "| --- | --- | ---: | ---: | ---: |", *lines, "", *ratios, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="an older tree; its packages are used as files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; at least 1 is needed.")
    trees = {"this tree": HERE}
    if arguments.against:
        if not (arguments.against / "regagents").is_dir():
            parser.error(f"--against is {arguments.against}; it holds no folder regagents.")
        trees["older tree"] = arguments.against.resolve()
    heads = str(downloads.mni152()["t1"]), str(downloads.get("colin27")["colin27"])
    commands = {"`regagents --help`": ["--help"], "`regagents register`": ["register", *heads, "-o", "OUT"]}
    rows = measured(trees, commands, arguments.rounds)
    command = "python benchmarks/shell_time.py " + " ".join(sys.argv[1:] if argv is None else argv)
    text = page(rows, command.strip(), arguments.rounds)
    publish(arguments.out / "shell_time", text, {"command": command, "machine": machine(), "rows": rows})
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
