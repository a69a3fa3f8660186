"""Reports of an evaluation: what was measured of every method on the same pairs, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.atomic import atomic
from regenv.ops.landmarks import success_rate
from regenv.task import SUCCESS_MM

SCHEMA = 2
PERCENTILES = (10, 50, 90)
COLUMNS: dict[str, tuple[str, tuple[str, ...], str]] = {  # of a displacement: title, statistics, format
    "tre_mm": ("TRE, mm", ("mean", "median"), ".2f"), "dice": ("Dice", ("mean", "median"), ".3f"),
    "hd95_mm": ("HD95, mm", ("mean",), ".2f"), "hausdorff_mm": ("HD, mm", ("mean",), ".2f"),
    "folding": ("folded", ("mean",), ".3%"), "sd_log_jacobian": ("SDlogJ", ("mean",), ".3f"),
    "folding_organs": ("folded, organs", ("mean",), ".3%"),
    "sd_log_jacobian_organs": ("SDlogJ, organs", ("mean",), ".3f")}
STATISTICS: dict[str, Callable[[NDArray[np.float64]], Any]] = {"mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class Row:
    """A method's outcome.

    Attributes:
        method: its name.
        measures: by name a value of every pair, in the order of their seeds; None where it is not defined.
        seconds: a pair, mean.
        success_mm: landmark error at which a registration counts as a success.
    """

    method: str
    measures: Mapping[str, Sequence[float | None]]
    seconds: float
    success_mm: float = SUCCESS_MM

    def values(self, measure: str) -> NDArray[np.float64]:
        """A measure of those pairs for which it is defined."""
        return np.array([value for value in self.measures[measure] if value is not None], dtype=np.float64)

    def statistic(self, measure: str, name: str) -> float | None:
        """Mean or median of a measure over the pairs; None where no pair has it."""
        values = self.values(measure)
        return float(STATISTICS[name](values)) if len(values) else None

    @property
    def errors_mm(self) -> tuple[float, ...]:
        """The landmark errors of the pairs that have one."""
        return tuple(self.values("tre_mm").tolist())

    @property
    def mean(self) -> float:
        """Of the landmark errors, mm."""
        return float(np.mean(self.errors_mm))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """10th, 50th and 90th of the landmark errors, mm."""
        return tuple(float(p) for p in np.percentile(self.errors_mm, PERCENTILES))

    @property
    def success(self) -> tuple[float, float, float]:
        """Share of landmark errors at or below ``success_mm``, and its 95 % Wilson interval."""
        return success_rate(np.asarray(self.errors_mm), self.success_mm)

    def pose_numbers(self) -> dict[str, Any]:
        """The table's row where poses are measured."""
        rate, low, high = self.success
        return {"method": self.method, "tre_mean_mm": self.mean,
                **{f"tre_p{p}_mm": value for p, value in zip(PERCENTILES, self.percentiles, strict=True)},
                "success_rate": rate, "success_low": low, "success_high": high, "seconds_per_pair": self.seconds}

    def field_numbers(self) -> dict[str, Any]:
        """The table's row where displacements are measured."""
        return {"method": self.method,
                **{f"{measure}_{name}": self.statistic(measure, name)
                   for measure in self.measures for name in COLUMNS[measure][1]}, "seconds_per_pair": self.seconds}


@dataclass(frozen=True)
class Report:
    """What was run and what was measured.

    Attributes: moves: "pose" or "field", what was found for each pair.
    """

    env: str
    env_kwargs: Mapping[str, Any]
    pairs: int
    seed: int
    threads: int
    success_mm: float
    rows: tuple[Row, ...]
    moves: str = "pose"

    def numbers(self) -> list[dict[str, Any]]:
        """The table's rows, as numbers by column."""
        return [row.pose_numbers() if self.moves == "pose" else row.field_numbers() for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names: {schema, env, env_kwargs, pairs, seed, threads, success_mm, moves, methods: [{
        method, the columns of the table, seconds_per_pair, measures: {name: [value, ...]}}]}."""
        return {"schema": SCHEMA, **self._about(),
                "methods": [{**numbers, "measures": {name: list(values) for name, values in row.measures.items()}}
                            for row, numbers in zip(self.rows, self.numbers(), strict=True)]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """What :meth:`to_dict` gave. Raises ValueError for another schema."""
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"Report: schema is {plain.get('schema')!r}; this release reads {SCHEMA}.")
        rows = tuple(Row(row["method"], {name: tuple(values) for name, values in row["measures"].items()},
                         row["seconds_per_pair"], plain["success_mm"]) for row in plain["methods"])
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

    def row(self, method: str) -> Row:
        """The row of a method."""
        return next(row for row in self.rows if row.method == method)

    def table(self) -> str:
        """The table as plain text."""
        lines = self._pose_lines() if self.moves == "pose" else self._field_lines()
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
        rows = self.numbers()
        with atomic(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _about(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}

    def _pose_lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = [("method", "TRE mean", *(f"p{p}" for p in PERCENTILES),
                                         f"<= {self.success_mm:g} mm", "95 % interval", "s/pair")]
        for row in self.rows:
            rate, low, high = (100 * value for value in row.success)
            lines.append((row.method, f"{row.mean:.2f}", *(f"{p:.2f}" for p in row.percentiles), f"{rate:.1f} %",
                          f"{low:.1f}-{high:.1f} %", f"{row.seconds:.2f}"))
        return lines

    def _field_lines(self) -> list[tuple[str, ...]]:
        columns = [(measure, name) for measure in self.rows[0].measures for name in COLUMNS[measure][1]]
        lines: list[tuple[str, ...]] = [("method", *(COLUMNS[measure][0] if name == "mean" else name
                                                     for measure, name in columns), "s/pair")]
        for row in self.rows:
            cells = [(row.statistic(measure, name), COLUMNS[measure][2]) for measure, name in columns]
            lines.append((row.method, *("none" if value is None else format(value, shown).replace("%", " %")
                                        for value, shown in cells), f"{row.seconds:.2f}"))
        return lines
