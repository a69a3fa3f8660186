"""Headers of words: their fields are known, stand there once, and hold finite numbers; their data files stay beside
them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path

from regenv.data.io.errors import ImageError, shown

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?")
_INTEGER = re.compile(r"[+-]?\d{1,15}")
_SIMILAR = 0.8      # of difflib; a field this similar to a known one is a slip of the pen


class Fields(dict[str, str]):
    """The fields of one header, by name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def add(self, name: str, value: str) -> None:
        """Add a field. Raises ImageError for one that stands there twice."""
        if name in self:
            raise ImageError(f"{self.path}: {shown(name)} stands twice in the header, as {shown(self[name])} and as "
                             f"{shown(value)}. Remove one.")
        self[name] = value

    def one_of(self, *names: str) -> str | None:
        """The one field of several synonyms that is there, or None. Raises ImageError where several are."""
        found = [name for name in names if name in self]
        if len(found) > 1:
            raise ImageError(f"{self.path}: header has {' and '.join(found)}, which mean the same. Remove one.")
        return found[0] if found else None

    def numbers(self, name: str, count: int) -> list[float]:
        """The finite numbers of a field. Raises ImageError where there are other words or not ``count`` numbers."""
        return numbers(self.path, name, self.get(name), count)

    def integers(self, name: str, count: int | None = None) -> list[int]:
        """The whole numbers of a field, at least one. Raises ImageError where there are other words or not ``count``
        numbers."""
        words = self.get(name, "").split()
        if not words or count not in (None, len(words)) or not all(map(_INTEGER.fullmatch, words)):
            self.refuse(name, "it must be " + ("whole numbers" if count is None else f"{count} whole number(s)"))
        return [int(word) for word in words]

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        """The word of a field. Raises ImageError unless it is one of the allowed, which are in lower case."""
        word = self.get(name, default).lower()
        if word not in allowed:
            self.refuse(name, f"it must be one of {', '.join(allowed)}")
        return word

    def refuse(self, name: str, demand: str) -> None:
        """Raise ImageError for the value of a field."""
        raise ImageError(f"{self.path}: {name} is {shown(self.get(name))}; {demand}. Fix the header.")


def numbers(path: Path, name: str, text: str | None, count: int) -> list[float]:
    """The finite numbers of a text. Raises ImageError where there are other words or not ``count`` numbers."""
    words = (text or "").split()
    found = [float(word) for word in words if _NUMBER.fullmatch(word)]
    if len(words) != count or len(found) != count or not all(map(math.isfinite, found)):
        raise ImageError(f"{path}: {name} is {shown(text)}; it must be {count} finite numbers. Fix the header.")
    return found


def check_spelling(path: Path, name: str, known: Iterable[str]) -> None:
    """Raise ImageError for an unknown field that resembles a known one."""
    if name not in known and (meant := difflib.get_close_matches(name, known, 1, _SIMILAR)):
        raise ImageError(f"{path}: field {shown(name)} is unknown; {meant[0]} may be meant. Fix the header.")


def beside(path: Path, field: str, name: str) -> Path:
    """The data file that a header names. Raises ImageError unless it is one file in the header's folder."""
    folder = path.parent.resolve()
    try:
        data = (folder / name).resolve()
        inside, exists = data.is_relative_to(folder) and data != path.resolve(), data.is_file()
    except (OSError, ValueError, RuntimeError):     # too long, with a zero, or links in a circle
        raise ImageError(f"{path}: {field} is {shown(name)}; it must be the name of a file. Fix the header.") from None
    if not inside:
        raise ImageError(f"{path}: {field} is {shown(name)}; the voxels must lie in a file of their own, in the "
                         "header's folder. Put it there, and its bare name into the header.")
    if not exists:
        raise ImageError(f"{path}: {field} is {shown(name)}, which does not exist as a regular file. Put it beside the "
                         "header.")
    return data
