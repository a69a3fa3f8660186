"""Checks of environments, for this package's own tests and for yours."""

from regenv.testing.truths import check_truths
from regenv.testing.vector_env import check_vector_env

__all__ = ["check_truths", "check_vector_env"]
