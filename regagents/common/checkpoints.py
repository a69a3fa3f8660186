"""Agents on disk: safetensors for numbers, a JSON card for everything else. Loading never executes code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regenv.atomic import atomic

CARD_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint does not fit: the message names the file, what is wrong, and the way out."""


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write ``path`` (.safetensors) and its card (.json) beside it, each to a temporary name that is then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, str(temporary))
    with atomic(path.with_suffix(".json")) as temporary:
        Path(temporary).write_text(json.dumps({"card_version": CARD_VERSION, **card}, indent=2) + "\n")


def half_precision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in half precision, of half the size: for weights that are used, not trained further.

    Raises ValueError for a number beyond half precision's range.
    """
    small = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, tensor in small.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"weights: tensor {name} has numbers that are not finite, or not in half precision.")
    return small


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a checkpoint. Raises CheckpointError for missing, truncated or foreign files."""
    path = Path(path)
    card_path = path.with_suffix(".json")
    for file in (path, card_path):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; a checkpoint is NAME.safetensors with NAME.json beside it.")
    try:
        card = json.loads(card_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{card_path}: card is not JSON ({error}); restore it or train again.") from None
    if not isinstance(card, dict) or card.get("card_version") != CARD_VERSION:
        version = card.get("card_version") if isinstance(card, dict) else None
        raise CheckpointError(f"{card_path}: card_version is {version!r}; this release reads {CARD_VERSION}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: weights cannot be read ({error}); the file is damaged or truncated.") from None
    return tensors, card


def fit(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load all tensors into a module. Raises CheckpointError for the first missing, misshapen or unknown one."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name} is missing; the checkpoint belongs to another network.")
        if tensors[name].shape != value.shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {tuple(tensors[name].shape)}, the network's is "
                                  f"{tuple(value.shape)}; the checkpoint belongs to another env or network.")
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise CheckpointError(f"{path}: tensor {extra[0]} is not in the network; it belongs to another one.")
    module.load_state_dict(dict(tensors))


def fit_shared(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load the tensors that agree with the module's by name and shape. Raises CheckpointError where none does."""
    wanted = module.state_dict()
    shared = {name: value for name, value in tensors.items() if name in wanted and value.shape == wanted[name].shape}
    if not shared:
        raise CheckpointError(f"{path}: none of its tensors is in the network; it belongs to another one.")
    module.load_state_dict({**wanted, **shared})


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state, as tensors named "INDEX.KEY"."""
    return {f"{index}.{key}": torch.as_tensor(value) for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()}


def fit_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
