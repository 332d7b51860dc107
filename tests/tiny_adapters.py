"""Adapters of the tiny pipeline, and a check that a pipeline is what it was."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import tiny
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from torch import Tensor

from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.files.adapter import Adapter, state_dict
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases
from svfit_diffusion.spectrum.sketch import sketch

MODELS = ("unet", "text_encoder")


def make_adapter(
    seed: int = 0, scale: float = 0.4, rank: int = 16, parts: tuple[str, ...] = MODELS
) -> Adapter:
    """A random adapter of `make_tiny_pipeline()`, with its fingerprints and without sketches."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        component: {path: torch.randn(rank, generator=generator) * scale for path in base.digests}
        for component, base in tiny_bases().items()
        if component in parts
    }
    fingerprints = {component: tiny_bases()[component].fingerprint() for component in parts}
    return Adapter(deltas, AdapterMetadata(base_model="tiny", fingerprints=fingerprints))


@functools.cache
def tiny_bases() -> dict[str, BaseWeights]:
    """The attention weights of `make_tiny_pipeline()`, per component."""
    pipe = tiny.make_tiny_pipeline()
    models = {component: getattr(pipe, component) for component in MODELS}
    return {name: base_weights(model, attention_layers(model)) for name, model in models.items()}


def with_sketches(adapter: Adapter) -> Adapter:
    """An adapter of `make_tiny_pipeline()`'s attention as training saves it: with its sketches."""
    sketches = {}
    for component, deltas in adapter.deltas.items():
        bases = load_bases(tiny_bases()[component], show_progress=False)
        sketches[component] = {path: sketch(bases[path], delta) for path, delta in deltas.items()}
    return replace(adapter, sketches=sketches)


def load(pipe: Any, source: Any, name: str | None = None, **kwargs: Any) -> None:
    pipe.load_svfit_weights(source, name, show_progress=False, **kwargs)


def load_two(pipe: Any) -> None:
    load(pipe, state_dict(make_adapter(0)), "a")
    load(pipe, state_dict(make_adapter(1, rank=8)), "b")


class PipelineSnapshot:
    """What a pipeline is and makes, and a check that it still does."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.image = tiny.run_pipeline(pipe)
        self.state = self._read()

    def _read(self) -> Any:
        state: dict[str, Any] = {}
        for component in MODELS:
            model = getattr(self.pipe, component)
            state[component] = (
                [(name, id(p), p.sum().item()) for name, p in model.named_parameters()],
                [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()],
            )
            injection = Injection.find(model)
            state[f"{component} adapters"] = injection and (
                list(injection.adapter_names),
                injection.selection,
            )
        state["processors"] = {k: id(p) for k, p in self.pipe.unet.attn_processors.items()}
        return state

    def check(self) -> None:
        assert self._read() == self.state
        assert torch.equal(tiny.run_pipeline(self.pipe), self.image)


def images_of(*pipes: Any) -> list[Tensor]:
    return [tiny.run_pipeline(pipe) for pipe in pipes]


def ip_adapter(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP-Adapter of four tokens for images embedded in eight numbers."""
    torch.manual_seed(2)
    tokens = {
        "proj.weight": torch.randn(4 * tiny.TEXT_WIDTH, 8),
        "proj.bias": torch.zeros(4 * tiny.TEXT_WIDTH),
        "norm.weight": torch.ones(tiny.TEXT_WIDTH),
        "norm.bias": torch.zeros(tiny.TEXT_WIDTH),
    }
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            width = attention.to_k.out_features
            for part in ("k", "v"):
                layers[f"{number}.to_{part}_ip.weight"] = torch.randn(width, tiny.TEXT_WIDTH) / 6
    return {"image_proj": tokens, "ip_adapter": layers}


PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (StableDiffusionPipeline, {}),
    "image": (StableDiffusionImg2ImgPipeline, {"strength": 1.0}),
    "inpaint": (
        StableDiffusionInpaintPipeline,
        {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE},
    ),
}


def make_variant(pipe: Any, kind: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of another task from the same components, and arguments to call it with."""
    pipeline, kwargs = PIPELINES[kind]
    variant = pipeline(**pipe.components, requires_safety_checker=False)
    variant.set_progress_bar_config(disable=True)
    size = (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    if kind != "text":
        kwargs = kwargs | {"image": Image.new("RGB", size, (200, 90, 40))}
    if kind == "inpaint":
        kwargs = kwargs | {"mask_image": Image.new("L", size, 255)}
    return variant, kwargs
