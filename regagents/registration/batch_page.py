"""The summary of a batch: a table for programs, one for people, and a page with a link to each pair's report."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from regagents.registration.batch_pairs import Pair
from regenv.atomic import atomic

STATES = ("error", "failed", "doubtful", "aligned", "not run")
"""Of a pair, in the order in which they are sorted: what needs a look comes first."""
MEASURES = ("probability", "score", "seconds", "tre_mm_before", "tre_mm_after", "dice_before", "dice_after")
COLUMNS = ("name", "verdict", *MEASURES, "reasons", "error", "fixed", "moving")
SHOWN = {"name": "name", "verdict": "verdict", "probability": "probability", "score": "score", "seconds": "seconds",
         "tre_mm_after": "TRE, mm", "dice_after": "Dice", "why": "reasons"}
"""Columns of the tables for people, and their headings."""
DIGITS = {"probability": 2, "score": 3, "seconds": 1, "tre_mm_after": 2, "dice_after": 3}


@dataclass(frozen=True)
class Line:
    """A pair's line of the summary. Args: found: what was found of it; empty where it was not registered."""

    pair: Pair
    found: Mapping[str, Any]

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        if not self.found:
            return "not run"
        return "error" if "error" in self.found else str(self.found["verdict"])

    @property
    def why(self) -> str:
        """What was wrong, or what speaks against the pose."""
        return str(self.found.get("error", "; ".join(self.found.get("reasons", ()))))

    def row(self) -> dict[str, Any]:
        """Values by :data:`COLUMNS`; an empty string where there is none."""
        values = {name: self.found.get(name) for name in MEASURES}
        return {"name": self.pair.name, "verdict": self.state,
                **{name: "" if value is None else value for name, value in values.items()},
                "reasons": "; ".join(self.found.get("reasons", ())), "error": self.found.get("error", ""),
                "fixed": str(self.pair.fixed), "moving": str(self.pair.moving)}

    def shown(self, column: str) -> str:
        """The text of a column of :data:`SHOWN`."""
        if column == "why":
            return self.why
        value = self.row()[column]
        return f"{value:.{DIGITS[column]}f}" if column in DIGITS and value != "" else str(value)


def counted(lines: Sequence[Line]) -> str:
    """How many pairs there are of each state, such as "3 pairs: 1 error, 2 aligned"."""
    counts = Counter(line.state for line in lines)
    states = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return f"{len(lines)} pair{'s' * (len(lines) != 1)}: {', '.join(states)}"


def written(out: Path, lines: Sequence[Line], left_out: Sequence[str] = ()) -> None:
    """Write ``summary.csv``, ``summary.md`` and ``index.html``, each whole or not at all."""
    with atomic(out / "summary.csv") as path, path.open("w", newline="", encoding="utf-8",
                                                        errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(line.row() for line in lines)
    for name, text in (("summary.md", markdown(lines, left_out)), ("index.html", page(lines, left_out))):
        with atomic(out / name) as path:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _columns(lines: Sequence[Line]) -> list[str]:
    """Columns of :data:`SHOWN` that some line fills."""
    always = ("name", "verdict", "probability", "score", "seconds")
    return [name for name in SHOWN if name in always or any(line.shown(name) for line in lines)]


# ------------------------------------------------------------------------------------------------------------ Markdown

def markdown(lines: Sequence[Line], left_out: Sequence[str] = ()) -> str:
    """The summary for people, in Markdown."""
    columns = _columns(lines)
    rows = [[SHOWN[name] for name in columns], ["---"] * len(columns),
            *([_plain(line.shown(name)) for name in columns] for line in lines)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    rest = "".join(f"\nLeft out: {_plain(each)}\n" for each in left_out)
    return f"{counted(lines)}.\n\n{table}\n{rest}"


def _plain(text: str) -> str:
    """A text that neither ends a cell nor is taken for Markdown or HTML."""
    marked = "".join(f"\\{letter}" if letter in "\\`*_[]<>|" else letter for letter in text)
    return " ".join(marked.split())


# ---------------------------------------------------------------------------------------------------------------- HTML

def page(lines: Sequence[Line], left_out: Sequence[str] = ()) -> str:
    """The summary as one page that needs nothing else; a click on a heading sorts by it."""
    columns = _columns(lines)
    head = "".join(f'<th aria-sort="none"><button>{escape(SHOWN[name])}</button></th>' for name in columns)
    body = "\n".join("<tr>" + "".join(_cell(line, name) for name in columns) + "</tr>" for line in lines)
    rest = "".join(f"<p>Left out: {escape(each)}</p>" for each in left_out)
    return Template(_PAGE).substitute(counted=escape(counted(lines)), head=head, body=body, rest=rest)


def _cell(line: Line, column: str) -> str:
    text = escape(line.shown(column))
    if column == "verdict":
        rank = STATES.index(line.state) if line.state in STATES else len(STATES)
        return f'<td data-order="{rank}" class="{escape(line.state.replace(" ", "-"))}">{text}</td>'
    if column == "name" and line.state not in ("error", "not run"):
        text = f'<a href="{escape(quote(line.pair.name))}/report.html">{text}</a>'
    if column not in DIGITS:
        return f"<td>{text}</td>"
    value = line.row()[column]
    return f'<td class="number" data-order="{"" if value == "" else float(value)}">{text}</td>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Registrations</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td:nth-child(2) { font-weight: 600; white-space: nowrap; }
.aligned { color: light-dark(#17692f, #6fd08c); }
.doubtful { color: light-dark(#8a5a00, #e8b44c); }
.failed, .error { color: light-dark(#b01c1c, #ff8a80); }
</style>
</head>
<body>
<h1>Registrations</h1>
<p>${counted}</p>
<table>
<thead><tr>${head}</tr></thead>
<tbody>
${body}
</tbody>
</table>
${rest}
<script>
const heads = [...document.querySelectorAll("th")], body = document.querySelector("tbody");
const value = (row, at) => {
  const cell = row.cells[at], order = cell.dataset.order;
  return order === undefined ? cell.textContent : order === "" ? Infinity : Number(order);
};
const compared = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true})
  : a === b ? 0 : a < b ? -1 : 1;
heads.forEach((head, at) => head.firstChild.addEventListener("click", () => {
  const down = head.ariaSort === "ascending";
  heads.forEach(each => { each.ariaSort = "none"; });
  head.ariaSort = down ? "descending" : "ascending";
  const rows = [...body.rows].sort((a, b) => compared(value(a, at), value(b, at)) * (down ? -1 : 1));
  body.append(...rows);
}));
</script>
</body>
</html>
"""
