"""Golden numbers: what environments show, where shipped agents end, what the evaluator measures.

``tests/test_golden.py`` holds today's code to ``tests/golden.json``. That was written anew when a step became compiled
calls, SPAC's agents were trained anew and the machine changed; what had stood there agrees to the test's tolerances.
Where a change of numbers is wanted, say why in the commit and write the file anew:

    python -m tests.golden tests/golden.json
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name

from regagents.agents import load, shipped
from regagents.classical.deformable import BSpline, Demons
from regagents.common.player import played, player_of
from regagents.evaluation.dense import field_measures, searched
from regagents.evaluation.evaluate import evaluate
from regenv.core import RegistrationCore
from regenv.registry import CATALOGUE

FILE = Path(__file__).parent / "golden.json"
STEPS, LANES, SEED = 20, 3, 11
PLAYED, PAIRS, POINTS = 10, 2, 8        # steps of an agent at most, its pairs, and numbers of its pose that are kept
SMALLER = dict.fromkeys(("RegRigid3D-v0", "RegRigid3DContinuous-v0", "RegRigid3DGeometric-v0", "RegSimilarity3D-v0",
                         "RegDense3D-v0", "RegKeypoint3D-v0"), 32)  # voxels an axis, instead of 64 or 128
DOWNLOADED = {"heads": "phantoms", "slices": "phantoms", "brains": "deformed",
              "brains3d": "deformed"}   # and what stands in for them
EVALUATED: tuple[tuple[str, dict[str, Any], list[str], int], ...] = (
    ("RegRigid2D-v0", {}, ["initial", "mi", "sift", "rigid2d"], 3),
    ("RegSimilarity2D-v0", {}, ["initial", "mi", "similarity-rl", "similarity-rl+mc", "similarity-oneshot"], 2),
    ("RegRigid3D-v0", {"size": 32, "spacing": 6.5}, ["head"], 1))
PACKAGES = ("torch", "numpy", "numba", "simpleitk", "gymnasium", "stable-baselines3", "scipy")


def machine() -> dict[str, str]:
    """What the last digits depend on: the processor and the versions of what computes."""
    cpus = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")
              ] if cpus.is_file() else []
    processor = f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()
    return {"processor": processor, "compiled for": get_host_cpu_name(),
            **{package: version(package) for package in PACKAGES}}


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays' types and bytes."""
    found = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        found.update(str(array.dtype).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def number(value: Any) -> float | None:
    """Twelve digits of a number; None for NaN, which JSON lacks."""
    return None if np.isnan(float(value)) else float(f"{float(value):.12g}")


def _images(observation: Any) -> list[np.ndarray]:
    return [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]


def _mean(observation: Any) -> float | None:
    return number(sum(image.astype(np.float64).mean() for image in _images(observation)))


def environment(env_id: str) -> dict[str, Any]:
    """Twenty random steps of three lanes: a hash of all that comes out, and numbers to compare on another machine."""
    size = {"size": SMALLER[env_id]} if env_id in SMALLER else {}
    env = gym.make_vec(env_id, num_envs=LANES, output="numpy", privileged=True, **size)
    env.action_space.seed(SEED)
    observation, info = env.reset(seed=SEED)
    out = [*_images(observation), *(info[key] for key in sorted(info))]
    means, rewards = [_mean(observation)], []
    infos = {key: [number(np.asarray(value, np.float64).sum())] for key, value in info.items() if key[0] != "_"}
    for _ in range(STEPS):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        out += [*_images(observation), reward, terminated, truncated, *(info[key] for key in sorted(info))]
        means.append(_mean(observation))
        rewards.append([number(each) for each in reward])
        for key, sums in infos.items():
            sums.append(number(np.asarray(info[key], np.float64).sum()))
    return {"hash": digest(out), "observations": means, "rewards": rewards, "infos": infos}


def agent_pose(name: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Where a shipped agent ends on two pairs, after ten steps at most; synthetic images stand in for downloads."""
    source = card["config"]["env_kwargs"].get("source")
    source = source["name"] if isinstance(source, dict) else source
    torch.manual_seed(SEED)
    agent = load(name, **({"source": DOWNLOADED[source]} if source in DOWNLOADED else {}))
    torch.manual_seed(SEED)
    core = RegistrationCore(agent.task())
    state = core.reset([np.random.default_rng(SEED + lane) for lane in range(PAIRS)])
    pose = played(player_of(agent), core, state, min(PLAYED, core.task.max_episode_steps)).pose
    lanes = pose.double().numpy()
    places = np.linspace(0, lanes[0].size - 1, min(POINTS, lanes[0].size)).astype(int)
    return {"hash": digest([pose.numpy()]), "mean": [number(lane.mean()) for lane in lanes],
            "std": [number(lane.std()) for lane in lanes],
            "points": [[number(lane.flat[place]) for place in places] for lane in lanes]}


def pose_rows() -> list[dict[str, Any]]:
    """The evaluator's errors of poses, mm."""
    rows = []
    for env_id, arguments, methods, pairs in EVALUATED:
        report = evaluate(env_id, methods, pairs, SEED, arguments, refine=True)
        rows += [{"env": env_id, "method": row.method, "errors": [number(error) for error in row.errors_mm]}
                 for row in report.rows]
    return rows


def field_rows() -> list[dict[str, Any]]:
    """Overlap and regularity of an agent's and of classical fields on four digits."""
    agent = load("digits-spac")
    core = RegistrationCore(agent.task())
    state = core.reset([np.random.default_rng(SEED + lane) for lane in range(4)])
    grid = core.task.grid
    fields = {"digits-spac": played(player_of(agent), core, state).displacement, "initial": None,
              "demons": searched(Demons(), state, grid), "free-form": searched(BSpline(), state, grid)}
    measures = {"dice": "dice", "hausdorff_mm": "hausdorff", "folding": "folding", "sd_log_jacobian": "sd_log_jacobian"}
    rows = []
    for name, field in fields.items():
        found = field_measures(state, field, grid, tuple(measures))
        rows.append({"env": "RegDenseDigits-v0", "method": name, **{
            measures[key]: [None if value is None else number(value) for value in values]
            for key, values in found.items()}})
    return rows


def main(path: str) -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    golden = {"machine": machine(), "environments": {name: environment(name) for name in CATALOGUE},
              "agents": {file.stem: agent_pose(file.stem, card) for file, card in shipped()},
              "rows": pose_rows() + field_rows()}
    Path(path).write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
