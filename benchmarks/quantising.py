"""Linear layers quantised one by one, by the libraries that people quantise with, on any machine.

diffusers quantises by bitsandbytes on GPUs alone; the layers themselves compute on CPUs, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

FLOAT8 = torch.float8_e4m3fn


def _four_bit(layer: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    own = bnb.nn.Linear4bit(
        *_sizes(layer), bias=layer.bias is not None, compute_dtype=torch.float32, quant_type="nf4"
    )
    own.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    return _with_bias(own, layer).to("cpu")


def _eight_bit(layer: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    own = bnb.nn.Linear8bitLt(*_sizes(layer), layer.bias is not None, has_fp16_weights=False)
    own.weight = bnb.nn.Int8Params(
        layer.weight.data.half(), requires_grad=False, has_fp16_weights=False
    )
    return _with_bias(own, layer).to("cpu")


def _by_gguf(kind: str) -> Callable[[nn.Linear], nn.Module]:
    def quantised(layer: nn.Linear) -> nn.Module:
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        what = gguf.GGMLQuantizationType[kind]
        values = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), what))
        own = GGUFLinear(*_sizes(layer), layer.bias is not None, compute_dtype=torch.float32)
        own.weight = GGUFParameter(values, quant_type=what)
        return _with_bias(own, layer)

    return quantised


def _by_torchao(config: str) -> Callable[[nn.Linear], nn.Module]:
    def quantised(layer: nn.Linear) -> nn.Module:
        import torchao.quantization

        torchao.quantization.quantize_(layer, getattr(torchao.quantization, config)())
        return layer

    return quantised


def _as_float8(layer: nn.Linear) -> nn.Module:
    apply_layerwise_casting(layer, FLOAT8, torch.float32, skip_modules_pattern=None)
    return layer


def _sizes(layer: nn.Linear) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _with_bias(own: Any, layer: nn.Linear) -> Any:
    own.bias = layer.bias
    return own.requires_grad_(False).train(layer.training)


WAYS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "bitsandbytes nf4": _four_bit,
    "bitsandbytes int8": _eight_bit,
    "torchao int8": _by_torchao("Int8WeightOnlyConfig"),
    "torchao float8_e4m3fn": _by_torchao("Float8WeightOnlyConfig"),
    "GGUF Q8_0": _by_gguf("Q8_0"),
    "GGUF Q4_0": _by_gguf("Q4_0"),
    "float8_e4m3fn": _as_float8,
}
"""Quantises a layer, perhaps in place, by what `quantised.quantization_of` then says of it."""


def quantise(model: nn.Module, kind: str, among: str = "transformer_blocks") -> Any:
    """Quantise the Linear layers whose paths hold `among`, in place, and return the model.

    Raises:
        ImportError: the library is not installed.
    """
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and among in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, WAYS[kind](layer))
    return model
