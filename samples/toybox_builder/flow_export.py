"""Toybox-Flow as a `FluxPipeline`: assembled, looked at, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image

from .export import GRID_PROMPTS, picture_grid, sample
from .flow_model import FlowModel
from .flow_world import FLOW_SIZE
from .tokenizer import MAX_LENGTH

FLOW_SAMPLING: dict[str, Any] = {
    "height": FLOW_SIZE,
    "width": FLOW_SIZE,
    "num_inference_steps": 20,
    "guidance_scale": 3.5,
    "max_sequence_length": MAX_LENGTH,
}
"""How pictures are drawn once the guidance is distilled."""

UNDISTILLED: dict[str, Any] = FLOW_SAMPLING | {"true_cfg_scale": 3.0, "negative_prompt": ""}
"""How they are drawn before."""

FLOW_PROMPTS = (
    *GRID_PROMPTS,
    "a photo of a fox with a red balloon in the snow",
    "a cartoon of a lion in the jungle",
    "a photo of a castle in the mountains",
    "a 3d render of a pineapple at sunset",
)


def assemble_flow(model: FlowModel, vae: AutoencoderKL) -> FluxPipeline:
    """Put the parts together."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=model.pooled_encoder,
        tokenizer=model.tokenizer,
        text_encoder_2=model.sequence_encoder,
        tokenizer_2=model.sequence_tokenizer,
        transformer=model.transformer,
    )


def look(model: FlowModel, work: Path, settings: dict[str, Any], seed: int = 7) -> Image.Image:
    """The fixed prompts, five in a row, as the model draws them now."""
    for module in model.modules.values():
        module.eval()
    pipeline = assemble_flow(model, AutoencoderKL.from_pretrained(work / "vae").eval())
    if "negative_prompt" in settings:
        settings = settings | {"negative_prompt": [""] * len(FLOW_PROMPTS)}
    with torch.inference_mode():
        return picture_grid(sample(pipeline, list(FLOW_PROMPTS), seed, settings), columns=5)
