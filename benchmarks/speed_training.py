"""Speed and memory of training: one optimizer step of each method on the same models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adapting import Adapted, Models
from benchmarks.architectures import (
    on_device,
    sd15_models,
    sdxl_unet,
    sharing_weights,
    toybox_models,
    unet_inputs,
)
from benchmarks.measuring import MALLOC_SETTINGS, interleaved, isolated, peak_bytes_of
from benchmarks.methods import Method, find_method
from benchmarks.report import Row
from benchmarks.speed_methods import FLOOR, FULL, LORA, METHODS, SVFIT, SVFIT_99, chosen
from benchmarks.speed_rows import timing_rows, value_rows

UNET = "SD 1.5 UNet"
BOTH = "SD 1.5 UNet + text encoder"
SDXL = "SDXL UNet"
TOYBOX = "Toybox"
_MEMORY_STEPS = 3
_LEARNING_RATE = 1e-5


def step_of(what: str) -> str:
    """The name of its training step in results."""
    return f"training step, {what}"


def memory_of(what: str) -> str:
    """The name of its peak memory in results."""
    return f"peak training memory, {what}"


def sd15_step(device: str, rounds: int, text_encoder: bool) -> list[Row]:
    """SD 1.5 as it is trained: all methods on the UNet, the main ones with the text encoder."""
    models = on_device(sd15_models(text_encoder), device)
    methods = chosen(SVFIT, SVFIT_99, LORA, FLOOR) if text_encoder else METHODS
    latent_size = 64 if device == "cuda" else 32
    inputs = unet_inputs(models["unet"], 2, latent_size, device)
    return step_rows(BOTH if text_encoder else UNET, models, methods, inputs, rounds, device)


def full_step(device: str, rounds: int) -> list[Row]:
    """Full fine-tuning of the UNet, which needs much memory, beside LoRA and the floor."""
    models = on_device(sd15_models(text_encoder=False), device)
    inputs = unet_inputs(models["unet"], 2, 32, device)
    methods = (*chosen(LORA, FLOOR), find_method(FULL))
    return step_rows(f"{UNET} (full)", models, methods, inputs, rounds, device)


def toybox_step(device: str, rounds: int) -> list[Row]:
    """Toybox by the defaults of the trainer; a step is short, so the rounds are many."""
    models = on_device(toybox_models(), device)
    encoder: Any = models["text_encoder"]
    length = encoder.config.max_position_embeddings
    inputs = unet_inputs(models["unet"], 4, 16, device, length)
    return step_rows(TOYBOX, models, METHODS, inputs, 8 * rounds, device)


def step_rows(
    what: str,
    models: Models,
    methods: Sequence[Method],
    inputs: dict[str, Any],
    rounds: int,
    device: str,
) -> list[Row]:
    """Time one step of each method in every round; rows with ratios to LoRA and to the floor."""
    half: dict[int, tuple[Tensor, Tensor]] = {}
    steps, trained = {}, {}
    for method in methods:
        copies = sharing_weights(models)
        adapted = method.adapt(copies, rounds)
        if device == "cuda":
            halve_frozen(copies, half)
        trained[method.name] = adapted.value_count()
        steps[method.name] = training_step(copies, adapted, inputs, device)
    seconds = interleaved(steps, rounds, device)
    setting = _setting(inputs, device)
    return [
        row | {"trained_values": trained[row["method"]]}
        for reference in (LORA, FLOOR)
        for row in timing_rows(step_of(what), seconds, reference, setting=setting)
    ]


def training_step(
    models: Models, adapted: Adapted, inputs: dict[str, Any], device: str
) -> Callable[[], None]:
    """One step of training: forward, backward, AdamW.

    A text encoder among the models makes the embeddings; else those in `inputs` are used.
    """
    optimizer = (
        torch.optim.AdamW(adapted.parameters, lr=_LEARNING_RATE) if adapted.parameters else None
    )
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(inputs["sample"].shape, generator=generator).to(device)
    encoder: Any = models.get("text_encoder")
    tokens = None
    if encoder is not None:
        shape = inputs["encoder_hidden_states"].shape[:2]
        tokens = torch.randint(encoder.config.vocab_size, shape, generator=generator).to(device)

    def step() -> None:
        with precision(device):
            given = inputs
            if tokens is not None:
                given = inputs | {"encoder_hidden_states": encoder(tokens)[0]}
            prediction = models["unet"](**given).sample
            loss = F.mse_loss(prediction.float(), noise)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def sd15_memory(device: str, rounds: int, text_encoder: bool) -> list[Row]:
    """Peak memory of training SD 1.5 by each method, a process for each."""
    names = (SVFIT, LORA) if text_encoder else (SVFIT, SVFIT_99, LORA)
    latent_size = 64 if device == "cuda" else 32
    return _memory_rows(BOTH if text_encoder else UNET, names, 2, latent_size, device)


def full_memory(device: str, rounds: int) -> list[Row]:
    """Peak memory of fine-tuning all weights of SD 1.5's UNet, and of its forward and backward."""
    latent_size = 64 if device == "cuda" else 32
    return _memory_rows(f"{UNET} (full)", (FULL, LORA, FLOOR), 2, latent_size, device)


def sdxl_memory(device: str, rounds: int) -> list[Row]:
    """Peak memory of training SDXL's UNet."""
    return _memory_rows(SDXL, (SVFIT, SVFIT_99, LORA), 1, 32, device)


def _memory_rows(
    what: str, names: Sequence[str], batch: int, latent_size: int, device: str
) -> list[Row]:
    setting = ""
    with patch.dict(os.environ, MALLOC_SETTINGS):
        isolated(_warm_cache, what, device)
        peaks = {}
        for name in names:
            peaks[name], setting = isolated(_peak_bytes, what, name, batch, latent_size, device)
    megabytes = {name: peak / 1e6 for name, peak in peaks.items()}
    return value_rows(memory_of(what), megabytes, "MB", LORA, setting=setting)


def _warm_cache(what: str, device: str) -> None:
    """Compute the bases, so that no process that is measured does."""
    find_method(SVFIT).adapt(on_device(_build(what), device), 1)


def _peak_bytes(what: str, name: str, batch: int, latent_size: int, device: str) -> tuple[int, str]:
    """Most memory in use while a method trains, weights and basis included; and the setting."""
    models = on_device(_build(what), device)
    method = find_method(name) if name == FULL else chosen(name)[0]
    adapted = method.adapt(models, _MEMORY_STEPS)
    if device == "cuda":
        halve_frozen(models, {})
    inputs = unet_inputs(models["unet"], batch, latent_size, device)
    step = training_step(models, adapted, inputs, device)

    def train() -> None:
        for _ in range(_MEMORY_STEPS):
            step()

    return peak_bytes_of(train, device), _setting(inputs, device)


def _build(what: str) -> Models:
    return {"unet": sdxl_unet()} if what == SDXL else sd15_models(text_encoder=what == BOTH)


def halve_frozen(models: Models, half: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Put frozen weights into bfloat16 once the adapters are made, as trainers do.

    Args:
        models: to change.
        half: weights as they were and in bfloat16, by the address of the former, to share between
            models; kept, or the address would come to belong to another weight.
    """
    for model in models.values():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                original = parameter.detach()
                address = original.data_ptr()
                if address not in half:
                    half[address] = (original, original.to(torch.bfloat16))
                parameter.data = half[address][1]


def precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """On a GPU bfloat16 by autocast, as trainers do; float32 otherwise."""
    if device == "cuda":
        return torch.autocast(device, torch.bfloat16)
    return contextlib.nullcontext()


def _setting(inputs: dict[str, Any], device: str) -> str:
    rows, _, latent_size, _ = inputs["sample"].shape
    precision = "bfloat16" if device == "cuda" else "float32"
    return (
        f"batch {rows}, {latent_size}×{latent_size} latents, "
        f"{inputs['encoder_hidden_states'].shape[1]} tokens, {precision}, {device}"
    )
