"""A head painted from soft bodies, as shares of tissues: every patient's own folds, ventricles and lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regenv.data.phantoms.canvas import Canvas, step, waves
from regenv.grid import Grid

TISSUES = ("soft", "skull", "csf", "grey", "white", "eye")


def paint_head(grid: Grid, rng: np.random.Generator, axial: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """One head as shares of tissues, in the order of ``TISSUES``, and 32 points inside it.

    World LPS. With ``axial`` only a slab around z = 0 is asked for, and the plane is bent to pass through the eyes.
    """
    blur = max(1.5, 1.2 * min(grid.spacing[:2]))
    labels = Canvas(grid, TISSUES, blur)
    x, y, z = labels.box([-1e4] * 3, [1e4] * 3)[1]
    everything = (slice(None),) * 3
    if axial:
        z = z + 6 * rng.uniform(-1, 1) + 0.17 * y

    def lay(name: str, share: np.ndarray) -> None:
        for tissue, volume in labels.channel.items():
            volume += share * ((1.0 if tissue == name else 0.0) - volume)

    def blob(name: str, center: Sequence[float], radii: Sequence[float], turn: float = 0.0) -> None:
        """An ellipsoid, turned about z (radians)."""
        jitter = rng.normal(scale=1.2, size=3)
        swell = rng.uniform(0.92, 1.08, 3)
        c, s = math.cos(turn), math.sin(turn)
        dx, dy, dz = (w - a - j for w, a, j in zip((x, y, z), center, jitter, strict=True))
        a, b, d = (r * k for r, k in zip(radii, swell, strict=True))
        radius = np.sqrt(((c * dx + s * dy) / a) ** 2 + ((c * dy - s * dx) / b) ** 2 + (dz / d) ** 2)
        lay(name, step((1 - radius) * min(radii), blur))

    wide, long, tall = rng.uniform(64, 72), rng.uniform(82, 92), rng.uniform(72, 80)
    up = 18.0                                                          # the skull's middle, above the world's origin
    lump = waves(rng, 8, 60, 140)(x, y, z)
    # egg-shaped: broader behind
    radius = np.sqrt((x / (wide * (1 + 0.0012 * y))) ** 2 + (y / long) ** 2 + ((z - up) / tall) ** 2)
    depth = (1 - radius) * wide + 1.2 * lump                          # mm below the outer table of the skull
    neck = np.sqrt((x / 46) ** 2 + ((y - 18) / 52) ** 2)
    face = np.sqrt((x / 54) ** 2 + ((y + 42) / 50) ** 2 + ((z + 38) / 66) ** 2)
    lay("soft", step((1 - neck) * 46, blur) * step(20 - z, blur))
    lay("soft", step((1 - face) * 50, blur))
    lay("soft", step(depth + rng.uniform(5, 8), blur))
    blob("soft", (0, -94, -26), (10, 15, 18))                         # nose
    for side in (-1, 1):
        blob("soft", (side * 76, 8, -12), (7, 12, 20), turn=-0.35 * side)                     # ears
    blob("skull", (0, -52, -72), (36, 32, 8))                          # jaw
    blob("skull", (0, 30, -72), (13, 13, 40))                          # cervical spine
    blob("skull", (0, -50, -30), (40, 34, 12))                         # skull base in front
    for side in (-1, 1):
        blob("eye", (side * 31, -72, -12), (16, 18, 15))
        blob("soft", (side * 31, -52, -12), (9, 14, 9), turn=0.3 * side)                      # orbit
        blob("skull", (side * 44, 12, -34), (17, 9, 8), turn=0.5 * side)                      # petrous bone
    lay("skull", step(depth, blur))
    lay("csf", step(depth - rng.uniform(6, 8), blur))
    # cortex: folded by a texture of short waves; the fissure parts the halves, the Sylvian fissure the lobes
    folds = np.abs(waves(rng, 14, 17, 30)(x, y, z))
    gap = np.abs(x - 2 * np.sin(y / 40 + rng.uniform(-1, 1))) * (0.35 + 0.65 * np.clip(0.03 * (z - up) + 0.8, 0, 1))
    sylvian = np.hypot(y + 18 + 0.6 * (z - 6), z - 2 - 0.25 * (y + 10)) + 0.45 * np.clip(52 - np.abs(x), 0, None)
    lobes = np.clip((np.abs(x) - 16) / 10, 0, 1) * np.clip((30 - y) / 15, 0, 1) * np.clip((y + 45) / 12, 0, 1)
    floor = z + 20 + 0.2 * y + 20 * lobes                              # temporal lobes reach below, at the sides
    cortex = np.minimum(depth - 9 - 3.5 * np.clip(0.9 - folds, 0, 1) * 2.0, (gap - 1.3) * 1.2)
    cortex = np.minimum(cortex, np.minimum(sylvian - 2.5, floor))
    lay("grey", step(cortex, blur))
    lay("white", step(cortex - rng.uniform(5.5, 7) + 3.0 * np.clip(folds - 0.7, -0.5, 1), blur))
    # corpus callosum closes the fissure in the middle; deep grey matter; ventricles, the left (+x) one larger
    arch = np.hypot((y - 2) / 36, (z - 14) / 22)
    lay("white", step(4.5 - 22 * np.abs(arch - 1), blur) * step(14 - np.abs(x), blur) * step(z - 12, blur))
    large = rng.uniform(1.15, 1.5)
    for side in (-1, 1):
        k = large if side > 0 else 1.0
        blob("grey", (side * 15, 6, 8), (10, 16, 10), turn=-0.3 * side)                       # thalamus
        blob("grey", (side * 27, -8, 8), (7, 17, 10), turn=-0.25 * side)                      # putamen
        blob("csf", (side * 10, -16, 23), (6.5 * k, 19, 9 * k), turn=0.35 * side)             # frontal horn
        blob("csf", (side * 17, 24, 19), (6.5 * k, 24 * k, 9), turn=-0.4 * side)              # occipital horn
        blob("grey", (side * 22, 48, -42), (24, 24, 17))                                      # cerebellum
        blob("white", (side * 20, 46, -42), (15, 13, 8))
        blob("grey", (side * 13, -19, 20), (5, 14, 9), turn=0.3 * side)                       # caudate
    blob("csf", (0, 8, 6), (2.5, 14, 9))                               # third ventricle
    blob("white", (0, 20, -38), (12, 12, 34))                          # brain stem
    blob("csf", (0, 34, -38), (7, 6, 9))                               # fourth ventricle
    # what makes each head one-sided: a lesion and a cyst
    side = rng.choice([-1, 1])
    blob("csf", (side * rng.uniform(25, 45), rng.uniform(20, 50), rng.uniform(12, 34)), rng.uniform(4, 8, 3).tolist())
    blob("grey", (-side * rng.uniform(22, 40), rng.uniform(-40, -10), rng.uniform(10, 34)),
         rng.uniform(5, 9, 3).tolist())

    texture = waves(rng, 10, 12, 40)(x, y, z)
    for name in ("soft", "grey", "white"):
        labels.channel[name] *= 1 + np.float32(0.05) * texture
    angle = 2.399963 * np.arange(32)                                   # points on a spiral over the brain's surface
    height = np.linspace(-0.55, 0.95, 32)
    ring = np.sqrt(1 - height**2)
    points = np.stack([0.85 * wide * ring * np.cos(angle), 0.85 * long * ring * np.sin(angle),
                       up + 0.85 * tall * height], axis=1)
    if axial:
        points = points * np.array([1.0, 1.0, 0.0]) / np.maximum(ring, 0.35)[:, None] * 0.9
    return [labels.channel[name][everything] for name in TISSUES], points
