"""Families of pipelines: what each must tell the trainer, one small module per kind.

    family = family_of(pipe)              # or ConfigError with what trains
    family.check()                        # before any work
    process = family.noise_process(NoiseSettings())
    mean, std = family.encode_photo(pixels)
    latents = family.scale_latents(mean + std * torch.randn_like(mean))
    conditions = family.encode_prompts(["a photo of sks dog"])
    noise, time = process.draw(latents[0], generator)
    noisy = process.noisy(latents, noise[None], time[None])
    prediction = family.predict(noisy, time[None], conditions, [PhotoSize.whole(512, 512)])
    losses = process.losses(prediction, latents, noise[None], time[None])

The pipeline is right: what the denoiser gets in training is what the pipeline gives it for the same
latents, time and prompt, and a prediction is what the pipeline hands its scheduler.
"""

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling
from svfit_diffusion.families.noise import NoiseProcess, NoiseSettings
from svfit_diffusion.families.table import TABLE, family_of

__all__ = [
    "TABLE",
    "Conditions",
    "Family",
    "NoiseProcess",
    "NoiseSettings",
    "PhotoSize",
    "Sampling",
    "family_of",
]
