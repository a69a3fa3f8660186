"""The methods of capture_range.py. Every function runs in a process of its own and remembers nothing between calls."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from capture_cases import Case, Spec, load, motions
from capture_peers import EFFORTS, PACKAGES, peer

import regagents
from regagents.classical import MattesMI, Refinement, downsampled, evaluate_metric, multi_start
from regagents.registration.pipeline import centered
from regagents.registration.register import register
from regenv.data.io.images import Image
from regenv.data.io.resampling import foreground_center, to_sitk

OWN, MI = "register", "mi"
RANK_VOXELS = 30_000        # of the images at which the 24 starts of mutual information are put in order
CALIBRATED = 3              # starts on which an opponent's effort is chosen


@dataclass(frozen=True)
class Task:
    """What all runs of a case share.

    Args: agent: of register. seed, count: of the starts. peers: folder of the opponents' packages.
    """

    spec: Spec
    agent: str
    seed: int
    count: int
    peers: str

    def start(self, number: int, reference: Sequence[Sequence[float]]) -> tuple[Case, Image, np.ndarray]:
        """The case, its moving image as start ``number`` displaces it, and the map back to the file's own world."""
        case = load(self.spec)
        return case, *case.displaced(np.array(reference), motions(self.count, self.seed)[number])


def cube_rotations() -> np.ndarray:
    """The 24 rotations of the cube, (24, 3, 3), the identity first."""
    found = []
    for axes in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), axes] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return np.stack(found)


# ------------------------------------------------------------------------------------------------------- what is run

def run_reference(task: Task) -> list[list[float]]:
    """The reference pose of a case, (4, 4)."""
    torch.set_num_threads(1)
    pose: list[list[float]] = load(task.spec).reference().tolist()
    return pose


def run_own(task: Task, number: int, reference: list[list[float]]) -> dict[str, Any]:
    """``register()`` of the displaced image, and nothing else; the CPU time without reading and loading weights."""
    torch.set_num_threads(1)
    case, moving, back = task.start(number, reference)
    _loaded(task)
    began = process_time()
    found = register(case.fixed, moving, agent=task.agent).pull_back
    return _outcome(back @ found, process_time() - began)


def run_mi(task: Task, number: int, reference: list[list[float]], seconds: float) -> dict[str, Any]:
    """Tuned mutual information from the 24 rotations of the cube about the centred foregrounds, the most informative
    start first, as many as fit into the time; then the refinement of the best."""
    torch.set_num_threads(1)
    case, moving, back = task.start(number, reference)
    fixed, shown = to_sitk(case.fixed), to_sitk(moving)
    began = process_time()
    search = [downsampled(image, MattesMI().voxels) for image in (fixed, shown)]
    small = [downsampled(image, RANK_VOXELS) for image in search]
    starts = [_turned(case.fixed, moving, turn) for turn in cube_rotations()]
    starts.sort(key=lambda pose: evaluate_metric(*small, pose))
    center = foreground_center(case.fixed)
    best = multi_start(*search, starts, center, seconds - (process_time() - began), MattesMI(seed=number))
    fine = [downsampled(image, Refinement().voxels) for image in (fixed, shown)]
    found = Refinement().register(*fine, best.pull_back).pull_back
    return _outcome(back @ found, process_time() - began)


def run_peer(task: Task, number: int, reference: list[list[float]], name: str, effort: int) -> dict[str, Any]:
    """An opponent's own registration; where it gives up, its end is the pose of the headers."""
    case, moving, back = task.start(number, reference)
    answer = peer(name, task.peers).register(case.fixed, moving, "rigid", effort, number)
    pose = np.eye(4) if answer["pull_back"] is None else np.array(answer["pull_back"])
    return _outcome(back @ pose, answer["seconds"]) | {"failed": answer["failed"]}


def run_effort(task: Task, reference: list[list[float]], name: str, seconds: float) -> int:
    """The most that an opponent may spend on this case and stay within a time in the mean of the first starts; its
    least where even that takes longer."""
    chosen = EFFORTS[name][0]
    for effort in EFFORTS[name]:
        runs = [run_peer(task, number, reference, name, effort)["seconds"]
                for number in range(min(CALIBRATED, task.count))]
        if np.mean(runs) > seconds:
            break
        chosen = effort
    return chosen


def _turned(fixed: Image, moving: Image, turn: np.ndarray) -> np.ndarray:
    """The centred pose (4, 4) with a rotation (3, 3) of the moving foreground about its centre."""
    pose = centered(fixed, moving)
    middle = foreground_center(moving)
    pose[:3, :3] = turn
    pose[:3, 3] = middle - turn @ foreground_center(fixed)
    return pose


def _outcome(pull_back: np.ndarray, seconds: float) -> dict[str, Any]:
    return {"pull_back": pull_back.tolist(), "seconds": seconds}


_ready: set[tuple[str, str]] = set()


def _loaded(task: Task) -> None:
    """One registration of this case whose time does not count: weights are read and kernels compiled."""
    if (task.agent, task.spec.name) not in _ready:
        case = load(task.spec)
        register(case.fixed, case.moving, agent=task.agent, refine=False)
        _ready.add((task.agent, task.spec.name))


# ------------------------------------------------------------------------------------------- what a result depends on

def own_settings(agent: str, *more: Path) -> str:
    """A hash of all weights that are shipped and of the code that finds a pose and of ``more``, without comments and
    docstrings. The verdict's code takes no part: the ledgers keep the evidence that it rests on."""
    package = Path(str(regagents.__file__)).parent
    both = hashlib.sha256(agent.encode())
    for path in sorted(package.rglob("*.safetensors")):
        both.update(hashlib.sha256(path.read_bytes()).digest())
    code = [package / "registration" / f"{name}.py"
            for name in ("register", "pipeline", "candidates", "score", "finish", "information")]
    code += sorted((package / "classical").glob("*.py"))
    for path in filter(Path.is_file, [*code, *more]):
        both.update(_bare(path.read_text()).encode())
    return both.hexdigest()[:12]


def mi_settings(seconds: float) -> str:
    return _hash(MattesMI(), Refinement(), round(seconds, 2), RANK_VOXELS)


def peer_settings(name: str, seconds: float, folder: str) -> str:
    """A hash of an opponent's time, version and driver."""
    versions = sorted(path.name for path in Path(folder).glob("*.dist-info")) if folder else []
    driver = _bare((Path(__file__).with_name("capture_peer_worker.py")).read_text())
    return _hash(name, PACKAGES[name], EFFORTS[name], round(seconds, 2), versions, driver)


def _hash(*what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _bare(source: str) -> str:
    """A module's syntax tree as text, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
