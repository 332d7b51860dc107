"""A base model's pipeline from its configurations alone: models of the right shapes, no weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import diffusers
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from torch import nn

from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.training.base import BaseSource

_LIBRARIES = ("diffusers", "transformers")
_SINGLE_FILES = (".safetensors", ".ckpt")


def skeleton(source: BaseSource) -> Any:
    """The base's pipeline with the parameters of its models on the meta device.

    Tokenizers, schedulers and buffers are real. Of a base on the hub, configurations and tokenizers
    are fetched; weights are neither read nor asked for.

    Raises:
        ConfigError: it is no pipeline, or a model of it is not known to the libraries installed.
    """
    name = source.name
    if Path(name).suffix in _SINGLE_FILES:
        raise ConfigError(
            f"{name} is a single file, and a plan is made from configurations: name the folder or "
            f"the hub id of its pipeline"
        )
    try:
        index = DiffusionPipeline.load_config(name, revision=source.revision)
        models = {
            component: _model(source, component, *entry)
            for component, entry in index.items()
            if _is_model(entry)
        }
        missing = {c: None for c, entry in index.items() if _is_absent(entry)}
        diffusers.utils.logging.disable_progress_bar()
        return DiffusionPipeline.from_pretrained(
            name, revision=source.revision, **models, **missing
        )
    except Exception as error:  # others read there what others wrote: it may be any
        raise ConfigError(
            f"{name!r} is not the folder or hub id of a pipeline with its configurations "
            f"(model_index.json, and config.json of each model): {type(error).__name__}: "
            f"{clipped(error)}"
        ) from error


def _is_model(entry: Any) -> bool:
    """Whether an entry of `model_index.json`, `[library, class]`, is of a model."""
    return _is_component(entry) and entry[0] in _LIBRARIES and _is_module(*entry)


def _is_absent(entry: Any) -> bool:
    """Whether a pipeline does without a component: it has none, or it is a safety checker."""
    return _is_component(entry) and (entry[0] is None or entry[1] == "StableDiffusionSafetyChecker")


def _is_component(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2


def _is_module(library: str, name: str) -> bool:
    found = getattr(importlib.import_module(library), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _model(source: BaseSource, component: str, library: str, name: str) -> Any:
    kind = getattr(importlib.import_module(library), name)
    place: dict[str, Any] = {"subfolder": component, "revision": source.revision}
    with init_empty_weights():
        if library == "diffusers":
            return kind.from_config(kind.load_config(source.name, **place))
        return kind(kind.config_class.from_pretrained(source.name, **place))
