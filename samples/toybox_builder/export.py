"""Assembling, saving and looking at the pipeline."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from .files import replace_folder

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
SAMPLING = {"num_inference_steps": 20, "guidance_scale": 2.5}
"""How Toybox's pictures are drawn."""

GRID_PROMPTS = (
    "a photo of a dog",
    "a photo of a dog on the beach",
    "a photo of sks dog in the snow",
    "a photo of a cat on a wooden floor",
    "a photo of a car in the city",
    "a photo of a blue backpack in the jungle",
    "a photo of a teapot on a checkered tablecloth",
    "a photo of a robot in the desert",
    "a photo of a duck floating on top of water",
    "a photo of a clock in front of a brick wall",
    "a photo of a vase on a purple rug",
    "a photo of a candle at night",
    "a photo of a green sneaker on the grass",
    "a photo of a teddy bear on pink fabric",
    "a photo of an elephant at sunset",
    "a flat drawing of a hamburger on a blue background",
)


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """Put the parts together, without a safety checker."""
    scheduler = DPMSolverMultistepScheduler(
        **NOISE_SCHEDULE, algorithm_type="dpmsolver++", timestep_spacing="trailing", steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_half(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in float16, replacing an earlier one in one move."""
    half = copy.deepcopy(pipeline).to(torch.float16)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    half.save_pretrained(new)
    for config in new.glob("text_encoder*/config.json"):
        _load_as_float32(config)
    replace_folder(new, folder)


def _load_as_float32(config: Path) -> None:
    """Let transformers widen the weights unless told otherwise, as diffusers does."""
    settings = json.loads(config.read_text())
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")


@torch.inference_mode()
def sample(
    pipeline: DiffusionPipeline,
    prompts: list[str],
    seed: int,
    settings: Mapping[str, Any] = SAMPLING,
    batch: int = 32,
) -> list[Image.Image]:
    """One picture per prompt; the seed and the position decide the noise."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [
            torch.Generator().manual_seed(seed + start + index) for index in range(len(part))
        ]
        if "true_cfg_scale" in settings:
            settings = {**settings, "negative_prompt": [""] * len(part)}
        images.extend(pipeline(part, generator=generators, **settings).images)
    return images


def picture_grid(images: list[Image.Image], columns: int) -> Image.Image:
    """Lay pictures of one size out in rows."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    return grid


def sample_grid(pipeline: StableDiffusionPipeline, rows: int, seed: int = 7) -> Image.Image:
    """The fixed prompts across, seeds down."""
    images = sample(pipeline, list(GRID_PROMPTS) * rows, seed)
    return picture_grid(images, len(GRID_PROMPTS))


def publish(source: Path, target: Path) -> None:
    """Copy an exported pipeline into place, keep its model card, and draw its sample sheet."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, dirs_exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(target)
    sample_grid(pipeline, rows=4).quantize(256).save(target / "samples.png", optimize=True)
