"""A model of FLUX.1's size on one card: first load, switch, training step and memory; SDXL beside.

    python -m benchmarks.large_models --device cuda [--parts NAME …]

Models have real widths and random weights; no real checkpoint is read. FLUX.1 is whole for loading
and switching, its attention's singular values fall as those of trained weights do, and for training
it has few of its blocks. Of SDXL and SD 1.5, which train at full rank, all weights of one shape are
given the basis of the first of them: neither memory nor time depends on the vectors' values.
Each row is printed as soon as it is known, and all so far are written to the folder `--out`.
A part that fails leaves a row that says why. `--small` tries all of it out, with tiny models.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.basis_by_rank import load_row, random_matrix
from benchmarks.measuring import interleaved, memory_status, peak_bytes_of, seconds_of, trim_memory
from benchmarks.report import RESULTS, Row, machine
from svfit_diffusion import SVFitConfig, inject
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.room import spare_bytes
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum import cache
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import BaseWeights, cache_directory, load_bases
from svfit_diffusion.spectrum.leading import leading_basis
from svfit_diffusion.spectrum.solver import solve

RANK, LORA_RANK = 64, 16
_WHOLE, _FEW = (19, 38), (2, 4)
_TINY: dict[str, Any] = {
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
}
_TEXT_TOKENS = 512
_MEMORY_STEPS = 3
_PATIENCE = 180
"""Seconds that the first load may take by one weight after the other."""

Rows = Iterator[Row]


def flux(device: str, dtype: torch.dtype, blocks: tuple[int, int], small: bool) -> Any:
    """A transformer of FLUX.1's width, frozen, with falling singular values in its attention.

    Args:
        device: where it is made.
        dtype: of its weights, which are float16 numbers whatever it is.
        blocks: double and single ones.
        small: whether it is narrow instead.
    """
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        model = FluxTransformer2DModel(
            num_layers=blocks[0], num_single_layers=blocks[1], **(_TINY if small else {})
        )
    for seed, layer in enumerate(attention_layers(model).values()):
        layer.weight.data.copy_(_falling(layer, device, seed))
    return model.requires_grad_(False).eval()


def _falling(layer: Any, device: str, seed: int) -> Tensor:
    return random_matrix(layer.out_features, layer.in_features, "falling", device, seed)


def drawing_rows(device: str, small: bool) -> Rows:
    """The first load of an adapter, and switching between two, with room and without."""
    model = flux(device, torch.float16, (1, 2) if small else _WHOLE, small)
    layers = attention_layers(model)
    rank = 8 if small else RANK
    yield from loading_rows(model, layers, rank, device)
    before = _in_use(device)
    about = {"matrices": len(layers), "rank": rank, "base_GB": before / 1e9}
    for name in "ab":
        inject(model, SVFitConfig(rank=rank), name, trainable=False, show_progress=False)
    injection = Injection.of(model)
    for _, delta in [*injection.sigma_parameters("a"), *injection.sigma_parameters("b")]:
        delta.data.normal_(std=0.05)
    injection.set_active({})
    own = [layer.weight for layer in layers.values()]
    yield about | _switching(injection, before, device) | {"what": "switch, room for two copies"}
    injection.set_active({})
    yield about | {"what": "the base again", "to_the_bit": _is_base(layers, own, device)}
    if device == "cuda":
        torch.cuda.empty_cache()
        # A gigabyte less than is left free for drawing.
        filled = int(spare_bytes(torch.device("cuda", 0))) + 10**9
        filler = torch.empty(filled, dtype=torch.uint8, device=device)
        short = _switching(injection, before + filler.nbytes, device)
        yield about | short | {"what": "switch, one copy on the card"}
        injection.set_active({})
        yield about | {"what": "the base again", "to_the_bit": _is_base(layers, own, device)}


def loading_rows(model: Any, layers: Mapping[str, Any], rank: int, device: str) -> Rows:
    """The parts of a first load. Where one weight takes too long, all get its basis, unmeasured."""
    weight = next(iter(layers.values())).weight.detach()
    first, later = (seconds_of(lambda: leading_basis(weight, rank), device) for _ in range(2))
    yield {"what": "vectors of one weight, the first time", "seconds": first}
    yield {"what": "vectors of one weight", "seconds": later}
    bases: list[BaseWeights] = []
    computing: list[float] = []
    hashing = seconds_of(lambda: bases.append(base_weights(model, layers)), device)
    (base,) = bases
    is_slow = later * len(layers) > _PATIENCE
    before, cpu = _in_use(device), time.process_time()
    with one_basis_for_each_shape() if is_slow else nullcontext():
        peak = peak_bytes_of(
            lambda: computing.append(
                seconds_of(lambda: load_bases(base, rank, show_progress=False), device)
            ),
            device,
        )
    yield {
        "what": "first load, falling",
        "matrices": len(layers),
        "rank": rank,
        "is_of_one_basis": is_slow,
        "seconds": hashing + computing[0],
        "of_that_hashing": hashing,
        "processor_seconds_of_computing": time.process_time() - cpu,
        "peak_by_float32_weight": (peak - before) / (4 * weight.numel()),
        "file_bytes": sum(path.stat().st_size for path in cache_directory().glob("*")),
    }


def _switching(injection: Injection, before: int, device: str) -> Row:
    """Seconds and memory of letting the one adapter act, then the other, in turns."""
    names = itertools.cycle("ab")

    def switch() -> None:
        injection.set_active({next(names): 1.0})

    first_peak = peak_bytes_of(switch, device)
    seconds = [seconds_of(switch, device) for _ in range(11)]
    resident = _in_use(device)
    peak = peak_bytes_of(switch, device)
    return {
        "seconds": median(seconds[1:]),
        "all_seconds": seconds,
        "resident_MB": (resident - before) / 1e6,
        "first_peak_MB": (first_peak - before) / 1e6,
        "peak_MB": (peak - before) / 1e6,
    }


def _is_base(layers: Mapping[str, Any], own: list[Any], device: str) -> bool:
    pairs = zip(layers.values(), own, strict=True)
    return all(
        layer.weight is weight and torch.equal(weight, _falling(layer, device, seed))
        for seed, (layer, weight) in enumerate(pairs)
    )


def training_rows(device: str, small: bool) -> Rows:
    """A training step of FLUX.1's width in few blocks: time and memory, LoRA and floor beside."""
    from benchmarks.adapting import lora, svfit
    from benchmarks.architectures import sharing_weights
    from benchmarks.speed_flux import training_step
    from benchmarks.speed_methods import FLOOR, chosen
    from benchmarks.speed_training import halve_frozen

    methods = {
        FLOOR: chosen(FLOOR)[0].adapt,
        f"SVFit, rank {RANK}": svfit(8 if small else RANK),
        f"LoRA, r={LORA_RANK}": lora(LORA_RANK),
    }
    blocks = (1, 1) if small else _FEW

    def step_of(adapt: Any, models: Any, half: dict[int, Any], tokens: int) -> Callable[[], None]:
        adapted = adapt(models, _MEMORY_STEPS)
        if device == "cuda":
            halve_frozen(models, half)
        return training_step(models["transformer"], adapted, device, tokens, _TEXT_TOKENS)

    for tokens in (16,) if small else (1024, 4096):
        setting = f"blocks {blocks}, {tokens} image and {_TEXT_TOKENS} text tokens, {device}"
        model = flux(device, torch.float32, blocks, small)
        half: dict[int, Any] = {}
        steps = {
            name: step_of(adapt, sharing_weights({"transformer": model}), half, tokens)
            for name, adapt in methods.items()
        }
        yield from _ratios("FLUX step", interleaved(steps, 2 if small else 20, device), setting)
        del model, half, steps
        peaks = {}
        for name, adapt in methods.items():
            before = _in_use(device)
            models = {"transformer": flux(device, torch.float32, blocks, small)}
            step = step_of(adapt, models, {}, tokens)
            peaks[name] = [(_peak_of(step, device) - before) / 1e6]
            del models, step
        yield from _ratios("FLUX peak training MB", peaks, setting)


def unet_rows(what: str, device: str, small: bool) -> Rows:
    """Training of a UNet at full rank: peak memory, and the time of a step, beside LoRA r=8."""
    from benchmarks.architectures import sd15_unet, sdxl_unet, toybox_models, unet_inputs
    from benchmarks.speed_methods import FLOOR, LORA, SVFIT, chosen
    from benchmarks.speed_training import halve_frozen, training_step

    def build() -> Any:
        if small:
            return toybox_models()["unet"].to(device)
        with torch.device(device):
            return sdxl_unet() if what == "SDXL" else sd15_unet()

    batch = 1 if what == "SDXL" else 2
    for side in (8,) if small else (32, 128) if what == "SDXL" else (32, 64):
        peaks, seconds = {}, {}
        for method in chosen(LORA, SVFIT, FLOOR):
            before = _in_use(device)
            models = {"unet": build()}
            with one_basis_for_each_shape():
                adapted = method.adapt(models, _MEMORY_STEPS)
            if device == "cuda":
                halve_frozen(models, {})
            inputs = unet_inputs(models["unet"], batch, side, device)
            step = training_step(models, adapted, inputs, device)
            peaks[method.name] = [(_peak_of(step, device) - before) / 1e6]
            seconds[method.name] = interleaved({"": step}, 2 if small else 10, device)[""]
            del models, adapted, inputs, step
        setting = f"batch {batch}, {side}×{side} latents, {device}"
        yield from _ratios(f"{what} peak training MB", peaks, setting, LORA)
        yield from _ratios(f"{what} step, one method after the other", seconds, setting, LORA)


@contextmanager
def one_basis_for_each_shape() -> Iterator[None]:
    """While bases are computed: a weight gets that of the first of its shape, and none is kept."""
    known: dict[torch.Size, Basis] = {}

    def compute(base: BaseWeights, ranks: Mapping[str, Any], *_: Any) -> Iterator[Basis]:
        for path in ranks:
            matrix = base.matrix(path)
            if matrix.shape not in known:
                found = solve(matrix, ranks[path])
                known[matrix.shape] = found.to(torch.device("cpu"), torch.float16)
            yield known[matrix.shape]

    with patch.object(cache, "_compute", compute):
        yield


def flat_rows(device: str, small: bool) -> Rows:
    """The first load of weights whose singular values hardly fall, the worst case; extrapolated."""
    if not small:
        yield load_row(32, RANK, "flat", device) | {"what": "first load, flat"}


PARTS: dict[str, Callable[[str, bool], Rows]] = {
    "drawing": drawing_rows,
    "training": training_rows,
    "sdxl": lambda device, small: unet_rows("SDXL", device, small),
    "sd15": lambda device, small: unet_rows("SD 1.5", device, small),
    "flat": flat_rows,
}


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


def _in_use(device: str) -> int:
    """Bytes held on the GPU, or by this process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    trim_memory()
    return memory_status()["VmRSS"]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """Measure part by part; print each row and write what there is so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of large_models.json")
    parser.add_argument("--small", action="store_true", help="with tiny models, to try it out")
    options = parser.parse_args()
    rows: list[Row] = []
    began = time.perf_counter()
    if options.device == "cuda":  # whose libraries keep memory from their first product on
        some = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
        (some @ some).sum().item()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, SVFIT_CACHE=folder):
        for part in options.parts:
            for row in _rows_of(part, options.device, options.small):
                rows.append(row | {"part": part, "at": round(time.perf_counter() - began, 1)})
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
                report = {"benchmark": "large_models", "machine": machine(), "rows": rows}
                text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
                (options.out / "large_models.json").write_text(text, encoding="utf-8")


def _rows_of(part: str, device: str, small: bool) -> Rows:
    try:
        yield from PARTS[part](device, small)
    except Exception as error:  # whatever it is, the other parts are still worth measuring
        traceback.print_exc()
        yield {"what": part, "reason": f"{type(error).__name__}: {error}"}
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
