"""Faster implementations of the warps, behind the functions of ``regenv.ops.warp``."""
