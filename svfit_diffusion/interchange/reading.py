"""LoRAs as diffusers reads them: by its own loader, on a pipeline that holds no weights."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.interchange.factors import Factors
from svfit_diffusion.interchange.hollow import hollow

_NAME = "svfit_interchange"


def read_lora(pipe: Any, source: Path | Mapping[str, Tensor]) -> dict[str, Factors]:
    """What a LoRA changes in a pipeline, according to diffusers' own loader.

    It is loaded into a copy of the pipeline whose weights take no memory, so any form of LoRA that
    diffusers knows for this pipeline is read, with its alphas.

    Args:
        pipe: the pipeline; it stays as it is.
        source: the file, or its tensors.

    Returns:
        The change of each layer, by `<component>.<module path>`.

    Raises:
        InterchangeError: diffusers has no LoRA loader for this pipeline, PEFT is missing, or the
            loader refuses the LoRA or finds nothing in it.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise InterchangeError(f"diffusers has no LoRA loader for a {kind}")
    if importlib.util.find_spec("peft") is None:
        raise InterchangeError(
            "diffusers reads LoRAs with PEFT, which is missing: pip install peft"
        )
    empty = _without_weights(pipe)
    try:
        empty.load_lora_weights(
            str(source) if isinstance(source, Path) else dict(source),
            adapter_name=_NAME,
            use_safetensors=True,  # a pickle would run
        )
    except Exception as error:  # of any class: by converters, PEFT and torch
        reason = str(error).strip().partition("\n")[0][:200]
        raise InterchangeError(
            f"diffusers does not read this as a LoRA of a {kind} with these models "
            f"({type(error).__name__}: {reason}); is it of another family or base model?"
        ) from error
    found = {
        f"{component}.{path}": _factors(layer)
        for component, model in models_of(empty).items()
        for path, layer in model.named_modules()
        if _NAME in getattr(layer, "lora_A", ())
    }
    if not found:
        raise InterchangeError(
            f"diffusers finds nothing for a {kind} in this LoRA; it is of another family, or empty"
        )
    return found


def _factors(layer: Any) -> Factors:
    down, up = (part[_NAME].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    return Factors(up.flatten(1) * layer.scaling[_NAME], down.flatten(1))


def _without_weights(pipe: Any) -> Any:
    """A copy of a pipeline whose models have the shapes of its weights, but not their memory.

    Without models that take no LoRA: the loader would touch their offloading hooks.
    """
    empty, models = copy.copy(pipe), models_of(pipe)
    for component, part in pipe.components.items():
        if isinstance(part, nn.Module):
            model = models.get(component)
            setattr(empty, component, None if model is None else _readable(model))
    return empty


def _readable(model: Any) -> nn.Module:
    made = hollow(model)
    for module in made.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                # On the CPU: the loader moves a LoRA to where the weights are.
                zeros = torch.zeros(()).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return made.eval()
