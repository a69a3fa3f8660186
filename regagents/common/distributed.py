"""Training of one network by several processes, each on its own pairs: gradients are averaged over processes.

Started by torchrun, on one machine or many:

    torchrun --nproc-per-node 2 -m regagents train digits-spac --out runs/digits-spac
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HEAD:29500 -m regagents train ...

Every process begins from the same weights and draws its own pairs; after every backward pass each has the mean of all
gradients. DistributedDataParallel does the same for networks that are called once an update; the algorithms here call
parts of theirs several times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: str) -> Iterator[str]:
    """Join the other processes of torchrun, by NCCL on CUDA and by Gloo elsewhere; yields this process's device.

    Without torchrun, or if they are joined already, nothing is done.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()
    finally:
        dist.destroy_process_group()


def average(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes; a missing gradient counts as zero."""
    if world() == 1:
        return
    mine = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in mine])
    dist.all_reduce(flat)
    for parameter, gradient in zip(mine, flat.div_(world()).split([p.numel() for p in mine]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone(memory_format=torch.preserve_format)
