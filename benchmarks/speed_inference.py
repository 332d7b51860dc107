"""Speed of generating: what an adapter costs, alone and in batches that mix adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.adapting import Models
from benchmarks.architectures import (
    bare_pipeline,
    clip_text_encoder,
    for_inference,
    sd15_models,
    sharing_weights,
    toybox_pipeline,
    unet_inputs,
)
from benchmarks.measuring import interleaved
from benchmarks.report import ROOT, Row
from benchmarks.speed_methods import LORA, SVFIT, chosen
from benchmarks.speed_rows import timing_rows
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum.basis import full_rank

BASE = "base"
LORA_UNFUSED = f"{LORA}, unfused"
FORWARD = "denoiser call with an adapter, SD 1.5"
TOYBOX_IMAGE = "image with an adapter, Toybox"
MIXED = "denoiser call of 8 prompts with 8 adapters, SD 1.5"
MIXED_LARGE = f"{MIXED}, 512 px"
_PROMPTS = 8
_SAMPLE = ROOT / "samples" / "adapters" / "blue_car"
_IMAGE_STEPS = 20


def denoiser_call(device: str, rounds: int) -> list[Row]:
    """One call of SD 1.5's UNet at 512 pixels with guidance, with an adapter and without."""
    base = for_inference(sd15_models(text_encoder=False), device)
    pipe = bare_pipeline(sharing_weights(base)["unet"], clip_text_encoder(layers=1))
    pipe.load_svfit_weights(random_adapter(base, seed=0), show_progress=False)
    lora = sharing_weights(base)
    chosen(LORA)[0].adapt(lora, 1)
    inputs = unet_inputs(base["unet"], 2, 64, device)
    calls = {
        BASE: forward_of(base["unet"], inputs),
        SVFIT: forward_of(pipe.unet, inputs),
        LORA_UNFUSED: forward_of(lora["unet"], inputs),
    }
    seconds = interleaved(calls, _repeats(rounds, device), device)
    return timing_rows(FORWARD, seconds, BASE, setting=f"512 px, 2 rows (guidance), {device}")


def toybox_image(device: str, rounds: int) -> list[Row]:
    """A whole image from a prompt by Toybox, with an adapter and without."""
    pipes = {name: toybox_pipeline().to(device) for name in (BASE, SVFIT, LORA_UNFUSED)}
    pipes[SVFIT].load_svfit_weights(_SAMPLE, show_progress=False)
    lora = pipes[LORA_UNFUSED]
    chosen(LORA)[0].adapt({"unet": lora.unet, "text_encoder": lora.text_encoder}, 1)

    def drawing(pipe: Any) -> Callable[[], object]:
        return lambda: pipe(
            "a photo of sks car on the beach",
            num_inference_steps=_IMAGE_STEPS,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
        )

    calls = {name: drawing(pipe) for name, pipe in pipes.items()}
    seconds = interleaved(calls, 4 * _repeats(rounds, device), device)
    return timing_rows(
        TOYBOX_IMAGE, seconds, BASE, setting=f"64 px, {_IMAGE_STEPS} steps, guidance, {device}"
    )


def mixed_batch(device: str, rounds: int) -> list[Row]:
    """A batch whose every prompt has an adapter of its own, against the same batch on the base."""
    # On two cores a call of 8 rows takes about a minute at 512 pixels, a quarter at 256.
    return _mixed_rows(MIXED, 64 if device == "cuda" else 32, device, rounds)


def large_mixed_batch(device: str, rounds: int) -> list[Row]:
    """The same at 512 pixels on a CPU."""
    return _mixed_rows(MIXED_LARGE, 64, device, rounds)


def _mixed_rows(what: str, latent_size: int, device: str, rounds: int) -> list[Row]:
    base = for_inference(sd15_models(text_encoder=False), device)
    pipe = bare_pipeline(sharing_weights(base)["unet"], clip_text_encoder(layers=1))
    names = [f"a{index}" for index in range(_PROMPTS)]
    for seed, name in enumerate(names):
        pipe.load_svfit_weights(random_adapter(base, seed), name, show_progress=False)
    inputs = unet_inputs(base["unet"], _PROMPTS, latent_size, device)
    calls = {
        BASE: forward_of(base["unet"], inputs),
        SVFIT: forward_of(pipe.unet, inputs),
    }
    with pipe.svfit_adapters_per_prompt(names, num_images_per_prompt=1):
        seconds = interleaved(calls, rounds, device)
    setting = f"{8 * latent_size} px, {_PROMPTS} rows (no guidance), {device}"
    return timing_rows(what, seconds, BASE, setting=setting)


def random_adapter(models: Models, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of an adapter of full rank on the models' attention, with random shifts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{component}.{path}.delta": 0.1 * torch.randn(full_rank(layer.weight), generator=generator)
        for component, model in models.items()
        for path, layer in attention_layers(model).items()
    }


def forward_of(unet: Any, inputs: dict[str, Any]) -> Callable[[], object]:
    """A call of the UNet as pipelines make it: without gradients."""

    def call() -> object:
        with torch.no_grad():
            return unet(**inputs).sample

    return call


def _repeats(rounds: int, device: str) -> int:
    """More rounds where a call is short, since one percent is to be seen."""
    return 10 * rounds if device == "cuda" else rounds
