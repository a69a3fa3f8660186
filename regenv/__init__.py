"""Image registration as Gymnasium environments. Importing regenv registers them."""

from regenv.core import RegistrationCore
from regenv.data.pairs import PairBatch, PairSource
from regenv.grid import Grid
from regenv.registry import CATALOGUE, register
from regenv.state import EpisodeState
from regenv.task import Task

__version__ = "0.1.0"
__all__ = ["CATALOGUE", "EpisodeState", "Grid", "PairBatch", "PairSource", "RegistrationCore", "Task", "__version__"]

register()
