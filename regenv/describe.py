"""The page of an id: what its builder's docstring says, with the id's own spaces, arguments and limits before it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import gymnasium as gym

from regenv.registry import CATALOGUE, build
from regenv.task import Task

SECTION = re.compile(r"^## (.+)$", re.M)


def sections(env_id: str) -> dict[str, str]:
    """The parts of the builder's docstring by heading, in order; its first line stands under "". Raises ValueError for
    an unknown id."""
    if env_id not in CATALOGUE:
        raise ValueError(f"regenv has no environment {env_id!r}; it has {', '.join(CATALOGUE)}.")
    parts = SECTION.split(inspect.getdoc(CATALOGUE[env_id].builder) or "")
    return {"": parts[0].strip(), **{name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}}


def facts(env_id: str, task: Task) -> list[tuple[str, str]]:
    """What holds for this id in particular: name and value, as Markdown. Args: task: of the id."""
    row = CATALOGUE[env_id]
    names = task.transform.names
    listed = ", ".join(names) if len(names) <= 8 else f"{names[0]} to {names[-1]}"
    told = [("Parameters", listed), ("Action space", f"`{_space(task.actions.space())}`"),
            ("Observation space", f"`{_space(task.observation.space(task.grid.shape))}`"),
            ("Images", f"{' x '.join(map(str, task.grid.shape))} voxels of "
                       f"{' x '.join(f'{mm:.3g}' for mm in task.grid.spacing[::-1])} mm"),
            ("Time limit", f"{row.steps} steps"),
            ("Success", f'`info["tre"]` of at most {task.success_mm:g} mm')]
    if row.threshold is not None:
        told.append(("Reward threshold", f"{row.threshold:g}"))
    given = ", ".join(f"{name}={value!r}" for name, value in row.arguments.items())
    return [*told, ("Builder", f"`regenv.tasks.{row.family}.{row.family}({given})`")]


def page(env_id: str, task: Task | None = None) -> str:
    """The page of an id, Markdown: the whole description, and what holds for this id in particular.

    Args: task: of the id, where it has been built already. Raises ValueError for an unknown id.
    """
    parts = sections(env_id)
    own = "\n".join(f"* {name}: {value}" for name, value in facts(env_id, build(env_id) if task is None else task))
    rest = "\n\n".join(f"## {name}\n{text}" for name, text in parts.items() if name)
    made = f'```python\nimport gymnasium as gym\nimport regenv\n\nenv = gym.make("{env_id}")\n```'
    return f"# {env_id}\n\n{parts['']}\n\n{made}\n\n{own}\n\n{rest}\n"


def _space(space: gym.Space[Any]) -> str:
    """A space in few words: bounds that are one number as that number."""
    if isinstance(space, gym.spaces.Dict):
        return "Dict(" + ", ".join(f"{name}: {_space(part)}" for name, part in space.spaces.items()) + ")"
    if isinstance(space, gym.spaces.Box) and (space.low == space.low.flat[0]).all() and (
            space.high == space.high.flat[0]).all():
        return f"Box({space.low.flat[0]:g}, {space.high.flat[0]:g}, {space.shape}, {space.dtype})"
    return str(space)
