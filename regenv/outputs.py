"""What a batch of tensors gives out: tensors that NumPy's code takes for arrays, and arrays that torch's code takes for
tensors. So Gymnasium's vector wrappers, which are written for arrays, work on tensors on the CPU as they stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class OutputTensor(Tensor):
    """A tensor, of which NumPy's functions and operators make arrays; torch's make plain tensors.

    Raises TypeError where NumPy is given one that is on a GPU.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*_arrays(inputs), **_arrays(options))

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        return function(*_arrays(inputs), **_arrays(options))

    def __getitem__(self, index: Any) -> Any:
        """A tensor, or an array for an index that is one."""
        return _array(self)[index] if isinstance(index, np.ndarray) else super().__getitem__(index)

    def __deepcopy__(self, memo: Any) -> OutputTensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo).as_subclass(OutputTensor)


class OutputArray(np.ndarray[Any, np.dtype[Any]]):
    """An array that torch's functions take for a tensor; it has a tensor's methods beside an array's own."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        return function(*_tensors(inputs), **_tensors(options or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(_tensor(self), name)


def as_tensor(tensor: Tensor) -> OutputTensor:
    """Observations, rewards and flags as they are given out; the memory is the same."""
    return tensor.as_subclass(OutputTensor)


def as_information(tensor: Tensor) -> OutputTensor | OutputArray:
    """A value of infos: an array on the CPU, since Gymnasium asks for arrays there, a tensor on a GPU."""
    return tensor.numpy().view(OutputArray) if tensor.device.type == "cpu" else as_tensor(tensor)


def _array(value: Any) -> NDArray[Any] | Any:
    if not isinstance(value, Tensor):
        return value
    if value.device.type != "cpu":
        raise TypeError(f"a tensor on {value.device} is given to NumPy, as Gymnasium's vector wrappers do; make the "
                        'environment with output="numpy".')
    return value.detach().as_subclass(Tensor).numpy()


def _tensor(value: Any) -> Tensor | Any:
    return torch.from_numpy(value.view(np.ndarray)) if isinstance(value, OutputArray) else value


def _arrays(value: Any) -> Any:
    return _mapped(_array, value)


def _tensors(value: Any) -> Any:
    return _mapped(_tensor, value)


def _mapped(convert: Any, value: Any) -> Any:
    """A function of the leaves of nested arguments."""
    if isinstance(value, Mapping):
        return {key: _mapped(convert, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_mapped(convert, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return convert(value)
