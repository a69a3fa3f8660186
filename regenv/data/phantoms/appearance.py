"""Random appearances of a head: contrast, skull, stripping, bias field, field of view, noise.

Each lane draws its numbers with numpy; images are computed elementwise, so that no lane depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KNOTS = 6
EDGE_MM = 2.0
TISSUE = 0.06  # intensity above which a voxel is no air
AWAY_MM = 40.0
CAVITY_MM = 20.0  # distance from the brain beyond which dark voxels are air
NOISE_LENGTH = 1 << 21
BIAS_KNOTS = 4
FULL_FIELD = (-0.1, 1.1)


@dataclass(frozen=True)
class Appearance:
    """Variation between two images of a head: probabilities and amplitudes at difficulty 1.

    Args:
        contrast: weight of the random intensity map against the head's own contrast, 0 to 1.
        flat: share of images whose brain is nearly uniform, as in CT.
        skull: share with a synthetic skull and scalp. strip: share with the brain only.
        bias: log-amplitude of the bias field. crop: share with a part of the field of view missing.
        noise: standard deviation.
        plain_fixed: the fixed image keeps its own look at any difficulty.
    """

    contrast: float = 1.0
    flat: float = 0.3
    skull: float = 0.5
    strip: float = 0.25
    bias: float = 0.4
    crop: float = 0.4
    noise: float = 0.04
    plain_fixed: bool = False

    def draw(self, rngs: Sequence[np.random.Generator], difficulty: float, plain: bool) -> Looks:
        """One appearance per generator.

        ``plain`` images (the fixed ones) vary from half difficulty on; the others have random contrast at any
        difficulty. If both varied from the start, agents would learn nothing from scratch.
        """
        if plain and self.plain_fixed:
            level, contrast = 0.0, 0.0
        else:
            level = max(0.0, 2 * difficulty - 1) if plain else difficulty
            contrast = self.contrast * (level if plain else 0.5 + 0.5 * difficulty)
        rows = [self._numbers(rng, level, contrast) for rng in rngs]
        return Looks(**{key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]})

    def _numbers(self, rng: np.random.Generator, level: float, contrast: float) -> dict[str, np.ndarray]:
        flat = rng.random() < self.flat * level
        ramp = np.linspace(0, 1, KNOTS)
        tables = []
        for _ in ("brain", "outside"):
            wild = rng.uniform(0.05, 1.0, KNOTS)
            if rng.random() < 0.5:
                wild = np.sort(wild) if rng.random() < 0.5 else np.sort(wild)[::-1]
            tables.append((1 - contrast) * ramp + contrast * wild)
        if flat:
            soft = rng.uniform(0.25, 0.6)
            tables = [soft + rng.uniform(-0.1, 0.1) * (ramp - 0.5), soft * rng.uniform(0.8, 1.1) + 0.1 * (ramp - 0.5)]
        lower, upper = np.full(3, FULL_FIELD[0]), np.full(3, FULL_FIELD[1])
        cropped = rng.random() < self.crop * level
        cuts = rng.uniform(0, 0.35, (2, 3)) * (rng.random((2, 3)) < 0.35)
        if cropped:
            lower, upper = np.where(cuts[0] > 0, cuts[0], lower), np.where(cuts[1] > 0, 1 - cuts[1], upper)
        gap, bone, scalp = rng.uniform(1, 6), rng.uniform(4, 10), rng.uniform(3, 12)
        bone_value = rng.uniform(0.85, 1.0) if flat else rng.uniform(0.0, 1.0)
        return {
            "tables": np.stack(tables).astype(np.float32),
            "shells": np.cumsum([gap, bone, scalp]).astype(np.float32),
            "values": np.array([rng.uniform(0.1, 1.0) if not flat else tables[0][0], bone_value,
                                rng.uniform(0.1, 1.0) if not flat else tables[1][-1]], dtype=np.float32),
            "skull": np.array(rng.random() < self.skull * level or (flat and rng.random() < 0.9)),
            "strip": np.array(rng.random() < self.strip * level and not flat),
            "bias": (rng.normal(0, self.bias * level, (1,) + (BIAS_KNOTS,) * 3)).astype(np.float32),
            "field": np.stack([lower, upper]).astype(np.float32),
            "noise": np.array(rng.uniform(0, self.noise) * level, dtype=np.float32),
            "phase": np.array(rng.integers(NOISE_LENGTH)),
        }


@dataclass(frozen=True)
class Looks:
    """The drawn numbers of B images, see Appearance."""

    tables: Tensor
    shells: Tensor
    values: Tensor
    skull: Tensor
    strip: Tensor
    bias: Tensor
    field: Tensor
    noise: Tensor
    phase: Tensor

    def select(self, mask: np.ndarray) -> Looks:
        """The images of ``mask`` (B,) bool."""
        where = torch.from_numpy(mask)
        return Looks(**{f.name: getattr(self, f.name)[where] for f in fields(self)})

    def render(self, tissue: Tensor, stripped: Tensor, outline: Tensor | None = None) -> Tensor:
        """Images (B, 1, *shape) in [0, 1].

        Args:
            tissue: (B, 2, *shape): intensity in [0, 1] and AWAY_MM minus the distance to the brain's surface in mm
                (0 outside the volume, so that everything beyond is far away).
            stripped: (B,) bool, heads that come without skull.
            outline: (B, *shape): 1 inside the skin. With it, the synthetic scalp ends there, and air deep inside stays
                air; without it, the scalp is a shell about the brain.
        """
        device, shape = tissue.device, tissue.shape[2:]
        own, outward = tissue[:, 0], AWAY_MM - tissue[:, 1]
        wide = (-1, *(1,) * len(shape))
        inside = _below(outward, 0.0)
        brain, outer = (_curve(own, self.tables[:, i].to(device)) for i in range(2))
        outer = outer * (own > TISSUE)
        edges = [self.shells[:, i].to(device).view(wide) for i in range(3)]
        values = [self.values[:, i].to(device).view(wide) for i in range(3)]
        filled = [_below(outward, edge) for edge in edges]
        beyond = torch.where(stripped.to(device).view(wide), 0.0, outer)
        if outline is None:
            skin = torch.maximum(beyond, values[2] * filled[2])
        else:
            skin = values[2] * ((own > TISSUE) | (outward < CAVITY_MM))
        synthetic = values[0] * filled[0] + (1 - filled[0]) * (values[1] * filled[1] + (1 - filled[1]) * skin)
        synthetic = synthetic if outline is None else synthetic * outline
        outer = torch.where(self.skull.to(device).view(wide), synthetic, beyond)
        outer = torch.where(self.strip.to(device).view(wide), 0.0, outer)
        image = inside * brain + (1 - inside) * outer
        bias = F.interpolate(self.bias.to(device), shape, mode="trilinear", align_corners=True)[:, 0]
        image = image * torch.exp(bias)
        image = image + self.noise.to(device).view(wide) * _noise(self.phase, shape, device)
        return (image * self._visible(shape, device)).clamp(0, 1).unsqueeze(1)

    def _visible(self, shape: torch.Size, device: torch.device) -> Tensor:
        """(B, *shape) bool, the field of view."""
        seen = torch.ones((), dtype=torch.bool, device=device)
        for axis, n in enumerate(shape):
            span = [1] * len(shape)
            span[axis] = n
            ticks = torch.linspace(0, 1, n, device=device).view(1, *span)
            low, high = (self.field[:, i, axis].to(device).view(-1, *(1,) * len(shape)) for i in range(2))
            seen = seen & (ticks >= low) & (ticks <= high)
        return seen


def _below(distance: Tensor, edge: Tensor | float) -> Tensor:
    """1 where distance < edge, 0 beyond, with a soft edge that imitates the partial-volume effect."""
    return ((edge - distance) / EDGE_MM + 0.5).clamp(0, 1)


def _curve(image: Tensor, tables: Tensor) -> Tensor:
    """Intensities (B, *shape) in [0, 1] through piecewise linear curves (B, K) over equally spaced knots."""
    position = image.flatten(1) * (tables.shape[1] - 1)
    low = position.long().clamp(0, tables.shape[1] - 2)
    part = position - low
    left = tables.gather(1, low)
    return (left + part * (tables.gather(1, low + 1) - left)).view(image.shape)


@lru_cache(maxsize=4)
def _noise_strip(device: torch.device) -> Tensor:
    strip = np.random.default_rng(0).standard_normal(NOISE_LENGTH + (1 << 20)).astype(np.float32)
    return torch.from_numpy(strip).to(device)


def _noise(phase: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """White noise (B, *shape): pieces of one fixed strip, each lane from its own phase."""
    strip, count = _noise_strip(device), shape.numel()
    return torch.stack([strip[p:p + count] for p in phase.tolist()]).view(-1, *shape)
