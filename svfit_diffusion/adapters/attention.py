"""The attention processor that puts shifted projections under any other processor."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from typing import Any

from torch import Tensor, nn

from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.adapters.mixing import RowProjection
from svfit_diffusion.errors import StateError

Projection = LiveProjection | RowProjection
"""What computes a layer's output with shifts."""


def stand_in(layer: nn.Module, projection: Projection) -> nn.Module:
    """A module that is `layer` in all, hooks, parameters and state included, but for `forward`."""
    layer_type: Any = type(layer)
    module: nn.Module = object.__new__(_computing_like(layer_type))
    # The same attributes, so that what is set or registered later, on either, counts for both.
    module.__dict__ = layer.__dict__
    object.__setattr__(module, "_computed_by", (layer, projection))
    return module


@functools.cache
def _computing_like(layer_type: Hashable) -> type[nn.Module]:
    parent: Any = layer_type

    def forward(self: Any) -> Any:
        return self._computed_by[1].forward

    def __reduce__(self: Any) -> tuple[Any, ...]:
        return stand_in, self._computed_by

    # Beside the attributes, which are the layer's; a property comes before a `forward` of those.
    own = {"__slots__": ("_computed_by",), "forward": property(forward), "__reduce__": __reduce__}
    return type(parent.__name__, (parent,), own)


class AttentionView:
    """An attention module whose projections are shifted; all else is the module's own.

    Attributes replaced are plain ones, so reading them costs no look-up and `torch.compile` traces
    through.
    """

    def __init__(self, attention: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._attention = attention
        for path, layer in layers.items():
            name, _, index = path.partition(".")
            if index:
                members: list[Any] = list(getattr(attention, name))
                members[int(index)] = layer
                setattr(self, name, members)
            else:
                setattr(self, name, layer)

    def __getattr__(self, name: str) -> Any:
        # While it is being copied there is no module yet to look anything up in.
        if name == "_attention" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._attention, name)


class SVFitAttnProcessor:
    """Runs an attention module's own processor over shifted projections.

    It works with whatever processor that is (`AttnProcessor2_0`, sliced, joint, xformers, …): it is
    handed a view of the module in which `to_q`, `to_k`, `to_v`, `to_out[0]` and so on are shifted.
    The module, its parameters and its state dict stay as they are.

    Made by `wrap_processor`, it is an instance of the inner processor's class too, and passes
    attributes on to it in both directions. Who calls its class, gets a processor of the inner one.
    """

    _svfit: _Wrapping

    @property
    def inner(self) -> Any:
        """The processor that it runs."""
        return self._svfit.processor

    @property
    def shifted(self) -> Collection[str]:
        """The projections that it shifts, by path below the attention module."""
        return self._svfit.projections.keys()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_svfit" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._svfit.processor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._svfit.processor if "_svfit" in self.__dict__ else super(), name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Contents come last: the attention module, which holds the processor, is among them.
        return _hollow, (type(self.inner),), {"_svfit": self._svfit}


class _Wrapping:
    """What an `SVFitAttnProcessor` holds."""

    def __init__(
        self, attention: nn.Module, processor: Any, projections: Mapping[str, Projection]
    ) -> None:
        self.attention = attention
        self.processor = processor
        self.projections = dict(projections)
        self.layers = {path: attention.get_submodule(path) for path in projections}
        self.view = AttentionView(
            attention, {path: stand_in(self.layers[path], p) for path, p in projections.items()}
        )

    def run(self, attention: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Run the inner processor on the view of `attention`."""
        for path, layer in self.layers.items():
            if attention.get_submodule(path) is not layer:
                raise StateError(
                    f"{path} was replaced while adapters are in training or given per prompt; "
                    f"load a LoRA before that"
                )
        output: Tensor = self.processor(self.view, *args, **kwargs)
        return output


def wrap_processor(
    attention: nn.Module, inner: Any, projections: Mapping[str, Projection]
) -> SVFitAttnProcessor:
    """An `SVFitAttnProcessor` around `inner`.

    Args:
        attention: the attention module.
        inner: the processor to run, the module's own.
        projections: by path below the module, such as `to_out.0`.
    """
    processor = _hollow(type(inner))
    processor.__dict__["_svfit"] = _Wrapping(attention, inner, projections)
    return processor


def _hollow(inner_type: type) -> SVFitAttnProcessor:
    return object.__new__(_class_like(inner_type))


@functools.cache
def _class_like(inner: Hashable) -> type[SVFitAttnProcessor]:
    inner_type: Any = inner

    # diffusers hands a processor those `cross_attention_kwargs` that its `__call__` names.
    @functools.wraps(inner_type.__call__)
    def __call__(self: SVFitAttnProcessor, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._svfit.run(attn, *args, **kwargs)

    # diffusers makes another processor of the same kind where it takes an IP-Adapter's off.
    def __new__(_: Any, *args: Any, **kwargs: Any) -> Any:
        return inner_type(*args, **kwargs)

    name = SVFitAttnProcessor.__name__
    members = {"__call__": __call__, "__new__": __new__}
    return type(name, (SVFitAttnProcessor, inner_type), members)
