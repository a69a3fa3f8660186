"""What the builders of all families share: arguments become parts, or an error that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from regenv.data.catalogue import source_named
from regenv.data.pairs import PairSource
from regenv.grid import Grid
from regenv.inputs import flag, number, numbers, shown, whole
from regenv.parts.action import ContinuousSteps, ControlGrid, DiscreteSteps, Field

DTYPES = ("uint8", "float32")
T = TypeVar("T")


def named(argument: str, name: str, choices: Mapping[str, T]) -> T:
    """The choice of a name. Raises ValueError for another one."""
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{argument} is {shown(name)}; it must be one of {', '.join(choices)}.")
    return choices[name]


def checked_dtype(obs_dtype: str | None, ndim: int) -> str:
    """Type of the observed images: as named, or uint8 in 2D, which SB3's CnnPolicy expects, and float32 in 3D."""
    usual = "uint8" if ndim == 2 else "float32"
    return named("obs_dtype", usual if obs_dtype is None else obs_dtype, dict(zip(DTYPES, DTYPES, strict=True)))


def shape_of(size: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """A shape from one number of voxels or one per axis."""
    given = size if isinstance(size, (Sequence, np.ndarray)) and not isinstance(size, str) else (size,) * ndim
    if len(given) != ndim:
        raise ValueError(f"size is {shown(size)}; it must be a positive number of voxels, or {ndim} of them.")
    return tuple(whole("size", length) for length in given)


def grid_of(shape: tuple[int, ...], spacing: float | Sequence[float] | None, field_mm: float) -> Grid:
    """The grid of a shape: of one spacing or one an axis, mm, or by default of a field of view on its longest axis."""
    if spacing is None:
        return Grid.centered(shape, field_mm / max(shape))
    if isinstance(spacing, (Sequence, np.ndarray)):
        return Grid.centered(shape, numbers("spacing", spacing, len(shape), positive=True))
    return Grid.centered(shape, number("spacing", spacing, positive=True))


def step_actions(continuous: bool, units: Sequence[float],
                 step_sizes: Sequence[float]) -> ContinuousSteps | DiscreteSteps:
    """Actions that change parameters by steps: all of them at once, or one at a time."""
    steps = ContinuousSteps if flag("continuous", continuous) else DiscreteSteps
    return steps(tuple(units), checked_steps(step_sizes))


def field_actions(shape: tuple[int, ...], bound: float, control_grid: Sequence[int] | None) -> Field | ControlGrid:
    """Actions that displace every voxel, or the control points of a cubic B-spline."""
    if control_grid is None:
        return Field(shape, bound)
    if not isinstance(control_grid, (Sequence, np.ndarray)) or len(control_grid) != len(shape):
        raise ValueError(f"control_grid is {shown(control_grid)}; it must be {len(shape)} numbers of control points.")
    return ControlGrid(shape, tuple(whole("control_grid", points) for points in control_grid), bound)


def source_for(source: str | Mapping[str, Any] | PairSource, ndim: int) -> PairSource:
    """A source of pairs of that dimension. Raises ValueError for one of another dimension."""
    chosen = source_named(source, ndim)
    if chosen.ndim != ndim:
        raise ValueError(f"source {source!r} gives {chosen.ndim}D pairs; this environment needs {ndim}D.")
    return chosen


def checked_ranges(ranges: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    """Half-widths of the starting poses, one per parameter."""
    if isinstance(ranges, (Sequence, np.ndarray)) and len(ranges) != len(names):
        raise ValueError(f"ranges has {len(ranges)} numbers; it needs {len(names)}: {', '.join(names)}.")
    return numbers("ranges", ranges, len(names))


def checked_steps(step_sizes: Sequence[float]) -> tuple[float, ...]:
    """Step sizes in units."""
    return numbers("step_sizes", step_sizes, positive=True)
