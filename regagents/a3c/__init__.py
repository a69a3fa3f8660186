"""Asynchronous advantage actor-critic (Mnih et al. 2016; Sun et al. 2018)."""

from regagents.a3c.a3c import A3C
from regagents.a3c.lookahead import Lookahead, register_until_value
from regagents.a3c.policies import A3CPolicy

__all__ = ["A3C", "A3CPolicy", "Lookahead", "register_until_value"]
