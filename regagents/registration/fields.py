"""What a displacement field does to points, where it folds, and its inverse.

A field maps x to x + u(x), linear between its voxels. The source of a target y solves x + u(x) = y. The fixed-point
iteration x <- y - u(x) (Chen et al. 2008) finds it where u stretches by less than its own length; with the inverse
Jacobian before the residual it is Newton's, which finds it elsewhere, too. A step that does not help is halved. Beyond
its grid the field goes on as at its border, so that the inverse is smooth there.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from regenv.data.io.displacements import Field
from regenv.data.io.headers import MAX_BYTES
from regenv.grid import Grid
from regenv.ops.kernels.threads import run
from regenv.ops.regularity import folding, jacobian

TOLERANCE = 1e-7    # voxels, of a residual with which the iteration ends
SOLVED = 1e-3       # voxels, of a residual with which a source is one
EVALUATIONS = 200   # of a field, for one target
LEAST_STEP = 1e-3   # of Newton's step


def moved(field: Field, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, D), world mm, where the field takes them; beyond its grid they stay, as in ITK."""
    from scipy.ndimage import map_coordinates  # a fifth of a second, which only fields need

    at = field.grid.to_voxel(points)
    within = _all((at >= -0.5) & (at < np.asarray(field.grid.shape) - 0.5))
    displacement = np.stack([map_coordinates(field.vectors[..., c], at.T, np.float64, order=1, mode="nearest")
                             for c in range(field.grid.ndim)], -1)
    return points + within[:, None] * displacement


def inverse(field: Field) -> Field:
    """The inverse of a field, on its grid and wherever else the field maps to.

    Raises ValueError: it would take too much memory, since the field spreads its grid too far.
    """
    displacement = field.in_voxels
    grid = _reached(field.grid, displacement)
    targets = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1, dtype=np.float64)
    targets = field.grid.to_voxel(grid.to_world(targets)).reshape(-1, grid.ndim)
    found = _sources(displacement, targets)[0]
    vectors = (found - targets) @ field.grid.voxel_to_world[:-1, :-1].T
    return Field(vectors.reshape(*grid.shape, grid.ndim), grid)


def sources(field: Field, targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The points that a field maps to targets (N, D), world mm; and which of these have none in its grid, (N,).

    These get what the field, gone on as at its border, gives; where it leads nowhere near, they are their own sources.
    """
    displacement = field.in_voxels
    wanted = field.grid.to_voxel(targets)
    found, residuals = _sources(displacement, wanted)
    low, high = _reach(displacement)
    near = _all((wanted >= low - 0.5) & (wanted <= high + 0.5))
    within = _all((found >= -0.5) & (found <= np.asarray(field.grid.shape) - 0.5))
    solved = np.abs(residuals).max(1) <= SOLVED
    return np.where(near[:, None], field.grid.to_world(found), targets), ~(within & solved)


def _all(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points (N, D) are inside along every axis, (N,)."""
    return np.asarray(inside.all(1), dtype=bool)


def share_folded(field: Field) -> float:
    """Share of voxels where the map turns the tissue inside out (det J <= 0): it has no inverse there."""
    return float(folding(_batched(field))[0])


def determinants(field: Field) -> NDArray[np.float64]:
    """det J of the map, (*grid.shape): the local change of volume."""
    return np.asarray(jacobian(_batched(field))[0].numpy())


def _batched(field: Field) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(field.in_voxels, -1, 0)))[None]


def _reach(displacement: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and the last voxel, (D,) each, of the box about a field's grid and all that it leads to."""
    shape = displacement.shape[:-1]
    low, high = np.zeros(len(shape), np.int64), np.asarray(shape, np.int64) - 1
    for axis, count in enumerate(shape):
        ends = np.moveaxis(displacement[..., axis], axis, -1) + np.arange(count)
        low[axis] = min(low[axis], np.floor(ends.min()))
        high[axis] = max(high[axis], np.ceil(ends.max()))
    return low, high


def _reached(grid: Grid, displacement: NDArray[np.float64]) -> Grid:
    """A grid of the same voxels, longer where the field leads out of it."""
    low, high = _reach(displacement)
    shape = tuple((high - low + 1).tolist())
    if np.prod(shape, dtype=float) * 4 > MAX_BYTES:
        raise ValueError(f"the field leads up to {np.abs(displacement).max():.0f} voxels away, so that its inverse "
                         f"needs {' x '.join(map(str, shape[::-1]))} voxels, which is too much. Take its linear part "
                         "out of it first.")
    return Grid(shape, grid.spacing, tuple(grid.to_world(low).tolist()), grid.direction)


def _sources(displacement: NDArray[np.float64],
             targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sources and residuals (N, D) of targets (N, D), all in voxels, in array-axis order."""
    n = targets.shape[1]
    lifted = np.zeros((*(1,) * (3 - n), *displacement.shape[:-1], 3))
    lifted[..., 3 - n:] = displacement.reshape(*lifted.shape[:-1], n)
    wanted = np.zeros((len(targets), 3))
    wanted[:, 3 - n:] = targets
    found, residuals = np.empty_like(wanted), np.empty_like(wanted)
    run(_solve, lifted, wanted, found, residuals, voxels=len(targets))
    return found[:, 3 - n:], residuals[:, 3 - n:]


# ------------------------------------------------------------------------------------------------------------ kernels

@numba.njit(inline="always", error_model="numpy")
def _cell(at, count):  # type: ignore[no-untyped-def]
    """Index of a cell's first voxel along an axis, the fraction across it, and whether the point lies within."""
    within = count > 1 and at >= 0 and at <= count - 1
    at = min(max(at, 0.0), count - 1.0)
    first = min(int(at), max(count - 2, 0))
    return first, at - first, within


@numba.njit(error_model="numpy", cache=True)
def _look(field, x, u, slopes):  # type: ignore[no-untyped-def]
    """Writes the displacement (3,) at a point, and the derivatives (3, 3) of its components along the axes."""
    d, h, w = field.shape[0], field.shape[1], field.shape[2]
    k, fk, in_k = _cell(x[0], d)
    j, fj, in_j = _cell(x[1], h)
    i, fi, in_i = _cell(x[2], w)
    for c in range(3):
        u[c] = 0.0
        for a in range(3):
            slopes[c, a] = 0.0
    for corner in range(8):
        a, b, e = corner >> 2, (corner >> 1) & 1, corner & 1
        z, y, t = min(k + a, d - 1), min(j + b, h - 1), min(i + e, w - 1)
        wk, wj, wi = fk if a else 1 - fk, fj if b else 1 - fj, fi if e else 1 - fi
        sk, sj, si = 1.0 if a else -1.0, 1.0 if b else -1.0, 1.0 if e else -1.0
        for c in range(3):
            value = field[z, y, t, c]
            u[c] += wk * wj * wi * value
            slopes[c, 0] += in_k * sk * wj * wi * value
            slopes[c, 1] += in_j * wk * sj * wi * value
            slopes[c, 2] += in_i * wk * wj * si * value


@numba.njit(inline="always", error_model="numpy")
def _step(m, r, step):  # type: ignore[no-untyped-def]
    """Writes (I + m)^-1 r, or r itself where that matrix is next to singular."""
    a, b, c = 1 + m[0, 0], m[0, 1], m[0, 2]
    d, e, f = m[1, 0], 1 + m[1, 1], m[1, 2]
    g, h, i = m[2, 0], m[2, 1], 1 + m[2, 2]
    p, q, s = e * i - f * h, f * g - d * i, d * h - e * g
    determinant = a * p + b * q + c * s
    if abs(determinant) < 1e-3:
        step[:] = r
        return
    step[0] = (p * r[0] + (c * h - b * i) * r[1] + (b * f - c * e) * r[2]) / determinant
    step[1] = (q * r[0] + (a * i - c * g) * r[1] + (c * d - a * f) * r[2]) / determinant
    step[2] = (s * r[0] + (b * g - a * h) * r[1] + (a * e - b * d) * r[2]) / determinant


@numba.njit(error_model="numpy", cache=True)
def _iterate(field, target, x, best, kept, u, slopes, r, step):  # type: ignore[no-untyped-def]
    """Moves best, a start, towards the source of a target, writes its residual to kept, and returns how large it is."""
    step[:] = 0.0
    least, share = np.inf, 1.0
    for _ in range(EVALUATIONS):
        for a in range(3):
            x[a] = best[a] + share * step[a]
        _look(field, x, u, slopes)
        size = 0.0
        for a in range(3):
            r[a] = target[a] - x[a] - u[a]
            size = max(size, abs(r[a]))
        if size < least:
            least, share = size, 1.0
            best[:], kept[:] = x, r
            if least <= TOLERANCE:
                break
            _step(slopes, r, step)
        else:
            share /= 2
            if share < LEAST_STEP:
                break
    return least


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _solve(field, targets, found, residuals, chunk, chunks):  # type: ignore[no-untyped-def]
    """Writes this chunk's sources and residuals (N, 3) of targets (N, 3), voxels of a field (D, H, W, 3).

    A search starts at the target; where it is caught, at the last target's source, and at what the fixed-point
    iteration gives first.
    """
    u, slopes, r = np.empty(3), np.empty((3, 3)), np.empty(3)
    x, best, step, kept = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    count = len(targets)
    first = chunk * count // chunks
    for n in range(first, (chunk + 1) * count // chunks):
        least = np.inf
        for start in range(3):
            best[:] = targets[n]
            if start == 1 and n > first:
                best[:] = found[n - 1]
            elif start == 2:
                _look(field, targets[n], u, slopes)
                for a in range(3):
                    best[a] = targets[n, a] - u[a]
            size = _iterate(field, targets[n], x, best, kept, u, slopes, r, step)
            if size < least:
                least = size
                found[n], residuals[n] = best, kept
            if least <= SOLVED:
                break
