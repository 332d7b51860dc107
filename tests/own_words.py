"""Adapters with a word of the subject's own, and how they should act: done by hand, without us."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from merged import make_adapter, merge_pipeline
from tiny import make_tiny_pipeline
from tiny_pipelines.flux import flux
from tiny_pipelines.stable_diffusion import sdxl
from torch import Tensor

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, write_adapter
from svfit_diffusion.files.own_word import OwnWord

NAMED, UNNAMED = "a sks dog", "a big dog"
BASES = {"unet": make_tiny_pipeline, "sdxl": sdxl, "transformer": flux}
"""Pipelines by the component that reads the word, and a second one of a UNet."""

_SEQUENCE = 32
_SIZES = {"unet": 0.5, "sdxl": 0.5, "transformer": 8.0}  # so that pictures differ well
_GAIN = 4.0


def reader(base: str) -> str:
    return "transformer" if base == "transformer" else "unet"


def make_pipe(component: str) -> Any:
    pipe = BASES[component]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def worded(component: str, seed: int = 0, identifier: str = "sks") -> Adapter:
    """A random adapter of `make_pipe(component)` with a word of its own."""
    pipe = make_pipe(component)
    models = {c: m for c, m in models_of(pipe).items() if c != "text_encoder_2"}
    component, base = reader(component), component
    adapter = make_adapter(models, seed)
    shape = _vectors_shape(pipe, component)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * _SIZES[base]
    tokens = _tokenizer(pipe, component)(identifier, add_special_tokens=False).input_ids
    return replace(adapter, words={component: OwnWord(identifier, (tuple(tokens),), vectors)})


def saved(adapter: Adapter, folder: Path) -> Path:
    write_adapter(folder / WEIGHTS_NAME, adapter)
    return folder


def draw(pipe: Any, *prompts: str, **arguments: Any) -> Tensor:
    settings: dict[str, Any] = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": 16,
        "width": 16,
        "generator": [torch.Generator().manual_seed(0) for _ in prompts],
        "output_type": "pt",
    }
    if hasattr(pipe, "transformer"):
        settings["max_sequence_length"] = _SEQUENCE
    if prompts:
        settings["prompt"] = list(prompts)
    return pipe(**settings | arguments).images


def by_hand(
    pipe: Any, adapters: Sequence[tuple[Adapter, float]], prompts: Sequence[str], merge: bool = True
) -> Any:
    """A pipeline with merged weights that reads words in pictures of these prompts.

    Its layers are called as the pipeline calls them, so that it draws these prompts alone.
    """
    deltas = {
        c: {p: sum(s * a.deltas[c][p] for a, s in adapters) for p in own}
        for c, own in adapters[0][0].deltas.items()
    }
    pipe = merge_pipeline(pipe, replace(adapters[0][0], deltas=deltas)) if merge else pipe
    (component,) = adapters[0][0].words
    words = [(adapter.words[component], strength) for adapter, strength in adapters]
    said = [
        _said(_tokenizer(pipe, component), prompts, w.spellings[0], component) for w, _ in words
    ]
    for index, reader in enumerate(_readers(pipe, component)):
        told = [(own, w.vectors[index] * s) for own, (w, s) in zip(said, words, strict=True)]
        reader.forward = functools.partial(_reading, reader.forward, told)
    return pipe


def _reading(inner: Any, told: Sequence[tuple[Tensor, Tensor]], *args: Any, **kwargs: Any) -> Any:
    text = kwargs.pop("encoder_hidden_states") if kwargs else args[0]
    text = text.clone()
    size = _GAIN * text.square().mean(-1, keepdim=True).sqrt()
    for said, vectors in told:
        first = len(text) - len(said)  # those before are unconditional
        for row, column in said.nonzero().tolist():
            here = first + row, column
            text[here] += size[here] * vectors[0]
            if not said[row, column + 1] and len(vectors) > 1:
                after = first + row, column + 1
                text[after] += size[after] * vectors[1]
    return inner(encoder_hidden_states=text, **kwargs) if kwargs else inner(text)


def _said(tokenizer: Any, prompts: Sequence[str], tokens: Sequence[int], component: str) -> Tensor:
    length = _SEQUENCE if component == "transformer" else tokenizer.model_max_length
    rows = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True
    ).input_ids
    said = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, ids in enumerate(rows):
        for start in range(length):
            if ids[start : start + len(tokens)] == list(tokens):
                said[row, start : start + len(tokens)] = True
    return said


def _readers(pipe: Any, component: str) -> list[Any]:
    model = getattr(pipe, component)
    if component == "unet":
        return [m for path, m in model.named_modules() if path.endswith("attn2.to_v")]
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def _vectors_shape(pipe: Any, component: str) -> tuple[int, int, int]:
    model = getattr(pipe, component)
    if component == "unet":
        return len(_readers(pipe, component)), 2, model.config.cross_attention_dim
    return len(_readers(pipe, component)), 1, model.inner_dim


def _tokenizer(pipe: Any, component: str) -> Any:
    return pipe.tokenizer if component == "unet" else pipe.tokenizer_2
