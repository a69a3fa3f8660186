"""A registration's outcome as a page: its volumes, its way, and what its metrics tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regagents.registration.deformation import Deformation
from regenv.data.io.images import Image
from regenv.grid import Grid
from regenv.viewer import Curve, DisplacementMap, Fact, Film, Number, Page, Step, Table, Verdict, Volume

BEFORE = "before"                       # the name of the pose in which the images lie as their files say
TAKEN = (BEFORE, "path", "result")      # what the page's buttons call the poses that they show
SCORE, REMAINING = "score", "mm from the final pose"
PLACES = ("before", "start", "pose", "after")       # where metrics tell TRE and Dice


class Outcome(Protocol):
    """What a page needs of a :class:`~regagents.registration.result.Result`."""

    @property
    def fixed(self) -> Image: ...
    @property
    def moving(self) -> Image: ...
    @property
    def warped(self) -> Image: ...
    @property
    def pull_back(self) -> NDArray[np.float64]: ...
    @property
    def trace(self) -> list[dict[str, Any]]: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def deformation(self) -> Deformation | None: ...


def page_of(result: Outcome) -> Page:
    """The page of a registration. What its metrics lack is left out of the page."""
    fixed, moving, metrics = result.fixed, result.moving, result.metrics
    shown = Volume.of(_name(moving), moving)
    candidates = [each for each in metrics.get("candidates") or () if isinstance(each, Mapping)]
    names = _distinct([str(each.get("name", "")) for each in candidates])
    poses = {BEFORE: np.eye(fixed.ndim + 1)} | {
        name: np.asarray(each["pull_back"], dtype=np.float64)
        for name, each in zip(names, candidates, strict=True) if each.get("pull_back") is not None}
    deformation = result.deformation
    return Page(
        kind="Registration report", title=f"{_name(moving)} onto {_name(fixed)}", subtitle=_subtitle(metrics),
        fixed=Volume.of(_name(fixed), fixed), moving=shown,
        warped=Volume.of(_name(moving), result.warped, shown.window),
        pull_back=result.pull_back, poses=poses,
        film=film_of(result.trace, result.pull_back, fixed.grid),
        displacement=None if deformation is None else DisplacementMap.of(deformation.displacement, deformation.grid),
        verdict=_verdict(metrics.get("verdict")), facts=_facts(result), curves=_curves(metrics),
        tables=[*_candidates(candidates, names, poses), *_dice(metrics.get("dice")), *_files(result)],
        notes=[str(note) for note in metrics.get("notes") or ()])


# ----------------------------------------------------------------------------------------------------------- the way

def film_of(trace: Sequence[Mapping[str, Any]], last: NDArray[np.float64], grid: Grid) -> Film:
    """The rows of a trace (stage, step, action, score, m00, m01, ...) as a film.

    Args: last: the final pose; every step tells the root mean square distance of the grid's corners to it, mm.
    """
    corners = grid.to_world(np.array(list(product(*((0, n - 1) for n in grid.shape)))))
    corners = np.column_stack([corners, np.ones(len(corners))])
    steps = []
    for row in trace:
        pose = np.eye(grid.ndim + 1)
        for i, j in product(range(grid.ndim), range(grid.ndim + 1)):
            pose[i, j] = float(row[f"m{i}{j}"])
        away = float(np.sqrt((((pose - last) @ corners.T) ** 2).sum(0).mean()))
        steps.append(Step(str(row["stage"]), int(row["step"]), pose, str(row.get("action") or ""),
                          {SCORE: _number(row.get("score")), REMAINING: away}))
    return Film(tuple(steps))


# ------------------------------------------------------------------------------------------------------- the numbers

def _facts(result: Outcome) -> list[Fact]:
    metrics = result.metrics
    facts = [*_before_after("TRE", metrics.get("tre_mm"), ".2f", " mm"),
             *_before_after("Dice, mean", _means(metrics.get("dice")), ".3f")]
    similarity = [value for value in map(_number, (metrics.get("similarity") or {}).values()) if value is not None]
    if similarity:
        facts.append(Fact("Mutual information", f"{similarity[-1]:.3f}", f"{similarity[0]:.3f} at the start"))
    facts += _pose_facts(result.pull_back, result.fixed.grid)
    told = metrics.get("deformation") or {}
    if _number(told.get("folding")) is not None:
        facts.append(Fact("Folded voxels", f"{told['folding']:.3%}",
                          f"SD of log det J {_text(told.get('sd_log_jacobian'), '.3f')}"))
    seconds = [value for value in map(_number, (metrics.get("seconds") or {}).values()) if value is not None]
    if seconds:
        facts.append(Fact("Time", f"{sum(seconds):.1f} s", "without reading and writing"))
    return facts


def _pose_facts(pull_back: NDArray[np.float64], grid: Grid) -> list[Fact]:
    """How far the pose turns, shifts and scales the fixed image's world."""
    n = grid.ndim
    left, stretches, right = np.linalg.svd(pull_back[:n, :n])
    turn = left @ right
    cosine = (np.trace(turn) - (n - 2)) / 2
    shift = pull_back[:n, :n] @ grid.center + pull_back[:n, n] - grid.center
    facts = [Fact("Shift", f"{np.linalg.norm(shift):.1f} mm", "of the fixed image's middle"),
             Fact("Rotation", f"{np.degrees(np.arccos(np.clip(cosine, -1, 1))):.1f}°",
                  "mirrored" if np.linalg.det(pull_back[:n, :n]) < 0 else "")]
    if np.abs(stretches - 1).max() > 5e-4:
        facts.append(Fact("Scale", " × ".join(f"{s:.3f}" for s in _merged(stretches)), "along its principal axes"))
    return facts


def _merged(stretches: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number where the scale is the same along all axes."""
    return stretches[:1] if np.ptp(stretches) < 5e-4 else stretches


def _before_after(name: str, values: Any, form: str, unit: str = "") -> list[Fact]:
    if not isinstance(values, Mapping) or _number(values.get("after")) is None:
        return []
    before = _number(values.get("before"))
    return [Fact(name, f"{values['after']:{form}}{unit}",
                 "" if before is None else f"{before:{form}}{unit} before")]


def _curves(metrics: Mapping[str, Any]) -> list[Curve]:
    similarity = {str(stage): _number(value) for stage, value in (metrics.get("similarity") or {}).items()}
    curves = [Curve("Mutual information after each stage", tuple(similarity), tuple(similarity.values()))]
    for title, values in (("TRE, mm", metrics.get("tre_mm")), ("Dice, mean", _means(metrics.get("dice")))):
        if isinstance(values, Mapping):
            places = [place for place in PLACES if place in values]
            curves.append(Curve(title, tuple(places),
                                tuple(_number(values[place]) for place in places)))
    return [curve for curve in curves if sum(value is not None for value in curve.values) > 1]


def _verdict(told: Any) -> Verdict | None:
    if not isinstance(told, Mapping) or not told.get("state"):
        return None
    evidence = {str(name).replace("_", " "): _number(value) for name, value in (told.get("evidence") or {}).items()}
    return Verdict(str(told["state"]), _number(told.get("probability")),
                   tuple(str(reason) for reason in told.get("reasons") or ()), evidence)


# -------------------------------------------------------------------------------------------------------- the tables

def _candidates(candidates: Sequence[Mapping[str, Any]], names: Sequence[str],
                poses: Mapping[str, Any]) -> list[Table]:
    if not candidates:
        return []
    rows = tuple((name, _text(each.get("score"), ".4f"), _text(each.get("overlap"), ".0%"))
                 for name, each in zip(names, candidates, strict=True))
    return [Table("Candidates", ("pose", "score", "overlap"), rows, "Best first. A click on a row shows its pose.",
                  tuple(name if name in poses else "" for name in names))]


def _dice(dice: Any) -> list[Table]:
    """Dice of every label."""
    if not isinstance(dice, Mapping):
        return []
    places = [place for place in PLACES if isinstance(dice.get(place), Mapping)]
    labels = dict.fromkeys(label for place in places for label in dice[place])
    rows = tuple((str(label), *(_text(dice[place].get(label), ".3f") for place in places)) for label in labels)
    return [Table("Dice of every label", ("label", *places), rows)] if rows else []


def _files(result: Outcome) -> list[Table]:
    rows = []
    for name, image in (("fixed", result.fixed), ("moving", result.moving)):
        size, spacing = (" × ".join(form.format(value) for value in values) for form, values in
                         (("{}", image.grid.size), ("{:.4g}", image.grid.spacing)))
        rows.append((name, image.path, size, spacing))
    n = result.fixed.ndim
    matrix = tuple(tuple(f"{value:.6f}" for value in row) for row in np.asarray(result.pull_back)[:n].tolist())
    return [Table("Images", ("", "file", "voxels", "spacing, mm"), tuple(rows)),
            Table("Pull-back", (*"xyz"[:n], "shift, mm"), matrix,
                  "From a point of the fixed image's world to one of the moving image's, mm (LPS).")]


# --------------------------------------------------------------------------------------------------------- the words

def _subtitle(metrics: Mapping[str, Any]) -> str:
    agents = [str(name) for name in metrics.get("agent") or ()]
    parts = [" + ".join(agents) if agents else "no agent"]
    if "refinement" in (metrics.get("similarity") or {}):
        parts.append("refinement")
    if isinstance(metrics.get("deformation"), Mapping):
        parts.append(f"deformed by {metrics['deformation'].get('by')}")
    return ", then ".join(parts)


def _name(image: Image) -> str:
    return PurePath(image.path).name or image.path


def _means(dice: Any) -> dict[str, Number] | None:
    """The mean over the labels at every place."""
    if not isinstance(dice, Mapping):
        return None
    present = {place: [value for value in map(_number, dice[place].values()) if value is not None]
               for place in PLACES if isinstance(dice.get(place), Mapping)}
    return {place: sum(values) / len(values) if values else None for place, values in present.items()}


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where one comes again or is taken."""
    given = list(TAKEN)
    for name in names:
        number, told = 1, name
        while told in given:
            number += 1
            told = f"{name} {number}"
        given.append(told)
    return given[len(TAKEN):]


def _number(value: Any) -> Number:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if np.isfinite(value) else None


def _text(value: Any, form: str) -> str:
    number = _number(value)
    return "-" if number is None else format(number, form)
