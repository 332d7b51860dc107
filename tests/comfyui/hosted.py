"""Pipelines of diffusers as a MODEL and a CLIP of the fake ComfyUI, and what a merge makes of both.

Nothing here asks the package where a layer lies: `original_layouts` says it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import original_layouts
import torch
from diffusers import StableDiffusionPipeline
from fake_comfyui import FakeClip, FakePatcher, module_of
from merged import merged
from tiny_pipelines import flux, flux2, qwen_image, stable_diffusion, z_image
from torch import Tensor, nn

from svfit_diffusion.files.adapter import DENOISERS, Adapter

_TOYBOX = Path(__file__).parents[2] / "samples" / "toybox"


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        make: a pipeline.
        layout: of its denoiser in ComfyUI.
        encoders: ComfyUI's names of its text encoders, by component.
    """

    make: Callable[[], Any]
    layout: original_layouts.Layout
    encoders: dict[str, str]

    @functools.cached_property
    def models(self) -> dict[str, nn.Module]:
        """The models that adapters may shift, by component; read only."""
        pipe = self.make()
        denoiser = next(name for name in DENOISERS if getattr(pipe, name, None) is not None)
        return {name: getattr(pipe, name) for name in (denoiser, *self.encoders)}

    def tensors(self, models: dict[str, nn.Module] | None = None) -> dict[str, dict[str, Tensor]]:
        """What ComfyUI holds of models: of a `"MODEL"` and of a `"CLIP"`, by key."""
        models = models or self.models
        clip: dict[str, Tensor] = {}
        for component, name in self.encoders.items():
            clip |= original_layouts.text_encoder(name, models[component].state_dict())
        denoiser = next(model for name, model in models.items() if name in DENOISERS)
        layout = self.layout(denoiser.state_dict())
        return {"MODEL": {f"diffusion_model.{k}": t for k, t in layout.items()}, "CLIP": clip}

    def hosted(self, dtype: torch.dtype = torch.float32) -> tuple[FakePatcher, FakeClip]:
        """The models in ComfyUI, anew."""
        held = self.tensors()
        model, clip = (
            FakePatcher(module_of({key: t.to(dtype, copy=True) for key, t in held[side].items()}))
            for side in ("MODEL", "CLIP")
        )
        return model, FakeClip(clip)

    def merged(
        self, adapter: Adapter, strength_model: float = 1.0, strength_clip: float = 1.0
    ) -> dict[str, dict[str, Tensor]]:
        """`tensors` of the merged models."""
        whole = {
            name: merged(
                model,
                adapter.deltas.get(name, {}),
                strength_model if name in DENOISERS else strength_clip,
            )
            for name, model in self.models.items()
        }
        return self.tensors(whole)


_ONE = {"text_encoder": "clip_l"}
CASES = {
    "toybox": Case(
        lambda: StableDiffusionPipeline.from_pretrained(_TOYBOX, safety_checker=None),
        original_layouts.unet,
        _ONE,
    ),
    "sd": Case(stable_diffusion.sd, original_layouts.unet, _ONE),
    "sd2": Case(stable_diffusion.sd_v, original_layouts.unet, {"text_encoder": "clip_h"}),
    "sdxl": Case(stable_diffusion.sdxl, original_layouts.unet, _ONE | {"text_encoder_2": "clip_g"}),
    "sd3": Case(
        stable_diffusion.sd3,
        original_layouts.sd3,
        _ONE | {"text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    ),
    "flux": Case(flux.flux, original_layouts.flux, _ONE | {"text_encoder_2": "t5xxl"}),
    "flux2": Case(flux2.flux2_klein, original_layouts.flux2, {}),
    "qwen": Case(qwen_image.qwen_image, original_layouts.qwen_image, {}),
    "z_image": Case(z_image.z_image, original_layouts.z_image, {}),
}
