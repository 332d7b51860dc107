"""Which family a pipeline belongs to. A new family is its own module and a line here."""

from __future__ import annotations

import importlib
from typing import Any

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families.family import Family

TABLE = {
    "StableDiffusionPipeline": "sd.StableDiffusion",
    "StableDiffusionXLPipeline": "sdxl.StableDiffusionXL",
    "FluxPipeline": "flux.Flux",
    "FluxKontextPipeline": "flux.FluxKontext",
    "StableDiffusion3Pipeline": "sd3.StableDiffusion3",
    "QwenImagePipeline": "qwen_image.QwenImage",
    "ZImagePipeline": "z_image.ZImage",
    "Flux2Pipeline": "flux2.Flux2",
    "Flux2KleinPipeline": "flux2.Flux2Klein",
    "SanaPipeline": "sana.Sana",
    "Lumina2Pipeline": "lumina2.Lumina2",
    "PixArtSigmaPipeline": "pixart.PixArtSigma",
    "PixArtAlphaPipeline": "pixart.PixArtAlpha",
    "ChromaPipeline": "chroma.Chroma",
    "OvisImagePipeline": "ovis_image.OvisImage",
    "HiDreamImagePipeline": "hidream.HiDream",
    "Krea2Pipeline": "krea2.Krea2",
    "AuraFlowPipeline": "aura_flow.AuraFlow",
    "Ideogram4Pipeline": "ideogram4.Ideogram4",
}
"""Class of a pipeline, and its family's module and class in this folder."""


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, by its class or the classes it derives from.

    Raises:
        ConfigError: pipelines of this class cannot be trained.
    """
    for base in type(pipe).__mro__:
        if base.__name__ in TABLE:
            module, _, name = TABLE[base.__name__].partition(".")
            found = getattr(importlib.import_module(f"svfit_diffusion.families.{module}"), name)
            family: Family = found(pipe)
            return family
    raise ConfigError(
        f"a {type(pipe).__name__} cannot be trained; training supports {', '.join(sorted(TABLE))}"
    )
