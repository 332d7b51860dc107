"""Training a transformer as wide as FLUX.1's, with few of its blocks and random weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from benchmarks.adapting import Adapted, Models
from benchmarks.architectures import on_device, sharing_weights
from benchmarks.measuring import MALLOC_SETTINGS, interleaved, isolated, peak_bytes_of
from benchmarks.methods import find_method
from benchmarks.report import Row
from benchmarks.speed_methods import FLOOR, LORA, SVFIT, chosen
from benchmarks.speed_rows import timing_rows, value_rows
from benchmarks.speed_training import halve_frozen, memory_of, precision, step_of

FLUX = "FLUX.1 transformer of 2 blocks"
RANK_32 = "SVFit, rank 32"
_IMAGE_TOKENS = 64
_TEXT_TOKENS = 128
_STEPS = 3


def flux_transformer() -> FluxTransformer2DModel:
    """A double and a single block of FLUX.1 dev's width of 3072, frozen."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(num_layers=1, num_single_layers=1).requires_grad_(False).eval()


def flux_step(device: str, rounds: int) -> list[Row]:
    """Time a training step of each method; rows with ratios to LoRA and to the floor."""
    models: Models = on_device({"transformer": flux_transformer()}, device)
    half: dict[int, Any] = {}
    steps, trained = {}, {}
    methods = (*chosen(SVFIT, LORA, FLOOR), find_method(RANK_32))
    for method in methods:
        copies = sharing_weights(models)
        adapted = method.adapt(copies, rounds)
        if device == "cuda":
            halve_frozen(copies, half)
        trained[method.name] = adapted.value_count()
        steps[method.name] = training_step(copies["transformer"], adapted, device)
    seconds = interleaved(steps, rounds, device)
    return [
        row | {"trained_values": trained[row["method"]]}
        for reference in (LORA, FLOOR)
        for row in timing_rows(step_of(FLUX), seconds, reference, setting=_setting(device))
    ]


def flux_memory(device: str, rounds: int) -> list[Row]:
    """Peak memory of training by each method, a process for each."""
    with patch.dict(os.environ, MALLOC_SETTINGS):
        isolated(_warm_cache, device)
        peaks = {
            name: isolated(_peak_bytes, name, device) / 1e6
            for name in (SVFIT, RANK_32, LORA, FLOOR)
        }
    return value_rows(memory_of(FLUX), peaks, "MB", LORA, setting=_setting(device))


def _warm_cache(device: str) -> None:
    """Compute the bases, so that no process that is measured does."""
    find_method(SVFIT).adapt(on_device({"transformer": flux_transformer()}, device), 1)


def _peak_bytes(name: str, device: str) -> int:
    models = on_device({"transformer": flux_transformer()}, device)
    method = find_method(name) if name == RANK_32 else chosen(name)[0]
    adapted = method.adapt(models, _STEPS)
    if device == "cuda":
        halve_frozen(models, {})
    step = training_step(models["transformer"], adapted, device)

    def train() -> None:
        for _ in range(_STEPS):
            step()

    return peak_bytes_of(train, device)


def training_step(
    transformer: Any,
    adapted: Adapted,
    device: str,
    image_tokens: int = _IMAGE_TOKENS,
    text_tokens: int = _TEXT_TOKENS,
) -> Callable[[], None]:
    """One step of training: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(adapted.parameters, lr=1e-5) if adapted.parameters else None
    generator = torch.Generator().manual_seed(3)
    config, dtype = transformer.config, next(transformer.parameters()).dtype

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    inputs = {
        "hidden_states": noise(1, image_tokens, config.in_channels),
        "encoder_hidden_states": noise(1, text_tokens, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5], device=device, dtype=dtype),
        "img_ids": torch.zeros(image_tokens, 3, device=device),
        "txt_ids": torch.zeros(text_tokens, 3, device=device),
    }
    wanted = noise(1, image_tokens, config.in_channels)

    def step() -> None:
        with precision(device):
            (prediction,) = transformer(**inputs, return_dict=False)
            loss = F.mse_loss(prediction.float(), wanted.float())
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _setting(device: str) -> str:
    used = "bfloat16" if device == "cuda" else "float32"
    return f"batch 1, {_IMAGE_TOKENS} image and {_TEXT_TOKENS} text tokens, {used}, {device}"
