"""Bytes of tensors that are alive, while something runs on hollow tensors."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Ledger(TorchDispatchMode):
    """Counts, while it is entered, the memory of hollow tensors that come into being.

    Tensors that share memory count once; what an operation needs inside does not count.

    Args:
        held: what is there before, and does not count.

    Attributes:
        live: bytes in use now.
        peak: most bytes in use at one time.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in held]  # or an address could come again
        self._known = {storage._cdata for storage in self._held}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = _run(func, args, kwargs or {})
        self._see(results)
        return results

    def _see(self, result: Any) -> None:
        if isinstance(result, Tensor):
            if result.is_meta:
                self._enter(result.untyped_storage())
        elif isinstance(result, list | tuple):
            for part in result:
                self._see(part)

    def _enter(self, storage: Any) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, address, size)

    def _leave(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


class _Layout(NamedTuple):
    """All that there is to a hollow tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


class _Number(NamedTuple):
    """A number and its type, which equal numbers may differ in."""

    kind: type
    value: float


class _RealTensor(Exception):
    """An argument has values."""


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation returns. Models repeat theirs, and PyTorch takes long for a shape."""
    is_hollow = any(isinstance(value, Tensor) and value.is_meta for value in args)
    if not (is_hollow and _makes_all_new(func)):
        return func(*args, **kwargs)
    try:
        told = _described(args), _described(tuple(kwargs.items()))
    except _RealTensor:
        return func(*args, **kwargs)
    return _made(_results(func, *told))


@functools.cache
def _makes_all_new(func: Any) -> bool:
    """Whether an operation returns nothing but new tensors, and changes none."""
    schema = func._schema
    returns = [str(value.type) for value in schema.returns]
    aliases = [value.alias_info for value in (*schema.arguments, *schema.returns)]
    return set(returns) == {"Tensor"} and not any(aliases)


@functools.lru_cache(maxsize=2**16)
def _results(func: Any, args: Any, kwargs: Any) -> Any:
    return _described(func(*_made(args), **dict(_made(kwargs))))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _RealTensor
        return _Layout(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return _Number(type(value), value) if isinstance(value, int | float) else value


def _made(value: Any) -> Any:
    if isinstance(value, _Layout):
        return value.made()
    if isinstance(value, _Number):
        return value.value
    return tuple(map(_made, value)) if isinstance(value, tuple) else value
