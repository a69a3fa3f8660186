"""Agents and classical methods measured on the same held-out pairs."""
