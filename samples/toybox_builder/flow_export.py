"""Toybox-Flow as a `FluxPipeline`: assembled, looked at, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image

from .export import GRID_PROMPTS, picture_grid, sample, save_half
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
"""How pictures are drawn once guidance is learned."""

UNDISTILLED: dict[str, Any] = FLOW_SAMPLING | {"true_cfg_scale": 3.0}
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


def take_weights(model: FlowModel, folder: Path) -> None:
    """Give a model the weights of a pipeline that `save_flow` wrote."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    model.transformer.load_state_dict(pipeline.transformer.state_dict())
    model.pooled_encoder.load_state_dict(pipeline.text_encoder.state_dict())
    model.sequence_encoder.load_state_dict(pipeline.text_encoder_2.state_dict())


def look(pipeline: FluxPipeline, settings: dict[str, Any], seed: int = 7) -> Image.Image:
    """The fixed prompts, five in a row."""
    return picture_grid(sample(pipeline, list(FLOW_PROMPTS), seed, settings), columns=5)


def save_flow(pipeline: FluxPipeline, folder: Path) -> None:
    """Write the pipeline in float16, for every version of transformers that is supported."""
    save_half(pipeline, folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    # Transformers 5 has another name for this class, which 4 does not know; it knows both.
    parts["tokenizer_2"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(parts, indent=2) + "\n")
