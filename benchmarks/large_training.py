"""Training in the memory of a frozen model: FLUX.1's width, SDXL and SD 1.5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch

from benchmarks.adapting import lora, svfit
from benchmarks.architectures import (
    sd15_unet,
    sdxl_unet,
    sharing_weights,
    toybox_models,
    unet_inputs,
)
from benchmarks.large_weights import flux, one_basis_for_each_shape
from benchmarks.measuring import bytes_in_use, interleaved, peak_bytes_of
from benchmarks.report import Row
from benchmarks.speed_flux import training_step as flux_training_step
from benchmarks.speed_methods import FLOOR, LORA, SVFIT, chosen
from benchmarks.speed_training import halve_frozen, training_step

RANK, LORA_RANK = 64, 16
_FEW = {"cuda": (2, 4), "cpu": (1, 1)}
_IMAGE_TOKENS = {"cuda": (4096, 1024), "cpu": (1024,)}
"""Of pictures of 1024 and 512 pixels."""
_ROUNDS = {"cuda": 10, "cpu": 3}
_TEXT_TOKENS = 512
_MEMORY_STEPS = 3

Rows = Iterator[Row]


def training_rows(device: str, small: bool) -> Rows:
    """A training step of FLUX.1's width in few blocks: time and memory, LoRA and floor beside."""
    methods = {
        FLOOR: chosen(FLOOR)[0].adapt,
        f"SVFit, rank {RANK}": svfit(8 if small else RANK),
        f"LoRA, r={LORA_RANK}": lora(LORA_RANK),
    }
    blocks = (1, 1) if small else _FEW[device]

    def step_of(adapt: Any, models: Any, half: dict[int, Any], tokens: int) -> Callable[[], None]:
        adapted = adapt(models, _MEMORY_STEPS)
        if device == "cuda":
            halve_frozen(models, half)
        return flux_training_step(models["transformer"], adapted, device, tokens, _TEXT_TOKENS)

    rounds = 2 if small else _ROUNDS[device]
    for tokens in (16,) if small else _IMAGE_TOKENS[device]:
        setting = f"blocks {blocks}, {tokens} image and {_TEXT_TOKENS} text tokens, {device}"
        model = flux(device, torch.float32, blocks, small)
        half: dict[int, Any] = {}
        steps = {
            name: step_of(adapt, sharing_weights({"transformer": model}), half, tokens)
            for name, adapt in methods.items()
        }
        yield from _ratios("FLUX step", interleaved(steps, rounds, device), setting)
        del model, half, steps
        peaks = {}
        for name, adapt in methods.items():
            before = bytes_in_use(device)
            models = {"transformer": flux(device, torch.float32, blocks, small)}
            step = step_of(adapt, models, {}, tokens)
            peaks[name] = [(_peak_of(step, device) - before) / 1e6]
            del models, step
        yield from _ratios("FLUX peak training MB", peaks, setting)


def unet_rows(what: str, device: str, small: bool) -> Rows:
    """Training of a UNet at full rank: peak memory, and the time of a step, beside LoRA r=8."""

    def build() -> Any:
        if small:
            return toybox_models()["unet"].to(device)
        with torch.device(device):
            return sdxl_unet() if what == "SDXL" else sd15_unet()

    batch = 1 if what == "SDXL" else 2
    for side in (8,) if small else (32, 128) if what == "SDXL" else (64,):
        peaks, seconds = {}, {}
        for method in chosen(LORA, SVFIT, FLOOR):
            before = bytes_in_use(device)
            models = {"unet": build()}
            with one_basis_for_each_shape():
                adapted = method.adapt(models, _MEMORY_STEPS)
            if device == "cuda":
                halve_frozen(models, {})
            inputs = unet_inputs(models["unet"], batch, side, device)
            step = training_step(models, adapted, inputs, device)
            peaks[method.name] = [(_peak_of(step, device) - before) / 1e6]
            seconds[method.name] = interleaved({"": step}, 2 if small else 5, device)[""]
            del models, adapted, inputs, step
        setting = f"batch {batch}, {side}×{side} latents, {device}"
        yield from _ratios(f"{what} peak training MB", peaks, setting, LORA)
        yield from _ratios(f"{what} step, one method after the other", seconds, setting, LORA)


def _ratios(
    what: str, values: Mapping[str, list[float]], setting: str, ratio_to: str = ""
) -> Iterator[Row]:
    """A row for each method, with the median of its ratios to one of them, by default the first."""
    reference = values[ratio_to or next(iter(values))]
    for method, own in values.items():
        ratios = [a / b for a, b in zip(own, reference, strict=True)]
        yield {
            "what": what,
            "method": method,
            "value": median(own),
            "ratio": median(ratios),
            "ratio_to": ratio_to or next(iter(values)),
            "setting": setting,
        }


def _peak_of(step: Callable[[], None], device: str) -> int:
    def train() -> None:
        for _ in range(_MEMORY_STEPS):
            step()

    return peak_bytes_of(train, device)
