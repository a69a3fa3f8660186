"""Agents on disk: safetensors for numbers, a JSON card for everything else. Loading never executes code."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from regagents.common import cards
from regenv.atomic import atomic
from regenv.stored import StoredError, digest, parse_json, read_json, read_tensors

CARD_VERSION = 1
_CARD = "regagents_card"  # key of the card in the header of its tensors' file


class CheckpointError(ValueError):
    """A checkpoint does not fit: the message names the file, what is wrong, and the way out."""


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write ``path`` (.safetensors) and its card (.json) beside it, each to a temporary name that is then renamed.

    The card stands in the tensors' own file, too: where a process ended between the two, that one belongs to them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # copies: the workers of A3C change the shared network meanwhile, and the digest must be that of the file
    stored = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    text = json.dumps({"card_version": CARD_VERSION, **card, "sha256": digest(stored)}, indent=2, allow_nan=False)
    with atomic(path) as weights, atomic(path.with_suffix(".json")) as beside:  # renamed from right to left
        try:
            save_file(stored, str(weights), metadata={_CARD: text})
        except SafetensorError as error:
            raise OSError(f"{path}: the weights cannot be written ({error}).") from None
        beside.write_text(text + "\n")


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
    """Tensors and card of a checkpoint. Raises CheckpointError for missing, truncated, damaged or foreign files."""
    path = Path(path)
    card = load_card(path)
    try:
        tensors, metadata = read_tensors(path)
        within = _card(parse_json(metadata[_CARD], str(path)), str(path)) if _CARD in metadata else None
    except StoredError as error:
        raise CheckpointError(str(error)) from None
    if within is not None:
        if within.get("sha256") != digest(tensors):
            raise CheckpointError(f"{path}: the tensors are not those that were saved; the file is damaged.")
        if "sha256" in card and card["sha256"] != within["sha256"]:
            card = within  # the process that saved them ended between the two files
    return tensors, {name: value for name, value in card.items() if name != "sha256"}


def load_card(path: str | Path) -> dict[str, Any]:
    """The card beside a checkpoint. Raises CheckpointError unless it says what a card may say."""
    path = Path(path)
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; a checkpoint is NAME.safetensors with NAME.json beside it.")
    try:
        return _card(read_json(path.with_suffix(".json")), str(path.with_suffix(".json")))
    except StoredError as error:
        raise CheckpointError(str(error)) from None


def _card(content: Any, name: str) -> dict[str, Any]:
    """A card as it was read. Raises CheckpointError unless its version and its fields are those of a card."""
    version = content.get("card_version") if isinstance(content, dict) else None
    if version is True or version != CARD_VERSION:
        raise CheckpointError(f"{name}: card_version is {version!r:.80}; this release reads {CARD_VERSION}.")
    try:
        cards.check(content, cards.Card, "card")
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return content


def fit(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load all tensors into a module.

    Raises CheckpointError for the first missing, misshapen, unknown or mistyped one. Floats may be in half precision.
    """
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name} is missing; the checkpoint belongs to another network.")
        if tensors[name].shape != value.shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {tuple(tensors[name].shape)}, the network's is "
                                  f"{tuple(value.shape)}; the checkpoint belongs to another env or network.")
        _check_type(name, tensors[name], value, path)
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise CheckpointError(f"{path}: tensor {extra[0]} is not in the network; it belongs to another one.")
    module.load_state_dict(dict(tensors))


def _check_type(name: str, given: Tensor, wanted: Tensor, path: str | Path) -> None:
    allowed = {wanted.dtype, torch.float16, torch.bfloat16} if wanted.is_floating_point() else {wanted.dtype}
    if given.dtype not in allowed:
        raise CheckpointError(f"{path}: tensor {name} is {given.dtype}, the network's is {wanted.dtype}; the file is "
                              "damaged or belongs to another network.")
    if name.endswith("running_var") and (given < 0).any():
        raise CheckpointError(f"{path}: tensor {name} has negative variances; the file is damaged.")


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


def fit_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor],
                  path: str | Path = "checkpoint") -> None:
    """Inverse of :func:`flatten_optimizer`, for an optimizer that has taken a step.

    Raises CheckpointError where a parameter's state is not whole, has another shape or type, or holds numbers that no
    optimizer reaches. A parameter that training does not move has no state.
    """
    reached = _stepped(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if name not in reached:
            raise CheckpointError(f"{path}: tensor optimizer.{name} is not of this optimizer; train into a new folder.")
        if value.shape != reached[name].shape or value.dtype != reached[name].dtype:
            raise CheckpointError(f"{path}: tensor optimizer.{name} is {value.dtype} {tuple(value.shape)}, the "
                                  f"optimizer's is {reached[name].dtype} {tuple(reached[name].shape)}.")
        if key != "exp_avg" and (value < 0).any():
            raise CheckpointError(f"{path}: tensor optimizer.{name} has negative numbers; the file is damaged.")
        state.setdefault(int(index), {})[key] = value
    moved = {name for name in reached if not state or int(name.partition(".")[0]) in state}
    missing = sorted(moved - set(tensors))
    if missing:
        raise CheckpointError(f"{path}: tensor optimizer.{missing[0]} is missing; training cannot go on from this "
                              "file. Train into a new folder.")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _stepped(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer holds after a step, as :func:`flatten_optimizer` names it."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return flatten_optimizer(twin)
