"""What `svfit` imports sooner or later."""

import diffusers.loaders
import peft
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizerFast

import svfit_diffusion.adapters.loading
import svfit_diffusion.cli.main
import svfit_diffusion.interchange
import svfit_diffusion.planning
import svfit_diffusion.training.run

__all__ = [
    "CLIPTextModel",
    "CLIPTokenizerFast",
    "DDIMScheduler",
    "StableDiffusionPipeline",
    "diffusers",
    "peft",
    "svfit_diffusion",
]
