"""Reports of an evaluation: every method's measures on the same pairs, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from regenv.atomic import atomic
from regenv.ops.landmarks import success_rate
from regenv.task import SUCCESS_MM

SCHEMA = 1
PERCENTILES = (10, 50, 90)


@dataclass(frozen=True)
class Row:
    """A method's outcome: errors of all pairs (mm, in the order of their seeds) and mean seconds a pair."""

    method: str
    errors_mm: tuple[float, ...]
    seconds: float
    success_mm: float = SUCCESS_MM

    @property
    def mean(self) -> float:
        return float(np.mean(self.errors_mm))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """10th, 50th and 90th, mm."""
        return tuple(float(p) for p in np.percentile(self.errors_mm, PERCENTILES))

    @property
    def success(self) -> tuple[float, float, float]:
        """Share of errors at or below ``success_mm``, and its 95 % Wilson interval."""
        return success_rate(np.asarray(self.errors_mm), self.success_mm)

    def numbers(self) -> dict[str, Any]:
        """The row of the table."""
        rate, low, high = self.success
        return {"method": self.method, "tre_mean_mm": self.mean,
                **{f"tre_p{p}_mm": value for p, value in zip(PERCENTILES, self.percentiles, strict=True)},
                "success_rate": rate, "success_low": low, "success_high": high, "seconds_per_pair": self.seconds}


@dataclass(frozen=True)
class Report:
    """What was run and how every method fared."""

    env: str
    env_kwargs: Mapping[str, Any]
    pairs: int
    seed: int
    threads: int
    success_mm: float
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names: {schema, env, env_kwargs, pairs, seed, threads, success_mm, methods: [{method,
        tre_mean_mm, tre_p10_mm, tre_p50_mm, tre_p90_mm, success_rate, success_low, success_high, seconds_per_pair,
        errors_mm: [...]}]}."""
        plain = {key: value for key, value in asdict(self).items() if key != "rows"}
        return {"schema": SCHEMA, **plain,
                "methods": [{**row.numbers(), "errors_mm": list(row.errors_mm)} for row in self.rows]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """What :meth:`to_dict` gave. Raises ValueError for another schema."""
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"Report: schema is {plain.get('schema')!r}; this release reads {SCHEMA}.")
        rows = tuple(Row(row["method"], tuple(row["errors_mm"]), row["seconds_per_pair"], plain["success_mm"])
                     for row in plain["methods"])
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name != "rows"}, rows=rows)

    def joined(self, newer: Report) -> Report:
        """This report with a newer one's rows, which replace those of the same methods.

        Raises ValueError where the two are not of the same pairs.
        """
        for name in ("env", "env_kwargs", "pairs", "seed"):
            mine, theirs = getattr(self, name), getattr(newer, name)
            if mine != theirs:
                raise ValueError(f"Report: {name} is {mine!r} in one and {theirs!r} in the other; rows are joined only "
                                 "where they are of the same pairs.")
        return replace(self, rows=tuple({row.method: row for row in (*self.rows, *newer.rows)}.values()))

    def table(self) -> str:
        """The table as plain text."""
        head = ("method", "TRE mean", *(f"p{p}" for p in PERCENTILES), f"<= {self.success_mm:g} mm", "95 % interval",
                "s/pair")
        lines = [head]
        for row in self.rows:
            rate, low, high = (100 * value for value in row.success)
            lines.append((row.method, f"{row.mean:.2f}", *(f"{p:.2f}" for p in row.percentiles), f"{rate:.1f} %",
                          f"{low:.1f}-{high:.1f} %", f"{row.seconds:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join((cells[0].ljust(widths[0]),
                                    *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))))
                         for cells in lines)

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict`, whole or not at all."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, default=str, allow_nan=False) + "\n")

    def save_csv(self, path: str | Path) -> None:
        """Write the table, whole or not at all."""
        rows = [row.numbers() for row in self.rows]
        with atomic(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
