"""Prepared subjects and downloads, kept in a cache."""
