"""Speed of handling adapters: loading, switching, and keeping a thousand of them."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.adapting import Models
from benchmarks.architectures import (
    bare_pipeline,
    clip_text_encoder,
    for_inference,
    sd15_unet,
    sdxl_unet,
    toybox_pipeline,
)
from benchmarks.measuring import (
    MALLOC_SETTINGS,
    interleaved,
    isolated,
    memory_status,
    seconds_of,
    trim_memory,
)
from benchmarks.report import Row
from benchmarks.speed_inference import random_adapter
from benchmarks.speed_methods import SVFIT
from benchmarks.speed_rows import make_row
from svfit_diffusion import sigma_parameters
from svfit_diffusion.adapters.inject import inject
from svfit_diffusion.adapters.targets import attention_layers

PLAIN_SVD = "plain float32 SVD, one after the other"
SWITCH = "switch the adapter"
STRENGTH = "change a strength"
LOOK_UP = "look up the shifts of one"
FEW, MANY = 10, 1000
_PROCESSES = 3
_WARM_LOADS = 5
_LOOK_UPS = 100


def cold_load_of(what: str) -> str:
    """The name of its first load in results."""
    return f"load an adapter, nothing cached, {what}"


def warm_load_of(what: str) -> str:
    """The name of its later loads in results."""
    return f"load an adapter from the cache, {what}"


def resident_memory_of(count: int, kind: str = "total") -> str:
    """The name of the memory that so many adapters take in results."""
    return f"memory beyond the base, {kind}, {count} adapters"


def among(count: int, action: str) -> str:
    """The name of an action where so many adapters are loaded in results."""
    return f"{action}, {count} adapters loaded"


def load(device: str, rounds: int) -> list[Row]:
    """Load an adapter on SD 1.5 with an empty basis cache and with a full one."""
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, SVFIT_CACHE=cache):
        cold, plain = isolated(_cold_load, device)
        first, later = zip(*(isolated(_warm_loads, device) for _ in range(_PROCESSES)), strict=True)
    what = cold_load_of("SD 1.5 UNet")
    return [
        make_row(what, SVFIT, cold, "s"),
        make_row(what, PLAIN_SVD, plain, "s"),
        make_row(f"{what}, against its peer", SVFIT, cold, "s", PLAIN_SVD, cold / plain),
        make_row(
            warm_load_of("SD 1.5 UNet"),
            SVFIT,
            median(first),
            "s",
            min=min(first),
            max=max(first),
            later_loads=median(later),
            setting=f"first load of a process, {_PROCESSES} processes",
        ),
    ]


def load_sdxl(device: str, rounds: int) -> list[Row]:
    """Compute the bases of SDXL's 560 attention matrices, and read them from the cache."""
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, SVFIT_CACHE=cache):
        cold = isolated(_inject_sdxl, device)
        warm = isolated(_inject_sdxl, device)
    return [
        make_row(cold_load_of("SDXL UNet"), SVFIT, cold, "s"),
        make_row(warm_load_of("SDXL UNet"), SVFIT, warm, "s"),
    ]


def _cold_load(device: str) -> tuple[float, float]:
    """Seconds of the first load, and of plain SVDs of the same matrices."""
    models = _sd15(device)
    pipe = _pipeline(models)
    adapter = random_adapter(models, seed=0)
    cold = seconds_of(lambda: pipe.load_svfit_weights(adapter, show_progress=False), device)
    layers = attention_layers(models["unet"]).values()

    def decompose() -> None:
        for layer in layers:
            torch.linalg.svd(layer.weight.float(), full_matrices=False)

    return cold, seconds_of(decompose, device)


def _warm_loads(device: str) -> tuple[float, float]:
    """Seconds of a process's first load that finds its bases in the cache, and of later ones."""
    models = _sd15(device)
    pipe = _pipeline(models)
    adapter = random_adapter(models, seed=0)
    seconds = []
    for _ in range(_WARM_LOADS):
        seconds.append(
            seconds_of(lambda: pipe.load_svfit_weights(adapter, show_progress=False), device)
        )
        pipe.unload_svfit_weights()
    return seconds[0], median(seconds[1:])


def _inject_sdxl(device: str) -> float:
    unet = for_inference({"unet": sdxl_unet()}, device)["unet"]
    return seconds_of(lambda: inject(unet, show_progress=False), device)


def switch(device: str, rounds: int) -> list[Row]:
    """Switch between two adapters, and change the strength of one, on SD 1.5 and on Toybox."""
    toybox = toybox_pipeline().to(device)
    toybox_base = {"unet": toybox.unet, "text_encoder": toybox.text_encoder}
    base = _sd15(device)
    rows = []
    for what, pipe, models in (
        ("SD 1.5 UNet", _pipeline(base), base),
        ("Toybox", toybox, toybox_base),
    ):
        _load_many(pipe, [random_adapter(models, seed) for seed in range(2)])
        for action, seconds in _switching_seconds(pipe, 4 * rounds, device).items():
            row = make_row(f"{action}, {what}", SVFIT, median(seconds), "s", rounds=len(seconds))
            rows.append(row | {"min": min(seconds), "max": max(seconds)})
    return rows


def resident(device: str, rounds: int) -> list[Row]:
    """Keep a thousand adapters on SD 1.5: memory, and switching among them and among ten."""
    with patch.dict(os.environ, MALLOC_SETTINGS):
        return isolated(_sd15_resident, device, rounds)


def _sd15_resident(device: str, rounds: int) -> list[Row]:
    models = _sd15(device)
    return resident_rows(_pipeline(models), models, (FEW, MANY), rounds, device)


def resident_rows(
    pipe: Any, models: Models, counts: tuple[int, int], rounds: int, device: str
) -> list[Row]:
    """Load adapters up to the first count and up to the second, and compare.

    Args:
        pipe: without adapters.
        models: of the pipeline, to shift.
        counts: of adapters; the second, larger one is compared with the first.
        rounds: of what is timed.
        device: of the pipeline.
    """
    empty = _resident_megabytes()
    seconds: list[dict[str, float]] = []
    rows, loaded = [], 0
    for count in counts:
        _load_many(pipe, (random_adapter(models, seed) for seed in range(loaded, count)), loaded)
        loaded = count
        timed = _switching_seconds(pipe, 2 * rounds, device)
        timed[LOOK_UP] = _lookup_seconds(pipe, f"a{count - 1}")
        seconds.append({action: median(values) for action, values in timed.items()})
        for kind, megabytes in _resident_megabytes().items():
            value = megabytes - empty[kind]
            rows.append(make_row(resident_memory_of(count, kind), SVFIT, value, "MB"))
    few, many = seconds
    for action, value in many.items():
        what = among(counts[1], action)
        reference = among(counts[0], action)
        rows.append(make_row(what, SVFIT, value, "s", reference, value / few[action]))
    return rows


def _resident_megabytes() -> dict[str, float]:
    trim_memory()
    status = memory_status()
    parts = {"anonymous": status["RssAnon"] / 1e6, "file-backed": status["RssFile"] / 1e6}
    return {"total": sum(parts.values()), **parts}


def _load_many(pipe: Any, adapters: Any, first: int = 0) -> None:
    for number, adapter in enumerate(adapters, first):
        pipe.load_svfit_weights(adapter, f"a{number}", activate=False, show_progress=False)


def _switching_seconds(pipe: Any, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds to make another of the loaded adapters the active one, and to change its strength."""
    names = itertools.cycle(pipe.get_list_svfit_adapters()["unet"][-2:])
    weights = itertools.cycle((0.5, 0.6))
    calls: dict[str, Callable[[], object]] = {
        SWITCH: lambda: pipe.set_svfit_adapters(next(names)),
        STRENGTH: lambda: pipe.set_svfit_adapters("a0", next(weights)),
    }
    # One after the other: interleaved, a change of strength would switch the adapter as well.
    return {
        action: interleaved({action: call}, rounds, device)[action]
        for action, call in calls.items()
    }


def _lookup_seconds(pipe: Any, name: str) -> list[float]:
    calls = {name: lambda: list(sigma_parameters(pipe.unet, name))}
    return interleaved(calls, _LOOK_UPS, "cpu")[name]


def _sd15(device: str) -> Models:
    return for_inference({"unet": sd15_unet()}, device)


def _pipeline(models: Models) -> Any:
    return bare_pipeline(models["unet"], clip_text_encoder(layers=1))
