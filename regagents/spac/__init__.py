"""Stochastic planner-actor-critic for dense deformable registration (Luo et al. 2022)."""

from regagents.spac.modified import DDPGModified, GRPOModified, PPOModified
from regagents.spac.policies import SPACPolicy
from regagents.spac.spac import SPAC

__all__ = ["SPAC", "DDPGModified", "GRPOModified", "PPOModified", "SPACPolicy"]
