"""Quantised weights: how they are quantised, of which shape they are, and what they stand for.

Known are those of bitsandbytes (`nf4`, `fp4`, `int8`), of torchao, of GGUF files as diffusers loads
them, and float8 as diffusers' layerwise casting stores it. A layer goes on computing with them by
its own kernel; SVFit only reads them once, for the basis (`added` says how shifts then act).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.layers import SHIFTABLE, Shiftable
from svfit_diffusion.errors import BasisError
from svfit_diffusion.spectrum.basis import Packed, matrix_shape
from svfit_diffusion.spectrum.cache import BaseWeights

KNOWN = "bitsandbytes, torchao, GGUF or float8 layerwise casting"
"""The quantisations that are known, for messages."""

_INT8_STEPS = 127
_CAST = (torch.float32, torch.float16, torch.bfloat16)
_CASTING = "layerwise_casting"  # as diffusers' hooks name it


def quantization_of(layer: nn.Module, weight: Tensor) -> str:
    """How a layer's own weight is quantised, such as `bitsandbytes nf4`, `torchao int8`,
    `GGUF Q4_0` or `float8_e4m3fn`; `""` where it is not, or in a way that is not known.

    Args:
        layer: the layer.
        weight: its own weight, wherever it lies.
    """
    kind: Any = type(weight)
    if kind in (nn.Parameter, Tensor):
        is_float8 = weight.is_floating_point() and weight.element_size() == 1
        return _name(weight.dtype) if is_float8 and _is_cast(layer) else ""
    if kind.__name__ in ("Params4bit", "Int8Params") and kind.__module__.startswith("bitsandbytes"):
        is_int8 = kind.__name__ == "Int8Params"
        return f"bitsandbytes {'int8' if is_int8 else getattr(weight, 'quant_type', '4-bit')}"
    if kind.__module__.split(".")[0] == "torchao":
        stored = getattr(weight, "qdata", None)
        return f"torchao {kind.__name__ if stored is None else _name(stored.dtype)}"
    if kind.__name__ == "GGUFParameter":
        return f"GGUF {getattr(weight, 'quant_type').name}"  # noqa: B009
    return ""


def spelled(quantizations: Iterable[str]) -> str:
    """What `quantization_of` says of several layers, in one phrase; `""` if none is quantised."""
    return ", ".join(sorted(set(quantizations) - {""}))


def quantizations_in(base: BaseWeights) -> list[str]:
    """What `quantization_of` says of those of some weights that are quantised."""
    return [w.quantization for w in base.weights.values() if isinstance(w, Packed)]


def holds_quantised(model: nn.Module) -> bool:
    """Whether a model has quantised layers."""
    layers = [module for module in model.modules() if isinstance(module, SHIFTABLE)]
    return any(quantization_of(layer, layer.weight) for layer in layers)


def cast_what_is_not_quantised(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters and buffers of a model in place, but for those of quantised layers."""
    for module in model.modules():
        if isinstance(module, SHIFTABLE) and quantization_of(module, module.weight):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype in _CAST:
                tensor.data = tensor.data.to(dtype)


def weight_shape(layer: Shiftable) -> torch.Size:
    """The shape `(out, in, *kernel)` of a layer's weight, which packed ones do not show."""
    if isinstance(layer, nn.Linear) and type(layer.weight) is not nn.Parameter:
        return torch.Size((layer.out_features, layer.in_features))
    return layer.weight.shape


def full_rank_of(layer: Shiftable) -> int:
    """Number of singular values of a layer's weight, quantised or not."""
    return min(matrix_shape(weight_shape(layer)))


def packed(layer: Shiftable, weight: Tensor) -> Packed:
    """A quantised weight as one that is made dense, in float32, whenever it is read.

    Raises:
        BasisError: on reading: it is not in memory, not quantised yet, or laid out in a way that
            cannot be read exactly.
    """
    quantization = quantization_of(layer, weight)
    return Packed(
        weight_shape(layer), weight.device, quantization, lambda: dense_weight(layer, weight)
    )


@torch.no_grad()
def dense_weight(layer: Shiftable, weight: Tensor) -> Tensor:
    """What a layer computes with, `(out, in, *kernel)` float32; any weight, quantised or not.

    Args:
        layer: the layer.
        weight: its own weight.

    Raises:
        BasisError: it is not in memory, not quantised yet, or laid out in a way that cannot be read
            exactly.
    """
    kind = quantization_of(layer, weight)
    if weight.is_meta:
        raise BasisError("a quantised weight is not in memory; load adapters before offloading")
    try:
        if kind == "bitsandbytes int8":
            dense = _from_int8(layer, weight)
        elif kind.startswith("bitsandbytes"):
            dense = _from_4bit(weight)
        elif kind.startswith("torchao"):
            dense = weight.dequantize()
        elif kind.startswith("GGUF"):
            from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

            dense = dequantize_gguf_tensor(weight)
        else:
            dense = weight.detach()
    except (RuntimeError, NotImplementedError, ImportError) as error:
        raise BasisError(
            f"this machine cannot read a weight that is quantised as {kind} ({error}); load the "
            f"base unquantised, or on a device that has its kernels"
        ) from error
    return dense.float().reshape(weight_shape(layer))


def _from_4bit(weight: Any) -> Tensor:
    import bitsandbytes.functional

    state = weight.quant_state
    if state is None:
        raise BasisError(
            "a bitsandbytes weight is quantised only when it is moved to its device: move the "
            "model there first"
        )
    if getattr(state, "packing_format_for_cpu", False):
        raise BasisError(
            "bitsandbytes has laid a weight out anew for its CPU kernel, by a picture drawn before "
            "the adapter came: load the base again, and the adapter before the first picture"
        )
    dense: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return dense


def _from_int8(layer: Any, weight: Any) -> Tensor:
    # The first call moves values and scales from the weight to the layer.
    values = weight.CB if weight.CB is not None else layer.state.CB
    scale = weight.SCB if weight.SCB is not None else layer.state.SCB
    if values is None or scale is None:
        raise BasisError(
            "a bitsandbytes weight is quantised only when it is moved to its device: move the "
            "model there first"
        )
    dense: Tensor = values.float() * (scale.float().to(values.device)[:, None] / _INT8_STEPS)
    return dense


def _is_cast(layer: Any) -> bool:
    """Whether diffusers' layerwise casting is on a layer; a float8 weight of another class of layer
    has its scale somewhere else.
    """
    registry = getattr(layer, "_diffusers_hook", None)
    return type(layer) in SHIFTABLE and bool(registry and registry.get_hook(_CASTING))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
