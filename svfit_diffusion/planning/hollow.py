"""Models that run without their weights: shapes are computed, numbers are not.

Tensors on the meta device have a shape and no numbers; here they are called hollow. PyTorch runs
models on them, but models ask for more than shapes: where a tensor is, which tokens a mask keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

_PLACE = torch.device("cpu")

# What autocast computes in half precision and in float32 on a GPU (ATen/autocast_mode.h), as far as
# models call it.
_HALF = frozenset(
    (
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
        *("conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("einsum", "scaled_dot_product_attention"),
    )
)
_SINGLE = frozenset(
    (
        *("layer_norm", "group_norm", "rms_norm", "norm", "linalg_vector_norm"),
        *("softmax", "log_softmax", "softplus", "exp", "log", "pow", "__pow__"),
        *("rsqrt", "reciprocal", "sum", "prod", "cumsum", "interpolate"),
        *("cosine_similarity", "l1_loss", "mse_loss"),
    )
)


class Hollow(TorchFunctionMode):
    """While it is entered, models whose parameters are hollow run, forward and backward.

    - What depends on shapes and prompts alone (positions, masks, times) is real, and stays real
      until something hollow is mixed in; so models can ask for its values.
    - Hollow tensors say that they are on the CPU.
    - Attention keeps for backward what GPUs' fused kernels keep: its inputs, its output and a
      number for each query and head.
    - Under `torch.autocast("cpu", …)` the casts are those of a GPU.
    - Experts are chosen evenly.

    Whatever else asks for a value that is not there raises PyTorch's own `RuntimeError`.
    """

    def __init__(self) -> None:
        super().__init__()
        # Hollow storages for the real ones that are alive, by their addresses.
        self._twins: dict[int, Any] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return _PLACE
        if not (_is_hollow(args) or _is_hollow(kwargs)):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _KNOWN:
            found = _KNOWN[name](func, *args, **kwargs)
            if found is not None:
                return found
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _as_places(args[1]), *args[2:])
        args, kwargs = _mapped(self.counterpart, args), _mapped(self.counterpart, kwargs)
        if torch.is_autocast_enabled(_PLACE.type):
            args, kwargs = _autocast(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def counterpart(self, value: Any) -> Any:
        """A real tensor or a device as a hollow one; anything else as it is.

        Tensors that share memory have counterparts that do.
        """
        if isinstance(value, torch.device):
            return torch.device("meta")
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        assert not value.requires_grad, "its gradient would be lost"
        storage = value.untyped_storage()
        address = storage._cdata
        if address not in self._twins:
            twin = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            self._twins[address] = twin.untyped_storage()
            weakref.finalize(storage, self._twins.pop, address)
        hollow = torch.empty(0, dtype=value.dtype, device="meta")
        return hollow.set_(
            self._twins[address], value.storage_offset(), value.size(), value.stride()
        )


def recompute_unchecked(denoiser: Any, text_encoders: Iterable[Any]) -> None:
    """Have models whose gradient checkpointing is on use it under `Hollow`.

    PyTorch compares what it computes again with what there was. Whether a hollow tensor says that
    it is on the CPU depends on which of PyTorch's layers asks, so that they would seem to differ.
    """

    def unchecked(module: Any, *args: Any) -> Any:
        return checkpoint(module.__call__, *args, use_reentrant=False, determinism_check="none")

    denoiser.enable_gradient_checkpointing(unchecked)
    for encoder in text_encoders:
        encoder.gradient_checkpointing_enable({"use_reentrant": False, "determinism_check": "none"})


def _is_hollow(value: Any) -> bool:
    """Whether there is a hollow tensor in an argument; PyTorch's own trees are far slower."""
    if isinstance(value, Tensor):
        return value.is_meta
    if isinstance(value, list | tuple):
        return any(map(_is_hollow, value))
    return isinstance(value, dict) and any(map(_is_hollow, value.values()))


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """An argument with `change` made of all that is in it."""
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)([_mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(change, part) for key, part in value.items()}
    return change(value)


def _same(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A move between devices."""
    return tensor


def _like(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Constants of a hollow tensor's shape, if they are integers: those are masks and positions."""
    dtype = kwargs.get("dtype") or tensor.dtype
    if dtype.is_floating_point or dtype.is_complex:
        return None
    made: Tensor = func(torch.empty(tensor.shape, dtype=tensor.dtype), *args, **kwargs)
    return made


def _top(
    func: Any, scores: Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The largest of scores, and where they are: in all places alike."""
    values = func(scores, k, dim, *args, **kwargs)[0]
    places = torch.arange(values.numel()) % scores.shape[dim]
    return values, places.reshape(values.shape)


# Results that are not those of PyTorch's function on hollow tensors; None: they are after all.
_KNOWN: dict[str, Callable[..., Any]] = {
    "cpu": _same,
    "ones_like": _like,
    "zeros_like": _like,
    "full_like": _like,
    "topk": _top,
}


def _as_places(index: Any) -> tuple[Any, ...]:
    """An index whose masks, where they are real, are the places that they keep."""
    places: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        is_mask = isinstance(part, Tensor) and part.dtype == torch.bool and not part.is_meta
        places.extend(part.nonzero(as_tuple=True) if is_mask else (part,))
    return tuple(places)


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    """The arguments of a function in the precision that autocast gives them."""
    wanted = torch.get_autocast_dtype(_PLACE.type)
    if name in _SINGLE:
        wanted = torch.float32
    elif name not in _HALF:
        return args, kwargs

    def cast(value: Any) -> Any:
        is_cast = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(wanted) if is_cast and value.dtype != torch.float64 else value

    return _mapped(cast, args), _mapped(cast, kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)  # kernels add it to the scores
    result: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return result


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
