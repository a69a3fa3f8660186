"""Painters of synthetic patients, so that agents can be trained and tested without any file.

A painter lays soft geometric bodies over a grid, from formulas and random numbers; each patient is painted once.
Sources vary a patient a little, resample it on the grids asked for, and give each image a contrast and artefacts. No
patient is in both ``split="train"`` and ``split="test"``.
"""
