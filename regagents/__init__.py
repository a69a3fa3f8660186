"""Agents for image registration environments, and the registration of images on disk."""

from regagents.agents import load
from regagents.dsl import DSL
from regagents.registration.pipeline import AGENTS, Pipeline
from regagents.registration.register import Result, register
from regagents.training.train import train

__all__ = ["AGENTS", "DSL", "Pipeline", "Result", "load", "register", "train"]
