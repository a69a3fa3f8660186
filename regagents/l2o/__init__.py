"""The learned optimiser: a recurrent network that registers step by step, as gradient descent would."""

from regagents.l2o.l2o import L2O
from regagents.l2o.levels import L2OLevels
from regagents.l2o.policies import L2OPolicy

__all__ = ["L2O", "L2OLevels", "L2OPolicy"]
