"""Every tiny pipeline, and how it is asked for a step without guidance."""

from __future__ import annotations

from typing import Any

from oracle import Case
from torch import Tensor


def _two_by_two(pipe: Any, latents: Tensor) -> Tensor:
    return pipe._pack_latents(latents, *latents.shape)


def _rows(pipe: Any, latents: Tensor) -> Tensor:
    return pipe._pack_latents(latents)


def _flat(pipe: Any, latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)


_UNGUIDED = {"guidance_scale": 1.0}

CASES = [
    Case("sd", _UNGUIDED),
    Case("sd_v", _UNGUIDED),
    Case("sdxl", _UNGUIDED),
    Case("flux", {"guidance_scale": 3.5}, pack=_two_by_two),
    Case("flux_schnell", {"guidance_scale": 0.0}, pack=_two_by_two),
    Case("flux_kontext", {"guidance_scale": 3.5}, pack=_two_by_two),
    Case("sd3", _UNGUIDED),
    Case("sd3_without_t5", _UNGUIDED),
    Case("qwen_image", {"true_cfg_scale": 1.0, "negative_prompt": None}, pack=_two_by_two),
    Case("z_image", {"guidance_scale": 0.0}, drawn=False),
    Case("flux2", {"guidance_scale": 3.5}, pack=_rows, drawn=False),
    Case("flux2_klein", _UNGUIDED, pack=_rows, drawn=False),
    Case("sana", _UNGUIDED, drawn=False),
    Case("lumina2", _UNGUIDED),
    Case("pixart_sigma", _UNGUIDED),
    Case("pixart_alpha", _UNGUIDED),
    Case("chroma", _UNGUIDED, pack=_two_by_two),
    Case("ovis_image", _UNGUIDED, pack=_two_by_two),
    # It draws the same area whatever is asked for; this size has it.
    Case("hidream", _UNGUIDED, size=(12, 16)),
    Case("krea2", {"guidance_scale": 0.0}, pack=_two_by_two),
    Case("aura_flow", _UNGUIDED),
    Case("ideogram4", _UNGUIDED, pack=_flat, drawn=False),
]
