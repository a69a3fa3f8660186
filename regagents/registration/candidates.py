"""Poses from several ways to register, brought to the best pose near each, and ranked by one score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from regagents.classical import SiftSimilarity
from regagents.registration.pipeline import AGREE_MM, PROBE_MM, Ended, Visited, centered, turned, turns
from regagents.registration.score import Score
from regenv.data.io.images import Image
from regenv.data.io.resampling import foreground_center, matrix_to_sitk, sampled, to_sitk
from regenv.grid import Grid

COARSE_SAMPLES, COARSE_ITERATIONS = 3_000, 20   # of the score and its ascent while candidates are compared
COMPARED, FEWEST_OF_AGENT = {2: 12, 3: 6}, 2    # candidates that are brought to their best pose; an agent's of them
MOTION = {2: "rigid", 3: "similarity"}  # by which: people differ in size, slices of a person do not
FINALISTS, FINAL_SAMPLES, FINAL_ITERATIONS = 4, 6_000, 15   # of the candidates, those that an affine map tells apart
SEARCHED = {2: 8, 3: 3}                 # poses of a search over rotations that become candidates
TILTS = ((0.0, 0.0, 0.0), (45.0, 0.0, 0.0), (0.0, 45.0, 0.0), (0.0, 0.0, 45.0))   # of the cube, degrees
PHASE_TURNS, PHASE_SIZE, STRONGEST = 36, 128, 3     # rotations and pixels an axis of a phase correlation; peaks kept


@dataclass(frozen=True, eq=False)
class Candidate:
    """A pose and where it came from.

    Attributes:
        name: of the way, such as "agent" or "header".
        pull_back: (D+1, D+1), mm, as the way found it.
        share: of an agent's lanes that ended there.
        path: of the agent.
        climbed: the best pose near it; None before it is sought. affine: the best affine map near that, likewise.
        score, information, overlap: there.
        names: every way that led there.
    """

    name: str
    pull_back: NDArray[np.float64]
    share: float = 0.0
    path: list[Visited] = field(default_factory=list, repr=False)
    climbed: NDArray[np.float64] | None = None
    affine: NDArray[np.float64] | None = None
    score: float = 0.0
    information: float = 0.0
    overlap: float = 0.0
    names: tuple[str, ...] = ()


Ways = Callable[[Image, Image, Score], Sequence[NDArray[np.float64]]]


def header(fixed: Image, moving: Image, score: Score) -> Sequence[NDArray[np.float64]]:
    """The images as their headers place them."""
    return [np.eye(fixed.ndim + 1)]


def center(fixed: Image, moving: Image, score: Score) -> Sequence[NDArray[np.float64]]:
    """The foregrounds' centres on each other."""
    return [centered(fixed, moving)]


def information(fixed: Image, moving: Image, score: Score) -> Sequence[NDArray[np.float64]]:
    """The best by score of rotations over all directions, centres on each other (96 in 3D, 24 in 2D)."""
    middle, n = foreground_center(fixed), fixed.ndim
    tilts = [_tilt(np.radians(angles)) for angles in TILTS] if n == 3 else [turns(2)[0], _half_turn()]
    rotations = np.concatenate([turns(n) @ tilt for tilt in tilts])
    poses = turned(centered(fixed, moving), middle, rotations)
    best = np.argsort(-score.at(poses).score, kind="stable")
    return list(poses[best[:SEARCHED[n]]])


def phase(fixed: Image, moving: Image, score: Score) -> Sequence[NDArray[np.float64]]:
    """The translation by phase correlation (Kuglin and Hines 1975) after each of 36 rotations; the three with
    the strongest peaks. 2D."""
    import cv2

    if fixed.ndim != 2:
        return []
    size = max(max(fixed.grid.extent), max(moving.grid.extent)) / PHASE_SIZE
    middle = foreground_center(fixed)
    grid = Grid.centered((2 * PHASE_SIZE,) * 2, size, middle.tolist())
    window = cv2.createHanningWindow(grid.size, cv2.CV_32F)
    here = sampled(to_sitk(fixed), grid)
    angles = 2 * np.pi * np.arange(PHASE_TURNS) / PHASE_TURNS
    found = []
    for pose in turned(centered(fixed, moving), middle, np.stack([_turn(angle) for angle in angles])):
        there = sampled(to_sitk(moving), grid, matrix_to_sitk(pose))
        (x, y), response = cv2.phaseCorrelate(here.copy(), there, window)   # which multiplies both by the window
        move = np.eye(3)
        move[:2, 2] = np.array([x, y]) * size
        found.append((response, pose @ move))
    return [pose for _, pose in sorted(found, key=lambda one: -one[0])[:STRONGEST]]


def sift(fixed: Image, moving: Image, score: Score) -> Sequence[NDArray[np.float64]]:
    """The similarity that most key-points agree on, see :class:`~regagents.classical.sift.SiftSimilarity`. 2D."""
    if fixed.ndim != 2:
        return []
    result = SiftSimilarity().register(to_sitk(fixed), to_sitk(moving), np.eye(3))
    return [result.pull_back] if np.isfinite(result.metric) else []


RIVALS: dict[str, Ways] = {"header": header, "center": center, "information": information, "phase": phase,
                           "sift": sift}


def ranked(fixed: Image, moving: Image, score: Score, start: NDArray[np.float64], ended: Sequence[Ended],
           rivals: Sequence[str]) -> list[Candidate]:
    """Candidates with the best pose near each, best first.

    Those that lead to one pose become one. The start always takes part, so it is never left for something worse.

    Args: start: (D+1, D+1). ended: where the agents' lanes ended. rivals: names in :data:`RIVALS`.
    """
    coarse = score.thinned(COARSE_SAMPLES)
    found = [Candidate("start", start), *(Candidate("agent", one.pull_back, one.share, one.path) for one in ended)]
    found += [Candidate(name, pose) for name in rivals for pose in RIVALS[name](fixed, moving, coarse)]
    measured = coarse.at(np.stack([candidate.pull_back for candidate in found])).score
    order = [found[place] for place in np.argsort(-measured, kind="stable")]
    sure = [found[0], *[one for one in order if one.name == "agent"][:FEWEST_OF_AGENT]]
    compared = [*sure, *(one for one in order if one not in sure)]
    best: list[Candidate] = []
    tried: list[NDArray[np.float64]] = []
    for candidate in compared:
        near = next((place for place, pose in enumerate(tried)
                     if apart(pose, candidate.pull_back, score) < AGREE_MM / 2), None)
        if near is not None:
            best[near] = _joined(best[near], candidate)
        elif len(tried) < COMPARED[fixed.ndim]:
            tried.append(candidate.pull_back)
            climbed = coarse.climb(candidate.pull_back, MOTION[fixed.ndim], COARSE_ITERATIONS)
            best.append(replace(candidate, climbed=climbed, names=(candidate.name,)))
    return _merged(best, [one.climbed for one in best if one.climbed is not None], score)


def finals(candidates: Sequence[Candidate], score: Score) -> list[Candidate]:
    """The candidates with the first four told apart anew, by the affine maps near them.

    Where two objects differ, a wrong pose of the whole can agree as well as the right one; with the objects' own
    lengths and shears the right one agrees better, up to twice as well, and a wrong one hardly better than before.
    """
    coarse = score.thinned(FINAL_SAMPLES)
    finalists = [replace(one, affine=coarse.climb(coarse.climb(one.climbed, "similarity", FINAL_ITERATIONS), "affine",
                                                  FINAL_ITERATIONS))
                 for one in candidates[:FINALISTS] if one.climbed is not None]
    maps = [one.affine for one in finalists if one.affine is not None]
    return [*_merged(finalists, maps, score), *candidates[FINALISTS:]]


def best_end(ended: Sequence[Ended], start: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
    """The pose of the agents' ends that agrees best, as they left it; the start where there are no agents."""
    own = np.stack([one.pull_back for one in ended]) if ended else start[None]
    best: NDArray[np.float64] = own[int(score.at(own).score.argmax())] if len(own) > 1 else own[0]
    return best


def _merged(candidates: Sequence[Candidate], maps: Sequence[NDArray[np.float64]], score: Score) -> list[Candidate]:
    """Candidates with their scores at one map each, best first; those whose map is within 10 mm of a better one's are
    part of it."""
    agreement = score.at(np.stack(maps))
    kept: list[Candidate] = []
    places: list[NDArray[np.float64]] = []
    for k in np.argsort(-agreement.score, kind="stable"):
        one = replace(candidates[k], score=float(agreement.score[k]), information=float(agreement.information[k]),
                      overlap=float(agreement.overlap[k]))
        same = next((number for number, place in enumerate(places) if apart(place, maps[k], score) < AGREE_MM), None)
        if same is None:
            kept.append(one)
            places.append(maps[k])
        else:
            kept[same] = _joined(kept[same], one)
    return kept


def _joined(one: Candidate, other: Candidate) -> Candidate:
    """One candidate for two that lead to the same pose: the path is an agent's where one has it."""
    names = tuple(dict.fromkeys([*(one.names or (one.name,)), *(other.names or (other.name,))]))
    return replace(one, share=one.share + other.share, path=one.path or other.path, names=names)


def apart(one: NDArray[np.float64], other: NDArray[np.float64], score: Score) -> float:
    """Mean distance between where two poses take the corners of a cube about the fixed foreground's centre, mm."""
    middle = score.fixed.points_mm[:, :-1].mean(0).numpy()
    n = len(middle)
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * n, indexing="ij"), -1).reshape(-1, n)
    points = np.concatenate([middle + PROBE_MM * corners, np.ones((len(corners), 1))], 1)
    return float(np.linalg.norm(points @ (one - other)[:n].T, axis=1).mean())


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _half_turn() -> NDArray[np.float64]:
    """Half of the step between the turns of the circle."""
    return _turn(np.pi / len(turns(2)))


def _tilt(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about x, y or z, the only one of the three angles that is not 0."""
    matrix = np.eye(3)
    axis = int(np.abs(radians).argmax())
    others = [other for other in range(3) if other != axis]
    matrix[np.ix_(others, others)] = _turn(float(radians[axis]))
    return matrix
