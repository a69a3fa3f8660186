"""Phantoms: endless pairs of images made from formulas, so that agents can be trained and tested without any file.

A phantom is a bank of patients, each painted once from soft geometric bodies. A draw picks a patient, varies it a
little, resamples it on the grids asked for and gives each image its own contrast and artefacts. The patients of
``split="train"`` and ``split="test"`` are never the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from regenv.data.pairs import PairBatch
from regenv.grid import Grid
from regenv.ops.warp import affine_coordinates, matmul, sample

_SPLITS = {"train": 0, "test": 1}
_NOISE_VALUES = 1 << 21
_MIN_MOVING_SPACING = 2.0  # mm


def _check(name: str, ndim: int, split: str, patients: int, spacing: float) -> None:
    if ndim not in (2, 3):
        raise ValueError(f"{name}: ndim is {ndim}; it must be 2 or 3.")
    if split not in _SPLITS:
        raise ValueError(f"{name}: split is {split!r}; choose 'train' or 'test'.")
    if patients < 1:
        raise ValueError(f"{name}: patients is {patients}; at least one patient is needed.")
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"{name}: bank_spacing is {spacing} mm; it must be positive and finite.")


def _check_grid(name: str, ndim: int, grid: Grid) -> None:
    if grid.ndim != ndim:
        raise ValueError(f"{name}: it makes {ndim}D images, but the grid is {grid.ndim}D {grid.shape}; "
                         f"use {name}(ndim={grid.ndim}).")


# --- soft geometric bodies ------------------------------------------------------------------------------------------

def _step(depth_mm: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a voxel inside a body, from the depth below its surface: a ramp of the given width."""
    return np.clip(depth_mm / width_mm + 0.5, 0, 1)


class _Canvas:
    """Channels painted over a grid, body by body, each within its bounding box only.

    Args:
        grid: 3D, direction identity.
        channels: names of the channels.
        blur: width of edges, mm.
    """

    def __init__(self, grid: Grid, channels: Sequence[str], blur: float) -> None:
        self.ticks = [(grid.origin[a] + grid.spacing[a] * np.arange(grid.size[a])).astype(np.float32) for a in range(3)]
        self.channel = {name: np.zeros(grid.shape, np.float32) for name in channels}
        self.blur = blur

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """Index of the box between two corners (x, y, z), and broadcastable world coordinates x, y, z within."""
        pad = self.blur
        cut = [slice(int(np.searchsorted(t, a - pad)), int(np.searchsorted(t, b + pad)))
               for t, a, b in zip(self.ticks, low, high, strict=True)]
        x, y, z = (t[c] for t, c in zip(self.ticks, cut, strict=True))
        return (cut[2], cut[1], cut[0]), [x[None, None, :], y[None, :, None], z[:, None, None]]

    def paint(self, name: str, index: tuple[slice, ...], share: np.ndarray, value: float | np.ndarray) -> None:
        """Lays a body over what is there."""
        view = self.channel[name][index]
        view += share * (value - view)

    def ellipsoid(self, center: Sequence[float], radii: Sequence[float], shear: float = 0.0
                  ) -> tuple[tuple[slice, ...], np.ndarray]:
        """Share of an ellipsoid; ``shear`` is the rise of z per mm of y."""
        lean = abs(shear) * radii[1]
        reach = (radii[0], radii[1], radii[2] + lean)
        index, (x, y, z) = self.box([c - r for c, r in zip(center, reach, strict=True)],
                                    [c + r for c, r in zip(center, reach, strict=True)])
        dy = y - center[1]
        radius = np.sqrt(((x - center[0]) / radii[0]) ** 2 + (dy / radii[1]) ** 2
                         + ((z - center[2] - shear * dy) / radii[2]) ** 2)
        return index, _step((1 - radius) * min(radii), self.blur)


def _waves(rng: np.random.Generator, count: int, shortest: float, longest: float
           ) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A smooth random texture of about unit variance: a sum of plane waves, wavelengths in mm."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wave = (2 * np.pi * directions / rng.uniform(shortest, longest, (count, 1))).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, count).astype(np.float32)

    def texture(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for w, p in zip(wave, phase, strict=True):
            total += np.cos(w[0] * x + w[1] * y + w[2] * z + p)
        return total * np.float32(math.sqrt(2 / count))
    return texture


@lru_cache(maxsize=4)
def _noise(device: str) -> Tensor:
    """A long tape of unit normal noise, read from random places: much cheaper than fresh noise."""
    values = np.random.default_rng(20170).standard_normal(_NOISE_VALUES, dtype=np.float32)
    return torch.from_numpy(values).to(device)


def _noise_at(u: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Noise (B, 1, *shape), starting where ``u`` (B,) in [0, 1) says."""
    count = math.prod(shape)
    tape = _noise(str(device))
    if count > len(tape) // 2:
        tape = tape.repeat(2 * count // len(tape) + 1)
    starts = (u * (len(tape) - count)).astype(int)
    return torch.stack([tape[s:s + count] for s in starts]).view(-1, 1, *shape)


def _ramp(count: int, device: torch.device) -> Tensor:
    """Positions -1 to 1 along an axis."""
    return torch.linspace(-1, 1, count) if device.type == "cpu" else torch.linspace(-1, 1, count).to(device)


def _bias(slopes: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A smooth multiplicative field, (B, 1, *shape): a product of parabolas along the axes.

    Args: slopes (B, D, 2): linear and quadratic coefficient along each array axis.
    """
    ndim = len(shape)
    field = torch.ones(len(slopes), *(1,) * (ndim + 1), device=device)
    for axis in range(ndim):
        span = [1] * ndim
        span[axis] = shape[axis]
        t = _ramp(shape[axis], device).view(1, 1, *span)
        linear, square = (_lanes(slopes[:, axis, i], ndim, device) for i in range(2))
        field = field * (1 + linear * t + square * (t * t))
    return field


def _lanes(values: np.ndarray, ndim: int, device: torch.device) -> Tensor:
    """Numbers (B,) as a tensor that broadcasts over images (B, 1, *shape)."""
    return torch.from_numpy(values.astype(np.float32)).to(device).view(-1, *(1,) * (ndim + 1))


def _between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * u


# --- banks ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Bank:
    """Patients painted once.

    Attributes:
        volumes: (P, C, *shape) float32.
        grid: of each volume, 3D; the world's origin is the patient's centre.
        points: per patient (N, 3) points on anatomical edges, mm.
    """

    volumes: Tensor
    grid: Grid
    points: tuple[np.ndarray, ...]


def _build(paint: Callable[[Grid, np.random.Generator], tuple[list[np.ndarray], np.ndarray]], salt: int, split: str,
           patients: int, grid: Grid) -> _Bank:
    volumes, points = [], []
    for patient in range(patients):
        rng = np.random.default_rng([salt, _SPLITS[split], patient])
        channels, edges = paint(grid, rng)
        volumes.append(torch.from_numpy(np.stack(channels)))
        points.append(edges)
    return _Bank(torch.stack(volumes), grid, tuple(points))


def _resample(bank: _Bank, patients: np.ndarray, grid_to_patient: np.ndarray, shape: tuple[int, ...],
              mix: np.ndarray) -> Tensor:
    """Mixtures of patients' channels on grids.

    One lane at a time: it reads the bank in place instead of copying a volume per lane, and stays in the cache.

    Args:
        patients: (B,) indices into the bank.
        grid_to_patient: (B, 4, 4), voxel points of a 3D grid to mm in the patient.
        shape: 3D shape of the grid.
        mix: (B, K, C) weights of the C channels in each of K images.
    Returns: (B, K, *shape) float32.
    """
    to_bank = matmul(torch.from_numpy(bank.grid.world_to_voxel), torch.from_numpy(grid_to_patient))
    linear = to_bank[:, :3, :3]
    aligned = bool((linear * (1 - torch.eye(3, dtype=linear.dtype)) == 0).all())
    device = bank.volumes.device
    out = torch.empty(len(patients), mix.shape[1], *shape, device=device)
    for lane, patient in enumerate(patients):
        if aligned:  # mixing early, as it makes less of the data
            axes = [(a + 1, to_bank[lane, a, a], to_bank[lane, a, 3], shape[a]) for a in range(3)]
            images = _mixed(_resample_axis(bank.volumes[patient], *axes[0]), mix[lane])
            out[lane] = _resample_axis(_resample_axis(images, *axes[1]), *axes[2])
        else:
            points = affine_coordinates(to_bank[lane:lane + 1], shape).to(device)
            out[lane] = _mixed(sample(bank.volumes[patient:patient + 1], points, padding="border")[0], mix[lane])
    return out


def _mixed(channels: Tensor, mix: np.ndarray) -> Tensor:
    """Weighted sums (K, *shape) of channels (C, *shape), weights (K, C)."""
    images = []
    for weights in mix.tolist():
        image = channels[0] * weights[0]
        for channel, weight in zip(channels[1:], weights[1:], strict=True):
            image += channel * weight
        images.append(image)
    return torch.stack(images)


def _resample_axis(channels: Tensor, axis: int, stride: Tensor, start: Tensor, count: int) -> Tensor:
    """Linear interpolation along one axis at ``start + stride * (0 .. count - 1)`` voxels; the border's value beyond.

    An order of magnitude faster than ``grid_sample`` where the grids' axes agree.
    """
    places = (start + stride * torch.arange(count, dtype=torch.float64)).clamp(0, channels.shape[axis] - 1)
    below = places.floor().clamp(max=max(0, channels.shape[axis] - 2))
    share = (places - below).to(torch.float32).view(-1, *(1,) * (channels.ndim - 1 - axis)).to(channels.device)
    index = below.long().to(channels.device)
    low = channels.index_select(axis, index)
    high = channels.index_select(axis, (index + 1).clamp(max=channels.shape[axis] - 1))
    return high.sub_(low).mul_(share).add_(low)


# --- abdominal spine ------------------------------------------------------------------------------------------------

_SPINE_BANK_EXTENT = (224.0, 208.0, 448.0)  # mm, x, y, z
_LUMBAR_LEVELS = 5
_THORACIC_LEVELS = 12


def _paint_spine(grid: Grid, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """One patient: soft tissue (air 0, fat 0.35, muscle 0.5, organs about 0.57) and bone density, both in [0, 1].

    World LPS: +x left, +y posterior, +z superior. Returns also the edge points of the vertebrae, (levels * 16, 3): of
    each level 8 around the end plates, then 8 in the midsagittal plane.
    """
    canvas = _Canvas(grid, ("soft", "bone"), blur=max(2.0, 1.1 * min(grid.spacing)))
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
    texture = 1 + 0.05 * _waves(rng, 8, 12, 50)(x, y, z)
    soft = np.clip(canvas.channel["soft"] * texture, 0, 1)
    bone = np.clip(canvas.channel["bone"] * texture, 0, 1)
    return [soft, bone], np.concatenate(points)


def _paint_soft(canvas: _Canvas, rng: np.random.Generator, world: tuple[np.ndarray, np.ndarray, np.ndarray],
                size: float, sacrum: float, lumbar_top: float, spine_x: Callable[..., np.ndarray],
                spine_y: Callable[..., np.ndarray]) -> None:
    x, y, z = world
    everything = (slice(None),) * 3
    blur = canvas.blur
    half = 150 * size * (1 + 0.05 * np.cos(2 * np.pi * (z - sacrum) / 400 + rng.uniform(-0.5, 0.5)))
    deep = rng.uniform(106, 116) * size
    back = 88.0 * size - deep
    body = np.sqrt((x / half) ** 2 + ((y - back) / deep) ** 2)
    fat = rng.uniform(10, 22) / deep
    canvas.paint("soft", everything, _step((1 - body) * deep, blur), 0.33)
    canvas.paint("soft", everything, _step((1 - fat - body) * deep, blur), 0.47)
    # visceral fat in front of the spine, with a lumpy content (bowel)
    cavity = np.sqrt((x / (0.8 * half)) ** 2 + ((y - spine_y(z) + 0.62 * deep) / (0.62 * deep)) ** 2)
    bowel = _waves(rng, 10, 25, 70)(x, y, z)
    canvas.paint("soft", everything, _step((1 - cavity) * 0.62 * deep, blur), 0.40 + 0.07 * np.clip(bowel, -1.5, 1.5))

    # lungs above the diaphragm's domes
    dome = lumbar_top + rng.uniform(60, 85)
    for side in (-1, 1):
        top = dome + (10 if side < 0 else 0)
        wall = np.sqrt(((x - side * 74 * size) / (58 * size)) ** 2 + ((y - back + 5) / (0.78 * deep)) ** 2)
        floor = z - top + 0.010 * ((x - side * 74) ** 2 + (y - back) ** 2) * 0.9 - 15
        lung = _step((1 - wall) * 58 * size, blur) * _step(floor, blur)
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
        canvas.paint("soft", everything, _step((1 - psoas) * across, blur) * _step(lumbar_top - z, blur), 0.53)
        # erector spinae
        back_muscle = np.sqrt(((x - spine_x(z) - side * 32 * size) / (27 * size)) ** 2
                              + ((y - spine_y(z) - 50 * size) / (21 * size)) ** 2)
        canvas.paint("soft", everything, _step((1 - back_muscle) * 21 * size, blur), 0.53)
        # great vessels: aorta left, inferior vena cava right, parting below L4
        part = 0.45 * np.clip(sacrum + 65 - z, 0, 200)
        vessel = np.sqrt((x - spine_x(z) - side * (10 + part)) ** 2 + (y - spine_y(z) + 17 * size + 12) ** 2)
        canvas.paint("soft", everything, _step((10.5 if side > 0 else 9.5) - vessel, blur), 0.56)
    for _ in range(rng.integers(3, 7)):                                                       # gas in the bowel
        radii = rng.uniform(7, 18, 3).tolist()
        canvas.paint("soft", *canvas.ellipsoid((rng.uniform(-80, 80), rng.uniform(-100, -50),
                                                rng.uniform(sacrum - 40, lumbar_top)), radii), 0.03)


def _paint_pelvis(canvas: _Canvas, rng: np.random.Generator, size: float, top: float, x0: float, y0: float) -> None:
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
        sheet = _step((5.5 - np.abs(side * (x - x0) - flare * size)), canvas.blur)
        edge = crest - 60 * (along - 0.45) ** 2
        wing = sheet * _step(edge - z, canvas.blur) * _step(52 - 105 * np.abs(along - 0.5), canvas.blur)
        canvas.paint("bone", index, wing, 0.72)


def _paint_vertebra(canvas: _Canvas, rng: np.random.Generator, middle: float, pitch: float, width: float,
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
    body = _step((1 - radius) * ry, blur) * _step(half - np.abs(height), blur)
    core = _step((1 - radius) * ry - 3, blur) * _step(half - 3 - np.abs(height), blur)
    canvas.paint("soft", index, _step((1 - radius) * ry, blur), 0.5)                          # discs
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


def _paint_ribs(canvas: _Canvas, rng: np.random.Generator, rib: int, middle: float, width: float,
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
        share = _step((1 - tube) * 4.5 + 0.5, blur) * _step(along - 16, blur) * _step(length + 20 - along, blur)
        view = canvas.channel["bone"][index]
        np.maximum(view, share * 0.85, out=view)
        head = canvas.ellipsoid((x0 + side * 27 * width, y0 + 17.5 * width + 5, middle + 6), (7, 14, 5))
        view = canvas.channel["bone"][head[0]]
        np.maximum(view, head[1] * 0.8, out=view)


@lru_cache(maxsize=8)
def _spine_bank(split: str, patients: int, spacing: float, device: str) -> _Bank:
    if device != "cpu":
        bank = _spine_bank(split, patients, spacing, "cpu")
        return _Bank(bank.volumes.to(device), bank.grid, bank.points)
    grid = Grid.centered([round(e / spacing) for e in _SPINE_BANK_EXTENT[::-1]], spacing)
    return _build(_paint_spine, 3, split, patients, grid)


@dataclass(frozen=True)
class SpinePhantom:
    """Abdominal spine, CT and cone-beam CT, after experiment E1 of Liao et al. 2017.

    The fixed CT sees many vertebrae, the moving CBCT a few of them: a cylinder at a random level, with weak
    soft-tissue contrast, streaks, cupping and noise. A shift by one vertebra looks almost right; ribs, kidneys, the
    pelvis and the vertebrae's sizes tell the level. Fixed and moving world agree: the truth is the identity, and the
    environment displaces the start.

    In 2D the images are near-midsagittal slices: world x is the patient's y (posterior), world y its z (superior).

    Args:
        ndim: 2 or 3.
        moving_extent_mm: edge-to-edge size of the moving grid in 3D world axes (x, y, z); its spacing is the fixed
            grid's smallest, at least 2 mm.
        truncated: whether the CBCT is cut to a cylinder narrower than its grid. Turn it off for regions of interest.
        placement_mm: the patient lies up to this far from the world's origin along z. Large values (80) let a small
            grid see every level; much larger ones also show it the pelvis, where there is no vertebra to measure on.
        split: "train" or "test"; no patient is in both.
        patients: size of the bank.
        bank_spacing: resolution at which patients are painted, mm; about half the grid's spacing suffices.
    """

    ndim: int = 3
    moving_extent_mm: tuple[float, float, float] = (176.0, 176.0, 176.0)
    truncated: bool = True
    placement_mm: float = 12.0
    split: str = "train"
    patients: int = 64
    bank_spacing: float = 4.0

    def __post_init__(self) -> None:
        _check("SpinePhantom", self.ndim, self.split, self.patients, self.bank_spacing)
        if len(self.moving_extent_mm) != 3 or not all(math.isfinite(e) and e > 0 for e in self.moving_extent_mm):
            raise ValueError(f"SpinePhantom: moving_extent_mm is {self.moving_extent_mm}; "
                             "give three positive lengths in mm (x, y, z).")

    def moving_grid(self, grid: Grid) -> Grid:
        """The moving grid before it is placed at a level: same centre as the fixed grid."""
        spacing = max(min(grid.spacing), _MIN_MOVING_SPACING)
        extent = self.moving_extent_mm[3 - self.ndim:]
        return Grid.centered([max(2, round(e / spacing)) for e in extent[::-1]], spacing, grid.center.tolist(),
                             grid.direction)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`. The moving grid's place varies by lane, its shape does not."""
        _check_grid("SpinePhantom", self.ndim, grid)
        device, n, lanes, hard = torch.device(device), self.ndim, len(rngs), float(difficulty)
        bank = _spine_bank(self.split, self.patients, float(self.bank_spacing), str(device))
        u = np.stack([rng.random(40) for rng in rngs])
        patients = (u[:, 0] * self.patients).astype(int)

        # the patient's place and size in the world
        scale = 1 + 0.06 * (2 * u[:, 1:4] - 1)
        shift = (2 * u[:, 4:7] - 1) * np.array([8.0, 8.0, self.placement_mm])
        world_to_patient = np.tile(np.eye(4), (lanes, 1, 1))
        world_to_patient[:, range(3), range(3)] = 1 / scale
        world_to_patient[:, :3, 3] = -shift / scale
        if n == 2:  # the slice follows the spine, give or take
            world_to_patient[:, 0, 3] = _between(u[:, 7], -3, 3)

        # the moving grid, placed along z where the fixed grid covers it
        moving_grid = self.moving_grid(grid)
        room = np.maximum(0, np.array(grid.extent) - np.array(moving_grid.extent)) / 2
        offset = (2 * u[:, 8:8 + n] - 1) * np.append(np.minimum(room[:-1], 6.0), room[-1])
        moving_to_world = np.tile(moving_grid.voxel_to_world, (lanes, 1, 1))
        moving_to_world[:, :n, n] += offset
        world_to_moving = np.tile(moving_grid.world_to_voxel, (lanes, 1, 1))
        world_to_moving[:, :n, n] -= (world_to_moving[:, :n, :n] * offset[:, None, :]).sum(-1)

        def look(to_world: np.ndarray, shape: tuple[int, ...], mix: np.ndarray) -> Tensor:
            lifted = matmul(torch.from_numpy(world_to_patient), torch.from_numpy(_sagittal(to_world))).numpy()
            images = _resample(bank, patients, lifted, shape if n == 3 else (*shape, 1), mix)
            return images.view(lanes, mix.shape[1], *shape)

        def vary(column: int, low: float, high: float, plain: float) -> np.ndarray:
            """A lane's value, (B,): ``plain`` at difficulty 0, up to the whole range at 1."""
            return plain + hard * (_between(u[:, column], low, high) - plain)

        def number(column: int, low: float, high: float, plain: float) -> Tensor:
            return _lanes(vary(column, low, high, plain), n, device)

        mix = np.stack([vary(12, 0.48, 0.62, 0.55), vary(13, 0.42, 0.6, 0.5)], axis=1)[:, None]
        fixed = look(np.tile(grid.voxel_to_world, (lanes, 1, 1)), grid.shape, mix)
        fixed += number(14, 0.005, 0.03, 0.005) * _noise_at(u[:, 15], grid.shape, device)

        shape = moving_grid.shape
        soft, bone = look(moving_to_world, shape, np.tile(np.eye(2), (lanes, 1, 1))).split(1, dim=1)
        tissue = 0.47 * (soft * 4).clamp(max=1)
        weak = tissue + number(16, 0.2, 0.6, 1.0) * (soft - tissue)
        moving = number(17, 0.35, 0.7, 0.55) * weak + number(18, 0.25, 0.55, 0.5) * bone
        half = [e / 2 for e in moving_grid.extent]
        axes = [_ramp(shape[-1 - a], device).view(*(-1 if b == a else 1 for b in reversed(range(n))))
                * (half[a] - moving_grid.spacing[a] / 2) for a in range(n)]
        # in 2D the slice is the cylinder's middle: only its depth and its height remain
        square = sum((a * a for a in axes[:-1]), torch.zeros((), device=device))
        across = half[0]
        moving = moving * (1 - number(19, 0.0, 0.35, 0.0) * (1 - square / across**2).clamp(min=0))        # cupping
        streaks = torch.from_numpy(np.stack([_streaks(lane, shape, moving_grid.spacing) for lane in u[:, 24:36]]))
        moving = moving + number(20, 0.01, 0.09, 0.0) * streaks.to(device).unsqueeze(1)
        moving = moving + number(21, 0.0, 0.12, 0.0) \
            + number(22, 0.01, 0.07, 0.01) * _noise_at(u[:, 23], shape, device)
        if self.truncated:
            radius = _between(u[:, 36], 0.88, 1.0) * across
            tall = _between(u[:, 37], 0.86, 1.0) * half[-1]
            seen = (square <= _lanes(radius**2, n, device)) & (axes[-1].abs() <= _lanes(tall, n, device))
            moving = moving * seen
        else:
            radius, tall = np.full(lanes, np.inf), np.full(lanes, half[-1])

        landmarks = []
        middle = grid.center + offset
        for lane, patient in enumerate(patients):
            points = bank.points[patient].reshape(-1, 2, 8, 3)[:, 3 - n].reshape(-1, 3) * scale[lane] + shift[lane]
            landmarks.append(_nearest(points[:, 3 - n:], middle[lane], half, radius[lane], tall[lane]))
        eye = torch.eye(n + 1, dtype=torch.float64).repeat(lanes, 1, 1)
        return PairBatch(
            fixed=fixed.clamp(0, 1), moving=moving.clamp(0, 1),
            fixed_to_world=torch.from_numpy(np.tile(grid.voxel_to_world, (lanes, 1, 1))).to(device),
            world_to_moving=torch.from_numpy(world_to_moving).to(device),
            truth=eye.to(device), known=torch.ones(lanes, dtype=torch.bool, device=device),
            center=torch.from_numpy(np.tile(grid.center, (lanes, 1))).to(device),
            landmarks=torch.from_numpy(np.stack(landmarks)).to(device))


def _sagittal(to_world: np.ndarray) -> np.ndarray:
    """Lifts (B, 3, 3) voxel-to-world maps of slices into 3D, (B, 4, 4); 3D maps pass unchanged.

    A slice (H, W) becomes a volume (H, W, 1) in the plane x = 0, its axes y and z.
    """
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((len(to_world), 4, 4))
    lifted[:, 1:3, :2] = to_world[:, :2, :2]
    lifted[:, 1:3, 3] = to_world[:, :2, 2]
    lifted[:, 0, 2] = lifted[:, 3, 3] = 1
    return lifted


def _streaks(u: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """Streaks of one lane, about unit amplitude, float32 of ``shape``: rays from a dense spot in each axial slice.

    Args: u: (12,) numbers in [0, 1).
    """
    axes = [(np.arange(m) - (m - 1) / 2) * s for m, s in zip(shape[::-1], spacing, strict=True)]
    x, y = (axes[0][None, :], axes[1][:, None]) if len(shape) == 3 else (np.full((1, 1), 9.0), axes[0][:, None])
    x, y = x - 30 * (2 * u[0] - 1), y - 30 * (2 * u[1] - 1)
    angle, radius = np.arctan2(y, x), np.sqrt(x * x + y * y)
    rays = sum(np.cos(np.floor(3 + 14 * f) * angle + 2 * np.pi * p) for f, p in u[2:10].reshape(4, 2)) / 2
    plane = rays * np.minimum(radius / 25, 1)
    along = np.cos(2 * np.pi * (axes[-1] / _between(u[10], 35, 90) + u[11]))
    height = (0.5 + 0.5 * along).reshape(-1, *(1,) * (len(shape) - 1))
    if len(shape) == 2:
        plane = plane.T
    return (plane * height).astype(np.float32)


def _nearest(points: np.ndarray, middle: np.ndarray, half: Sequence[float], radius: float, tall: float,
             count: int = 32) -> np.ndarray:
    """The ``count`` points nearest to ``middle`` that the CBCT sees, repeated where there are fewer; (count, D)."""
    away = points - middle
    seen = (np.abs(away) <= np.array(half)).all(1) & (np.abs(away[:, -1]) <= tall)
    seen &= (away[:, :-1] ** 2).sum(1) <= radius**2
    order = np.argsort((away**2).sum(1) + np.where(seen, 0.0, 1e9), kind="stable")
    return points[order[np.arange(count) % max(1, min(count, int(seen.sum())))]]


# --- head -----------------------------------------------------------------------------------------------------------

_HEAD_BANK_EXTENT = (192.0, 232.0, 224.0)  # mm, x, y, z
_TISSUES = ("soft", "skull", "csf", "grey", "white", "eye")
_CONTRASTS = np.array([
    #  soft skull  csf  grey white   eye
    [0.62, 0.12, 0.15, 0.50, 0.78, 0.30],   # T1-like
    [0.40, 0.08, 0.95, 0.62, 0.40, 0.90],   # T2-like
    [0.55, 0.15, 0.10, 0.72, 0.55, 0.20],   # FLAIR-like
    [0.42, 0.95, 0.32, 0.44, 0.39, 0.36],   # CT-like
])


def _paint_head(grid: Grid, rng: np.random.Generator, axial: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """One head as shares of tissues, in the order of ``_TISSUES``, and 32 points inside it.

    World LPS. With ``axial`` only a slab around z = 0 is asked for, and the plane is bent to pass through the eyes.
    """
    blur = max(1.5, 1.2 * min(grid.spacing[:2]))
    labels = _Canvas(grid, _TISSUES, blur)
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
        lay(name, _step((1 - radius) * min(radii), blur))

    wide, long, tall = rng.uniform(64, 72), rng.uniform(82, 92), rng.uniform(72, 80)
    up = 18.0                                                          # the skull's middle, above the world's origin
    lump = _waves(rng, 8, 60, 140)(x, y, z)
    # egg-shaped: broader behind
    radius = np.sqrt((x / (wide * (1 + 0.0012 * y))) ** 2 + (y / long) ** 2 + ((z - up) / tall) ** 2)
    depth = (1 - radius) * wide + 1.2 * lump                          # mm below the outer table of the skull
    neck = np.sqrt((x / 46) ** 2 + ((y - 18) / 52) ** 2)
    face = np.sqrt((x / 54) ** 2 + ((y + 42) / 50) ** 2 + ((z + 38) / 66) ** 2)
    lay("soft", _step((1 - neck) * 46, blur) * _step(20 - z, blur))
    lay("soft", _step((1 - face) * 50, blur))
    lay("soft", _step(depth + rng.uniform(5, 8), blur))
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
    lay("skull", _step(depth, blur))
    lay("csf", _step(depth - rng.uniform(6, 8), blur))
    # cortex: folded by a texture of short waves; the fissure parts the halves, the Sylvian fissure the lobes
    folds = np.abs(_waves(rng, 14, 17, 30)(x, y, z))
    gap = np.abs(x - 2 * np.sin(y / 40 + rng.uniform(-1, 1))) * (0.35 + 0.65 * np.clip(0.03 * (z - up) + 0.8, 0, 1))
    sylvian = np.hypot(y + 18 + 0.6 * (z - 6), z - 2 - 0.25 * (y + 10)) + 0.45 * np.clip(52 - np.abs(x), 0, None)
    lobes = np.clip((np.abs(x) - 16) / 10, 0, 1) * np.clip((30 - y) / 15, 0, 1) * np.clip((y + 45) / 12, 0, 1)
    floor = z + 20 + 0.2 * y + 20 * lobes                              # temporal lobes reach below, at the sides
    cortex = np.minimum(depth - 9 - 3.5 * np.clip(0.9 - folds, 0, 1) * 2.0, (gap - 1.3) * 1.2)
    cortex = np.minimum(cortex, np.minimum(sylvian - 2.5, floor))
    lay("grey", _step(cortex, blur))
    lay("white", _step(cortex - rng.uniform(5.5, 7) + 3.0 * np.clip(folds - 0.7, -0.5, 1), blur))
    # corpus callosum closes the fissure in the middle; deep grey matter; ventricles, the left (+x) one larger
    arch = np.hypot((y - 2) / 36, (z - 14) / 22)
    lay("white", _step(4.5 - 22 * np.abs(arch - 1), blur) * _step(14 - np.abs(x), blur) * _step(z - 12, blur))
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

    texture = _waves(rng, 10, 12, 40)(x, y, z)
    for name in ("soft", "grey", "white"):
        labels.channel[name] *= 1 + np.float32(0.05) * texture
    angle = 2.399963 * np.arange(32)                                   # points on a spiral over the brain's surface
    height = np.linspace(-0.55, 0.95, 32)
    ring = np.sqrt(1 - height**2)
    points = np.stack([0.85 * wide * ring * np.cos(angle), 0.85 * long * ring * np.sin(angle),
                       up + 0.85 * tall * height], axis=1)
    if axial:
        points = points * np.array([1.0, 1.0, 0.0]) / np.maximum(ring, 0.35)[:, None] * 0.9
    return [labels.channel[name][everything] for name in _TISSUES], points


@lru_cache(maxsize=8)
def _head_bank(ndim: int, split: str, patients: int, spacing: float, device: str) -> _Bank:
    if device != "cpu":
        bank = _head_bank(ndim, split, patients, spacing, "cpu")
        return _Bank(bank.volumes.to(device), bank.grid, bank.points)
    shape = [round(e / spacing) for e in _HEAD_BANK_EXTENT[::-1]]
    grid = Grid.centered(shape if ndim == 3 else [1, *shape[1:]], spacing)
    return _build(lambda g, rng: _paint_head(g, rng, axial=ndim == 2), 5, split, patients, grid)


@dataclass(frozen=True)
class BrainPhantom:
    """A head with scalp, skull, CSF, folded grey and white matter, ventricles, eyes, nose and ears.

    Both images show the same head on the same grid, so the truth is the identity and the environment displaces the
    start. At difficulty 0 they differ by weak noise only; at 1 the moving image has another contrast (T1-, T2-, FLAIR-
    or CT-like, jittered, so also inverted), both have bias fields and noise. In 2D the slices are axial, through the
    eyes and ventricles. Landmarks are 32 points on the brain's surface.

    Args:
        ndim: 2 or 3.
        split: "train" or "test"; no patient is in both.
        patients: size of the bank.
        bank_spacing: resolution at which heads are painted, mm; default 1.5 in 2D and 4 in 3D.
    """

    ndim: int = 3
    split: str = "train"
    patients: int = 48
    bank_spacing: float | None = None

    def __post_init__(self) -> None:
        _check("BrainPhantom", self.ndim, self.split, self.patients, self._spacing)

    @property
    def _spacing(self) -> float:
        if self.bank_spacing is None:
            return 1.5 if self.ndim == 2 else 4.0
        return float(self.bank_spacing)

    def draw(self, rngs: Sequence[np.random.Generator], grid: Grid, device: torch.device,
             difficulty: float = 1.0) -> PairBatch:
        """See :class:`~regenv.data.pairs.PairSource`. Fixed and moving share the grid."""
        _check_grid("BrainPhantom", self.ndim, grid)
        device, n, lanes, hard = torch.device(device), self.ndim, len(rngs), float(difficulty)
        bank = _head_bank(n, self.split, self.patients, self._spacing, str(device))
        u = np.stack([rng.random(64) for rng in rngs])
        patients = (u[:, 0] * self.patients).astype(int)
        scale = 1 + 0.07 * (2 * u[:, 1:4] - 1)
        shift = (2 * u[:, 4:7] - 1) * np.array([6.0, 6.0, 6.0])
        if n == 2:
            scale[:, 2], shift[:, 2] = 1, 0
        world_to_patient = np.tile(np.eye(4), (lanes, 1, 1))
        world_to_patient[:, range(3), range(3)] = 1 / scale
        world_to_patient[:, :3, 3] = -shift / scale
        lifted = matmul(torch.from_numpy(world_to_patient),
                        torch.from_numpy(np.tile(_axial(grid.voxel_to_world), (lanes, 1, 1)))).numpy()
        def contrast(kind: np.ndarray, jitter: np.ndarray) -> np.ndarray:
            tables = _CONTRASTS[(kind * len(_CONTRASTS)).astype(int)]
            return np.clip(tables + hard * 0.12 * (2 * jitter - 1), 0.02, 1)

        first = contrast(u[:, 8] * hard, u[:, 9:15])
        second = np.where((u[:, 22] < hard)[:, None], contrast(u[:, 15], u[:, 16:22]), first)
        shape = grid.shape
        images = _resample(bank, patients, lifted, shape if n == 3 else (1, *shape), np.stack([first, second], axis=1))
        images = images.view(lanes, 2, *shape)

        def finish(image: Tensor, column: int) -> Tensor:
            slopes = hard * 0.22 * (2 * u[:, column:column + 2 * n].reshape(lanes, n, 2) - 1)
            sigma = 0.005 + hard * 0.035 * u[:, column + 6]
            noise = _noise_at(u[:, column + 7], shape, device).mul_(_lanes(sigma, n, device))
            return noise.add_(image * _bias(slopes, shape, device)).clamp_(0, 1)

        landmarks = np.stack([bank.points[p] * scale[i] + shift[i] for i, p in enumerate(patients)])[..., :n]
        to_world = torch.from_numpy(np.tile(grid.voxel_to_world, (lanes, 1, 1)))
        to_voxel = torch.from_numpy(np.tile(grid.world_to_voxel, (lanes, 1, 1)))
        return PairBatch(
            fixed=finish(images[:, :1], 24), moving=finish(images[:, 1:], 36),
            fixed_to_world=to_world.to(device), world_to_moving=to_voxel.to(device),
            truth=torch.eye(n + 1, dtype=torch.float64).repeat(lanes, 1, 1).to(device),
            known=torch.ones(lanes, dtype=torch.bool, device=device),
            center=torch.from_numpy(np.tile(grid.center, (lanes, 1))).to(device),
            landmarks=torch.from_numpy(landmarks.copy()).to(device))


def _axial(to_world: np.ndarray) -> np.ndarray:
    """Lifts the (3, 3) voxel-to-world map of a slice (H, W) to that of a volume (1, H, W) in the plane z = 0."""
    if to_world.shape[-1] == 4:
        return to_world
    lifted = np.zeros((4, 4))
    lifted[:2, 1:3] = to_world[:2, :2]
    lifted[:2, 3] = to_world[:2, 2]
    lifted[2, 0] = lifted[3, 3] = 1
    return lifted
