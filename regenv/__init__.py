"""Image registration as Gymnasium environments. Importing regenv registers them.

The other public names are imported when they are first used: torch and numba, which they stand on, take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from regenv.registry import CATALOGUE, register

if TYPE_CHECKING:
    from regenv.core import RegistrationCore
    from regenv.data.pairs import PairBatch, PairSource
    from regenv.grid import Grid
    from regenv.state import EpisodeState
    from regenv.task import Task
else:
    _MODULES = {"EpisodeState": "regenv.state", "Grid": "regenv.grid", "PairBatch": "regenv.data.pairs",
                "PairSource": "regenv.data.pairs", "RegistrationCore": "regenv.core", "Task": "regenv.task"}

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "0.2.0"
__all__ = ["CATALOGUE", "EpisodeState", "Grid", "PairBatch", "PairSource", "RegistrationCore", "Task", "__version__"]

register()
