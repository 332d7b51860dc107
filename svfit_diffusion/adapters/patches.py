"""Shifted projections under a model for a while: while shifts are trained, or rows differ.

Attention runs through `SVFitAttnProcessor`; every other layer (text encoders, feed-forward,
convolutions, layers inside a LoRA, and attention whose processor carries weights of its own, as
IP-Adapter's does, or is a function) has its `forward` replaced. Neither adds a module or a
parameter to the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from svfit_diffusion.adapters.attention import Projection, SVFitAttnProcessor, wrap_processor
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.adapters.targets import attention_projections, fused_projections
from svfit_diffusion.adapters.weights import is_hooked
from svfit_diffusion.errors import StateError

# These have weights of their own, or a class of which none can be derived.
_UNWRAPPED = (nn.Module, FunctionType, MethodType)

# These leave the output projection to the block around them.
_WITHOUT_OUTPUT = ("LuminaAttnProcessor2_0",)


@dataclass(frozen=True)
class _Patch:
    """One change made to a model, and what was there before."""

    module: Any
    attribute: str
    new: Any
    old: Any  # None: the attribute came from the class


class Patches:
    """Projections that compute for layers of one model, until they are taken off again."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._projections: dict[str, Projection] = {}
        self._patches: list[_Patch] = []
        self._hooks: list[Any] = []

    def check(self, paths: Collection[str], layers: Mapping[str, nn.Module]) -> None:
        """Raise `StateError` if projections cannot be put there: a layer is offloaded or cast
        between its calls, or runs fused with others.

        Args:
            paths: where, by module path.
            layers: the model's, by module path.
        """
        for path in paths:
            if is_hooked(layers[path]):
                raise StateError(
                    f"{path} is offloaded or cast layer by layer (sequential or leaf-level "
                    f"offload, layerwise casting), where adapters can neither be trained nor "
                    f"given per prompt; use enable_model_cpu_offload(), or set adapters for all "
                    f"prompts"
                )
        refuse_fused(self._model, paths)

    def put(
        self,
        projections: Mapping[str, Projection],
        layers: Mapping[str, nn.Module],
        watch: Callable[..., None] | None,
    ) -> None:
        """Let these compute for their layers, in place of those put before.

        Args:
            projections: by module path; checked.
            layers: the model's, by module path.
            watch: a forward pre-hook for the model meanwhile, which takes keyword arguments.
        """
        self.remove()
        self._projections = dict(projections)
        if self._projections:
            self._patch(layers)
            self._hooks.append(self._model.register_forward_pre_hook(self._refuse_foreign))
        if watch is not None:
            self._hooks.append(self._model.register_forward_pre_hook(watch, with_kwargs=True))

    @property
    def live(self) -> list[LiveProjection]:
        """Those of shifts in training."""
        return [p for p in self._projections.values() if isinstance(p, LiveProjection)]

    def remove(self) -> None:
        """Take all off: the model has its own objects again. Idempotent."""
        for projection in self._projections.values():
            projection.close()
        self._projections = {}
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._unpatch()

    def _patch(self, layers: Mapping[str, nn.Module]) -> None:
        remaining = dict(self._projections)
        for path, module in self._model.named_modules():
            processor = getattr(module, "processor", None)
            if not hasattr(module, "set_processor") or isinstance(processor, _UNWRAPPED):
                continue
            prefix = f"{path}." if path else ""
            inside = {
                name: remaining.pop(prefix + name)
                for name in attention_projections(module)
                # Inside a LoRA the layer is out of the processor's sight: shifted in place.
                if prefix + name in remaining
                and module.get_submodule(name) is layers[prefix + name]
                and not (name == "to_out.0" and type(processor).__name__ in _WITHOUT_OUTPUT)
            }
            if inside:
                new = wrap_processor(module, processor, inside)
                self._patches.append(_Patch(module, "processor", new, processor))
                setter = functools.partial(self._set_processor, module, layers)
                self._patches.append(_Patch(module, "set_processor", setter, None))
        for path, projection in remaining.items():
            layer = layers[path]
            old = layer.__dict__.get("forward")
            self._patches.append(_Patch(layer, "forward", projection.forward, old))
        for patch in self._patches:
            setattr(patch.module, patch.attribute, patch.new)

    def _set_processor(
        self, attention: Any, layers: Mapping[str, nn.Module], processor: Any
    ) -> None:
        """Replaces `attention.set_processor`: a processor chosen later runs on shifts as well."""
        if isinstance(processor, SVFitAttnProcessor):
            processor = processor.inner
        self._unpatch()
        attention.set_processor(processor)
        self._patch(layers)

    def _unpatch(self) -> None:
        for patch in reversed(self._patches):
            # Someone may have set another processor meanwhile; that one stays.
            if patch.module.__dict__.get(patch.attribute) != patch.new:
                continue
            if patch.old is None:
                delattr(patch.module, patch.attribute)
            else:
                setattr(patch.module, patch.attribute, patch.old)
        self._patches = []

    def _refuse_foreign(self, *_: Any) -> None:
        """Before the model runs: processors assigned over ours, or projections fused under them,
        would draw the base's picture.
        """
        for patch in self._patches:
            if patch.attribute != "processor":
                continue
            if any(part in patch.new.shifted for part in _fused_parts(patch.module)):
                raise StateError(_FUSED.format(type(patch.module).__name__))
            if patch.module.processor is not patch.new:
                raise StateError(
                    f"{type(patch.module.processor).__name__} was put in place of an SVFit "
                    f"processor (as perturbed-attention guidance does) while adapters are in "
                    f"training or given per prompt; set adapters for all prompts instead"
                )


def refuse_fused(model: nn.Module, paths: Collection[str]) -> None:
    """Raise `StateError` if a model runs one of these layers fused with others, by a copy."""
    for path, module in model.named_modules() if paths else ():
        prefix = f"{path}." if path else ""
        if any(prefix + part in paths for part in _fused_parts(module)):
            raise StateError(_FUSED.format(path))


_FUSED = (
    "{} runs query, key and value fused, where adapters can neither be trained, nor given per "
    "prompt, nor act on quantised weights; call unfuse_qkv_projections() first"
)


def _fused_parts(module: nn.Module) -> set[str]:
    """Those projections of an attention module, of which it runs a fused copy instead."""
    fused = fused_projections(module)
    return {part for parts in fused.values() for part in parts if runs_fused(module)}


def runs_fused(attention: Any) -> bool:
    """Whether an attention module runs query, key and value fused, by a copy."""
    if hasattr(attention, "unfuse_projections"):
        return bool(getattr(attention, "fused_projections", False))
    # The older attention module keeps its flag when it is unfused; its processor tells.
    processor = attention.processor
    inner = processor.inner if isinstance(processor, SVFitAttnProcessor) else processor
    return type(inner).__name__.startswith("Fused")
