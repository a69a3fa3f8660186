"""Phantoms: endless pairs of images made from formulas, so that agents can be trained and tested without any file.

A phantom is a bank of patients, each painted once from soft geometric bodies. A draw picks a patient, varies it a
little, resamples it on the grids asked for and gives each image its own contrast and artefacts. The patients of
``split="train"`` and ``split="test"`` are never the same.
"""
