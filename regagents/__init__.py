"""Agents for image registration environments, and the registration of images on disk.

The public names are imported when they are first used: torch, SimpleITK and numba, which they stand on, take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regagents.agents import load
    from regagents.dsl import DSL
    from regagents.registration.pipeline import AGENTS, Pipeline
    from regagents.registration.register import register
    from regagents.registration.result import Result
    from regagents.training.train import train
else:
    _MODULES = {"AGENTS": "regagents.registration.pipeline", "DSL": "regagents.dsl",
                "Pipeline": "regagents.registration.pipeline", "Result": "regagents.registration.result",
                "load": "regagents.agents", "register": "regagents.registration.register",
                "train": "regagents.training.train"}

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["AGENTS", "DSL", "Pipeline", "Result", "load", "register", "train"]
