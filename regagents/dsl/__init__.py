"""Deep supervised learning of registration (Liao et al. 2017)."""

from regagents.dsl.dsl import DSL
from regagents.dsl.policies import DSLPolicy

__all__ = ["DSL", "DSLPolicy"]
