"""A base model's pipeline from its configurations alone: models of the right shapes, no weights."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
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
            f"{name} is a single file, and this is told from configurations: name the folder or "
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
        with _silence():
            return DiffusionPipeline.from_pretrained(
                name, revision=source.revision, **models, **missing
            )
    except Exception as error:  # others read there what others wrote: it may be any
        raise ConfigError(
            f"{name!r} is not the folder or hub id of a pipeline with its configurations "
            f"(model_index.json, and config.json of each model): {type(error).__name__}: "
            f"{clipped(error)}"
        ) from error


def skeleton_if_told(source: BaseSource) -> Any | None:
    """The base's `skeleton`, to check settings on before weights are read; None where it is a
    single file, or nothing that has one: loading it then says what is wrong.
    """
    try:
        return skeleton(source)
    except ConfigError:
        return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bar of diffusers."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()


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
