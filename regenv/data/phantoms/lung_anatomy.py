"""A chest in CT, painted in two layers that slide along each other: its wall, and the contents of its cavity.

World LPS, mm: +x left, +y posterior, +z superior, the origin in the middle of the lungs between inhale and exhale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.data.phantoms.vessel_trees import Segments, grown
from regenv.grid import Grid

CHANNELS = ("wall", "tissue", "air", "lung")
AIR, LUNG, FAT, SOFT, BLOOD, BONE = 0.0, 0.14, 0.60, 0.69, 0.74, 0.93   # 0 is -1000 HU, 1 is 500 HU
_LEAF_MM = 0.75         # radius of the finest vessels
_POINTS_MM = 3.0        # distance of key-points along a vessel
_MARGIN_MM = 5.0        # smallest distance of key-points from the lung's surface
_SAMPLE_MM = 5.0        # distance of the places among which the ends of vessels are chosen


@dataclass(frozen=True)
class Chest:
    """Shape of one patient's chest, as formulas. Points are three tensors x, y, z that broadcast, mm.

    The cavity is one outline, stretched in x and y from level to level. So a point that keeps its place in the outline
    while it moves up or down stays inside and slides along the wall.

    Attributes:
        width, depth: half the cavity's width to the sides, and half its depth from front to back.
        apex, height: level of the cavity's top, and its height down to the diaphragm's edge.
        domes: levels of the diaphragm's right and left dome.
        oblique, horizontal: per side the oblique fissure's level and slope (z per y), the right horizontal fissure's
            level.
        heart: centre and radii.
        middle: half-width of the space between the lungs.
    """

    width: float
    depth: float
    apex: float
    height: float
    domes: tuple[float, float]
    oblique: tuple[tuple[float, float], tuple[float, float]]
    horizontal: float
    heart: tuple[float, float, float, float, float, float]
    middle: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Chest:
        size = rng.uniform(0.88, 1.07)
        right = size * rng.uniform(-48, -26)
        heart = (rng.uniform(12, 26), rng.uniform(-38, -26), -34 * size, rng.uniform(46, 62), rng.uniform(35, 45),
                 rng.uniform(43, 55))
        fissures = [(rng.uniform(-8, 12), rng.uniform(0.6, 1.0)) for _ in range(2)]
        return cls(width=size * rng.uniform(120, 140), depth=size * rng.uniform(76, 98), apex=size * 118,
                   height=size * 225, domes=(right, right - rng.uniform(4, 20)), oblique=(fissures[0], fissures[1]),
                   horizontal=rng.uniform(-2, 16), heart=heart, middle=rng.uniform(19, 29))

    def levels(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Half-width, half-depth and middle (y) of the cavity at levels z."""
        down = torch.nn.functional.softplus((self.apex - z) * (12 / self.height)) / 12
        width, depth = 0.34 + 0.66 * torch.tanh(3.6 * down), 0.42 + 0.58 * torch.tanh(3.4 * down)
        return self.width * width, self.depth * depth, 10 - 14 * torch.tanh(1.5 * down)

    def outline(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the outline: -1 to 1 from right to left and from front to back."""
        width, depth, middle = self.levels(z)
        return x / width, (y - middle) / depth

    def cavity(self, across: Tensor, back: Tensor) -> Tensor:
        """Approximate depth (mm) below the cavity's wall of places in the outline; the spine protrudes from behind."""
        a, b = across * across, back * back
        outer = 1 - torch.sqrt(a + b - 0.3 * (a * b).clamp(max=1))
        spine = torch.sqrt((across / 0.23) ** 2 + ((back - 1.0) / 0.50) ** 2) - 1
        return torch.minimum(outer * (0.5 * (self.width + self.depth)), spine * 32)

    def fissure(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Height (mm) over the oblique fissure of the point's side: negative in the lower lobe."""
        (right, steep), (left, steep_left) = self.oblique
        is_left = torch.sigmoid(x / 6)
        return (z - right - steep * y) + is_left * ((right - left) + (steep - steep_left) * y)

    def lung(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Approximate depth (mm) below the lungs' surface, apart from the chest's wall.

        The surface is made of the diaphragm, the heart, the organs above and behind it, and the apex.
        """
        hx, hy, hz, rx, ry, rz = self.heart
        heart = (torch.sqrt(((x - hx) / rx) ** 2 + ((y - hy) / ry) ** 2 + ((z - hz) / rz) ** 2) - 1) * min(rx, ry, rz)
        hilum = torch.exp(-(((z - 6) / 34) ** 2) - ((y - 8) / 30) ** 2)
        front = torch.sigmoid((-y - 40) / 8) * torch.sigmoid((z - 10) / 10)
        middle = x.abs() - self.middle * (1 + 0.45 * hilum - 0.6 * front) - 8 * torch.sigmoid((z - 70) / 10)
        apex = self.apex - 14 - z - 0.011 * (x.abs() - 0.42 * self.width) ** 2 - 0.008 * (y - 12) ** 2
        faces = [z - self.diaphragm(x, y), heart, middle, 0.8 * apex]
        shape = torch.broadcast_shapes(*(face.shape for face in faces))
        return -4 * torch.logsumexp(torch.stack([-face.expand(shape) / 4 for face in faces]), 0)

    def diaphragm(self, x: Tensor, y: Tensor) -> Tensor:
        """Level of the diaphragm: two domes."""
        right, left = (top - 0.0135 * (x - at * self.width) ** 2 - 0.0075 * (y + 12) ** 2 - 0.10 * (y + 12)
                       for top, at in zip(self.domes, (-0.46, 0.48), strict=True))
        return 5 * torch.logaddexp(right / 5, left / 5)


@dataclass(frozen=True)
class Patient:
    """One patient, painted.

    Attributes:
        chest: shape of the cavity.
        volumes: (4, *shape) float16: the chest's wall; tissue in the cavity; share of it that is parenchyma, which
            holds air; share that belongs to the lungs.
        grid: of the volumes.
        points: (K, 3) float64, points in the middle of vessels within the lungs, mm.
    """

    chest: Chest
    volumes: Tensor
    grid: Grid
    points: np.ndarray

    def to(self, device: torch.device | str) -> Patient:
        return Patient(self.chest, self.volumes.to(device), self.grid, self.points)


def paint_chest(grid: Grid, rng: np.random.Generator) -> Patient:
    """A random patient, the same at every resolution. ``grid``: 3D, direction identity."""
    chest = Chest.random(rng)
    trees_rng, rng = rng.spawn(2)
    airways, vessels = _trees(chest, trees_rng)
    painter = _Painter(grid, chest, rng)
    painter.wall()
    painter.belly()
    painter.lungs()
    painter.vessels(vessels)
    painter.airways(airways)
    painter.middle()
    volumes = np.stack([np.clip(painter.canvas.channel[name], 0, 1) for name in CHANNELS]).astype(np.float16)
    return Patient(chest, torch.from_numpy(volumes), grid, _points(chest, vessels, trees_rng))


def within_lung(chest: Chest, points: np.ndarray) -> np.ndarray:
    """Approximate depth (mm) of points (N, 3) below the lungs' surface, (N,)."""
    x, y, z = torch.from_numpy(points).unbind(-1)
    return torch.minimum(chest.lung(x, y, z), chest.cavity(*chest.outline(x, y, z))).numpy()


def _trees(chest: Chest, rng: np.random.Generator) -> tuple[Segments, Segments]:
    """Airways, and arteries with veins, from each hilum into the lobes of its lung."""
    ticks = [np.arange(-reach, reach, _SAMPLE_MM) for reach in (150.0, 110.0, 150.0)]
    places = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3)
    places = (places + rng.uniform(-0.5, 0.5, places.shape) * _SAMPLE_MM)
    places = places[within_lung(chest, places) > 3.0]
    over = chest.fissure(*torch.from_numpy(places).unbind(-1)).numpy() > 0
    airways: list[Segments] = []
    vessels: list[Segments] = []
    for side in (-1, 1):
        root = np.array([side * (chest.middle + 12), 8.0, 12.0])
        mine = places[:, 0] * side > 0
        lobes = [places[mine & (over == upper)] for upper in (True, False)]
        for kind, leaves in (("airway", 30), ("artery", 420), ("vein", 360)):
            start = root + np.array([0.0, {"airway": 6.0, "artery": 0.0, "vein": -12.0}[kind],
                                     {"airway": 6.0, "artery": 4.0, "vein": -10.0}[kind]])
            ends = [lobe[rng.choice(len(lobe), min(len(lobe), leaves // 2), replace=False)] for lobe in lobes]
            leaf = 1.7 if kind == "airway" else _LEAF_MM
            (airways if kind == "airway" else vessels).append(grown(start, ends, leaf, rng))
        airways.append(Segments.line([(0, 16, 62), (root + np.array([0, 6, 6])).tolist()], 7.0))
    airways.append(Segments.line([(0, 12, 170), (0, 16, 62)], 8.5))
    return Segments.joined(airways), Segments.joined(vessels)


def _points(chest: Chest, vessels: Segments, rng: np.random.Generator) -> np.ndarray:
    """Points along the vessels, at least 5 mm below the lungs' surface."""
    points = np.unique(vessels.along(_POINTS_MM), axis=0)
    points = points[within_lung(chest, points) > _MARGIN_MM]
    return points[rng.permutation(len(points))]


class _Painter:
    """Paints one patient's bodies over each other; ``bent`` coordinates make shapes in the cavity less regular."""

    def __init__(self, grid: Grid, chest: Chest, rng: np.random.Generator) -> None:
        self.chest, self.rng, self.spacing = chest, rng, min(grid.spacing)
        self.canvas = Canvas(grid, CHANNELS, blur=max(1.5, 1.0 * self.spacing))
        self.everywhere, self.world = self.canvas.box([-1e4] * 3, [1e4] * 3)
        self.bent = [w + 3.0 * waves(rng, 4, 90, 200)(*self.world) for w in self.world]
        x, y, z = map(torch.from_numpy, self.world)
        self.across, self.back = (place.numpy() for place in chest.outline(x, y, z))
        self.inside = chest.cavity(*map(torch.from_numpy, (self.across, self.back))).numpy()
        self.lung = chest.lung(x, y, z).numpy()

    def lay(self, channel: str, depth: np.ndarray, value: float | np.ndarray) -> None:
        """Paint a body over a channel; in the cavity it holds no air."""
        share = step(depth, self.canvas.blur)
        self.canvas.paint(channel, self.everywhere, share, value)
        if channel == "tissue":
            self.canvas.paint("air", self.everywhere, share, 0.0)

    def ball(self, center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        """Depth (mm) in an ellipsoid."""
        squares = [((w - c) / r) ** 2 for w, c, r in zip(self.bent, center, radii, strict=True)]
        return (1 - np.sqrt(sum(squares[1:], squares[0]))) * min(radii)

    # --------------------------------------------------------------------------------------------------- the layers

    def wall(self) -> None:
        """Skin, fat, muscles, ribs, breast bone, shoulder blades and spine."""
        rng, (x, y, z) = self.rng, self.world
        inside, thick, fat = self.inside, rng.uniform(24, 34), rng.uniform(6, 14)
        streaks = 1 + 0.04 * waves(rng, 8, 8, 40)(x, y, z)
        shoulders = 70 / (1 + np.exp(-(z - self.chest.apex + 26) / 16))
        skin = inside + thick + fat + shoulders * np.clip(np.abs(self.across), 0.3, 1.2)
        self.lay("wall", skin, FAT)
        self.lay("wall", skin - fat + 3 * waves(rng, 5, 30, 90)(x, y, z), SOFT * streaks)
        self.lay("wall", np.minimum(12 - np.abs(inside + 16), 30 - np.abs(np.abs(self.across) - 0.75) * 90), FAT)
        phase, slope = rng.uniform(0, 26), rng.uniform(0.45, 0.6)
        height = ((z + slope * y + phase) % 26) - 13
        rib = (1 - np.sqrt(((inside + 5.5) / 4.5) ** 2 + (height / 6.5) ** 2)) * 4.5
        self.lay("wall", rib, BONE)
        self.lay("wall", rib - 2.4, 0.80)
        sternum = np.minimum(8 - np.abs(inside + 7), np.minimum(16 - np.abs(x), -self.back * 60))
        self.lay("wall", np.minimum(sternum, z + 50), 0.86)
        blade = np.minimum(4 - np.abs(inside + 20), 26 - np.abs(np.abs(x) - 88))
        self.lay("wall", np.minimum(np.minimum(blade, y - 36), z - 6), 0.9)
        self._spine()

    def _spine(self) -> None:
        rng, (x, _, z) = self.rng, self.world
        behind = (self.back - 1.0) * self.chest.depth
        for side in (-1, 1):
            muscle = np.sqrt(((x - side * 27) / 20) ** 2 + ((behind - 14) / 16) ** 2)
            self.lay("wall", (1 - muscle) * 16, SOFT)
        column = (1 - np.sqrt((x / 19) ** 2 + ((behind + 14) / 16) ** 2)) * 16
        disc = np.abs(((z + rng.uniform(0, 26)) % 26) - 13) - 10.5
        self.lay("wall", column, 0.72)
        self.lay("wall", np.minimum(column, -disc), BONE)
        self.lay("wall", np.minimum(column, -disc) - 3, 0.80 + 0.04 * waves(rng, 8, 5, 14)(*self.world))
        arch = np.minimum(np.abs(x) * -0.5 + 14, 12 - np.abs(behind - 10))
        self.lay("wall", np.minimum(arch, -disc + 2), 0.88)
        self.lay("wall", (1 - np.sqrt((x / 9) ** 2 + ((behind - 6) / 7) ** 2)) * 7, 0.68)

    def belly(self) -> None:
        """Fat, liver, stomach with its bubble, spleen, under the diaphragm."""
        rng, (x, y, z) = self.rng, self.bent
        self.lay("tissue", np.full_like(self.inside, 99.0), FAT + 0.02 * waves(rng, 8, 15, 60)(*self.world))
        below = self.chest.diaphragm(*map(torch.from_numpy, self.world[:2])).numpy() - self.world[2]
        self.lay("tissue", below + 0 * x, FAT)
        liver = np.minimum(below - 2, np.minimum(46 - x - 0.2 * y, 0.6 * (z + 175 + 0.3 * x)))
        self.lay("tissue", liver, 0.715 + 0.01 * waves(rng, 8, 8, 30)(*self.world))
        stomach = np.minimum(self.ball((64, -12, -104), (44, 40, 36)), below - 4)
        self.lay("tissue", stomach, 0.69)
        self.lay("tissue", np.minimum(stomach - 4, -14 - y + rng.normal(0, 6)), AIR)
        self.lay("tissue", np.minimum(self.ball((92, 44, -112), (30, 34, 38)), below - 3), 0.72)
        self.lay("tissue", np.minimum(below, 3.0 - below), SOFT)

    def lungs(self) -> None:
        """Parenchyma, darker in places, and the fissures."""
        rng, (x, y, z) = self.rng, self.world
        share = step(self.lung, self.canvas.blur)
        mottle = 0.010 * waves(rng, 12, 8, 30)(x, y, z) + 0.010 * waves(rng, 6, 50, 120)(x, y, z)
        for name, value in (("tissue", np.clip(LUNG + mottle, 0.03, 1)), ("air", 1.0), ("lung", 1.0)):
            self.canvas.paint(name, self.everywhere, share, value)
        points = [torch.from_numpy(w) for w in self.bent]
        over = self.chest.fissure(*points).numpy()
        flat = np.where((self.world[0] < 0) & (over > 0) & (self.world[1] < 25),
                        self.bent[2] - self.chest.horizontal - 0.1 * self.world[1], 99.0)
        width = max(1.6, self.spacing)
        for depth in (over, flat):
            sheet = np.clip(1 - np.abs(depth) / width, 0, 1) * (1.2 / width) * share
            self.canvas.paint("tissue", self.everywhere, sheet, 0.5)

    def vessels(self, segments: Segments) -> None:
        self._tubes(segments, ("tissue", BLOOD), ("air", 0.0))

    def airways(self, segments: Segments) -> None:
        self._tubes(segments, ("tissue", 0.62), ("air", 0.0), margin=60.0)
        self._tubes(segments.thinner(0.72), ("tissue", 0.01), margin=60.0)

    def _tubes(self, segments: Segments, *values: tuple[str, float], margin: float = 3.0) -> None:
        """Paint tubes in the lungs and up to ``margin`` mm beside them; thin ones only as far as they fill a voxel."""
        for start, end, first, last in segments.rows():
            radius = max(first, last)
            index, (x, y, z) = self.canvas.box(np.minimum(start, end) - radius, np.maximum(start, end) + radius)
            if 0 in (x.size, y.size, z.size):
                continue
            along = end - start
            dx, dy, dz = x - start[0], y - start[1], z - start[2]
            t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / max(float(along @ along), 1e-6), 0, 1)
            away = np.sqrt((dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2)
            wide = np.maximum(first + (last - first) * t, 0.5 * self.spacing)
            share = step(wide - away, self.canvas.blur) * min(1.0, 2 * radius / self.spacing)
            share = share * step(self.lung[index] + margin, self.canvas.blur)
            for name, value in values:
                self.canvas.paint(name, index, share.astype(np.float32), value)

    def middle(self) -> None:
        """Heart and great vessels."""
        rng, (x, y, z) = self.rng, self.bent
        hx, hy, hz, rx, ry, rz = self.chest.heart
        apart = -self.lung
        self.lay("tissue", np.minimum(self.ball((hx, hy, hz), (rx - 3, ry - 3, rz - 3)), apart + 2), SOFT)
        for shift in ((-14.0, 2.0, 8.0), (12.0, -4.0, -4.0)):
            chamber = self.ball((hx + shift[0], hy + shift[1], hz + shift[2]), (0.42 * rx, 0.46 * ry, 0.5 * rz))
            self.lay("tissue", np.minimum(chamber, apart), BLOOD + rng.uniform(0.0, 0.04))
        for (at_x, at_y), radius, (low, high) in (((14, 44), 11, (-200, 48)), ((-14, -18), 11, (-10, 66)),
                                                  ((2, -26), 13, (-10, 48)), ((12, 4), 8, (54, 200)),
                                                  ((-20, -4), 8, (44, 200))):
            away = np.sqrt((x - at_x) ** 2 + (y - at_y) ** 2)
            self.lay("tissue", np.minimum(np.minimum(radius - away, apart + 4), np.minimum(z - low, high - z)), BLOOD)
        arch = np.sqrt((np.sqrt((x / 14) ** 2 + ((y - 13) / 31) ** 2) - 1) ** 2 * 700 + (z - 48) ** 2)
        self.lay("tissue", np.minimum(np.minimum(11 - arch, x + 12), apart + 4), BLOOD)
