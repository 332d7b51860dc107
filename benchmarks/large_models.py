"""A model of FLUX.1's size on one card: first load, switch, training step and memory; SDXL beside.

    python -m benchmarks.large_models --device cuda [--parts NAME …]
    python -m benchmarks.large_models --parts training

Models have real widths and random weights; no real checkpoint is read. FLUX.1 is whole for loading
and switching, its attention's singular values fall as those of trained weights do, and for training
it has few of its blocks. Of SDXL and SD 1.5, which train at full rank, all weights of one shape are
given the basis of the first of them: neither memory nor time depends on the vectors' values.
Each row is printed as soon as it is known, and all so far are written to the folder `--out`, as
`large_models.json` or `large_models_cpu.json`.
A part that fails leaves a row that says why. `--small` tries all of it out, with tiny models.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.basis_by_rank import load_row
from benchmarks.large_weights import falling, flux, one_basis_for_each_shape
from benchmarks.measuring import bytes_in_use, peak_bytes_of, seconds_of
from benchmarks.report import RESULTS, Row, machine
from svfit_diffusion import SVFitConfig, inject
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.room import spare_bytes
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum.cache import BaseWeights, cache_directory, load_bases
from svfit_diffusion.spectrum.leading import leading_basis

RANK = 64
_WHOLE = (19, 38)
_PATIENCE = 180
"""Seconds that the vectors of all weights may take, one after the other; else all get one's."""

Rows = Iterator[Row]


def drawing_rows(device: str, small: bool) -> Rows:
    """The first load of an adapter, and switching between two, with room and without."""
    model = flux(device, torch.float16, (1, 2) if small else _WHOLE, small)
    layers = attention_layers(model)
    rank = 8 if small else RANK
    weight = next(iter(layers.values())).weight.detach()
    first, later = (seconds_of(lambda: leading_basis(weight, rank), device) for _ in range(2))
    yield {"what": "vectors of one weight, the first time", "seconds": first}
    yield {"what": "vectors of one weight", "seconds": later}
    is_slow = later * len(layers) > _PATIENCE
    with one_basis_for_each_shape() if is_slow else nullcontext():
        yield loading_row(model, layers, rank, device) | {"is_of_one_basis": is_slow}
        before = bytes_in_use(device)
        for name in "ab":
            inject(model, SVFitConfig(rank=rank), name, trainable=False, show_progress=False)
    about = {"matrices": len(layers), "rank": rank, "base_GB": before / 1e9}
    injection = Injection.of(model)
    for _, delta in [*injection.sigma_parameters("a"), *injection.sigma_parameters("b")]:
        delta.data.normal_(std=0.05)
    injection.set_active({})
    own = [layer.weight for layer in layers.values()]
    yield (
        about | _switching(injection, before, device, 10) | {"what": "switch, room for two copies"}
    )
    injection.set_active({})
    yield about | {"what": "the base again", "to_the_bit": _is_base(layers, own, device)}
    if device == "cuda":
        torch.cuda.empty_cache()
        # A gigabyte less than is left free for drawing.
        filled = int(spare_bytes(torch.device("cuda", 0))) + 10**9
        filler = torch.empty(filled, dtype=torch.uint8, device=device)
        short = _switching(injection, before + filler.nbytes, device, 3)
        yield about | short | {"what": "switch, one copy on the card"}
        injection.set_active({})
        yield about | {"what": "the base again", "to_the_bit": _is_base(layers, own, device)}


def loading_row(model: Any, layers: Mapping[str, Any], rank: int, device: str) -> Row:
    """The first load: hashing weights, computing their vectors and writing them to files."""
    bases: list[BaseWeights] = []
    computing: list[float] = []
    hashing = seconds_of(lambda: bases.append(base_weights(model, layers)), device)
    (base,) = bases
    weight = next(iter(layers.values())).weight
    before, cpu = bytes_in_use(device), time.process_time()
    peak = peak_bytes_of(
        lambda: computing.append(
            seconds_of(lambda: load_bases(base, rank, show_progress=False), device)
        ),
        device,
    )
    return {
        "what": "first load, falling",
        "matrices": len(layers),
        "rank": rank,
        "seconds": hashing + computing[0],
        "of_that_hashing": hashing,
        "processor_seconds_of_computing": time.process_time() - cpu,
        "peak_by_float32_weight": (peak - before) / (4 * weight.numel()),
        "file_bytes": sum(path.stat().st_size for path in cache_directory().glob("*")),
    }


def _switching(injection: Injection, before: int, device: str, rounds: int) -> Row:
    """Seconds and memory of letting the one adapter act, then the other, in turns."""
    names = itertools.cycle("ab")

    def switch() -> None:
        injection.set_active({next(names): 1.0})

    first_peak = peak_bytes_of(switch, device)
    seconds = [seconds_of(switch, device) for _ in range(1 + rounds)]
    resident = bytes_in_use(device)
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
        layer.weight is weight and torch.equal(weight, falling(layer, device, seed))
        for seed, (layer, weight) in enumerate(pairs)
    )


def flat_rows(device: str, small: bool) -> Rows:
    """The first load of weights whose singular values hardly fall, the worst case; extrapolated."""
    if not small:
        yield load_row(64, RANK, "flat", device) | {"what": "first load, flat"}


def _training(name: str, *settings: str) -> Callable[[str, bool], Rows]:
    """Of `large_training`, imported late: loading and switching need no PEFT."""

    def rows(device: str, small: bool) -> Rows:
        module = importlib.import_module("benchmarks.large_training")
        yield from getattr(module, name)(*settings, device, small)

    return rows


PARTS: dict[str, Callable[[str, bool], Rows]] = {
    "drawing": drawing_rows,
    "training": _training("training_rows"),
    "sdxl": _training("unet_rows", "SDXL"),
    "sd15": _training("unet_rows", "SD 1.5"),
    "flat": flat_rows,
}


def main() -> None:
    """Measure part by part; print each row and write what there is so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of what is written")
    parser.add_argument("--small", action="store_true", help="with tiny models, to try it out")
    options = parser.parse_args()
    name = "large_models" if options.device == "cuda" else "large_models_cpu"
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
                report = {"benchmark": name, "machine": machine(), "rows": rows}
                text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
                (options.out / f"{name}.json").write_text(text, encoding="utf-8")


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
