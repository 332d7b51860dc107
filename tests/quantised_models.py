"""Models whose Linear layers are quantised by the libraries that people quantise with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.quantised import dense_weight

FLOAT8 = torch.float8_e4m3fn


def _four_bit(layer: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    own = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=torch.float32,
        quant_type="nf4",
    )
    own.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    return _with_bias(own, layer).to("cpu")


def _eight_bit(layer: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    own = bnb.nn.Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
    )
    own.weight = bnb.nn.Int8Params(
        layer.weight.data.half(), requires_grad=False, has_fp16_weights=False
    )
    return _with_bias(own, layer).to("cpu")


def _gguf(layer: nn.Linear) -> nn.Module:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    values = gguf.quants.quantize(layer.weight.detach().numpy(), kind)
    own = GGUFLinear(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.float32
    )
    own.weight = GGUFParameter(torch.from_numpy(values), quant_type=kind)
    return _with_bias(own, layer)


def _with_bias(own: Any, layer: nn.Linear) -> Any:
    own.bias = layer.bias
    return own.requires_grad_(False).train(layer.training)


def _by_torchao(config: str) -> Callable[[nn.Linear], nn.Module]:
    def quantised(layer: nn.Linear) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(layer, getattr(torchao, config)())
        return layer

    return quantised


def _as_float8(layer: nn.Linear) -> nn.Module:
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(layer, FLOAT8, torch.float32, skip_modules_pattern=None)
    return layer


_WAYS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "bitsandbytes nf4": _four_bit,
    "bitsandbytes int8": _eight_bit,
    "torchao int8": _by_torchao("Int8WeightOnlyConfig"),
    "torchao float8_e4m3fn": _by_torchao("Float8WeightOnlyConfig"),
    "GGUF Q8_0": _gguf,
    "float8_e4m3fn": _as_float8,
}
KINDS = tuple(_WAYS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def quantise(model: nn.Module, kind: str, among: str = "transformer_blocks") -> Any:
    """Quantise the Linear layers below paths that hold `among`, in place, and return the model.

    Layers whose library is not installed are not known: the test is skipped.
    """
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and among in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _WAYS[kind](layer))
    return model


def is_quantised(layer: Any) -> bool:
    """Whether `quantise` has been at a layer."""
    weight = layer.weight
    return type(weight) is not nn.Parameter or weight.dtype == FLOAT8


def computed_weight(layer: Any) -> Tensor:
    """What a quantised Linear multiplies by, found by multiplying."""
    with torch.no_grad():
        found = layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))
    return found.mT.contiguous()


def dequantised(model: nn.Module, plain: nn.Module) -> Any:
    """`plain`, which `model` was before it was quantised, with the weights that stand for those of
    `model` now; `dense_weight` is tested by itself.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and is_quantised(layer):
            target: Any = plain.get_submodule(path)
            target.weight.data = dense_weight(layer, layer.weight)
            if layer.bias is not None:  # layerwise casting casts it, too
                target.bias.data = layer.bias.data.float().clone()
    return plain
