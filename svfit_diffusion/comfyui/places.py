"""Where ComfyUI holds the layers that adapters name as diffusers does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.comfyui.outside_attention import OUTSIDE_ATTENTION, SWAPPED
from svfit_diffusion.errors import ConfigError, InterchangeError
from svfit_diffusion.interchange.original_names import unet_path
from svfit_diffusion.interchange.slots import (
    Slot,
    denoiser_name,
    transformer_slot,
    with_text_model,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor of a MODEL's or a CLIP's state dict."""

Places = Callable[[str, str], "Place | None"]
"""The place of a layer by a pipeline's component and its path there; None if it has none."""

_UNET = "UNet2DConditionModel"
# What is in the names of a MODEL's layers, and the class that diffusers has for it.
_MARKS = (
    (r"input_blocks\.0\.0", _UNET),
    (r"joint_blocks\.0\.x_block\.attn\.qkv", "SD3Transformer2DModel"),
    (r"double_stream_modulation_img\.lin", "Flux2Transformer2DModel"),
    (r"double_blocks\.0\.img_mod\.lin", "FluxTransformer2DModel"),
    (r"noise_refiner\.0\.attention\.qkv", "ZImageTransformer2DModel"),
    (r"transformer_blocks\.0\.img_mod\.1", "QwenImageTransformer2DModel"),
)
_SUPPORTED = "Stable Diffusion 1, 2, XL, 3 and 3.5, FLUX.1, FLUX.2, Qwen-Image and Z-Image"

# ComfyUI's names of the text encoders that each component of a pipeline can be.
_TEXT_ENCODERS = {
    "text_encoder": ("clip_l", "clip_h"),
    "text_encoder_2": ("clip_g", "t5xxl"),
    "text_encoder_3": ("t5xxl",),
}


@dataclass(frozen=True)
class Place:
    """Where a layer's weight lies.

    Attributes:
        key: of a tensor in the state dict of a MODEL or a CLIP.
        rows: first of the layer's rows in it and their number, where several layers are fused.
        is_swapped: whether the halves of the rows are the other way round in diffusers.
    """

    key: str
    rows: tuple[int, int] | None = None
    is_swapped: bool = False

    @property
    def target(self) -> Any:
        """The place as ComfyUI's `add_patches` names it."""
        return self.key if self.rows is None else (self.key, (0, *self.rows))

    def take(self, tensor: Tensor) -> Tensor:
        """The layer's weight `(out, in, *kernel)` as diffusers has it, of the tensor here."""
        own = tensor if self.rows is None else tensor.narrow(0, *self.rows)
        return self.turn(own)

    def turn(self, weight: Tensor) -> Tensor:
        """A weight of the layer's shape with ComfyUI's order of rows in diffusers', or back."""
        return torch.cat(weight.chunk(2)[::-1]) if self.is_swapped else weight


class ModelPlaces:
    """The places of the layers of a MODEL.

    Args:
        shapes: of its state dict.

    Raises:
        ConfigError: it is of a family whose names are not known.
    """

    def __init__(self, shapes: Shapes) -> None:
        prefix, suffix = "diffusion_model.", ".weight"
        self._shapes = shapes
        self._paths = {
            key.removeprefix(prefix).removesuffix(suffix): key
            for key, shape in shapes.items()
            if key.startswith(prefix) and key.endswith(suffix) and len(shape) > 1
        }
        self._names = {denoiser_name(path): key for path, key in self._paths.items()}
        kinds = (kind for mark, kind in _MARKS if any(re.match(mark, p) for p in self._paths))
        self._kind = next(kinds, "")
        if not self._kind:
            raise ConfigError(
                f"the layers of this MODEL have no known names; supported are {_SUPPORTED}: for "
                f"others, export the adapter as a LoRA"
            )
        self._unet = _unet_config(self._paths) if self._kind == _UNET else {}

    def __call__(self, component: str, path: str) -> Place | None:
        """The place of a layer of a pipeline's component; None if the MODEL has none for it."""
        if component != ("unet" if self._kind == _UNET else "transformer"):
            return None
        return self._unet_place(path) if self._kind == _UNET else self._transformer_place(path)

    def _unet_place(self, path: str) -> Place | None:
        try:
            own = unet_path(path, self._unet)
        except InterchangeError:
            return None
        if own not in self._paths and ".upsamplers." in path:
            own = own.replace(".2.conv", ".1.conv")  # of a level without attention
        return Place(self._paths[own]) if own in self._paths else None

    def _transformer_place(self, path: str) -> Place | None:
        slot = transformer_slot(self._kind, path) or self._slot_outside(path)
        key = self._names.get(slot.name) if slot else None
        if slot is None or key is None:
            return None
        rows, width = self._shapes[key][:2]
        if slot.parts > 1:
            # Each part has as many outputs as inputs, but the last may be a wider one.
            start = slot.part * width
            is_last = slot.part == slot.parts - 1
            return Place(key, (start, rows - start if is_last else width))
        is_swapped = self._kind in OUTSIDE_ATTENTION and re.fullmatch(SWAPPED, path)
        return Place(key, is_swapped=bool(is_swapped) and rows == 2 * width)

    def _slot_outside(self, path: str) -> Slot | None:
        for pattern, name in OUTSIDE_ATTENTION.get(self._kind, ()):
            if match := re.fullmatch(pattern, path):
                return Slot(denoiser_name(match.expand(name)))
        return None


def _unet_config(paths: Iterable[str]) -> dict[str, Any]:
    """What `unet_path` asks of a UNet's configuration, by the UNet's paths in ComfyUI."""
    blocks = [path.split(".") for path in paths if path.startswith("input_blocks.")]
    halvings = [int(block[1]) for block in blocks if block[2:] == ["0", "op"]]
    before_halving = min(halvings, default=max(int(block[1]) for block in blocks) + 1)
    # Which levels have attention is not looked up here but tried, see `_unet_place`.
    levels = ("CrossAttnUpBlock2D",) * (len(halvings) + 1)
    return {"layers_per_block": before_halving - 1, "up_block_types": levels}


class ClipPlaces:
    """The places of the layers of a CLIP, which holds all text encoders.

    Args:
        shapes: of its state dict.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def __call__(self, component: str, path: str) -> Place | None:
        """The place of a layer of a pipeline's component; None if the CLIP has none for it."""
        names = _TEXT_ENCODERS.get(component, ())
        here = [n for n in names if any(key.startswith(f"{n}.") for key in self._shapes)]
        # The first that is here: the second text encoder is a T5 only where there is no CLIP-G.
        key = f"{here[0]}.transformer.{with_text_model(path)}.weight" if here else ""
        return Place(key) if len(self._shapes.get(key, ())) > 1 else None
