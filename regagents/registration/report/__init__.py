"""``report.html``: one page on which a registration can be looked at, from disk and without a network.

:func:`write` and :func:`render` make it of a :class:`~regagents.registration.result.Result`. What a page shows is a
:class:`regenv.viewer.Page`, which knows nothing of results: whoever has two volumes and a way of poses can fill one.
"""

from __future__ import annotations

from pathlib import Path

from regagents.registration.report.content import Outcome, page_of
from regenv.atomic import atomic

__all__ = ["Outcome", "page_of", "render", "write"]


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
