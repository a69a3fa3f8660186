"""A head painted from soft bodies, as shares of tissues: each with its own folds, ventricles and lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.grid import Grid

TISSUES = ("soft", "skull", "csf", "grey", "white", "eye")


_UP_MM = 18.0                   # the skull's middle, above the world's origin


def paint_head(grid: Grid, rng: np.random.Generator, axial: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """One head as shares of tissues, in the order of ``TISSUES``, and 32 points inside it.

    World LPS. With ``axial``, ``grid`` is a slab around z = 0, and the head is tilted so that the slab passes through
    the eyes.
    """
    painter = _Painter(grid, rng, axial)
    painter.face()
    painter.skull()
    painter.cortex()
    painter.deep_structures()
    painter.lesions()
    return painter.channels(), painter.points(axial)


class _Painter:
    """Paints one patient's bodies over each other, from the outside in."""

    def __init__(self, grid: Grid, rng: np.random.Generator, axial: bool) -> None:
        self.rng = rng
        self.canvas = Canvas(grid, TISSUES, blur=max(1.5, 1.2 * min(grid.spacing[:2])))
        self.blur = self.canvas.blur
        x, y, z = self.canvas.box([-1e4] * 3, [1e4] * 3)[1]
        if axial:
            z = z + 6 * rng.uniform(-1, 1) + 0.17 * y
        self.world = x, y, z

    def lay(self, name: str, share: np.ndarray) -> None:
        """Paint a body of one tissue; it replaces the others there."""
        for tissue, volume in self.canvas.channel.items():
            volume += share * ((1.0 if tissue == name else 0.0) - volume)

    def blob(self, name: str, center: Sequence[float], radii: Sequence[float], turn: float = 0.0) -> None:
        """Paint an ellipsoid, turned about z by ``turn`` (radians)."""
        jitter = self.rng.normal(scale=1.2, size=3)
        swell = self.rng.uniform(0.92, 1.08, 3)
        c, s = math.cos(turn), math.sin(turn)
        dx, dy, dz = (w - a - j for w, a, j in zip(self.world, center, jitter, strict=True))
        a, b, d = (r * k for r, k in zip(radii, swell, strict=True))
        radius = np.sqrt(((c * dx + s * dy) / a) ** 2 + ((c * dy - s * dx) / b) ** 2 + (dz / d) ** 2)
        self.lay(name, step((1 - radius) * min(radii), self.blur))

    def face(self) -> None:
        """Neck, face and scalp; nose and ears."""
        rng, blur, (x, y, z) = self.rng, self.blur, self.world
        wide, long, tall = rng.uniform(64, 72), rng.uniform(82, 92), rng.uniform(72, 80)
        self.half = wide, long, tall
        lump = waves(rng, 8, 60, 140)(x, y, z)
        # egg-shaped: broader behind
        radius = np.sqrt((x / (wide * (1 + 0.0012 * y))) ** 2 + (y / long) ** 2 + ((z - _UP_MM) / tall) ** 2)
        self.depth = (1 - radius) * wide + 1.2 * lump                      # mm below the outer table of the skull
        neck = np.sqrt((x / 46) ** 2 + ((y - 18) / 52) ** 2)
        face = np.sqrt((x / 54) ** 2 + ((y + 42) / 50) ** 2 + ((z + 38) / 66) ** 2)
        self.lay("soft", step((1 - neck) * 46, blur) * step(20 - z, blur))
        self.lay("soft", step((1 - face) * 50, blur))
        self.lay("soft", step(self.depth + rng.uniform(5, 8), blur))
        self.blob("soft", (0, -94, -26), (10, 15, 18))                                        # nose
        for side in (-1, 1):
            self.blob("soft", (side * 76, 8, -12), (7, 12, 20), turn=-0.35 * side)            # ears

    def skull(self) -> None:
        """Jaw, cervical spine, skull base, eyes in their orbits; the skull and the fluid below it."""
        self.blob("skull", (0, -52, -72), (36, 32, 8))                                        # jaw
        self.blob("skull", (0, 30, -72), (13, 13, 40))                                        # cervical spine
        self.blob("skull", (0, -50, -30), (40, 34, 12))                                       # skull base in front
        for side in (-1, 1):
            self.blob("eye", (side * 31, -72, -12), (16, 18, 15))
            self.blob("soft", (side * 31, -52, -12), (9, 14, 9), turn=0.3 * side)             # orbit
            self.blob("skull", (side * 44, 12, -34), (17, 9, 8), turn=0.5 * side)             # petrous bone
        self.lay("skull", step(self.depth, self.blur))
        self.lay("csf", step(self.depth - self.rng.uniform(6, 8), self.blur))

    def cortex(self) -> None:
        """Grey and white matter, folded by a texture of short waves.

        The longitudinal fissure parts the hemispheres, the Sylvian fissures the lobes; the corpus callosum closes the
        longitudinal fissure in the middle.
        """
        rng, blur, (x, y, z) = self.rng, self.blur, self.world
        folds = np.abs(waves(rng, 14, 17, 30)(x, y, z))
        gap = np.abs(x - 2 * np.sin(y / 40 + rng.uniform(-1, 1)))
        gap = gap * (0.35 + 0.65 * np.clip(0.03 * (z - _UP_MM) + 0.8, 0, 1))
        sylvian = np.hypot(y + 18 + 0.6 * (z - 6), z - 2 - 0.25 * (y + 10)) + 0.45 * np.clip(52 - np.abs(x), 0, None)
        lobes = np.clip((np.abs(x) - 16) / 10, 0, 1) * np.clip((30 - y) / 15, 0, 1) * np.clip((y + 45) / 12, 0, 1)
        floor = z + 20 + 0.2 * y + 20 * lobes                              # temporal lobes reach below, at the sides
        cortex = np.minimum(self.depth - 9 - 3.5 * np.clip(0.9 - folds, 0, 1) * 2.0, (gap - 1.3) * 1.2)
        cortex = np.minimum(cortex, np.minimum(sylvian - 2.5, floor))
        self.lay("grey", step(cortex, blur))
        self.lay("white", step(cortex - rng.uniform(5.5, 7) + 3.0 * np.clip(folds - 0.7, -0.5, 1), blur))
        arch = np.hypot((y - 2) / 36, (z - 14) / 22)
        self.lay("white", step(4.5 - 22 * np.abs(arch - 1), blur) * step(14 - np.abs(x), blur) * step(z - 12, blur))

    def deep_structures(self) -> None:
        """Deep grey matter, ventricles (the left ones, at +x, are larger), cerebellum and brain stem."""
        large = self.rng.uniform(1.15, 1.5)
        for side in (-1, 1):
            k = large if side > 0 else 1.0
            self.blob("grey", (side * 15, 6, 8), (10, 16, 10), turn=-0.3 * side)              # thalamus
            self.blob("grey", (side * 27, -8, 8), (7, 17, 10), turn=-0.25 * side)             # putamen
            self.blob("csf", (side * 10, -16, 23), (6.5 * k, 19, 9 * k), turn=0.35 * side)    # frontal horn
            self.blob("csf", (side * 17, 24, 19), (6.5 * k, 24 * k, 9), turn=-0.4 * side)     # occipital horn
            self.blob("grey", (side * 22, 48, -42), (24, 24, 17))                             # cerebellum
            self.blob("white", (side * 20, 46, -42), (15, 13, 8))
            self.blob("grey", (side * 13, -19, 20), (5, 14, 9), turn=0.3 * side)              # caudate
        self.blob("csf", (0, 8, 6), (2.5, 14, 9))                                             # third ventricle
        self.blob("white", (0, 20, -38), (12, 12, 34))                                        # brain stem
        self.blob("csf", (0, 34, -38), (7, 6, 9))                                             # fourth ventricle

    def lesions(self) -> None:
        """A cyst on one side and a lesion on the other, by which left and right can be told apart."""
        rng = self.rng
        side = rng.choice([-1, 1])
        self.blob("csf", (side * rng.uniform(25, 45), rng.uniform(20, 50), rng.uniform(12, 34)),
                  rng.uniform(4, 8, 3).tolist())
        self.blob("grey", (-side * rng.uniform(22, 40), rng.uniform(-40, -10), rng.uniform(10, 34)),
                  rng.uniform(5, 9, 3).tolist())

    def channels(self) -> list[np.ndarray]:
        """Shares of the tissues, textured."""
        texture = waves(self.rng, 10, 12, 40)(*self.world)
        for name in ("soft", "grey", "white"):
            self.canvas.channel[name] *= 1 + np.float32(0.05) * texture
        return [self.canvas.channel[name] for name in TISSUES]

    def points(self, axial: bool) -> np.ndarray:
        """Points (32, 3) on a spiral over the brain's surface, mm; with ``axial`` all in the plane z = 0."""
        wide, long, tall = self.half
        angle = 2.399963 * np.arange(32)
        height = np.linspace(-0.55, 0.95, 32)
        ring = np.sqrt(1 - height**2)
        points = np.stack([0.85 * wide * ring * np.cos(angle), 0.85 * long * ring * np.sin(angle),
                           _UP_MM + 0.85 * tall * height], axis=1)
        return points * np.array([1.0, 1.0, 0.0]) / np.maximum(ring, 0.35)[:, None] * 0.9 if axial else points
