"""The client matrix: every id under every client it can be played by, as one table; not 0 where a cell fails.

    python tests/clients/matrix.py                          # needs the extra "clients"
    python tests/clients/matrix.py -k "RegDense and PPO"    # as pytest selects tests
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from regenv.atomic import atomic

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PACKAGES = ("gymnasium", "stable-baselines3", "sb3-contrib", "rl-zoo3", "torchrl", "tianshou", "minari", "torch")


class Matrix:
    """A pytest plugin that collects outcomes by id and client."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        env_id, _, client = report.nodeid.partition("[")[2].rstrip("]").partition(" | ")
        if client and (report.when == "call" or report.failed):
            self.cells[env_id, client] = report.passed and self.cells.get((env_id, client), True)

    def table(self) -> str:
        """Ids down, clients across: ok, FAILS, or a dash where a client cannot play such actions."""
        ids, clients = (list(dict.fromkeys(cell[part] for cell in self.cells)) for part in (0, 1))
        shown = {True: "ok", False: "**FAILS**", None: "-"}
        lines = [f"| id | {' | '.join(clients)} |", "| --- |" + " --- |" * len(clients)]
        lines += [f"| {env_id} | {' | '.join(shown[self.cells.get((env_id, name))] for name in clients)} |"
                  for env_id in ids]
        return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    typed = list(sys.argv[1:] if argv is None else argv)
    matrix = Matrix()
    tests = str(ROOT / "tests" / "clients" / "test_clients.py")
    status = pytest.main([tests, "-m", "clients", "-q", "--timeout", "1800", "-p", "no:cacheprovider", *typed],
                         plugins=[matrix])
    table = matrix.table()
    print(table)
    if not typed:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        with atomic(RESULTS / "clients.md") as temporary:
            temporary.write_text(f"# Ids under clients\n\nMade by `python tests/clients/matrix.py` on {date.today()}: "
                                 f"{versions}. A dash: the client cannot take such actions.\n\n{table}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
