"""What a page shows, apart from where it comes from, and how it becomes one HTML file.

Everything that a file or a user names reaches the page as JSON, in which no character can end the script, and is set as
text, never as markup. The page's policy allows its own script and style alone and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.render.planes import planes_of
from regenv.viewer.geometry import lifted_pose
from regenv.viewer.volumes import DisplacementMap, Volume

SCRIPTS = ("volume.js", "planes.js", "charts.js", "choices.js", "viewer.js")      # each uses those before it
Number = float | None


@dataclass(frozen=True)
class Choice:
    """An action that an agent could take: its name, what the agent thinks of it, and whether it is taken next."""

    name: str
    value: Number
    taken: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """A pose on a way, and what is known there.

    Attributes:
        stage: who moves. step: the number within the stage. pull_back: (D+1, D+1) after the step, mm.
        action: its name, or "".
        numbers: by name, such as a score, a reward, a distance; None where one is not known.
        displacement: what comes before the pose, if anything.
        choices: what the agent thinks of its next actions, if anything is known of it.
    """

    stage: str
    step: int
    pull_back: NDArray[np.float64]
    action: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    displacement: DisplacementMap | None = None
    choices: tuple[Choice, ...] = ()

    def data(self) -> dict[str, Any]:
        return {"stage": self.stage, "step": self.step, "action": self.action,
                "pose": lifted_pose(self.pull_back)[:3].ravel().tolist(), "numbers": dict(self.numbers),
                "displacement": self.displacement and self.displacement.data(),
                "choices": [asdict(choice) for choice in self.choices]}


@dataclass(frozen=True)
class Film:
    """A way of poses; each of the steps' numbers becomes a curve below it. ``choices`` says what the values of the
    steps' choices are, such as "Probability of each action"."""

    steps: tuple[Step, ...] = ()
    choices: str = ""

    def data(self) -> dict[str, Any]:
        names = list(dict.fromkeys(name for step in self.steps for name in step.numbers))
        return {"steps": [step.data() for step in self.steps], "choices": self.choices,
                "numbers": [name for name in names if any(step.numbers.get(name) is not None for step in self.steps)]}


@dataclass(frozen=True)
class Verdict:
    """Whether the images are aligned: state, probability that they are (0 to 1), sentences, and named numbers."""

    state: str
    probability: Number = None
    reasons: tuple[str, ...] = ()
    evidence: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Fact:
    """One number that matters, as text: its name, its value, and a word more."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Curve:
    """Values at named places, such as a similarity after every stage; None leaves a gap."""

    title: str
    places: tuple[str, ...]
    values: tuple[Number, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text; ``poses`` names for each row the pose of the page that a click on it shows, or ""."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    poses: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Page:
    """Two images, one moved onto the other, and all that is told about it.

    Attributes:
        kind: of page, such as "Registration report". title, subtitle: text.
        fixed, moving: as they are. warped: the moving image on the fixed one's grid, in the end.
        pull_back: the final pose (D+1, D+1), fixed world to moving world, mm.
        poses: named pull-backs (D+1, D+1) that can be looked at, mm; "before" gets a button of its own.
        film: the way from the first pose to the last.
        displacement: what comes before the final pose, if anything.
        verdict, facts, curves, tables, notes: what is told below the pictures.
        opens: what is looked at first, "result" or "path".
    """

    kind: str
    title: str
    subtitle: str
    fixed: Volume
    moving: Volume
    warped: Volume
    pull_back: NDArray[np.float64]
    poses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    film: Film = Film()
    displacement: DisplacementMap | None = None
    verdict: Verdict | None = None
    facts: Sequence[Fact] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    opens: str = "result"

    def data(self) -> dict[str, Any]:
        """What the page's script reads, JSON-able."""
        told = {"verdict": self.verdict and asdict(self.verdict), "notes": list(self.notes)} | {
            name: [asdict(each) for each in getattr(self, name)] for name in ("facts", "curves", "tables")}
        return {"kind": self.kind, "title": self.title, "subtitle": self.subtitle, **told, "film": self.film.data(),
                "opens": self.opens,
                "planes": [asdict(plane) for plane in planes_of(self.fixed.grid)],
                "pullBack": lifted_pose(self.pull_back)[:3].ravel().tolist(),
                "poses": {name: lifted_pose(pose)[:3].ravel().tolist() for name, pose in self.poses.items()},
                "displacement": self.displacement and self.displacement.data(),
                **{name: getattr(self, name).data() for name in ("fixed", "moving", "warped")}}

    def html(self) -> str:
        """The page, of ASCII characters alone."""
        script = "".join(_asset(name) for name in SCRIPTS)
        parts = {"STYLE": _asset("style.css"), "SCRIPT": script, "DATA": embedded(self.data()),
                 "DIGEST": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}
        pieces = _asset("page.html").split("@@")
        return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: no character in it can end the element or begin markup; numbers that
    are not finite become null."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, (float, np.floating)):
        return float(data) if math.isfinite(data) else None
    return int(data) if isinstance(data, np.integer) else data


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="ascii")
