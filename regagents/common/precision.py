"""In which numbers networks are fastest: half as long ones, where the device has instructions for them."""

from __future__ import annotations

import torch


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32: without such instructions it takes three times as long.
    """
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def mixed(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Networks within it compute in :func:`fast_dtype`."""
    dtype = fast_dtype(device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled and dtype == torch.bfloat16)
