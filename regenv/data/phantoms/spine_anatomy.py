"""An abdominal spine painted from soft bodies: vertebrae, ribs, pelvis and organs, all of random shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.grid import Grid

_LUMBAR_LEVELS = 5
_THORACIC_LEVELS = 12


def paint_spine(grid: Grid, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """One patient: soft tissue (air 0, fat 0.35, muscle 0.5, organs about 0.57) and bone density, both in [0, 1].

    World LPS: +x left, +y posterior, +z superior. Returns also the edge points of the vertebrae, (levels * 16, 3): of
    each level 8 around the end plates, then 8 in the midsagittal plane.
    """
    canvas = Canvas(grid, ("soft", "bone"), blur=max(2.0, 1.1 * min(grid.spacing)))
    x, y, z = canvas.box([-1e4] * 3, [1e4] * 3)[1]
    size = rng.uniform(0.88, 1.08)
    sacrum = rng.uniform(-165, -95)  # z of the sacral promontory
    sway, sway_phase = rng.uniform(6, 14), rng.uniform(-0.5, 0.5)
    bend, bend_phase = rng.uniform(0, 6), rng.uniform(0, 2 * np.pi)

    def spine_y(at: np.ndarray | float) -> np.ndarray:
        return 4 + sway * np.cos(2 * np.pi * (at - sacrum - 60) / 430 + np.pi + sway_phase)

    def spine_x(at: np.ndarray | float) -> np.ndarray:
        return bend * np.sin(2 * np.pi * at / 420 + bend_phase)

    # levels from L5 upwards: pitch (body and disc), scale of the cross section
    levels, bottom = [], sacrum
    for i in range(_LUMBAR_LEVELS + _THORACIC_LEVELS):
        pitch = size * (35.5 - 0.85 * i if i < 8 else 29.5 - 0.6 * (i - 7)) * rng.uniform(0.97, 1.03)
        width = size * (1.04 - 0.035 * i) * rng.uniform(0.98, 1.02)
        levels.append((bottom + pitch / 2, pitch, width))
        bottom += pitch
    lumbar_top = levels[_LUMBAR_LEVELS - 1][0] + levels[_LUMBAR_LEVELS - 1][1] / 2

    _paint_soft(canvas, rng, (x, y, z), size, sacrum, lumbar_top, spine_x, spine_y)
    _paint_pelvis(canvas, rng, size, sacrum, float(spine_x(sacrum)), float(spine_y(sacrum)))
    cage = rng.uniform(118, 132) * size, rng.uniform(88, 100) * size
    points = []
    for i, (middle, pitch, width) in enumerate(levels):
        if middle - pitch > canvas.ticks[2][-1]:
            break
        rib = i - _LUMBAR_LEVELS if i >= _LUMBAR_LEVELS else None
        points.append(_paint_vertebra(canvas, rng, middle, pitch, width, spine_x, spine_y, rib))
        if rib is not None:
            _paint_ribs(canvas, rng, rib, middle, width, cage, float(spine_x(middle)), float(spine_y(middle)))
    texture = 1 + 0.05 * waves(rng, 8, 12, 50)(x, y, z)
    soft = np.clip(canvas.channel["soft"] * texture, 0, 1)
    bone = np.clip(canvas.channel["bone"] * texture, 0, 1)
    return [soft, bone], np.concatenate(points)


def _paint_soft(canvas: Canvas, rng: np.random.Generator, world: tuple[np.ndarray, np.ndarray, np.ndarray],
                size: float, sacrum: float, lumbar_top: float, spine_x: Callable[..., np.ndarray],
                spine_y: Callable[..., np.ndarray]) -> None:
    """Trunk with fat and bowel, lungs, abdominal organs, muscles along the spine, great vessels."""
    x, y, z = world
    everything = (slice(None),) * 3
    blur = canvas.blur
    half = 150 * size * (1 + 0.05 * np.cos(2 * np.pi * (z - sacrum) / 400 + rng.uniform(-0.5, 0.5)))
    deep = rng.uniform(106, 116) * size
    back = 88.0 * size - deep
    body = np.sqrt((x / half) ** 2 + ((y - back) / deep) ** 2)
    fat = rng.uniform(10, 22) / deep
    canvas.paint("soft", everything, step((1 - body) * deep, blur), 0.33)
    canvas.paint("soft", everything, step((1 - fat - body) * deep, blur), 0.47)
    # visceral fat in front of the spine, with a lumpy content (bowel)
    cavity = np.sqrt((x / (0.8 * half)) ** 2 + ((y - spine_y(z) + 0.62 * deep) / (0.62 * deep)) ** 2)
    bowel = waves(rng, 10, 25, 70)(x, y, z)
    canvas.paint("soft", everything, step((1 - cavity) * 0.62 * deep, blur), 0.40 + 0.07 * np.clip(bowel, -1.5, 1.5))

    # lungs above the diaphragm's domes
    dome = lumbar_top + rng.uniform(60, 85)
    for side in (-1, 1):
        top = dome + (10 if side < 0 else 0)
        wall = np.sqrt(((x - side * 74 * size) / (58 * size)) ** 2 + ((y - back + 5) / (0.78 * deep)) ** 2)
        floor = z - top + 0.010 * ((x - side * 74) ** 2 + (y - back) ** 2) * 0.9 - 15
        lung = step((1 - wall) * 58 * size, blur) * step(floor, blur)
        canvas.paint("soft", everything, lung, 0.10)

    def organ(center: Sequence[float], radii: Sequence[float], value: float, shear: float = 0.0) -> None:
        canvas.paint("soft", *canvas.ellipsoid(center, radii, shear), value)

    organ((-75 * size, back - 5, dome - 55), (62 * size, 80 * size, 62 * size), 0.57)         # liver (right)
    organ((82 * size, back + 25, dome - 35), (26 * size, 38 * size, 42 * size), 0.58)         # spleen (left)
    for side in (-1, 1):
        kidney = lumbar_top - rng.uniform(15, 40) - (12 if side < 0 else 0)
        at = (side * rng.uniform(56, 64) * size, float(spine_y(kidney)) + 10)
        organ((*at, kidney), (36 * size, 34 * size, 66 * size), 0.33)                         # perirenal fat
        organ((*at, kidney), (25 * size, 22 * size, rng.uniform(48, 58) * size), 0.60)
        organ((at[0] - side * 8, at[1] - 3, kidney), (9 * size, 9 * size, 22 * size), 0.38)   # renal sinus
        # psoas: thin at L1, thick at the pelvis
        across = 10 + 16 * np.clip((lumbar_top - z) / (lumbar_top - sacrum), 0, 1.2)
        psoas = np.sqrt(((x - spine_x(z) - side * (20 * size + across)) / across) ** 2
                        + ((y - spine_y(z)) / (1.2 * across)) ** 2)
        canvas.paint("soft", everything, step((1 - psoas) * across, blur) * step(lumbar_top - z, blur), 0.53)
        # erector spinae
        back_muscle = np.sqrt(((x - spine_x(z) - side * 32 * size) / (27 * size)) ** 2
                              + ((y - spine_y(z) - 50 * size) / (21 * size)) ** 2)
        canvas.paint("soft", everything, step((1 - back_muscle) * 21 * size, blur), 0.53)
        # great vessels: aorta left, inferior vena cava right, parting below L4
        part = 0.45 * np.clip(sacrum + 65 - z, 0, 200)
        vessel = np.sqrt((x - spine_x(z) - side * (10 + part)) ** 2 + (y - spine_y(z) + 17 * size + 12) ** 2)
        canvas.paint("soft", everything, step((10.5 if side > 0 else 9.5) - vessel, blur), 0.56)
    for _ in range(rng.integers(3, 7)):                                                       # gas in the bowel
        radii = rng.uniform(7, 18, 3).tolist()
        canvas.paint("soft", *canvas.ellipsoid((rng.uniform(-80, 80), rng.uniform(-100, -50),
                                                rng.uniform(sacrum - 40, lumbar_top)), radii), 0.03)


def _paint_pelvis(canvas: Canvas, rng: np.random.Generator, size: float, top: float, x0: float, y0: float) -> None:
    """Sacrum, in five fused segments that lean backwards, and the iliac wings."""
    lean, down = rng.uniform(0.55, 0.85), top
    for i in range(5):
        tall = size * (26 - 2.5 * i)
        center = (x0, y0 + lean * (top - down) + 6, down - tall / 2)
        radii = (size * (50 - 7 * i), size * (17 - 2 * i), tall * 0.62)
        index, share = canvas.ellipsoid(center, radii, shear=0.35)
        canvas.paint("bone", index, share, 0.62)
        for side in (-1, 1):                                                                  # foramina
            index, share = canvas.ellipsoid((x0 + side * size * (21 - 2 * i), center[1], down - tall), (5, 12, 5))
            canvas.paint("bone", index, share, 0.1)
        index, share = canvas.ellipsoid((x0, center[1] + radii[1] + 8, center[2]), (4, 10, 11))   # median crest
        canvas.paint("bone", index, share, 0.8)
        down -= 0.95 * tall
    crest = top + rng.uniform(8, 24)
    for side in (-1, 1):
        index, (x, y, z) = canvas.box((0 if side > 0 else -130, -70, -1e4), (130 if side > 0 else 0, 75, crest + 5))
        along = (y0 + 42 - y) / 105                                                           # 0 behind, 1 in front
        flare = 46 + 66 * np.clip(along, 0, 1) ** 0.8 + 0.16 * (z - top)
        sheet = step((5.5 - np.abs(side * (x - x0) - flare * size)), canvas.blur)
        edge = crest - 60 * (along - 0.45) ** 2
        wing = sheet * step(edge - z, canvas.blur) * step(52 - 105 * np.abs(along - 0.5), canvas.blur)
        canvas.paint("bone", index, wing, 0.72)


def _paint_vertebra(canvas: Canvas, rng: np.random.Generator, middle: float, pitch: float, width: float,
                    spine_x: Callable[..., np.ndarray], spine_y: Callable[..., np.ndarray],
                    rib: int | None) -> np.ndarray:
    """Body with end plates, arch and processes; returns its edge points (16, 3)."""
    x0, y0 = float(spine_x(middle)), float(spine_y(middle))
    tilt = float(spine_y(middle + 5) - spine_y(middle - 5)) / 10      # the body's axis leans with the spine
    roll = float(spine_x(middle + 5) - spine_x(middle - 5)) / 10
    rx, ry = 24.5 * width, 17.5 * width
    half = 0.385 * pitch
    index, (x, y, z) = canvas.box((x0 - rx - 6, y0 - ry - 6, middle - half - 8),
                                  (x0 + rx + 6, y0 + ry + 6, middle + half + 8))
    dx, dy = x - x0 - roll * (z - middle), y - y0 - tilt * (z - middle)
    height = (z - middle) + tilt * (y - y0) + roll * (x - x0)
    waist = 1 - 0.10 * (1 - np.clip(np.abs(height) / half, 0, 1) ** 2)
    radius = np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2) / waist
    blur = canvas.blur
    body = step((1 - radius) * ry, blur) * step(half - np.abs(height), blur)
    core = step((1 - radius) * ry - 3, blur) * step(half - 3 - np.abs(height), blur)
    canvas.paint("soft", index, step((1 - radius) * ry, blur), 0.5)                           # discs
    canvas.paint("bone", index, body, 0.92 - core * rng.uniform(0.34, 0.46))

    def part(center: Sequence[float], radii: Sequence[float], density: float, shear: float = 0.0) -> None:
        placed = (x0 + center[0], y0 + center[1], middle + center[2] - tilt * center[1])
        where, share = canvas.ellipsoid(placed, radii, shear - tilt)
        view = canvas.channel["bone"][where]
        np.maximum(view, share * density, out=view)

    thoracic = rib is not None
    w = width
    for side in (-1, 1):
        part((side * 13 * w, ry + 7 * w, 0.16 * pitch), (5.5 * w, 10 * w, 6.5 * w), 0.85)     # pedicle
        part((side * 11 * w, ry + 21 * w, -0.08 * pitch), (10 * w, 5 * w, 0.33 * pitch), 0.85)    # lamina
        part((side * 16 * w, ry + 17 * w, 0.42 * pitch), (6 * w, 6 * w, 0.22 * pitch), 0.8)   # facet joint
        reach = (15, 14) if thoracic else (22, 18)
        part((side * (13 + reach[0]) * w, ry + (20 if thoracic else 14) * w, 0.1 * pitch),
             (reach[1] * w, 4.5 * w, 5.5 * w), 0.75)                                          # transverse process
    if thoracic:
        part((0, ry + 37 * w, -0.35 * pitch), (4 * w, 17 * w, 7 * w), 0.85, shear=-0.6)       # spinous process
    else:
        part((0, ry + 38 * w, -0.12 * pitch), (4 * w, 17 * w, 11 * w), 0.85, shear=-0.1)

    def edge(px: float, py: float, up: float) -> tuple[float, float, float]:
        rise = up - tilt * py - roll * px
        return x0 + px + roll * rise, y0 + py + tilt * rise, middle + rise
    around = [edge(rx * a, ry * b, s * half) for s in (-1, 1) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    sagittal = [edge(0, ry * b, s * half) for s in (-1, 1) for b in (-1, 0, 1)]
    sagittal += [edge(0, 0.9 * ry * b, 0) for b in (-1, 1)]
    return np.array(around + sagittal)


def _paint_ribs(canvas: Canvas, rng: np.random.Generator, rib: int, middle: float, width: float,
                cage: tuple[float, float], x0: float, y0: float) -> None:
    """The pair of ribs of a thoracic level (``rib`` 0: the twelfth): tubes on an ellipse, falling to the front."""
    blur = canvas.blur
    ax, ay = cage[0] * (1 - 0.012 * rib), cage[1]
    cy = y0 + 17.5 * width + 21 - ay
    length = (50, 105, 190)[min(rib, 2)] * rng.uniform(0.85, 1.15)  # mm along the rib
    fall = rng.uniform(0.42, 0.55)
    for side in (-1, 1):
        drop = fall * min(length, 200)
        index, (x, y, z) = canvas.box((-140 if side < 0 else 0, -110, middle - drop - 10),
                                      (0 if side < 0 else 140, 110, middle + 12))
        u, v = side * (x - x0) / ax, (y - cy) / ay
        along = np.arctan2(u, v) * 0.5 * (ax + ay)                                            # mm from the back
        shell = (np.sqrt(u**2 + v**2) - 1) * 0.5 * (ax + ay)
        axis = middle + 5 - fall * np.clip(along - 20, 0, None)
        tube = np.sqrt((shell / 4.5) ** 2 + ((z - axis) / 7.0) ** 2)
        share = step((1 - tube) * 4.5 + 0.5, blur) * step(along - 16, blur) * step(length + 20 - along, blur)
        view = canvas.channel["bone"][index]
        np.maximum(view, share * 0.85, out=view)
        head = canvas.ellipsoid((x0 + side * 27 * width, y0 + 17.5 * width + 5, middle + 6), (7, 14, 5))
        view = canvas.channel["bone"][head[0]]
        np.maximum(view, head[1] * 0.8, out=view)
