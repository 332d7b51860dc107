"""Inputs of the models of `tiny_families`, as their pipelines would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_ideogram4 import (
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
)
from tiny_builders import denoiser
from tiny_families import DENOISERS
from torch import Tensor, nn

TOKENS = 5
"""Tokens of a text."""

Inputs = Callable[[int], dict[str, Any]]
"""Keyword arguments of a call, for a number of rows."""


def noise(*shape: int) -> Tensor:
    """Normal numbers; a batch of fewer rows is the beginning of one of more."""
    rows = max(shape[0], 4)
    return torch.randn(rows, *shape[1:], generator=torch.Generator().manual_seed(7))[: shape[0]]


# Not all of `tiny_families` can be called, fused or not, as they are.
_OTHERWISE: dict[str, dict[str, Any]] = {
    "hunyuan-dit": {"num_layers": 4},
    "sd3": {"dual_attention_layers": ()},
}


def build(family: str) -> nn.Module:
    """A tiny model of a family that can be called."""
    model: Any = DENOISERS[family]()
    if family not in _OTHERWISE:
        return model
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    return denoiser(type(model).__name__, **config | _OTHERWISE[family])()


def run(family: str, model: nn.Module, rows: int = 2) -> Tensor:
    """A model's output `(rows, …)` for fixed inputs, without gradients; the first if several."""
    with torch.no_grad():
        output = model(**INPUTS[family](rows), return_dict=False)
    return output if isinstance(output, Tensor) else output[0]


def text(rows: int, width: int = 16, tokens: int = TOKENS) -> Tensor:
    """Hidden states of a text."""
    return noise(rows, tokens, width)


def mask(rows: int, tokens: int = TOKENS) -> Tensor:
    """Which tokens of a text count: all but the last."""
    kept = torch.ones(rows, tokens, dtype=torch.bool)
    kept[:, -1] = False
    return kept


def _unet(width: int = 32, **others: Inputs) -> Inputs:
    def make(rows: int) -> dict[str, Any]:
        return {
            "sample": noise(rows, 4, 8, 8),
            "timestep": torch.full((rows,), 500),
            "encoder_hidden_states": text(rows, width) if width else None,
        } | {name: value(rows) for name, value in others.items()}

    return make


def _image(timestep: float = 500.0, **others: Any) -> Inputs:
    """Of a transformer that takes a map of latents and a text; `others` may depend on the rows."""

    def make(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": noise(rows, 4, 8, 8),
            "encoder_hidden_states": text(rows),
            "timestep": torch.full((rows,), timestep),
        } | {k: v(rows) if callable(v) else v for k, v in others.items()}

    return make


def _video(**others: Any) -> Inputs:
    return _image(hidden_states=lambda n: noise(n, 4, 2, 8, 8), **others)


def _packed(axes: int, **others: Any) -> Inputs:
    """Of a transformer that takes tokens of an image with their positions."""
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    img_ids = torch.nn.functional.pad(cells, (1, axes - 3)).float()
    return _image(
        0.5,
        **{
            "hidden_states": lambda n: noise(n, 16, 4),
            "img_ids": img_ids,
            "txt_ids": torch.zeros(TOKENS, axes),
        }
        | others,
    )


INPUTS: dict[str, Inputs] = {
    "sd": _unet(),
    "sdxl": _unet(
        added_cond_kwargs=lambda n: {"text_embeds": noise(n, 32), "time_ids": torch.ones(n, 6)}
    ),
    "if": _unet(16),
    "unclip": _unet(),
    "kandinsky2": _unet(0, added_cond_kwargs=lambda n: {"image_embeds": noise(n, 16)}),
    "animatediff": _unet(
        sample=lambda n: noise(n, 4, 2, 8, 8),
        encoder_hidden_states=lambda n: text(n).repeat_interleave(2, 0),
    ),
    "text-to-video": _unet(16, sample=lambda n: noise(n, 4, 2, 8, 8)),
    "pixart": _image(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    "sd3": _image(pooled_projections=lambda n: noise(n, 16)),
    "auraflow": _image(),
    "flux": _packed(3, pooled_projections=lambda n: noise(n, 16), joint_attention_kwargs={}),
    "chroma": _packed(3, attention_mask=lambda n: mask(n, 16 + TOKENS), joint_attention_kwargs={}),
    "longcat": _packed(3),
    "flux2": _packed(4, guidance=lambda n: torch.full((n,), 4.0)),
    "flux3": _packed(4),
    "qwen-image": _image(
        0.5,
        hidden_states=lambda n: noise(n, 16, 16),
        encoder_hidden_states_mask=None,
        img_shapes=lambda n: [[(1, 4, 4)]] * n,
        attention_kwargs={},
    ),
    "qwen-image-2.1": _image(
        0.5,
        hidden_states=lambda n: noise(n, 16, 4),
        img_shapes=lambda n: [[(1, 4, 4)]] * n,
        # Of the text's tokens none is an image; then comes one for each four of the latents.
        img_mask=lambda n: torch.arange(TOKENS + 4).expand(n, -1) >= TOKENS,
        attention_kwargs={},
    ),
    "sana": _image(),
    "lumina": _image(
        0.5,
        encoder_mask=mask,
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(8, 384, 384),
        cross_attention_kwargs={},
    ),
    "hidream": lambda n: {
        "hidden_states": noise(n, 4, 8, 8),
        "timesteps": torch.full((n,), 500.0),
        "encoder_hidden_states_t5": text(n),
        "encoder_hidden_states_llama3": noise(n, 2, TOKENS, 16).movedim(1, 0),
        "pooled_embeds": noise(n, 16),
    },
    "krea2": _image(
        0.5,
        hidden_states=lambda n: noise(n, 16, 4),
        encoder_hidden_states=lambda n: noise(n, TOKENS, 2, 16),
        position_ids=torch.zeros(16 + TOKENS, 3),
    ),
    "hunyuan-dit": lambda n: {
        "hidden_states": noise(n, 4, 8, 8),
        "timestep": torch.full((n,), 500.0),
        "encoder_hidden_states": text(n, tokens=4),
        "text_embedding_mask": mask(n, 4),
        "encoder_hidden_states_t5": text(n, tokens=4),
        "text_embedding_mask_t5": mask(n, 4),
        "image_meta_size": torch.ones(n, 6),
        "style": torch.zeros(n, dtype=torch.long),
        "image_rotary_emb": (noise(16, 8), noise(16, 8)),
    },
    "cogvideox": _image(
        hidden_states=lambda n: noise(n, 2, 4, 8, 8),
        encoder_hidden_states=lambda n: text(n, tokens=8),
    ),
    "hunyuan-video": _video(
        encoder_attention_mask=mask,
        pooled_projections=lambda n: noise(n, 16),
        guidance=lambda n: torch.full((n,), 4.0),
    ),
    "ltx": _image(
        hidden_states=lambda n: noise(n, 2 * 4 * 4, 4),
        encoder_attention_mask=mask,
        num_frames=2,
        height=4,
        width=4,
    ),
    "wan": _video(),
    "wan-i2v": _video(encoder_hidden_states_image=text),
    "wan-vace": _video(
        control_hidden_states=lambda n: noise(n, 4, 2, 8, 8),
        control_hidden_states_scale=torch.ones(2),
    ),
    "skyreels": _video(),
    "kandinsky2-prior": _image(
        hidden_states=lambda n: noise(n, 16),
        proj_embedding=lambda n: noise(n, 16),
        encoder_hidden_states=lambda n: text(n, tokens=4),
    ),
    "cogview3": _image(
        original_size=lambda n: torch.full((n, 2), 64.0),
        target_size=lambda n: torch.full((n, 2), 64.0),
        crop_coords=lambda n: torch.zeros(n, 2),
    ),
    "prx": _image(0.5, attention_mask=mask),
    "ideogram4": _image(
        0.5,
        hidden_states=lambda n: noise(n, 16 + TOKENS, 4),
        encoder_hidden_states=lambda n: text(n, tokens=16 + TOKENS),
        position_ids=lambda n: torch.zeros(n, 16 + TOKENS, 3, dtype=torch.long),
        segment_ids=lambda n: torch.zeros(n, 16 + TOKENS, dtype=torch.long),
        indicator=lambda n: torch.where(
            torch.arange(16 + TOKENS) < TOKENS, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
        ).expand(n, -1),
    ),
    "kandinsky5": _image(
        hidden_states=lambda n: noise(n, 2, 8, 8, 4),
        pooled_projections=lambda n: noise(n, 16),
        visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)],
        text_rope_pos=torch.arange(TOKENS),
    ),
    "hunyuan-image": _image(
        encoder_attention_mask=mask,
        encoder_hidden_states_2=text,
        encoder_attention_mask_2=mask,
    ),
    "joyimage": _image(hidden_states=lambda n: noise(n, 1, 4, 2, 8, 8)),
    "stable-audio-3": _image(
        0.5, hidden_states=lambda n: noise(n, 4, 8), global_hidden_states=lambda n: noise(n, 16)
    ),
}
"""By family."""
