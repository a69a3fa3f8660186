"""An episode's frame: the images in every plane, outlines and the warped grid, and beside them what has happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regenv.grid import Grid
from regenv.render.images import beside, blend, even, resized, sizes_of, zoomed
from regenv.render.planes import Plane, planes_of
from regenv.render.text import ADVANCE, HEIGHT, width, write
from regenv.render.trail import Reading, Trail

PANEL = {2: 320, 3: 224}            # pixels along the longest side of the panels
SIDEBAR, HEADER, MARGIN, LINE = 248, 26, 8, 19
GRID_LINES = 16                     # across the longer side
Colour = tuple[int, int, int]
PAPER, CARD, INK, MUTED, RULE = (20, 20, 20), (34, 34, 34), (240, 240, 240), (155, 155, 155), (80, 80, 80)
FIXED, MOVING, ACCENT, FOLD, GOOD = (80, 230, 120), (240, 90, 240), (255, 200, 60), (255, 50, 70), (95, 208, 154)
LEGENDS: dict[str, tuple[tuple[str, Colour], ...]] = {
    "overlay": (("fixed", FIXED), ("moving", MOVING)),
    "difference": (("fixed brighter", (0, 140, 255)), ("moving brighter", (255, 140, 0))),
    "checkerboard": (("fixed and moving in turn", MUTED),)}


@dataclass(frozen=True, eq=False)
class Scene:
    """An episode's images now, and where it wants to go.

    Attributes:
        name: the environment's id, or "".
        grid: of the fixed image.
        fixed, warped: (*shape), intensities in [0, 1].
        target, moved: (*shape) bool or None, the object in the fixed image and where the moving image's one lies.
        displacement: (D, *shape) or None, voxels, array-axis order.
        determinant: (*shape) or None, its Jacobian determinant.
        reading: how far it is now. limit: the steps of an episode.
    """

    name: str
    grid: Grid
    fixed: NDArray[Any]
    warped: NDArray[Any]
    target: NDArray[np.bool_] | None
    moved: NDArray[np.bool_] | None
    displacement: NDArray[np.float32] | None
    determinant: NDArray[np.float32] | None
    reading: Reading
    limit: int


def picture(scene: Scene, trail: Trail, style: str = "overlay") -> NDArray[np.uint8]:
    """A frame (height, width, 3) uint8 of an episode, both sides even; all frames of an episode have one size.

    Panels of the image or of a volume's planes in ``style``, with the outline of the target and of what is moved; below
    or beside them, where a displacement is being sought, the warped grid with folded voxels in red. On the right the
    last action, the reward, the return, how far the images are apart, and the curve of that.
    """
    planes, sizes = planes_of(scene.grid), sizes_of(scene.grid)
    scale = PANEL[scene.grid.ndim] / max(map(max, sizes))
    rows = [[_images(scene, plane, size, scale, style) for plane, size in zip(planes, sizes, strict=True)]]
    if scene.displacement is not None:
        rows.append([_grid(scene, plane, size, scale) for plane, size in zip(planes, sizes, strict=True)])
    if scene.grid.ndim == 2:
        rows = [[panel for row in rows for panel in row]]
    shown = [beside(row, MARGIN, PAPER[0]) for row in rows]
    panels = np.concatenate([part for row in shown for part in (row, _blank(MARGIN, row.shape[1]))][:-1])
    height = max(panels.shape[0], PANEL[3])
    body = beside([panels, _sidebar(scene, trail, style, height)], MARGIN, PAPER[0])
    return even(np.concatenate([_header(scene, trail, body.shape[1]), body]))


def isolines(values: NDArray[Any], thickness: float = 1.0) -> NDArray[np.float32]:
    """How much of each pixel (H, W) lies under the lines where values (H, W) are whole numbers, 0 to 1."""
    across, along = np.gradient(values)
    slope = np.hypot(across, along) + 1e-9
    away = np.abs(values - np.round(values)) / slope
    return np.clip(0.5 + thickness / 2 - away, 0, 1).astype(np.float32)


def _images(scene: Scene, plane: Plane, size: tuple[float, float], scale: float, style: str) -> NDArray[np.uint8]:
    """One plane of both images, with outlines and the letters of its sides."""
    height, width = size[0] * scale, size[1] * scale
    here, there = (resized(plane.slice_of(image), height, width) for image in (scene.fixed, scene.warped))
    panel = blend(here, there, style)
    for mask, colour in ((scene.moved, MOVING), (scene.target, FIXED)):
        if mask is not None:
            _mix(panel, isolines(0.5 + zoomed(plane.slice_of(mask), height, width)), colour)
    _letters(panel, plane)
    return panel


def _grid(scene: Scene, plane: Plane, size: tuple[float, float], scale: float) -> NDArray[np.uint8]:
    """One plane of the fixed image under the moving image's regular grid, carried along, and the folds in red."""
    assert scene.displacement is not None and scene.determinant is not None
    height, width = size[0] * scale, size[1] * scale
    shade = 0.45 * resized(plane.slice_of(scene.fixed), height, width)
    panel = np.round(255 * shade[..., None].repeat(3, axis=2)).astype(np.uint8)
    axes = (0, 1) if scene.grid.ndim == 2 else plane.axes[1:]
    step = max(scene.grid.shape[axis] for axis in axes) / GRID_LINES
    for axis in axes:
        n = scene.grid.shape[axis]
        index = np.arange(n, dtype=np.float32).reshape([n if a == axis else 1 for a in range(scene.grid.ndim)])
        place = plane.slice_of(index + scene.displacement[axis])
        _mix(panel, 0.8 * isolines(zoomed(place / step, height, width)), ACCENT)
    _mix(panel, 0.85 * (zoomed(plane.slice_of(scene.determinant <= 0), height, width) > 0.5), FOLD)
    _letters(panel, plane)
    return panel


def _mix(panel: NDArray[np.uint8], share: NDArray[np.float32], colour: Colour) -> None:
    """Paint a share (H, W) of a colour over a panel, in place."""
    where = np.nonzero(share > 0.02)
    part = share[where][:, None]
    panel[where] = panel[where] * (1 - part) + np.array(colour, np.float32) * part


def _letters(panel: NDArray[np.uint8], plane: Plane) -> None:
    high, wide = panel.shape[:2]
    for letters, (x, y) in zip(plane.letters, ((4, high // 2), (wide - 4, high // 2), (wide // 2, 4),
                                               (wide // 2, high - 4)), strict=True):
        if not letters:
            continue
        span, tall = width(letters, 1), HEIGHT
        write(panel, letters, min(max(4, x - span // 2), wide - span - 4), min(max(4, y - tall // 2), high - tall - 4),
              INK, 1, PAPER)


def _header(scene: Scene, trail: Trail, across: int) -> NDArray[np.uint8]:
    """The id, and which step it is."""
    strip = _blank(HEADER, across)
    step = f"step {trail.step} / {scene.limit}"
    write(strip, step, across - width(step, 2) - MARGIN, 6, INK)
    room = across - width(step, 2) - 4 * MARGIN
    write(strip, scene.name, MARGIN, 6, INK, 2 if width(scene.name, 2) <= room else 1)
    return strip


def _sidebar(scene: Scene, trail: Trail, style: str, height: int) -> NDArray[np.uint8]:
    """What has happened: a card (height, SIDEBAR, 3)."""
    card = np.full((height, SIDEBAR, 3), CARD[0], dtype=np.uint8)
    goal, now = scene.reading.goal, scene.reading.value
    done = goal is not None and now <= goal
    rows = (("reward", _number(trail.reward, "+.3g"), INK), ("return", _number(trail.total, ".4g"), INK),
            (scene.reading.name, _number(now, ".3g"), GOOD if done else INK))
    write(card, trail.action or "no action yet", MARGIN, MARGIN, ACCENT if trail.action else MUTED)
    for place, (name, value, ink) in enumerate(rows, start=1):
        write(card, name, MARGIN, MARGIN + place * LINE, MUTED)
        write(card, value, MARGIN + 9 * 2 * ADVANCE, MARGIN + place * LINE, ink)
    legend = [*LEGENDS[style], *((("grid", ACCENT), ("folds", FOLD)) if scene.displacement is not None else ())]
    lines = -(-len(legend) // 2)
    bottom = height - MARGIN - lines * LINE
    for place, (name, colour) in enumerate(legend):
        left, top = MARGIN + (place % 2) * (SIDEBAR // 2), bottom + (place // 2) * LINE + 4
        card[top + 1:top + 11, left:left + 10] = colour
        write(card, name, left + 16, top + 1, MUTED, 2 if width(name, 2) < SIDEBAR // 2 - 18 else 1)
    first = MARGIN + (len(rows) + 1) * LINE + 2
    card[first:bottom - 4, MARGIN:-MARGIN] = _curve(trail.readings, goal, bottom - 4 - first, SIDEBAR - 2 * MARGIN)
    return card


def _curve(values: tuple[float, ...], goal: float | None, height: int, across: int) -> NDArray[np.uint8]:
    """Values over the steps as a line, (height, across, 3), the goal as a dotted one; NaN leaves a gap."""
    chart = _blank(height, across)
    chart[[0, -1]] = chart[:, [0, -1]] = RULE
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return chart
    low, high = min(0.0, *known), max(0.0, *known)
    span = (high - low) or 1.0
    y = (height - 4) - (np.asarray(values) - low) / span * (height - 8)
    if goal is not None and goal <= high:
        chart[round((height - 4) - (goal - low) / span * (height - 8)), 3:-3:4] = GOOD
    x = np.linspace(3, across - 4, max(len(values), 2))[:len(values)]
    for place, column in enumerate(x):
        before = max(0, place - 1)
        if np.isfinite(y[place]) and np.isfinite(y[before]):
            dots = int(max(abs(column - x[before]), abs(y[place] - y[before]))) + 2
            rows = np.linspace(y[before], y[place], dots).round().astype(int)
            columns = np.linspace(x[before], column, dots).round().astype(int)
            for thick in (0, 1):
                chart[(rows + thick).clip(0, height - 1), columns] = ACCENT
    label = f"{high if high else low:.3g}"
    write(chart, label, across - width(label, 1) - 5, 5 if high else height - 12, MUTED, 1)
    return chart


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else format(value, form)


def _blank(height: int, across: int) -> NDArray[np.uint8]:
    return np.full((height, across, 3), PAPER[0], dtype=np.uint8)   # a grey: one number is written faster than three
