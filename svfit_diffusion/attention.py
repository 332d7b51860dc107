"""The attention processor that puts shifted projections under any other processor."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

from svfit_diffusion.errors import StateError
from svfit_diffusion.layers import ShiftedProjection

# Where attention modules of diffusers keep a projection in a list beside a dropout.
_IN_LISTS = ("to_out",)
_SINGLE = (
    "to_q",
    "to_k",
    "to_v",
    "to_qkv",
    "to_kv",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


def attention_projections(attention: nn.Module) -> dict[str, nn.Linear]:
    """The linear projections of a diffusers attention module, by path below the module.

    `to_q`, `to_k`, `to_v`, `to_out.0` and their `add_…` counterparts of joint attention, as far as
    the module has them; the layer inside where a LoRA is on it.
    """
    found: dict[str, nn.Linear] = {}
    for name in _SINGLE:
        projection = without_lora(getattr(attention, name, None))
        if isinstance(projection, nn.Linear):
            found[name] = projection
    for name in _IN_LISTS:
        projection = without_lora(getattr(attention, name, None))
        if isinstance(projection, nn.Linear):
            found[name] = projection
        elif isinstance(projection, nn.ModuleList):
            first = without_lora(projection[0])
            if isinstance(first, nn.Linear):
                found[f"{name}.0"] = first
    return found


def without_lora(layer: Any) -> Any:
    """The layer that PEFT has wrapped in a LoRA; a layer without one is returned as it is."""
    return getattr(layer, "base_layer", layer)


def wrap_processor(
    attention: nn.Module, inner: Any, projections: dict[str, ShiftedProjection]
) -> SVFitAttnProcessor:
    """An `SVFitAttnProcessor` whose signature is `inner`'s; arguments as for the class.

    diffusers hands a processor those `cross_attention_kwargs` that its `__call__` names.
    """
    return _class_like(type(inner))(attention, inner, projections)  # type: ignore[arg-type]


@functools.cache
def _class_like(inner_type: Any) -> type[SVFitAttnProcessor]:
    def __call__(self: SVFitAttnProcessor, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.run(attn, *args, **kwargs)

    __call__.__signature__ = inspect.signature(inner_type.__call__)  # type: ignore[attr-defined]
    return type(SVFitAttnProcessor.__name__, (SVFitAttnProcessor,), {"__call__": __call__})


class AttentionView:
    """An attention module whose projections are shifted; all else is the module's own.

    Attributes replaced are plain ones, so reading them costs no look-up and `torch.compile` traces
    through.
    """

    def __init__(self, attention: nn.Module, projections: dict[str, ShiftedProjection]) -> None:
        self._attention = attention
        for path, projection in projections.items():
            name, _, index = path.partition(".")
            if index:
                members: list[Any] = list(getattr(attention, name))
                members[int(index)] = projection
                setattr(self, name, members)
            else:
                setattr(self, name, projection)

    def __getattr__(self, name: str) -> Any:
        # While it is being copied there is no module yet to look anything up in.
        if name == "_attention" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._attention, name)


class SVFitAttnProcessor:
    """Runs another attention processor over shifted projections.

    It works with whatever processor an attention module has (`AttnProcessor2_0`, sliced, joint,
    xformers, …): that one is handed a view of the module in which `to_q`, `to_k`, `to_v`,
    `to_out[0]` and so on are shifted. The module, its parameters and its state dict stay as they
    are.

    Args:
        attention: the attention module.
        inner: the processor to run, the module's own.
        projections: shifted projections by path below the module, such as `to_out.0`.
    """

    def __init__(
        self, attention: nn.Module, inner: Any, projections: dict[str, ShiftedProjection]
    ) -> None:
        self.inner = inner
        self.projections = projections
        self._layers = {path: projection.layer for path, projection in projections.items()}
        self._view = AttentionView(attention, projections)

    def __call__(self, attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As `run`."""
        return self.run(attention, *args, **kwargs)

    def run(self, attention: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the inner processor on the view of `attention`.

        Raises:
            StateError: a projection was replaced after the adapter was put on, as loading a LoRA
                does.
        """
        for path, layer in self._layers.items():
            if attention.get_submodule(path) is not layer:
                raise StateError(
                    f"{path} was replaced after the SVFit adapter was loaded; call "
                    f"unload_svfit_weights() first, then load the LoRA, then the adapter again"
                )
        return self.inner(self._view, *args, **kwargs)

    # diffusers chooses attention kernels by setting these on the processor.
    @property
    def _attention_backend(self) -> Any:
        return self.inner._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.inner._attention_backend = value

    @property
    def _parallel_config(self) -> Any:
        return self.inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.inner._parallel_config = value
