"""The leaderboard: every shipped agent and classical method on the frozen suites it suits.

    python benchmarks/leaderboard.py                      # all suites; hours
    python benchmarks/leaderboard.py spine organ2d        # some; the entries of others stay
    python benchmarks/leaderboard.py --freeze             # keep the starts of suites that have none yet
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch
from common import made_by
from tqdm import tqdm

from regagents.agents import resolve
from regagents.evaluation.evaluate import chosen_baselines
from regagents.evaluation.suites import FILE, benchmark, frozen, joined, page, read_board, save_board, suites
from regenv.atomic import atomic

OUT = Path(__file__).parent / "results" / "leaderboard.json"
SUITES = Path(__file__).parents[1] / "regagents" / "evaluation" / FILE
AGENTS = {"rigid2d": ["rigid2d"], "rigid-head": ["head", "head-geometric", "head-unit"],
          "rigid-head-anypose": ["head", "head-geometric"], "spine": ["spine", "spine-coarse"],
          "similarity-e1": ["similarity-oneshot", "similarity-sl", "similarity-rl", "similarity-value+mc",
                            "similarity-value+mc+fine"],
          "similarity-e2": ["similarity-oneshot", "similarity-sl", "similarity-rl", "similarity-value+mc",
                            "similarity-value+mc+fine"],
          "organ2d": ["organ2d"], "organ3d": ["organ3d"],
          "digits": ["digits-spac"],
          "brain2d": ["brain2d-spac"], "brain3d": [],
          "lung": ["lung3d-l2o"]}
"""Agents that suit a suite, of those that are shipped."""
SLOW = {name: ["syn", "bspline"] for name in ("brain3d", "lung", "organ3d")}       # minutes a pair


def freeze() -> None:
    """Write the starts of every suite that has none."""
    rows = {name: asdict(suite if suite.starts else frozen(suite)) for name, suite in suites().items()}
    lines = ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in rows.items())
    with atomic(SUITES) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n")


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites())}")
    parser.add_argument("--freeze", action="store_true")
    arguments = parser.parse_args(typed)
    torch.set_num_threads(1)
    if arguments.freeze:
        freeze()
        return 0
    for name in arguments.suites or suites():
        suite = suites()[name]
        agents = [agent for agent in AGENTS[name]
                  if resolve(agent.partition("+")[0]).is_file() or agent in ("head", "spine")]
        classical = [each for each in chosen_baselines(suite.env, suite.env_kwargs, None)
                     if each not in SLOW.get(name, [])]
        with tqdm(total=1.0, desc=name, disable=None) as bar:
            report, found = benchmark(name, agents, classical,
                                      progress=lambda _, share, bar=bar: bar.update(share - bar.n))
        board = joined(read_board(OUT) if OUT.is_file() else [], found)
        save_board(OUT, board)
        with atomic(OUT.with_suffix(".md")) as temporary:
            temporary.write_text(f"# Leaderboard\n\n{made_by('leaderboard.py', typed)}; suites that it did not run are "
                                 f"of earlier commands. Agents are bold.\n\n{page(board)}")
        print(name, report.table(), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
