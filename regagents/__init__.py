"""Agents for image registration environments, and the registration of images on disk."""

from regagents.dsl import DSL
from regagents.registration import AGENTS, Pipeline, Result, register
from regagents.train import load, train

__all__ = ["AGENTS", "DSL", "Pipeline", "Result", "load", "register", "train"]
