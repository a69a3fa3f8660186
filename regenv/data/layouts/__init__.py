"""Folders of public data sets as they are laid out."""
