"""Named, frozen suites of held-out pairs, and the leaderboard of what was measured on them.

A suite is a row of ``suites.json``: where its pairs come from, how many, and what is measured. The row also keeps what
was measured of every pair at its start, so that pairs that have changed, by another version of the images or of the
code, are told apart: they are refused. Its hash stands in every entry of a leaderboard, and entries of another hash are
not compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from regagents.evaluation.evaluate import Given, chosen_baselines, evaluate
from regagents.evaluation.methods import Initial, method_named
from regagents.evaluation.pairs import HELD_OUT, task_of
from regagents.evaluation.report import Report, Row
from regenv import __version__
from regenv.atomic import atomic
from regenv.stored import StoredError, parse_json, read_bytes

FILE = "suites.json"
START = Initial().name
BETTER = {"tre_mm": "lower", "dice": "higher"}
SAME = 2e-3             # how far a pair's start may be from the frozen one: mm, or Dice
DRAWS, CONFIDENCE = 2000, 95
BOARD_BYTES = 1 << 22


@dataclass(frozen=True)
class Suite:
    """Held-out pairs that everyone measures on.

    Attributes:
        about: what the pairs show, in a sentence.
        env, env_kwargs, pairs, seed: as :func:`regagents.evaluation.evaluate.evaluate` takes them.
        measure: "tre_mm" (mean distance of landmarks, mm, less is better) or "dice" (more is better).
        starts: the measure of every pair at its start.
    """

    about: str
    env: str
    env_kwargs: Mapping[str, Any]
    pairs: int
    seed: int
    measure: str
    starts: tuple[float, ...] = ()

    @property
    def hash(self) -> str:
        """Of all that tells which pairs these are, and what is measured; 16 hexadecimal digits."""
        row = {name: value for name, value in asdict(self).items() if name != "about"}
        return sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def distinct(self) -> NDArray[np.intp]:
        """Which pairs are the same one, drawn again: (pairs,) numbers from 0. They start alike; so do a pair and its
        reverse where overlap is measured, and they count as one."""
        return np.unique(self.starts, return_inverse=True)[1]

    def check(self, initial: Row) -> None:
        """Raise ValueError where the pairs that were drawn are not the frozen ones."""
        seen = np.array([math.nan if value is None else value for value in initial.measures[self.measure]])
        for place, (value, frozen) in enumerate(zip(seen, self.starts, strict=True)):
            if not abs(value - frozen) <= SAME:
                raise ValueError(f"pair {place} starts at {self.measure} {value:.4f}, but was frozen at {frozen:.4f}; "
                                 "the images or the code that draws them differ. Numbers would not be comparable.")


@dataclass(frozen=True)
class Standing:
    """An entry of a leaderboard.

    Attributes:
        suite, hash: of the pairs.
        method: its name, "NAME+mc" with look-ahead.
        learned: whether it is an agent.
        measure, mean, low, high, median: over the pairs; ``low`` to ``high`` is the mean's 95 % bootstrap interval over
            distinct pairs.
        success: share of pairs at or below the task's own threshold, None where overlap is measured.
        folding: mean share of folded voxels, None of poses.
        seconds: a pair, on the machine that measured.
        pairs: how many.
        version, date: of the package, and when it was measured.
    """

    suite: str
    hash: str
    method: str
    learned: bool
    measure: str
    mean: float
    low: float
    high: float
    median: float
    success: float | None
    folding: float | None
    seconds: float
    pairs: int
    version: str
    date: str


@lru_cache
def suites() -> Mapping[str, Suite]:
    """All suites by name."""
    plain = parse_json((resources.files("regagents.evaluation") / FILE).read_text(), FILE)
    return {name: Suite(**{**row, "starts": tuple(row["starts"])}) for name, row in plain.items()}


def suite_named(name: str) -> Suite:
    """Raises ValueError for a name that is none."""
    if name not in suites():
        raise ValueError(f"benchmark: suite is {name!r}; it must be one of {', '.join(suites())}.")
    return suites()[name]


def frozen(suite: Suite) -> Suite:
    """The suite with the starts of its pairs as they are drawn now."""
    row = evaluate(suite.env, [START], suite.pairs, suite.seed, suite.env_kwargs).row(START)
    return replace(suite, starts=tuple(round(float(value), 4) for value in row.values(suite.measure)))


def benchmark(name: str, agents: Sequence[Given] = (), baselines: Sequence[str] | None = None,
              **how: Any) -> tuple[Report, list[Standing]]:
    """Measure agents and classical methods on a suite's pairs.

    Args:
        name: of the suite.
        agents, baselines: as ``methods`` of :func:`regagents.evaluation.evaluate.evaluate`; baselines default to those
            that are usual for the pairs. The start is always measured.
        how: ``progress``, ``engine``, ``workers``, ``ledger`` of ``evaluate``.
    Raises: ValueError: no such suite or method; the pairs are not the frozen ones. CheckpointError: bad weights.
    """
    suite = suite_named(name)
    chosen = chosen_baselines(suite.env, suite.env_kwargs, baselines)
    methods = [START, *agents, *(each for each in chosen if each != START)]
    env_id, known = HELD_OUT.get(suite.env, (suite.env, {}))
    task = task_of(env_id, {**known, **suite.env_kwargs})
    report = evaluate(suite.env, methods, suite.pairs, suite.seed, suite.env_kwargs, **how)
    try:
        suite.check(report.row(START))
    except ValueError as error:
        raise ValueError(f"benchmark: {name}: {error}") from None
    learned = {name_: method_named(name_, task).learned if isinstance(name_, str) else True
               for name_ in (row.method for row in report.rows)}
    return report, [standing(name, suite, row, learned[row.method]) for row in report.rows]


def standing(name: str, suite: Suite, row: Row, learned: bool) -> Standing:
    """The entry of a row that was measured on a suite."""
    values = row.values(suite.measure)
    low, high = interval(values, suite.distinct)
    success = row.success[0] if suite.measure == "tre_mm" else None
    folded = row.statistic("folding", "mean") if "folding" in row.measures else None
    return Standing(name, suite.hash, row.method, learned, suite.measure, _short(values.mean()), _short(low),
                    _short(high), _short(np.median(values)), success, None if folded is None else round(folded, 6),
                    round(row.seconds, 4), suite.pairs, __version__, str(date.today()))


def interval(values: NDArray[np.float64], distinct: NDArray[np.intp]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; what is drawn are distinct pairs, each with all that was measured on it."""
    counts = np.bincount(distinct)
    drawn = np.random.default_rng(0).integers(len(counts), size=(DRAWS, len(counts)))
    means = np.bincount(distinct, values)[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
    return float(low), float(high)


def read_board(path: str | Path) -> list[Standing]:
    """The entries of a leaderboard's file.

    Raises StoredError: it is damaged, or has an entry of an unknown suite, of other pairs, or of a wrong type.
    """
    plain = parse_json(read_bytes(path, BOARD_BYTES), str(path), BOARD_BYTES)
    if not isinstance(plain, list):
        raise StoredError(f"{path}: it holds a {type(plain).__name__}; a leaderboard is a list of entries.")
    return [_entry(row, f"{path}: entry {place}") for place, row in enumerate(plain)]


def save_board(path: str | Path, standings: Iterable[Standing]) -> None:
    """Write entries, by suite and best first, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps([asdict(each) for each in ranked(standings)], indent=1) + "\n")


def joined(older: Iterable[Standing], newer: Iterable[Standing]) -> list[Standing]:
    """Entries with newer ones, which replace those of the same suite and method."""
    return list({(each.suite, each.method): each for each in (*older, *newer)}.values())


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """By suite in the order of ``suites.json``, best first."""
    order = list(suites())
    sign = {"lower": 1.0, "higher": -1.0}
    return sorted(standings, key=lambda each: (order.index(each.suite), sign[BETTER[each.measure]] * each.mean))


def page(standings: Sequence[Standing]) -> str:
    """The leaderboard in Markdown: a table a suite."""
    told = []
    for name, suite in suites().items():
        rows = [each for each in ranked(standings) if each.suite == name]
        if rows:
            title, shown = TITLES[suite.measure]
            told.append(f"## {name}\n\n{suite.about} {suite.pairs} pairs, {suite.distinct.max() + 1} of "
                        f"them distinct, `{suite.hash}`.\n\n"
                        f"| method | {title} | 95 % interval | median | {EXTRA[suite.measure]} | s/pair |\n"
                        "|---|---:|---:|---:|---:|---:|\n" + "\n".join(_line(each, shown) for each in rows))
    return "\n\n".join(told) + "\n"


TITLES: dict[str, tuple[str, Callable[[float], str]]] = {"tre_mm": ("TRE, mm", lambda value: f"{value:.2f}"),
                                                         "dice": ("Dice", lambda value: f"{value:.3f}")}
EXTRA = {"tre_mm": "success", "dice": "folded"}


def _line(each: Standing, shown: Callable[[float], str]) -> str:
    share = each.success if each.measure == "tre_mm" else each.folding
    told = "" if share is None else f"{share:.1%}" if each.measure == "tre_mm" else f"{share:.3%}"
    name = f"**{each.method}**" if each.learned else each.method
    return (f"| {name} | {shown(each.mean)} | {shown(each.low)} to {shown(each.high)} | {shown(each.median)} | "
            f"{told} | {each.seconds:.2f} |")


def _entry(row: Any, where: str) -> Standing:
    kinds = get_type_hints(Standing)
    if not isinstance(row, dict) or set(row) != {each.name for each in fields(Standing)}:
        raise StoredError(f"{where}: it must have exactly {', '.join(each.name for each in fields(Standing))}.")
    for name, kind in kinds.items():
        value = float(row[name]) if kind in (float, float | None) and type(row[name]) is int else row[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise StoredError(f"{where}: {name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}.")
    known = suites().get(row["suite"])
    if known is None:
        raise StoredError(f"{where}: suite is {row['suite']!r}; it must be one of {', '.join(suites())}.")
    if row["hash"] != known.hash:
        raise StoredError(f"{where}: hash is {row['hash']!r}, but {row['suite']} is {known.hash}; other pairs were "
                          "measured. Run the benchmark again.")
    return Standing(**row)


def _short(value: Any) -> float:
    return round(float(value), 4)
