"""Agents for image registration environments."""
