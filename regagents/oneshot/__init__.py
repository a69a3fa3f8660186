"""One-shot networks: the whole correction of a pose ("pure SL" in Sun et al. 2018), or a dense field a step."""

from regagents.oneshot.dense import DenseOneShot
from regagents.oneshot.dense_policies import DensePolicy
from regagents.oneshot.oneshot import OneShot
from regagents.oneshot.policies import OneShotPolicy

__all__ = ["DenseOneShot", "DensePolicy", "OneShot", "OneShotPolicy"]
