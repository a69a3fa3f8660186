"""One-shot regression of the whole correction: "pure SL" in Sun et al. 2018."""

from regagents.oneshot.oneshot import OneShot
from regagents.oneshot.policies import OneShotPolicy

__all__ = ["OneShot", "OneShotPolicy"]
