"""A male pelvis in T2-weighted MR, painted from soft bodies around one organ of strongly varied shape, the prostate.

World LPS, mm: +x left, +y posterior, +z superior, the origin where the organ of an average pelvis lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.data.phantoms.effects import bias_field
from regenv.grid import Grid

ORGAN, BLADDER, RECTUM = 1, 2, 3
BLUR_MM = 1.0
_REACH = 1.6                    # farthest point of an organ, over its largest radius
_FAR_MM = 40.0                  # distance from the organ's surface that stands for all places outside its box
_LUMPY = 0.35                   # largest relative variation of the radius by lumps
_SIGNALS = {
    #              scanner A, scanner B
    "fat":         (0.74, 0.60),
    "muscle":      (0.15, 0.22),
    "cortex":      (0.04, 0.07),
    "marrow":      (0.46, 0.44),
    "urine":       (0.96, 0.90),
    "wall":        (0.22, 0.28),
    "mucosa":      (0.55, 0.52),
    "stool":       (0.40, 0.46),
    "gas":         (0.02, 0.02),
    "vesicle":     (0.82, 0.74),
    "vein":        (0.90, 0.80),
    "capsule":     (0.16, 0.22),
    "peripheral":  (0.72, 0.68),
    "central":     (0.40, 0.44),
    "stroma":      (0.17, 0.24),
}


@dataclass(frozen=True)
class Organ:
    """A superquadric whose radius varies smoothly with direction, in the world's frame.

    Attributes:
        center: mm. radii: mm, left, back and up. power: 2 is an ellipsoid, larger values are more like a box.
        turn: rows of a rotation, world to the organ's own axes.
        lumps: (19,) relative variation of the radius, for each monomial of degree 1 to 3 in the direction.
    """

    center: Sequence[float]         # Python's numbers, as they leave the arrays float32
    radii: Sequence[float]
    power: float
    turn: Sequence[Sequence[float]]
    lumps: Sequence[float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Organ:
        def spread(*deviations: float) -> np.ndarray:
            return rng.standard_normal(len(deviations)).clip(-1.7, 1.7) * deviations

        radii = np.array([24.5, 18.0, 19.3]) * np.exp(spread(0.11) + spread(0.11, 0.13, 0.10))
        pitch, roll, yaw = np.deg2rad(spread(13, 5, 6))
        lumps = spread(*[(0.07, 0.09, 0.07)[sum(p) - 1] * (0.55 if p[0] % 2 else 1) for p in _MONOMIALS])
        lumps[_MONOMIALS.index((0, 0, 1))] += 0.07                      # the base is broader than the apex
        lumps[_MONOMIALS.index((0, 1, 0))] -= 0.04                      # flat behind
        return cls(spread(2.5, 4.0, 5.5).tolist(), radii.tolist(), rng.uniform(1.9, 2.7),
                   _turn(pitch, roll, yaw).tolist(), lumps.tolist())

    def local(self, world: Sequence[np.ndarray]) -> list[np.ndarray]:
        """World coordinates in the organ's own axes, mm."""
        away = [w - c for w, c in zip(world, self.center, strict=True)]
        return [row[0] * away[0] + row[1] * away[1] + row[2] * away[2] for row in self.turn]

    def depth(self, world: Sequence[np.ndarray]) -> np.ndarray:
        """Depth below the surface, mm, measured along the line to the centre."""
        x, y, z = self.local(world)
        away = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-3)
        u, v, w = x / away, y / away, z / away
        scaled = sum(np.abs(d / r) ** self.power for d, r in zip((u, v, w), self.radii, strict=True))
        powers = [[1.0, d, d * d, d * d * d] for d in (u, v, w)]
        swell = sum(k * powers[0][i] * powers[1][j] * powers[2][m]
                    for k, (i, j, m) in zip(self.lumps, _MONOMIALS, strict=True))
        return scaled ** (-1 / self.power) * (1 + _LUMPY * np.tanh(swell / _LUMPY)) - away


_MONOMIALS = [(i, j, k) for i in range(4) for j in range(4) for k in range(4) if 1 <= i + j + k <= 3]


def _turn(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Rotation about x, then y, then z, radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([pitch, roll, yaw]), np.sin([pitch, roll, yaw])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def paint_pelvis(grid: Grid, organ: Organ, rng: np.random.Generator, scanner: int) -> tuple[np.ndarray, np.ndarray]:
    """One patient on a native grid.

    Args:
        grid: 3D, direction identity. organ: of the patient. scanner: 0 or 1; they differ in contrast, coil and noise.
    Returns: signal (*shape) float32, arbitrary units, not negative; labels (*shape) uint8.
    """
    painter = _Painter(grid, organ, rng, scanner)
    painter.background()
    painter.walls()
    painter.vesicles()
    painter.sling()
    painter.hollow_neighbours()
    painter.gland()
    return painter.scanned(), painter.labels()


class _Painter:
    """Paints one patient's bodies over each other, from the outside in."""

    def __init__(self, grid: Grid, organ: Organ, rng: np.random.Generator, scanner: int) -> None:
        self.organ, self.rng, self.scanner = organ, rng, scanner
        self.canvas = Canvas(grid, ("signal",), BLUR_MM)
        self.everywhere, self.world = self.canvas.box([-1e4] * 3, [1e4] * 3)
        self.signal = {name: pair[scanner] * rng.uniform(0.88, 1.12) for name, pair in _SIGNALS.items()}
        bend = [waves(rng, 4, 30, 80) for _ in range(3)]
        self.bent = [w + 1.8 * b(*self.world) for w, b in zip(self.world, bend, strict=True)]
        self.mottle = 1 + 0.09 * waves(rng, 8, 4, 14)(*self.world)
        reach = _REACH * max(organ.radii)
        low, high = ([c + sign * reach for c in organ.center] for sign in (-1, 1))
        self.near, self.near_world = self.canvas.box(low, high)
        depth = np.full(grid.shape, -_FAR_MM, np.float32)
        depth[self.near] = organ.depth(self.near_world)
        self.own_axes = organ.local(self.near_world)
        bladder, rectum = self._bladder(), self._rectum()
        # where two bodies press on each other, both are deformed, the stiffer one less
        depth, bladder = _pressed(depth, bladder, stiffness=rng.uniform(0.7, 4))
        depth, rectum = _pressed(depth, rectum, stiffness=rng.uniform(0.7, 3))
        rectum, bladder = _pressed(rectum, bladder, stiffness=1.0)
        self.organ_depth, self.bladder_depth, self.rectum_depth = depth, bladder, rectum

    def lay(self, depth: np.ndarray, value: float | np.ndarray, index: tuple[slice, ...] | None = None) -> None:
        self.canvas.paint("signal", self.everywhere if index is None else index, step(depth, BLUR_MM), value)

    def blob(self, center: Sequence[float], radii: Sequence[float], value: float, shear: float = 0.0) -> None:
        index, share = self.canvas.ellipsoid(center, radii, shear)
        self.canvas.paint("signal", index, share, value)

    # ----------------------------------------------------------------------------------------------------- surroundings

    def background(self) -> None:
        """Fat with septa, gluteal muscle behind, the abdominal wall in front."""
        rng, (x, y, z) = self.rng, self.bent
        fat = 1 + 0.06 * waves(rng, 6, 14, 50)(x, y, z) + 0.03 * waves(rng, 8, 3, 8)(x, y, z)
        septa = np.abs(waves(rng, 7, 10, 34)(x, y, z))
        self.canvas.channel["signal"][:] = self.signal["fat"] * fat * (1 - 0.17 * np.clip(1 - septa / 0.22, 0, 1))
        strands = 1 + 1.1 * np.clip(waves(rng, 6, 6, 16)(x, y * 0.35, z * 0.4) - 0.8, 0, 1)
        gluteal = np.minimum(y - rng.uniform(48, 54) - 0.10 * np.abs(x) + 0.10 * z, np.abs(x) - 8 - 0.2 * (y - 50))
        self.lay(gluteal, self.signal["muscle"] * strands)
        wall = 6 - np.abs(y + rng.uniform(52, 58) - 0.004 * x * x)
        self.lay(np.minimum(np.minimum(wall, np.abs(x) - 1.5), z - rng.uniform(10, 18)), self.signal["muscle"])

    def walls(self) -> None:
        """Obturator muscles at both sides, acetabulum and ischium beyond, pubic bones in front, coccyx behind."""
        rng, (x, y, z) = self.rng, self.bent
        signal, half = self.signal, rng.uniform(42, 47)
        slope, long = rng.uniform(0.05, 0.2), rng.uniform(40, 50)
        strands = 1 + 0.10 * waves(rng, 5, 5, 22)(x, 0.5 * y, 0.5 * z)
        low, front = rng.uniform(-22, -10), rng.uniform(-46, -40)
        size = rng.uniform(15, 18), rng.uniform(11, 14), rng.uniform(20, 25)
        for side in (-1, 1):
            out = side * x - slope * z
            self.lay(_round((out - half - 20, y - 2 - 0.2 * z), (20, long)), signal["muscle"] * strands)
            socket = _round((out - half - 37, y - rng.uniform(-4, 2)), (27, 0.78 * long))
            self.bone(socket, 2.5)
            ramus = (side * x - 38, y - front - 1 + 0.35 * (side * x - 38), z - low - 12)
            self.bone(_round(ramus, (23, 6.5, 9)), 2.0)
            pubis = (side * x - size[0] - 1.5, y - front + 9 + 0.35 * (side * x - 17), z - low + 0.35 * (y - front))
            self.bone(_round(pubis, size), 2.5)
        self.lay(_round((x, y - front + 11, z - low + 0.35 * (y - front)), (2.4, 9, 19)), signal["wall"])   # symphysis
        for i in range(3):
            tail = (x - rng.normal(0, 1), y - 51 - 5 * i, z - 8 - 13 * i)
            self.bone(_round(tail, (10 + 4 * i, 5.5, 8)), 1.6)

    def bone(self, depth: np.ndarray, cortex: float) -> None:
        """Marrow in a dark cortex (mm)."""
        self.lay(depth, self.signal["cortex"])
        self.lay(depth - cortex, self.signal["marrow"] * self.mottle)

    def vesicles(self) -> None:
        """Seminal vesicles: bright convoluted tubes, spread behind the bladder above the organ."""
        rng, organ = self.rng, self.organ
        tubes = waves(rng, 7, 5, 9)(*self.near_world)
        bright = self.signal["vesicle"] * np.clip(1 - 0.9 * np.clip(0.5 - np.abs(tubes), 0, 0.5), 0, 1)
        reach, thick = rng.uniform(13, 22), rng.uniform(4.5, 7.5)
        for side in (-1, 1):
            away = (side * (reach * 0.8 + 2), 0.45 * organ.radii[1], 0.95 * organ.radii[2])
            x, y, z = (w - c - a for w, c, a in zip(self.near_world, organ.center, away, strict=True))
            y, z = y - 0.012 * x * x * rng.uniform(0.3, 1), z - 0.25 * side * x
            depth = (1 - np.sqrt((x / reach) ** 2 + (y / thick) ** 2 + (z / (thick + 2.5)) ** 2)) * thick
            self.lay(depth + 0.8, self.signal["wall"], self.near)
            self.lay(depth, bright, self.near)

    def sling(self) -> None:
        """Levator ani, a thin muscle around organ and rectum; veins and nerve bundles in the fat within."""
        rng, (x, y, z) = self.rng, self.world
        hull = np.logaddexp(self.organ_depth / 6, self.rectum_depth / 6) * 6
        gap, thick = rng.uniform(3.0, 5.0), rng.uniform(0.8, 1.4)
        height = self.organ.center[2] + rng.uniform(0, 12)
        veins = waves(rng, 6, 5, 11)(x, y, z)
        self.lay(np.minimum(hull + gap, veins * 2 - 1.8), 0.5 * (self.signal["vein"] + self.signal["fat"]))
        sheet = thick * (1 + 0.4 * waves(rng, 4, 12, 40)(x, y, z)) - np.abs(hull + gap + thick)
        self.lay(np.minimum(sheet, np.minimum(np.abs(x) - 8, height - z)), self.signal["muscle"] * self.mottle)
        for side in (-1, 1):
            for _ in range(3):
                at = self.organ.center + np.multiply((side * 0.8, 0.72, 0), self.organ.radii) + rng.normal(0, 2, 3)
                self.blob(at.tolist(), (1.3, 1.3, 9), self.signal["vein" if rng.random() < 0.5 else "capsule"])

    # -------------------------------------------------------------------------------------------------- hollow organs

    def _bladder(self) -> np.ndarray:
        """Depth below the outer surface of the bladder's wall, mm; it sinks a few millimetres into the organ's base."""
        rng, (x, y, z) = self.rng, self.world
        fill = rng.uniform(0, 1)
        mean = (25 + 17 * fill, 21 + 14 * fill, 15 + 22 * fill)
        radii = np.multiply(mean, np.exp(rng.normal(0, 0.08, 3))).tolist()
        top = self._reach((0.0, -0.24, 0.97))
        sunk = (rng.normal(0, 2.5), -rng.uniform(0, 7), radii[2] - rng.uniform(3, 9))
        away = [w - t - s for w, t, s in zip((x, y, z), top, sunk, strict=True)]
        self.bladder_wall = 2.2 + 2.6 * (1 - fill) * rng.uniform(0.6, 1.2)
        lump = 1 + 0.05 * waves(rng, 4, 40, 90)(x, y, z)
        return (lump - np.sqrt(sum((a / r) ** 2 for a, r in zip(away, radii, strict=True)))) * min(radii)

    def _rectum(self) -> np.ndarray:
        """Depth below the outer surface of the rectum's wall, mm: a bent tube of varying width behind the organ."""
        rng, (x, y, z) = self.rng, self.world
        middle = self.organ.center
        up = z - middle[2]
        back = self._reach((0.0, 1.0, 0.0))[1]
        wide = rng.uniform(9.5, 19) * (1 + 0.22 * np.sin(up / rng.uniform(9, 15) + rng.uniform(0, 6)))
        wide = wide * (1 - 0.35 / (1 + np.exp((up + self.organ.radii[2]) / 4)))        # the anal canal
        deep = wide * rng.uniform(0.72, 1.05)
        axis_x = middle[0] * 0.5 + rng.normal(0, 2) + 3 * np.sin(up / 25 + rng.uniform(0, 6))
        axis_y = back + deep - rng.uniform(1.5, 5.5) + 0.006 * up**2 + rng.uniform(0, 0.2) * up
        radius = np.sqrt(((x - axis_x) / wide) ** 2 + ((y - axis_y) / deep) ** 2)
        self.gas_level = axis_y + deep * float(rng.choice([-1.2, rng.uniform(-0.6, 0.2), 1.2], p=[0.45, 0.35, 0.2]))
        self.rectum_wall = rng.uniform(2.6, 4.0)
        return (1 - radius) * np.minimum(wide, deep)

    def _reach(self, direction: Sequence[float]) -> list[float]:
        """The point where a ray from the organ's centre along a unit vector leaves it, world mm."""
        start = self.organ.center
        length = float(self.organ.depth([np.asarray(c + d) for c, d in zip(start, direction, strict=True)])) + 1
        return [c + length * d for c, d in zip(start, direction, strict=True)]

    def hollow_neighbours(self) -> None:
        rng, (x, y, z) = self.rng, self.world
        signal, rectum, bladder = self.signal, self.rectum_depth, self.bladder_depth
        lumen = rectum - self.rectum_wall
        self.lay(rectum, signal["wall"])
        self.lay(0.8 - np.abs(lumen + 0.9), signal["mucosa"])
        stool = signal["stool"] * (1 + 0.2 * waves(rng, 12, 5, 25)(x, y, z))
        self.lay(lumen, stool)
        self.lay(np.minimum(lumen, self.gas_level - y), signal["gas"])
        self.lay(bladder, signal["wall"])
        self.lay(bladder - self.bladder_wall, signal["urine"])

    # ------------------------------------------------------------------------------------------------------ the organ

    def gland(self) -> None:
        """Peripheral zone, central gland with nodules, anterior stroma, urethra and capsule."""
        rng, near, radii = self.rng, self.near, self.organ.radii
        depth = self.organ_depth[near]
        x, y, z = self.own_axes
        streaks = waves(rng, 16, 3.5, 14)(*self.near_world)
        peripheral = self.signal["peripheral"] * (1 + rng.uniform(0.05, 0.13) * streaks)
        for _ in range(rng.integers(0, 3)):                             # lesions and scars
            at = (rng.uniform((-0.75, 0.45, -0.6), (0.75, 0.8, 0.4)) * radii).tolist()
            spot = sum(((p - a) / s) ** 2 for p, a, s
                       in zip((x, y, z), at, rng.uniform(3.5, 8, 3).tolist(), strict=True))
            peripheral = peripheral * (1 - rng.uniform(0.3, 0.6) * np.exp(-spot))
        self.lay(depth, peripheral, near)

        growth = rng.uniform(0.68, 0.98)
        lump = waves(rng, 5, 22, 50)(*self.near_world)
        central = np.sqrt((x / (0.80 * radii[0])) ** 2 + ((y / radii[1] + 0.22) / 0.78) ** 2
                          + ((z / radii[2] - 0.12) / 0.85) ** 2)
        inner = np.minimum((growth - central + 0.05 * lump) * radii[1], depth - 1.5)
        self.lay(inner + 1.0, self.signal["capsule"], near)             # the surgical capsule
        body = self.signal["central"] * (1 + 0.18 * waves(rng, 9, 5, 16)(*self.near_world) + 0.08 * streaks)
        self.lay(inner, body, near)
        self._nodules(inner, growth)

        wedge = rng.uniform((0.35, 0.35, 0.6), (0.6, 0.6, 0.8)) * radii
        front = _round((x, y + 0.95 * radii[1], z - 0.1 * radii[2]), wedge.tolist())
        self.lay(np.minimum(front + 2.0 * lump, depth), self.signal["stroma"] * (1 + 0.15 * streaks), near)
        tube = np.sqrt((x / 2.4) ** 2 + ((y - 0.12 * radii[1] + 0.15 * z + 0.18 * np.abs(x)) / 1.8) ** 2)
        self.lay(np.minimum((1 - tube) * 2, np.minimum(depth, 0.25 * radii[2] - z)), self.signal["vesicle"], near)
        self.lay(0.6 - np.abs(depth - 0.4), self.signal["capsule"], near)

    def _nodules(self, inner: np.ndarray, growth: float) -> None:
        rng = self.rng
        for _ in range(rng.integers(3, 6 + round(10 * growth))):
            at = (rng.uniform((-0.6, -0.65, -0.5), (0.6, 0.3, 0.65)) * self.organ.radii * growth).tolist()
            radius = rng.uniform(2.5, 7.5)
            away = np.sqrt(sum(((p - a) / s) ** 2 for p, a, s
                               in zip(self.own_axes, at, rng.uniform(0.75, 1.3, 3).tolist(), strict=True)))
            depth = np.minimum(radius - away, inner)
            self.lay(depth, self.signal["capsule"], self.near)
            self.lay(depth - 0.9, self.signal["central"] * rng.uniform(0.55, 1.75), self.near)

    # ----------------------------------------------------------------------------------------------------- the scanner

    def scanned(self) -> np.ndarray:
        """The signal with the coil's sensitivity and noise, in a scanner's own units."""
        rng, signal = self.rng, self.canvas.channel["signal"]
        shape = signal.shape
        slopes = rng.normal(0, (0.05, 0.10, 0.10)[::-1], (2, 3)).T
        slopes[1, 1] += (0.30, 0.10)[self.scanner]                      # surface coils in front and behind
        field = bias_field(slopes[None], shape, torch.device("cpu"))[0, 0].numpy()
        grain = rng.uniform(*((0.018, 0.04), (0.012, 0.025))[self.scanner])
        noise = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(grain)
        gain = rng.uniform(300, 900)
        return (np.hypot(signal * field + noise[0], noise[1]) * gain).astype(np.float32)

    def labels(self) -> np.ndarray:
        """Labels of the voxels with positive depth; the bodies do not overlap."""
        labels = np.zeros(self.organ_depth.shape, np.uint8)
        for label, depth in ((RECTUM, self.rectum_depth), (BLADDER, self.bladder_depth), (ORGAN, self.organ_depth)):
            labels[depth > 0] = label
        return labels


def _round(away: Sequence[np.ndarray], radii: Sequence[float]) -> np.ndarray:
    """Depth (mm) below the surface of a rounded box, from the distances to its centre along two or three axes."""
    radius = sum(np.abs(d / r) ** 2.4 for d, r in zip(away, radii, strict=True))
    return (1 - radius ** (1 / 2.4)) * min(radii)


def _pressed(a: np.ndarray, b: np.ndarray, stiffness: float) -> tuple[np.ndarray, np.ndarray]:
    """Depths (mm) of two bodies, separated by one surface where they overlap; ``stiffness``: of ``a`` over ``b``."""
    border = (stiffness * a - b) / (stiffness + 1)
    return np.minimum(a, border), np.minimum(b, -border)
