"""Clients and a server: a library of adapters, what is asked of it, and how it is drawn."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.report import ROOT
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, read_adapter, write_adapter
from svfit_diffusion.serving.deployment import place
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.picture import Picture
from svfit_diffusion.training.base import BaseSource, load_base

TOYBOX = ROOT / "samples" / "toybox"
SAMPLE = ROOT / "samples" / "adapters" / "blue_car" / WEIGHTS_NAME
_PROMPTS = (
    "a photo of sks car on the beach",
    "a photo of sks car in the snow",
    "a photo of sks car on a wooden floor",
    "a drawing of sks car",
)


@dataclass
class Round:
    """What a way of drawing took for some requests.

    Attributes:
        images: the pictures, in order of the requests.
        latencies: seconds from asking to getting, each.
        wall: seconds for all.
        cpu: seconds of all threads for all.
    """

    images: list[Image.Image]
    latencies: list[float]
    wall: float
    cpu: float


def make_library(folder: Path, count: int) -> None:
    """Write adapters of Toybox: the sample, scaled and disturbed."""
    sample = read_adapter(SAMPLE)
    for number in range(count):
        write_adapter(folder / f"subject-{number:02}.safetensors", disturbed(sample, number))


def disturbed(adapter: Adapter, seed: int) -> Adapter:
    """An adapter like another, but not it."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + seed % 8 / 8
    deltas = {
        component: {
            path: scale * delta + 0.3 * delta.std() * torch.randn(len(delta), generator=generator)
            for path, delta in layers.items()
        }
        for component, layers in adapter.deltas.items()
    }
    return Adapter(deltas, adapter.metadata)


def requests(adapters: int, count: int, steps: int) -> list[Picture]:
    """Requests for pictures, each of another adapter as far as there are that many."""
    order = random.Random(0).sample(range(adapters), adapters)
    return [
        Picture(
            prompt=_PROMPTS[number % len(_PROMPTS)],
            negative_prompt="",
            adapters={f"subject-{order[number % adapters]:02}": 1.0},
            steps=steps,
            guidance_scale=2.5,
            width=64,
            height=64,
            seed=number,
        )
        for number in range(count)
    ]


class Switching:
    """A server that has all adapters loaded, and sets that of each request.

    Attributes:
        seconds: of setting an adapter, each time.
    """

    def __init__(self, folder: Path) -> None:
        self._pipe = load_base(BaseSource(str(TOYBOX)))
        self._pipe.set_progress_bar_config(disable=True)
        for path in sorted(folder.glob("*.safetensors")):
            self._pipe.load_svfit_weights(path, path.stem, activate=False, show_progress=False)
        place(self._pipe, "cpu", torch.float32)
        self.seconds: list[float] = []

    def draw(self, wanted: Picture) -> Image.Image:
        """Draw a picture."""
        began = time.perf_counter()
        self._pipe.set_svfit_adapters(list(wanted.adapters), list(wanted.adapters.values()))
        self.seconds.append(time.perf_counter() - began)
        image: Image.Image = self._pipe(
            wanted.prompt,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance_scale,
            height=wanted.height,
            width=wanted.width,
            generator=torch.Generator().manual_seed(wanted.seed),
        ).images[0]
        return image


def batched(engine: Engine, wanted: Sequence[Picture], clients: int) -> Round:
    """Requests drawn by the engine."""

    def ask(client: int, picture: Picture) -> Image.Image:
        return engine.submit([picture], f"client {client}")[0].image.result()

    return _asked(ask, wanted, clients)


def in_turn(
    draw: Callable[[Picture], Image.Image], wanted: Sequence[Picture], clients: int
) -> Round:
    """Requests drawn one after the other, in the order in which they come."""
    with ThreadPoolExecutor(1) as line:
        return _asked(lambda _, picture: line.submit(draw, picture).result(), wanted, clients)


def _asked(
    ask: Callable[[int, Picture], Image.Image], wanted: Sequence[Picture], clients: int
) -> Round:
    """What clients get that each ask for the next picture when they have the last."""
    images: dict[int, Image.Image] = {}
    latencies: dict[int, float] = {}

    def one_client(client: int) -> None:
        for index in range(client, len(wanted), clients):
            began = time.perf_counter()
            images[index] = ask(client, wanted[index])
            latencies[index] = time.perf_counter() - began

    threads = [threading.Thread(target=one_client, args=(number,)) for number in range(clients)]
    began, began_cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    order = range(len(wanted))
    return Round([images[i] for i in order], [latencies[i] for i in order], wall, cpu)
