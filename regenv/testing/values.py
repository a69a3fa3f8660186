"""Helpers of the checks: results of environments, which are nested dictionaries and tuples of arrays or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def require(holds: bool, sentence: str, check: str = "check_vector_env") -> None:
    """Raise AssertionError with the check's name and the sentence unless it holds."""
    if not holds:
        raise AssertionError(f"{check}: {sentence}.")


def require_error(call: Callable[[], Any], sentence: str) -> None:
    """Raise AssertionError with the sentence unless the call raises something."""
    try:
        call()
    except Exception:
        return
    raise AssertionError(f"check_vector_env: {sentence}.")


def leaves(value: Any) -> list[Any]:
    """The arrays of a result, dictionaries in the order of their keys."""
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A result with a function applied to each array."""
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(mapped(function, item) for item in value)
    return function(value)


def as_array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def as_arrays(value: Any) -> Any:
    return mapped(as_array, value)


def copied(value: Any) -> Any:
    return mapped(lambda leaf: as_array(leaf).copy(), value)


def lane_of(value: Any, lane: int) -> Any:
    """A result's part that belongs to a lane."""
    return mapped(lambda leaf: leaf[lane], value)


def equal(a: Any, b: Any) -> bool:
    """Whether two results are equal bit for bit, with NaN equal to NaN."""
    ours, theirs = ([as_array(leaf) for leaf in leaves(value)] for value in (a, b))
    return len(ours) == len(theirs) and all(
        x.shape == y.shape and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(ours, theirs, strict=True))


def share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays or tensors overlap in memory."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.device.type != "cpu":
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return isinstance(a, (Tensor, np.ndarray)) and isinstance(b, (Tensor, np.ndarray)) and np.shares_memory(
        as_array(a), as_array(b))


def scribble(value: Any) -> None:
    """Overwrite every array that can be written to."""
    for leaf in leaves(value):
        if isinstance(leaf, Tensor):
            leaf.copy_(~leaf if leaf.dtype == torch.bool else torch.full_like(leaf, 77))
        elif isinstance(leaf, np.ndarray) and leaf.flags.writeable:
            leaf[...] = ~leaf if leaf.dtype == bool else 77
