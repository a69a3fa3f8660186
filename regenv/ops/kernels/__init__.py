"""Warps as operators of torch: one each for what users call, one implementation of each for every backend.

``reference`` is torch's own ``grid_sample`` (any device, any float type), ``cpu`` is compiled by numba, ``cuda`` by
triton. The device chooses; the environment variable ``REGENV_KERNELS`` (torch, numba or triton) overrules it.
"""
