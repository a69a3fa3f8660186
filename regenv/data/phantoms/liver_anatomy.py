"""An upper abdomen in contrast-enhanced CT, painted from soft bodies around a liver of random shape.

World LPS, mm: +x left, +y posterior, +z superior, the origin in the middle of an average liver.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.grid import Grid

CHANNELS = ("tissue", "blood", "liver")
_MIDLINE = 48.0         # x of the spine
_SOFTNESS_MM = 5.0      # rounding of the edges where the faces of the liver meet
# first forks of the portal vein's branches and of the hepatic veins
_PORTAL_AIMS = np.array([(-62.0, 6, 4), (-52, 30, 24), (-58, -30, -14), (44, -40, 14)])
_VEIN_AIMS = np.array([(-70.0, -6, 28), (-66, 18, 30), (-26, -46, 22), (34, -40, 22), (-72, 26, -6)])


def paint_liver(grid: Grid, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """One patient: three channels (*shape) float32 in [0, 1], and no points.

    The channels are tissue (air 0, fat 0.28, muscle 0.48, liver 0.56, bone 0.9), the contrast agent in its blood, and
    the share of liver.
    """
    painter = _Painter(grid, rng)
    painter.torso()
    painter.bowels()
    painter.organs()
    painter.spine()
    painter.liver()
    painter.ribs()
    return painter.channels(), np.zeros((0, 3))


class _Painter:
    """Paints one patient's bodies over each other; ``bent`` coordinates make shapes less regular."""

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
        self.rng = rng
        self.canvas = Canvas(grid, CHANNELS, blur=max(2.0, 1.1 * min(grid.spacing)))
        self.everywhere, world = self.canvas.box([-1e4] * 3, [1e4] * 3)
        self.world = world
        self.bent = [w + 5.5 * waves(rng, 4, 110, 240)(*world) + 1.8 * waves(rng, 5, 45, 80)(*world) for w in world]
        self.size = float(rng.uniform(0.88, 1.10))
        self.half = self.size * float(rng.uniform(142, 165))        # of the trunk, to the sides
        self.deep = self.size * float(rng.uniform(100, 120))        # to the front
        self.wall = float(rng.uniform(20, 36))                      # of fat, muscle and ribs
        x, y, _ = self.bent
        radius = np.sqrt(((x - _MIDLINE) / self.half) ** 2 + (y / self.deep) ** 2)
        self.skin = (1 - radius) * self.deep                        # depth below it
        self.shape = self._liver_depth()

    def lay(self, depth: np.ndarray, tissue: float | np.ndarray, blood: float | np.ndarray = 0.0) -> None:
        share = step(depth, self.canvas.blur)
        for name, value in (("tissue", tissue), ("blood", blood), ("liver", 0.0)):
            self.canvas.paint(name, self.everywhere, share, value)

    def ball(self, center: Sequence[float], radii: Sequence[float], lean: float = 0.0) -> np.ndarray:
        """Depth (mm) in an ellipsoid; ``lean`` is the shift of x per mm of z."""
        x, y, z = (w - c for w, c in zip(self.bent, center, strict=True))
        return (1 - np.sqrt(((x - lean * z) / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)) * min(radii)

    # ------------------------------------------------------------------------------------------------------- the liver

    def _liver_depth(self) -> np.ndarray:
        """Depth below the liver's surface, mm.

        The liver lies under the domes of the diaphragm, above the slope of the viscera, within the ribs, beside and in
        front of the spine, and right of the left lobe's tip.
        """
        rng, size, (x, y, z) = self.rng, self.size, self.bent
        high, long = size * rng.uniform(66, 78), size * rng.uniform(86, 108)
        domes = [top - 0.0022 / size * (x - middle) ** 2 - 0.0012 / size * (y + 4) ** 2
                 for top, middle in ((high, -40), (high - 10, 136))]
        at_wall = 48 * np.exp(-np.maximum(self.skin - self.wall, 0) / 17)
        under_heart = rng.uniform(10, 22) * np.exp(-(((x - _MIDLINE - 6) / 40) ** 2) - ((y + 34) / 60) ** 2)
        self.dome = 8 * np.logaddexp(domes[0] / 8, domes[1] / 8) - at_wall - under_heart
        tip, lift = size * rng.uniform(76, 128), rng.uniform(44, 70)
        rise = lift / (1 + np.exp(-(x + rng.uniform(-8, 14)) / 22)) + 0.16 * (y + 10) + 0.14 * (x + 20)
        slope = rise - long
        spine = np.sqrt(((x - _MIDLINE) / 44) ** 2 + ((y - 62) / 46) ** 2)
        faces = [self.skin - self.wall, self.dome - z, 0.85 * (z - slope), (spine - 1) * 44,
                 0.9 * (tip - x - 0.25 * np.abs(y + 40)),
                 0.67 * (rng.uniform(52, 68) - y - 1.1 * (x - 5))]
        self.kidney = self.ball((-22 + rng.normal(0, 5), 58, -62 * size + rng.normal(0, 8)), (29, 27, 54), 0.12)
        stomach = (_MIDLINE + rng.uniform(44, 60), -4 + rng.normal(0, 8), -4 + rng.normal(0, 8))
        self.stomach = self.ball(stomach, (size * rng.uniform((34, 32, 38), (48, 46, 56))).tolist(), -0.3)
        self.gall = self.ball((-2 + rng.normal(0, 10), -44 + rng.normal(0, 8), _slope_at(slope, self.canvas, -2, -44)),
                              rng.uniform((11, 15, 14), (19, 28, 24)).tolist())
        faces += [-self.kidney - 3, -self.stomach - 2]
        depth = -_SOFTNESS_MM * np.logaddexp.reduce([-face / _SOFTNESS_MM for face in np.broadcast_arrays(*faces)])
        self.fissure = rng.uniform(8, 26)
        cleft = 13 * np.exp(-(((x - self.fissure) / 5) ** 2)) / (1 + np.exp((z - slope - 24) / 6))
        return np.minimum(depth - cleft, -self.gall - 1.0).astype(np.float32)

    def liver(self) -> None:
        rng = self.rng
        mottle = 1 + 0.015 * waves(rng, 10, 6, 30)(*self.world)
        share = step(self.shape, self.canvas.blur)
        for name, value in (("tissue", 0.56 * mottle), ("blood", 0.25), ("liver", 1.0)):
            self.canvas.paint(name, self.everywhere, share, value)
        hilum = np.array([self.fissure - 8, 12 + rng.normal(0, 4), -6 + rng.normal(0, 5)])
        cava = np.array([_MIDLINE - 24, 26.0, 44 * self.size])
        for aim in _PORTAL_AIMS + rng.normal(0, 9, _PORTAL_AIMS.shape):
            self._vessel(hilum, aim * self.size, rng.uniform(4.5, 6.5), 2)
        for aim in _VEIN_AIMS + rng.normal(0, 9, _VEIN_AIMS.shape):
            self._vessel(cava, aim * self.size, rng.uniform(4.0, 6.0), 2)
        for _ in range(rng.integers(0, 4)):                             # cysts and tumours
            at = rng.uniform((-85, -55, -40), (10, 40, 45)) * self.size
            inside = np.minimum(self.ball(at.tolist(), (rng.uniform(6, 16),) * 3), self.shape - 2)
            self._within(step(inside, self.canvas.blur), rng.uniform(0.40, 0.50), rng.uniform(0.0, 0.15))
        self.lay(self.gall, 0.42)

    def _vessel(self, start: np.ndarray, end: np.ndarray, radius: float, forks: int) -> None:
        """Paint a tapering tube in the liver that forks ``forks`` times."""
        x, y, z = (w - s for w, s in zip(self.bent, start.tolist(), strict=True))
        along = (end - start).tolist()
        length = max(float(np.dot(along, along)), 1.0)
        t = np.clip((x * along[0] + y * along[1] + z * along[2]) / length, 0, 1)
        away = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2)
        share = step(np.minimum(radius * (1 - 0.35 * t) - away, self.shape - 1), self.canvas.blur)
        self._within(share, 0.53, 1.0)
        if forks:
            for side in (-1, 1):
                turned = self.rng.normal(0, 0.25, 3) + side * 0.45 * self.rng.permutation([1.0, 0.6, 0.3])
                further = end + 0.55 * (end - start) + turned * np.sqrt(length) * 0.6
                self._vessel(end, further, 0.62 * radius, forks - 1)

    def _within(self, share: np.ndarray, tissue: float, blood: float) -> None:
        """Paint a body that counts as liver."""
        self.canvas.paint("tissue", self.everywhere, share, tissue)
        self.canvas.paint("blood", self.everywhere, share, blood)

    # ----------------------------------------------------------------------------------------------------- around it

    def torso(self) -> None:
        """Fat, a wall of muscle, lungs above the diaphragm with the heart between them."""
        rng, z = self.rng, self.bent[2]
        self.lay(self.skin, 0.28)
        self.lay(self.skin - rng.uniform(0.25, 0.6) * self.wall, 0.47 + 0.03 * waves(rng, 8, 8, 40)(*self.world))
        inside = self.skin - self.wall + 2
        self.lay(inside, 0.30 + 0.02 * waves(rng, 6, 20, 60)(*self.world))
        lungs = np.minimum(inside, z - self.dome - 3)
        self.lay(lungs, 0.08 + 0.05 * np.clip(waves(rng, 12, 9, 25)(*self.world) - 0.9, 0, 2))
        heart = self.ball((_MIDLINE + 14, -34, 88 * self.size), (58, 44, 44))
        self.lay(np.minimum(heart, inside), 0.50, 0.6)

    def bowels(self) -> None:
        rng, (_, y, z) = self.rng, self.bent
        inside = np.minimum(self.skin - self.wall - 2, -30 * self.size - z - 0.2 * (y + 40))
        loops = waves(rng, 12, 32, 75)(*self.world)
        self.lay(np.minimum(inside, 20 * (loops + 0.1)), 0.45 + 0.05 * np.clip(loops, -1, 1), 0.15)
        self.lay(np.minimum(inside - 4, 22 * (loops - 1.25)), 0.06)

    def organs(self) -> None:
        """Stomach with gas and fluid, spleen, both kidneys."""
        rng, y = self.rng, self.bent[1]
        self.lay(self.stomach, 0.49, 0.25)
        self.lay(self.stomach - 5, 0.43)
        self.lay(np.minimum(self.stomach - 5, -30 + rng.normal(0, 8) - y), 0.03)
        spleen = self.ball((_MIDLINE + 92 * self.size, 38, 18), (28, 44, 52), 0.1)
        self.lay(np.minimum(spleen, self.skin - self.wall), 0.53, 0.55)
        left = self.ball((2 * _MIDLINE + 24, 58, -52 * self.size), (28, 26, 54), -0.12)
        for kidney in (left, self.kidney):
            self.lay(kidney, 0.50, 0.9)
            self.lay(kidney - 13, 0.42, 0.3)

    def spine(self) -> None:
        """Vertebral column, the muscles behind it, aorta and caval vein in front."""
        rng, (x, y, z) = self.rng, self.bent
        for side in (-1, 1):
            muscle = np.sqrt(((x - _MIDLINE - side * 30) / 26) ** 2 + ((y - 82) / 22) ** 2)
            self.lay(np.minimum((1 - muscle) * 22, self.skin - 10), 0.49)
        column = (1 - np.sqrt(((x - _MIDLINE) / 22) ** 2 + ((y - 56) / 18) ** 2)) * 18
        disc = np.abs(((z + rng.uniform(0, 32)) % 32) - 16) - 12.5
        self.lay(column, 0.52)
        self.lay(np.minimum(column, -disc), 0.86)
        self.lay(np.minimum(column, -disc) - 3, 0.70 + 0.03 * waves(rng, 8, 5, 14)(*self.world))
        self.lay((1 - np.sqrt(((x - _MIDLINE) / 13) ** 2 + ((y - 84) / 9) ** 2)) * 9, 0.45)
        for place, radius, blood in (((_MIDLINE + 9, 28), 11.0, 1.0), ((_MIDLINE - 24, 28), 12.0, 0.7)):
            away = np.sqrt((x - place[0]) ** 2 + (y - place[1]) ** 2)
            self.lay(radius * rng.uniform(0.85, 1.15) - away, 0.50, blood)

    def ribs(self) -> None:
        rng, (x, y, z) = self.rng, self.bent
        middle = np.abs(self.skin - 0.72 * self.wall)
        height = ((z - 0.55 * (y + 20) * np.sign(200 - x) + rng.uniform(0, 30)) % 30) - 15
        rib = (1 - np.sqrt((middle / 5.5) ** 2 + (height / 7.5) ** 2)) * 5.5
        rib = np.minimum(rib, z + 58 + 0.25 * (y - 60))                 # they end below
        self.lay(rib, 0.84)
        self.lay(rib - 2.2, 0.62)

    def channels(self) -> list[np.ndarray]:
        return [np.clip(self.canvas.channel[name], 0, 1).astype(np.float32) for name in CHANNELS]


def _slope_at(slope: np.ndarray, canvas: Canvas, x: float, y: float) -> float:
    """Height (mm) of the visceral slope at a place of the axial plane through the origin."""
    i, j, k = (int(np.clip(np.searchsorted(t, v), 0, len(t) - 1))
               for t, v in zip(canvas.ticks, (x, y, 0.0), strict=True))
    return float(slope[k, j, i])
