"""Which layers of a model can be shifted, which of them are attention's, and which a target means.

Attention is recognised by the names of its projections alone: the models of diffusers and of
transformers have no class, method or processor for it in common.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from svfit_diffusion.adapters.layers import SHIFTABLE, Shiftable
from svfit_diffusion.errors import TargetError

_OUT = ("to_out", "to_out.0")

# Query, key and value, or what a model has fused them into: a module that has all of a row's as
# Linear layers is an attention, and those beside them are its projections where it has them. Paths
# below the module; a module can match several rows.
_ATTENTION: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    # diffusers; the tokens of a text or of a second image have projections of their own
    (("to_q", "to_k", "to_v"), _OUT),
    (("to_q", "to_kv"), _OUT),
    (("to_qkv",), _OUT),
    (("to_qkv_mlp_proj",), _OUT),
    (("add_k_proj", "add_v_proj"), ("to_q", *_OUT, "add_q_proj", "to_add_out")),
    (("to_q_t", "to_k_t", "to_v_t"), ("to_out_t",)),
    (("to_query", "to_key", "to_value"), ("out_layer",)),
    (("img_qkv_proj", "txt_kv_proj"), _OUT),
    (("img_attn_qkv",), ("img_attn_proj",)),
    (("txt_attn_qkv",), ("txt_attn_proj",)),
    (("q_img", "k_img", "v_img"), ()),
    (("q_linear", "kv_linear"), ("proj",)),
    (("q_proj_cam", "k_proj_cam", "v_proj_cam"), ("out_proj_cam",)),
    # transformers; with their output, for HunyuanDiT's pool has the first three and calls none
    (("q_proj", "k_proj", "v_proj", "o_proj"), ()),
    (("q_proj", "k_proj", "v_proj", "out_proj"), ()),
    (("q", "k", "v", "o"), ()),
    (("qkv", "proj"), ()),
    (("query_key_value", "dense"), ()),
    (("query", "key", "value"), ("proj_attn",)),
    (("self.query", "self.key", "self.value"), ("output.dense",)),
)

# What diffusers' `fuse_projections` concatenates, weights and biases alike, and from what.
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}


def attention_projections(attention: nn.Module) -> dict[str, nn.Linear]:
    """The linear projections of an attention module, by path below it, such as `to_out.0`.

    Query, key, value and output, those of joint attention's other tokens too, and the layer inside
    where a LoRA is on it. Without `fused_projections` and gates; empty for any other module.
    """
    found: dict[str, nn.Linear] = {}
    for inputs, beside in _ATTENTION:
        if _has_linears(attention, inputs):
            found |= _linears(attention, (*inputs, *beside))
    derived = fused_projections(attention)
    return {path: layer for path, layer in found.items() if path not in derived}


def fused_projections(attention: nn.Module) -> dict[str, tuple[str, ...]]:
    """The copies that diffusers' `fuse_qkv_projections` has made in an attention module.

    Returns:
        By name, such as `to_qkv`: the projections it was concatenated from along the outputs, in
        order, which still stand beside it. A projection that a model fused by itself is not here.
    """
    return {
        name: parts
        for name, parts in _FUSED.items()
        # Every module is asked, and hardly any has such a child.
        if name in attention._modules and _has_linears(attention, (name, *parts))
    }


def without_lora(layer: Any) -> Any:
    """The layer that PEFT has wrapped in a LoRA; a layer without one is returned as it is."""
    return getattr(layer, "base_layer", layer)


def shiftable_layers(model: nn.Module) -> dict[str, Shiftable]:
    """Every Linear and Conv of a model by module path, in model order.

    A layer that PEFT has wrapped in a LoRA keeps the path it had; the LoRA's own are left out, and
    so are `fused_projections`, whose weights are copies of others'.
    """
    copies = {
        id(layer)
        for module in model.modules()
        for layer in _linears(module, tuple(fused_projections(module))).values()
    }
    return {
        path.replace(".base_layer", ""): module
        for path, module in model.named_modules()
        if isinstance(module, SHIFTABLE) and ".lora_" not in path and id(module) not in copies
    }


def attention_layers(model: nn.Module) -> dict[str, Shiftable]:
    """The `attention_projections` of a diffusers or transformers model, by path, in model order."""
    found = {
        id(layer) for module in model.modules() for layer in attention_projections(module).values()
    }
    return {path: layer for path, layer in shiftable_layers(model).items() if id(layer) in found}


def select_targets(model: nn.Module, target: str | tuple[str, ...]) -> dict[str, Shiftable]:
    """The layers that `target` means in `model`, by module path, in model order.

    Args:
        target: `"attention"`, `"all"`, a layer name (matched at the end of a path, as PEFT's
            `target_modules`), a regular expression over whole paths, or several of these.

    Raises:
        TargetError: one of them matches no layer that can be shifted.
    """
    layers = shiftable_layers(model)
    chosen: set[str] = set()
    for entry in (target,) if isinstance(target, str) else target:
        if entry == "attention":
            matched = set(attention_layers(model))
        elif entry == "all":
            matched = set(layers)
        else:
            matched = _matching(entry, layers)
        if not matched:
            raise TargetError(
                f"target {entry!r} matches no Linear or Conv layer of {type(model).__name__}; use "
                f'"attention", "all", a layer name or a regular expression over whole paths such '
                f"as {next(iter(layers), 'none: this model has no such layer')!r}"
            )
        chosen |= matched
    return {path: layer for path, layer in layers.items() if path in chosen}


def _matching(entry: str, layers: dict[str, Shiftable]) -> set[str]:
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise TargetError(f"target {entry!r} is not a valid regular expression: {error}") from None
    return {path for path in layers if f".{path}".endswith(f".{entry}") or pattern.fullmatch(path)}


def _has_linears(module: nn.Module, paths: tuple[str, ...]) -> bool:
    return all(isinstance(_below(module, path), nn.Linear) for path in paths)


def _linears(module: nn.Module, paths: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Those of some paths below a module where a Linear is, inside its LoRA if it has one."""
    layers = {path: _below(module, path) for path in paths}
    return {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear)}


def _below(module: Any, path: str) -> Any:
    for name in path.split("."):
        # Not `getattr`: names as short as `q` may be properties, which can cost or raise anything.
        children = getattr(module, "_modules", {})
        module = without_lora(children.get(name))
    return module
