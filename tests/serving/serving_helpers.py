"""Pictures of the tiny pipeline, and engines that wait until a test lets them go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from tiny_adapters import make_adapter

from svfit_diffusion.files.adapter import Adapter, write_adapter
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.line import Ticket
from svfit_diffusion.serving.picture import Picture

NAMES = ("s0", "s1", "s2", "s3")
ADAPTER_BYTES = sum(
    delta.nbytes for deltas in make_adapter(0).deltas.values() for delta in deltas.values()
)


def fill_library(folder: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_adapter(folder / f"{name}.safetensors", make_adapter(seed))
    return folder


def of_another_base() -> Adapter:
    """An adapter that says it was trained on other weights."""
    adapter = make_adapter(0)
    fingerprints = dict.fromkeys(adapter.deltas, "0" * 64)
    return replace(adapter, metadata=replace(adapter.metadata, fingerprints=fingerprints))


def picture(adapter: str | None = "s0", seed: int = 0, **changed: Any) -> Picture:
    settings: dict[str, Any] = {
        "prompt": "a photo of a dog",
        "negative_prompt": "",
        "adapters": {} if adapter is None else {adapter: 1.0},
        "steps": 2,
        "guidance_scale": 2.0,
        "width": tiny.IMAGE_SIZE,
        "height": tiny.IMAGE_SIZE,
        "seed": seed,
    }
    return Picture(**settings | changed)


def pixels(tickets: Sequence[Ticket]) -> list[Any]:
    """The pictures, 0 to 255; an engine that hangs fails."""
    return [np.asarray(ticket.image.result(timeout=60), dtype=np.int16) for ticket in tickets]


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """While within, the engine draws nothing: what is submitted waits."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(60)

    done = engine.between(wait)
    assert begun.wait(60)
    try:
        yield
    finally:
        go_on.set()
        done.result(60)


def batches_of(engine: Engine, monkeypatch: Any) -> list[list[Picture]]:
    """The batches that an engine draws from now on; drawing goes on as before."""
    seen: list[list[Picture]] = []
    paint = engine._painter.paint

    def watched(wanted: Sequence[Picture], *args: Any) -> Any:
        seen.append(list(wanted))
        return paint(wanted, *args)

    monkeypatch.setattr(engine._painter, "paint", watched)
    return seen
