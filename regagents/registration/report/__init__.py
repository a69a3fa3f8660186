"""``report.html``: one page on which a registration can be looked at, from disk and without a network.

:func:`write` and :func:`render` make it of a :class:`~regagents.registration.result.Result`. What a page shows is a
:class:`Page`, which knows nothing of results: whoever has two volumes and the poses of a way can fill one.
"""

from __future__ import annotations

from pathlib import Path

from regagents.registration.report.content import Outcome, page_of
from regagents.registration.report.geometry import Plane, planes_of, view_grid
from regagents.registration.report.page import Curve, Fact, Film, Page, Step, Table, Verdict
from regagents.registration.report.volumes import DisplacementMap, Volume
from regenv.atomic import atomic

__all__ = ["Curve", "DisplacementMap", "Fact", "Film", "Outcome", "Page", "Plane", "Step", "Table", "Verdict", "Volume",
           "page_of", "planes_of", "render", "view_grid", "write"]


def render(result: Outcome) -> str:
    """The page of a registration's outcome: HTML of ASCII characters alone, below 10 MB."""
    return page_of(result).html()


def write(path: str | Path, result: Outcome) -> None:
    """Write the page of a registration's outcome, whole or not at all.

    Raises: ValueError, OSError: as :func:`regenv.atomic.atomic`.
    """
    text = render(result)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="ascii")
