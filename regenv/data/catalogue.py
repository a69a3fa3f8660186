"""The catalogue of pair sources: what a name such as "phantoms" or a mapping in JSON stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regenv.data.pairs import PairSource
from regenv.data.phantoms.appearance import Appearance
from regenv.data.sources.brain_phantoms import BrainPhantom
from regenv.data.sources.brains import Brains
from regenv.data.sources.brains3d import Brains3D
from regenv.data.sources.codeformed import CoDeformed
from regenv.data.sources.deformed import Deformed
from regenv.data.sources.digits import Digits
from regenv.data.sources.files import Files
from regenv.data.sources.folders import FolderPairs
from regenv.data.sources.heads import Heads
from regenv.data.sources.livers import Livers
from regenv.data.sources.lungs import Lungs
from regenv.data.sources.organs import OrganPairs
from regenv.data.sources.slices import Slices
from regenv.data.sources.spine_phantoms import SpinePhantom


def source_named(source: str | Mapping[str, Any] | PairSource, ndim: int) -> PairSource:
    """The pair source of a name, or of a mapping with a name and arguments; a PairSource is returned as it is.

    A mapping can be written in JSON: ``{"name": "heads", "subjects": ["mni152"]}``, ``{"name": "codeformed", "source":
    {"name": "spine"}, "affine": 0.25}``. The names are:

    - synthetic: "phantoms" (heads), "spine", "livers", "lungs", "organs" (pelvises, with known deformations);
    - real: "heads" and their "slices", "brains" (of different subjects), "brains3d"
      (heads, for dense registration), "digits";
    - the user's: "files", "folder" (public data sets);
    - changes of another source: "deformed" (moving image bent), "codeformed" (both images deformed alike).

    Raises ValueError for another name, TypeError for an argument that the source does not take.
    """
    if not isinstance(source, (str, Mapping)):
        return source
    arguments = {"name": source} if isinstance(source, str) else dict(source)
    name = arguments.pop("name", None)
    if name not in SOURCES:
        raise ValueError(f"source is {name!r}; it must be one of {', '.join(SOURCES)}, or a PairSource.")
    return SOURCES[name](ndim, **{key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()})


def _heads(ndim: int, appearance: Mapping[str, Any] | None = None, **arguments: Any) -> PairSource:
    return Heads(appearance=Appearance(**(appearance or {})), **arguments)


def _codeformed(ndim: int, source: str | Mapping[str, Any], **arguments: Any) -> PairSource:
    return CoDeformed(source_named(source, ndim), **arguments)


def _deformed(ndim: int, source: str | Mapping[str, Any] = "phantoms", **arguments: Any) -> PairSource:
    return Deformed(source_named(source, ndim), **arguments)


SOURCES: dict[str, Callable[..., PairSource]] = {
    "phantoms": BrainPhantom,
    "spine": SpinePhantom,
    "heads": _heads,
    "slices": lambda ndim, **arguments: Slices(**arguments),
    "codeformed": _codeformed,
    "deformed": _deformed,
    "files": Files,
    "organs": OrganPairs,
    "digits": lambda ndim, **arguments: Digits(**arguments),
    "brains": Brains,
    "brains3d": lambda ndim, **arguments: Brains3D(**arguments),
    "livers": lambda ndim, **arguments: Livers(**arguments),
    "lungs": Lungs,
    "folder": FolderPairs,
}

CLASSES: dict[str, type] = {
    "phantoms": BrainPhantom, "spine": SpinePhantom, "heads": Heads, "slices": Slices, "codeformed": CoDeformed,
    "deformed": Deformed, "files": Files, "organs": OrganPairs, "digits": Digits, "brains": Brains,
    "brains3d": Brains3D, "livers": Livers, "lungs": Lungs, "folder": FolderPairs}
"""The class behind each name; its fields are the arguments that a mapping may give."""
