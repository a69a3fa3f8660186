"""Mutual information of two objects at one pose, and its exact gradient, in one compiled pass over points of both."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

EDGE_SHARPNESS = 4.0    # of the step from inside to outside of a field of view, per voxel
TINY = 1e-12
Array = NDArray[np.float64]


class Object(NamedTuple):
    """One image and points on the object that it shows.

    Attributes:
        values: (2, *shape) float32, intensity in [0, 1] and 1 on the object; 2D as a volume of one slice.
        to_voxels: (3, D+1), homogeneous world points to places in ``values``.
        points_mm: (N, D+1), homogeneous. at_points: (N,) the intensity there.
        volume: of the object, mm^D.
    """

    values: NDArray[np.float32]
    to_voxels: Array
    points_mm: Array
    at_points: Array
    volume: float


class Measured(NamedTuple):
    """Attributes: information, overlap, covered: see :class:`~regagents.registration.score.Agreement`; gradient:
    (D+1, D+1), of the information by the pose."""

    information: float
    overlap: float
    covered: float
    gradient: Array


def measured(fixed: Object, moving: Object, pose: Array, bins: int, wanted: bool) -> Measured:
    """Normalised mutual information less 1 over the union of two objects, within both fields of view.

    Points of the fixed object are looked up in the moving image, and points of the moving object in the fixed one; the
    latter count as far as they lie off the fixed object. Each point is shared among its two neighbouring bins of either
    intensity: linear Parzen windows on both sides, since here both change with the pose.

    Args: pose: (D+1, D+1), fixed world to moving world, mm. bins: of each intensity. wanted: the gradient, else 0.
    """
    back = np.linalg.inv(pose)
    share_a = fixed.volume / len(fixed.points_mm)
    share_b = moving.volume / abs(float(np.linalg.det(pose))) / len(moving.points_mm)
    joint = np.zeros((bins, bins))
    n = len(pose) - 1
    here = looked_up(fixed.points_mm, moving.to_voxels @ pose, moving.values, n)
    there = looked_up(moving.points_mm, fixed.to_voxels @ back, fixed.values, n)
    shared, seen_a, seen_b = counted(fixed.at_points, here, moving.at_points, there, share_a, share_b, joint)
    smaller = min(fixed.volume, share_b * len(moving.points_mm))
    information, slope = normalised(joint)
    gradient = np.zeros_like(pose)
    if wanted:
        by_here, by_there, by_share = _differentiated(fixed.at_points, here, moving.at_points, there, share_a, share_b,
                                                      slope, fixed.points_mm, moving.points_mm)
        gradient += (moving.to_voxels.T @ by_here)
        gradient -= back.T @ (fixed.to_voxels.T @ by_there) @ back.T
        gradient -= by_share * share_b * back.T
    seen = seen_a if fixed.volume <= share_b * len(moving.points_mm) else seen_b
    return Measured(information, min(shared / smaller, 1.0), seen / smaller, gradient)


def normalised(joint: Array) -> tuple[float, Array]:
    """Normalised mutual information less 1 of a joint histogram (not normalised), and its gradient (bins, bins)."""
    total = joint.sum()
    p = joint / total
    parts = [_entropy(p.sum(1)), _entropy(p.sum(0)), _entropy(p)]
    (one, by_one), (other, by_other), (both, by_both) = parts
    quotient = (one + other + TINY) / (both + TINY)
    by_p = (by_one[:, None] + by_other[None] - quotient * by_both) / (both + TINY)
    return float(quotient - 1), (by_p - (p * by_p).sum()) / total


def _entropy(p: Array) -> tuple[float, Array]:
    logarithm = np.log(p + TINY)
    return -float((p * logarithm).sum()), -(logarithm + p / (p + TINY))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def looked_up(points, matrix, values, n):  # type: ignore[no-untyped-def]
    """(N, 12): intensity and its gradient by the place in voxels, the object's and its own, and whether the image
    reaches there (0 to 1) and its own. Places beyond the image take the value at its border."""
    shape = values.shape[1:]
    found = np.zeros((len(points), 12))
    low, part, inside = np.zeros(3, np.int64), np.zeros(3), np.zeros(3)
    for i in range(len(points)):
        depth, axis, side = 1e30, 2, 1.0
        for d in range(3):
            place = 0.0
            for c in range(n + 1):
                place += matrix[d, c] * points[i, c]
            if d >= 3 - n:
                if place + 0.5 < depth:
                    depth, axis, side = place + 0.5, d, 1.0
                if shape[d] - 0.5 - place < depth:
                    depth, axis, side = shape[d] - 0.5 - place, d, -1.0
            last = shape[d] - 1
            inside[d] = 1.0 if 0.0 < place < last else 0.0
            place = min(max(place, 0.0), float(last))
            low[d] = min(int(place), max(last - 1, 0))
            part[d] = place - low[d]
        reached = 1.0 / (1.0 + np.exp(-EDGE_SHARPNESS * max(depth, -100.0)))
        for corner in range(8):
            share, by_z, by_y, by_x = 1.0, 1.0, 1.0, 1.0
            z, y, x = corner >> 2, (corner >> 1) & 1, corner & 1
            wz = part[0] if z else 1 - part[0]
            wy = part[1] if y else 1 - part[1]
            wx = part[2] if x else 1 - part[2]
            share = wz * wy * wx
            by_z = (1.0 if z else -1.0) * wy * wx * inside[0]
            by_y = (1.0 if y else -1.0) * wz * wx * inside[1]
            by_x = (1.0 if x else -1.0) * wz * wy * inside[2]
            zz, yy, xx = min(low[0] + z, shape[0] - 1), min(low[1] + y, shape[1] - 1), min(low[2] + x, shape[2] - 1)
            for channel in range(2):
                value = values[channel, zz, yy, xx]
                found[i, 4 * channel] += share * value
                found[i, 4 * channel + 1] += by_z * value
                found[i, 4 * channel + 2] += by_y * value
                found[i, 4 * channel + 3] += by_x * value
        found[i, 8] = reached
        found[i, 9 + axis] = side * EDGE_SHARPNESS * reached * (1 - reached)
    return found


@numba.njit(inline="always", error_model="numpy")
def _bin(value, bins):  # type: ignore[no-untyped-def]
    """Lower of the two bins of an intensity, and the upper one's share."""
    place = min(max(value, 0.0), 1.0) * (bins - 1)
    low = min(int(place), bins - 2)
    return low, place - low


@numba.njit(cache=True, nogil=True, error_model="numpy")
def counted(at_a, here, at_b, there, share_a, share_b, joint):  # type: ignore[no-untyped-def]
    """Fill the joint histogram; the volume where the objects lie on each other, and what is reached of either."""
    bins, shared, seen_a, seen_b = len(joint), 0.0, 0.0, 0.0
    for side in range(2):
        at, found = (at_a, here) if side == 0 else (at_b, there)
        for i in range(len(at)):
            reached = found[i, 8]
            if side == 0:
                weight = share_a * reached + TINY
                seen_a += share_a * reached
                shared += share_a * found[i, 4] * reached
                a, b = at[i], found[i, 0]
            else:
                weight = share_b * reached * max(1 - found[i, 4] * reached, 0.0) + TINY
                seen_b += share_b * reached
                a, b = found[i, 0], at[i]
            k, up = _bin(a, bins)
            j, right = _bin(b, bins)
            joint[k, j] += weight * (1 - up) * (1 - right)
            joint[k, j + 1] += weight * (1 - up) * right
            joint[k + 1, j] += weight * up * (1 - right)
            joint[k + 1, j + 1] += weight * up * right
    return shared, seen_a, seen_b


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _differentiated(at_a, here, at_b, there, share_a, share_b, slope,  # type: ignore[no-untyped-def]
                    points_a, points_b):
    """Gradient of the information by both maps from world points to places in voxels, (3, D+1) each, and by the volume
    of a point of the moving object."""
    bins, by_share = len(slope), 0.0
    by_here, by_there = np.zeros((3, points_a.shape[1])), np.zeros((3, points_b.shape[1]))
    for side in range(2):
        at, found, points, out = ((at_a, here, points_a, by_here) if side == 0 else (at_b, there, points_b, by_there))
        for i in range(len(at)):
            reached, off = found[i, 8], 1.0
            if side == 0:
                a, b = at[i], found[i, 0]
                weight = share_a * reached
            else:
                a, b = found[i, 0], at[i]
                off = max(1 - found[i, 4] * reached, 0.0)
                weight = share_b * reached * off
            k, up = _bin(a, bins)
            j, right = _bin(b, bins)
            s00, s01, s10, s11 = slope[k, j], slope[k, j + 1], slope[k + 1, j], slope[k + 1, j + 1]
            each = (1 - up) * ((1 - right) * s00 + right * s01) + up * ((1 - right) * s10 + right * s11)
            if side == 0:
                steep = (1 - up) * (s01 - s00) + up * (s11 - s10)
            else:
                steep = (1 - right) * (s10 - s00) + right * (s11 - s01)
                by_share += each * reached * off
            if not 0.0 <= found[i, 0] <= 1.0:
                steep = 0.0
            for d in range(3):
                by_place = (weight + TINY) * steep * (bins - 1) * found[i, 1 + d]
                if side == 0:
                    by_place += each * share_a * found[i, 9 + d]
                elif off > 0.0:
                    doubled = found[i, 5 + d] * reached + found[i, 4] * found[i, 9 + d]
                    by_place += each * share_b * (off * found[i, 9 + d] - reached * doubled)
                for c in range(points.shape[1]):
                    out[d, c] += by_place * points[i, c]
    return by_here, by_there, by_share
