"""What the builders of all families share: arguments become parts, or an error that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from regenv.data.catalogue import source_named
from regenv.data.pairs import PairSource
from regenv.parts.action import ContinuousSteps, ControlGrid, DiscreteSteps, Field

DTYPES = ("uint8", "float32")
T = TypeVar("T")


def named(argument: str, name: str, choices: Mapping[str, T]) -> T:
    """The choice of a name. Raises ValueError for another one."""
    if name not in choices:
        raise ValueError(f"{argument} is {name!r}; it must be one of {', '.join(choices)}.")
    return choices[name]


def checked_dtype(obs_dtype: str | None, ndim: int) -> str:
    """Type of the observed images: as named, or uint8 in 2D, which SB3's CnnPolicy expects, and float32 in 3D."""
    dtype = obs_dtype or ("uint8" if ndim == 2 else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"obs_dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    return dtype


def shape_of(size: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """A shape from one number of voxels or one per axis."""
    shape = (size,) * ndim if isinstance(size, int) else tuple(size)
    if len(shape) != ndim or min(shape) < 1:
        raise ValueError(f"size is {size}; it must be a positive number of voxels, or {ndim} of them.")
    return shape


def step_actions(continuous: bool, units: Sequence[float],
                 step_sizes: Sequence[float]) -> ContinuousSteps | DiscreteSteps:
    """Actions that change parameters by steps: all of them at once, or one at a time."""
    steps = ContinuousSteps if continuous else DiscreteSteps
    return steps(tuple(units), checked_steps(step_sizes))


def field_actions(shape: tuple[int, ...], bound: float, control_grid: Sequence[int] | None) -> Field | ControlGrid:
    """Actions that displace every voxel, or the control points of a cubic B-spline."""
    if control_grid is None:
        return Field(shape, bound)
    return ControlGrid(shape, shape_of(tuple(control_grid), len(shape)), bound)


def source_for(source: str | Mapping[str, Any] | PairSource, ndim: int) -> PairSource:
    """A source of pairs of that dimension. Raises ValueError for one of another dimension."""
    chosen = source_named(source, ndim)
    if chosen.ndim != ndim:
        raise ValueError(f"source {source!r} gives {chosen.ndim}D pairs; this environment needs {ndim}D.")
    return chosen


def checked_ranges(ranges: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    """Half-widths of the starting poses, one per parameter."""
    if len(ranges) != len(names):
        raise ValueError(f"ranges has {len(ranges)} numbers; it needs {len(names)}: {', '.join(names)}.")
    return tuple(map(float, ranges))


def checked_steps(step_sizes: Sequence[float]) -> tuple[float, ...]:
    """Step sizes in units."""
    sizes = tuple(map(float, step_sizes))
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"step_sizes is {step_sizes}; every step must be positive.")
    return sizes
