"""The algebra of a step on the CPU, lane by lane in compiled code: what an action makes of a pose, and what follows.

In torch the same is some two hundred calls on tensors of a few numbers. :mod:`regenv.placement` has it in torch too,
which is the reference, and says which parts of a task have a number here.
"""

from __future__ import annotations

import math

import numba
import numpy as np

RIGID, MOTION, SIMILARITY, AMPLITUDES, FIELD = range(5)     # transforms
NOTHING, PARAMETERS, LANDMARKS, TARGET = range(4)           # distances
NEVER, ARRIVED = range(2)                                   # stopping rules
SCALES = (0.2, 5.0)                                         # of a similarity
TIE = 1e-9                                                  # distances this near are equal, however they were summed
_DEGREE = math.pi / 180
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

# ------------------------------------------------------------------------------------------------------------- algebra


@numba.njit(cache=True, nogil=True, error_model="numpy")
def products(a, b, c, out):  # type: ignore[no-untyped-def]
    """Writes the products a b c of small matrices (B, n, n), summed in the order of ``regenv.ops.affine.matmul``."""
    n = a.shape[1]
    half = np.empty((n, n))
    for lane in range(len(out)):
        _matmul(a[lane], b[lane], half)
        _matmul(half, c[lane], out[lane])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _matmul(a, b, out):  # type: ignore[no-untyped-def]
    n = len(a)
    for row in range(n):
        for column in range(n):
            total = a[row, 0] * b[0, column]
            for inner in range(1, n):
                total += a[row, inner] * b[inner, column]
            out[row, column] = total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _invert(m, out):  # type: ignore[no-untyped-def]
    """Inverse of a homogeneous matrix, by adjugates."""
    n = len(m) - 1
    if n == 2:
        out[0, 0], out[0, 1], out[1, 0], out[1, 1] = m[1, 1], -m[0, 1], -m[1, 0], m[0, 0]
    else:
        for row in range(3):
            i, j = (row + 1) % 3, (row + 2) % 3
            for column in range(3):
                p, q = (column + 1) % 3, (column + 2) % 3
                out[row, column] = m[p, i] * m[q, j] - m[q, i] * m[p, j]
    determinant = 0.0
    for inner in range(n):
        determinant += out[0, inner] * m[inner, 0]
    for row in range(n):
        for column in range(n):
            out[row, column] /= determinant
    for row in range(n):
        total = 0.0
        for inner in range(n):
            total -= out[row, inner] * m[inner, n]
        out[row, n] = total
    out[n, :] = 0.0
    out[n, n] = 1.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _about(center, m):  # type: ignore[no-untyped-def]
    """A map given about the origin, in place about ``center``."""
    n = len(center)
    for row in range(n):
        turned = m[row, 0] * center[0]
        for inner in range(1, n):
            turned += m[row, inner] * center[inner]
        m[row, n] += center[row] - turned


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quaternion(degrees, n):  # type: ignore[no-untyped-def]
    """Unit quaternion of a rotation vector in degrees; in 2D of one number, about the third axis."""
    x, y = (degrees[0] * _DEGREE, degrees[1] * _DEGREE) if n == 3 else (0.0, 0.0)
    z = degrees[2 if n == 3 else 0] * _DEGREE
    half = math.sqrt(x * x + y * y + z * z) / 2
    share = math.sin(half) / half / 2 if half > 0 else 0.5
    return math.cos(half), x * share, y * share, z * share


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _turned(delta, degrees, n, out):  # type: ignore[no-untyped-def]
    """Writes the rotation vector, degrees, of first ``degrees`` and then ``delta``."""
    a, b = _quaternion(delta, n), _quaternion(degrees, n)
    w = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3]
    x = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2]
    y = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1]
    z = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0]
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    sine = math.sqrt(x * x + y * y + z * z)
    factor = (2 * math.atan2(sine, w) / sine if sine > 1e-9 else 2.0) / _DEGREE
    if n == 3:
        out[0], out[1], out[2] = x * factor, y * factor, z * factor
    else:
        out[0] = z * factor


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rotation(q, n, out):  # type: ignore[no-untyped-def]
    """Writes the rotation matrix of a unit quaternion."""
    w, x, y, z = q
    out[0, 0], out[0, 1] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z)
    out[1, 0], out[1, 1] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z)
    if n == 3:
        out[0, 2], out[1, 2] = 2 * (x * z + w * y), 2 * (y * z - w * x)
        out[2, 0], out[2, 1], out[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _euler(degrees, n, out):  # type: ignore[no-untyped-def]
    """Writes the rotation matrix Rx Ry Rz of angles; in 2D of one angle."""
    if n == 2:
        c, s = math.cos(degrees[0] * _DEGREE), math.sin(degrees[0] * _DEGREE)
        out[0, 0], out[0, 1], out[1, 0], out[1, 1] = c, -s, s, c
        return
    rx, ry, rz = degrees[0] * _DEGREE, degrees[1] * _DEGREE, degrees[2] * _DEGREE
    cx, cy, cz, sx, sy, sz = math.cos(rx), math.cos(ry), math.cos(rz), math.sin(rx), math.sin(ry), math.sin(rz)
    out[0, 0], out[0, 1], out[0, 2] = cy * cz, -cy * sz, sy
    out[1, 0], out[1, 1], out[1, 2] = sx * sy * cz + cx * sz, cx * cz - sx * sy * sz, -sx * cy
    out[2, 0], out[2, 1], out[2, 2] = sx * sz - cx * sy * cz, cx * sy * sz + sx * cz, cx * cy


# ---------------------------------------------------------------------------------------------------------- transforms

@numba.njit(cache=True, nogil=True, error_model="numpy")
def _push(family, pose, out):  # type: ignore[no-untyped-def]
    """Writes the push-forward (s R, t) of a motion or a similarity."""
    n = len(out) - 1
    _rotation(_quaternion(pose[n:], n), n, out)
    if family == SIMILARITY:
        out[:n, :n] *= pose[-1]
    out[:n, n] = pose[:n]
    out[n, :] = 0.0
    out[n, n] = 1.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _matrix(family, pose, out, half):  # type: ignore[no-untyped-def]
    """Writes the residual pull-back of a pose about the origin: ``Transform.matrix``."""
    n = len(out) - 1
    if family == RIGID:
        _euler(pose[n:], n, out)
        out[:n, n] = pose[:n]
        out[n, :] = 0.0
        out[n, n] = 1.0
    elif family in (AMPLITUDES, FIELD):
        out[:] = 0.0
        for axis in range(n + 1):
            out[axis, axis] = 1.0
    else:
        _push(family, pose, half)
        _invert(half, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _apply(family, n, pose, delta, out, half):  # type: ignore[no-untyped-def]
    """Writes the pose after an action: ``Transform.apply``."""
    for p in range(len(pose)):
        out[p] = pose[p] + delta[p]
    if family == MOTION:
        _turned(delta[n:], pose[n:], n, out[n:])
    elif family == SIMILARITY:
        out[-1] = min(max(out[-1], SCALES[0]), SCALES[1])
        _rotation(_quaternion(delta[n:], n), n, half)
        for row in range(n):
            total = 0.0
            for inner in range(n):
                total += half[row, inner] * pose[inner]
            out[row] = total * (out[-1] / pose[-1]) + delta[row]
        _turned(delta[n:], pose[n:], n, out[n:])


# ----------------------------------------------------------------------------------------------- distances and stopping

@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _mean_length(m, points, center):  # type: ignore[no-untyped-def]
    """Mean of |m (x - center)| over points (N, D), of an affine map m."""
    n, total = len(center), 0.0
    a, b, c, d = m[0, 0], m[0, 1], m[1, 0], m[1, 1]
    if n == 2:
        s, t = m[0, 2], m[1, 2]
        for i in range(len(points)):
            x, y = points[i, 0] - center[0], points[i, 1] - center[1]
            u, v = a * x + b * y + s, c * x + d * y + t
            total += math.sqrt(u * u + v * v)
    else:
        e, f, g, h, k, r, s, t = m[0, 2], m[1, 2], m[2, 0], m[2, 1], m[2, 2], m[0, 3], m[1, 3], m[2, 3]
        for i in range(len(points)):
            x, y, z = points[i, 0] - center[0], points[i, 1] - center[1], points[i, 2] - center[2]
            u, v, w = a * x + b * y + e * z + r, c * x + d * y + f * z + s, g * x + h * y + k * z + t
            total += math.sqrt(u * u + v * v + w * w)
    return total / len(points)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _distance(family, units, measure, pose, goal, points, center, half, whole):  # type: ignore[no-untyped-def]
    """D of a pose: units are of a similarity's pixel and scale, and of the landmarks' distance."""
    n, total = len(center), 0.0
    if measure == LANDMARKS:
        if family == RIGID:
            _matrix(family, pose, half, whole)
            _invert(half, whole)
        else:
            _push(family, pose, whole)
        for axis in range(n):
            whole[axis, axis] -= 1.0
        return _mean_length(whole, points, center) / units[2]
    if measure == PARAMETERS and family == SIMILARITY:
        for p in range(n):
            total += (pose[p] / (pose[-1] * units[0])) ** 2
        for p in range(n, len(pose) - 1):
            total += pose[p] ** 2
        total += ((pose[-1] - 1) / units[1]) ** 2
    elif measure == PARAMETERS:
        for p in range(len(pose)):
            total += pose[p] ** 2
    elif measure == TARGET and len(goal):
        for p in range(len(pose)):
            total += (pose[p] - goal[p]) ** 2
    else:
        return np.nan
    return math.sqrt(total)


# --------------------------------------------------------------------------------------------------------------- guard

@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mixed(z):  # type: ignore[no-untyped-def]
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _passes(value, delta, sigma, k, stream, p):  # type: ignore[no-untyped-def]
    """Whether fuzzy control lets a change of parameter p through; column 2 p is for raising it, 2 p + 1 for lowering.
    """
    if delta == 0:
        return True
    column = np.uint64(2 * p + (1 if delta > 0 else 2))
    chance = np.float64(_mixed(stream + _GOLDEN * column) >> np.uint64(11)) * 2.0**-53
    return chance < math.exp(k * k / 2 - ((value + delta) / sigma) ** 2 / 2)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _stream(seed, step):  # type: ignore[no-untyped-def]
    return _mixed(np.uint64(seed) + _GOLDEN * (np.uint64(step) + np.uint64(1)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def passing(pose, deltas, seeds, steps, deviations, k, out):  # type: ignore[no-untyped-def]
    """Writes which discrete actions (A, P) fuzzy control will let through in the next step: (B, A) bool."""
    for lane in range(len(pose)):
        stream = _stream(seeds[lane], steps[lane])
        for action in range(len(deltas)):
            passes = True
            for p in range(pose.shape[1]):
                passes &= _passes(pose[lane, p], deltas[action, p], deviations[p], k, stream, p)
            out[lane, action] = passes


# ---------------------------------------------------------------------------------------------------------------- step

@numba.njit(cache=True, nogil=True, error_model="numpy")
def place(codes, units, tolerance, deltas, to_world, to_moving, known, center, points, goal,  # type: ignore[no-untyped-def]
          anchor, pose, delta, seeds, steps, deviations, k, pose_out, anchor_out, pull_back, rows, distance, arrived):
    """Writes what actions make of poses: pose, anchor, pull-back, D and whether the episode has arrived; and to rows
    (B, 4, 4) float32 the map from voxels of the fixed to those of the moving image, without a displacement.

    codes: transform, distance, stopping rule. delta (B, P), or of no lanes where nothing has been done yet; as are
    points (B, N, D), goal (B, P) and seeds (B,) where there are none.
    """
    family, measure, stop = codes
    n, count = center.shape[1], pose.shape[1]
    half, whole, moved, tried = np.empty((n + 1, n + 1)), np.empty((n + 1, n + 1)), np.empty(count), np.empty(count)
    for lane in range(len(pose)):
        before, mine = pose[lane], center[lane]
        here = points[lane] if measure == LANDMARKS else np.empty((0, n))
        there = goal[lane] if len(goal) else np.empty(0)
        after = pose_out[lane]
        anchor_out[lane] = anchor[lane]
        after[:] = before
        if len(delta):
            moved[:] = delta[lane]
            if len(seeds):
                stream = _stream(seeds[lane], steps[lane])
                for p in range(count):
                    if not _passes(before[p], moved[p], deviations[p], k, stream, p):
                        moved[p] = 0.0
            if family == RIGID and not known[lane]:
                _matrix(family, before, half, whole)
                _about(mine, half)
                _matmul(anchor[lane], half, anchor_out[lane])
                tried[:] = 0.0
            else:
                tried[:] = before
            _apply(family, n, tried, moved, after, half)
        _matrix(family, after, half, whole)
        _about(mine, half)
        _matmul(anchor_out[lane], half, pull_back[lane])
        _matmul(to_moving[lane], pull_back[lane], half)
        _matmul(half, to_world[lane], whole)
        rows[lane] = 0
        rows[lane, 0, 0] = 1
        rows[lane, 3 - n:, 3 - n:] = whole
        arrived[lane] = False
        distance[lane] = np.nan
        if known[lane]:
            d = _distance(family, units, measure, after, there, here, mine, half, whole)
            distance[lane] = d
            if stop == ARRIVED:
                there_yet = d <= tolerance + TIE
                if not there_yet:  # no action lowers D
                    there_yet = d == d
                    for action in range(len(deltas)):
                        _apply(family, n, after, deltas[action], tried, half)
                        if not _distance(family, units, measure, tried, there, here, mine, half, whole) >= d - TIE:
                            there_yet = False
                            break
                arrived[lane] = there_yet


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _across(at, size):  # type: ignore[no-untyped-def]
    """A coordinate's two voxels and the fraction between them; beyond the border its voxel."""
    at = min(at if at > 0 else 0.0, size - 1.0)
    first = min(int(at), max(size - 2, 0))
    return first, min(first + 1, size - 1), at - first


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bent(point, field, out):  # type: ignore[no-untyped-def]
    """Writes a voxel point moved by a displacement (D, 1 or depth, H, W), interpolated at it."""
    n = len(point)
    y0, y1, y = _across(point[n - 2], field.shape[2])
    x0, x1, x = _across(point[n - 1], field.shape[3])
    z0, z1, z = _across(point[0], field.shape[1]) if n == 3 else (0, 0, 0.0)
    for axis in range(n):
        u = field[axis]
        near = ((1 - y) * ((1 - x) * u[z0, y0, x0] + x * u[z0, y0, x1])
                + y * ((1 - x) * u[z0, y1, x0] + x * u[z0, y1, x1]))
        if z > 0:
            far = ((1 - y) * ((1 - x) * u[z1, y0, x0] + x * u[z1, y0, x1])
                   + y * ((1 - x) * u[z1, y1, x0] + x * u[z1, y1, x1]))
            near += z * (far - near)
        out[axis] = point[axis] + near


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mapped(m, x, out):  # type: ignore[no-untyped-def]
    n = len(x)
    for row in range(n):
        total = m[row, n]
        for inner in range(n):
            total += m[row, inner] * x[inner]
        out[row] = total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def errors(points, pull_back, truth, known, targets, to_world, field, out):  # type: ignore[no-untyped-def]
    """Writes the mean landmark errors: points (B, N, D) displaced by a field (B, D, 1 or depth, H, W), pulled back, and
    compared with targets (B, N, D). Without targets (no lanes) they belong where the truth maps them, if it is known.
    A field of no lanes displaces nothing.
    """
    n = points.shape[2]
    whole, nowhere = np.empty((n + 1, n + 1)), np.zeros(n)
    for lane in range(len(points)):
        if not (len(targets) or known[lane]):
            out[lane] = np.nan
        elif len(field) or len(targets):
            _invert(to_world[lane], whole)
            out[lane] = _error(points[lane], pull_back[lane], truth[lane], targets, lane, to_world[lane], field, whole)
        else:
            for row in range(n):
                for column in range(n + 1):
                    whole[row, column] = pull_back[lane, row, column] - truth[lane, row, column]
            out[lane] = _mean_length(whole, points[lane], nowhere)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _error(points, pull_back, truth, targets, lane, to_world, field, to_voxel):  # type: ignore[no-untyped-def]
    n, total = points.shape[1], 0.0
    at, voxel, goal = np.empty(n), np.empty(n), np.empty(n)
    for i in range(len(points)):
        if len(field):
            _mapped(to_voxel, points[i], at)
            _bent(at, field[lane], voxel)
            _mapped(to_world, voxel, at)
        else:
            at[:] = points[i]
        _mapped(pull_back, at, voxel)
        if len(targets):
            goal[:] = targets[lane, i]
        else:
            _mapped(truth, points[i], goal)
        squares = 0.0
        for axis in range(n):
            squares += (voxel[axis] - goal[axis]) ** 2
        total += math.sqrt(squares)
    return total / len(points)
