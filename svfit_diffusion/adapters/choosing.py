"""The pipeline methods that choose which adapters act, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from diffusers import DiffusionPipeline

from svfit_diffusion.adapters.components import (
    check_names,
    injections,
    models_of,
    refuse_change,
    refuse_copies,
    select,
)
from svfit_diffusion.adapters.drawing import only_this_thread_draws
from svfit_diffusion.adapters.rows import RowLayout
from svfit_diffusion.adapters.strengths import (
    AdapterMix,
    Strength,
    Weight,
    in_component,
    mixes,
    strengths,
)
from svfit_diffusion.errors import ConfigError, StateError
from svfit_diffusion.files.adapter import DENOISERS

_GUIDANCE_PASSES = 3
"""Guidance runs a batch twice; with a second condition, as InstructPix2Pix has, three times."""


def set_svfit_adapters(
    pipe: DiffusionPipeline,
    adapter_names: str | Sequence[str],
    adapter_weights: Weight | Sequence[Weight] | None = None,
) -> None:
    """Make exactly these adapters active; several add up.

    Args:
        pipe: the pipeline.
        adapter_names: one name or several.
        adapter_weights: strength of each: 1 is as trained, 0 the base model; negative values and
            values above 1 are allowed. Whatever `float()` takes; one counts for all.

    Raises:
        AdapterNameError: a name is unknown; the active adapters stay.
        ConfigError: the numbers of names and weights differ, or a weight is not a finite number.
        StateError: adapters are fused, or given per prompt at the moment.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    check_names(models_of(pipe), names)
    let_act(pipe, dict(zip(names, strengths(names, adapter_weights), strict=True)))


@contextmanager
def svfit_adapters_per_prompt(
    pipe: DiffusionPipeline,
    adapters: Sequence[AdapterMix],
    adapter_weights: Weight | Sequence[Weight] | None = None,
    *,
    num_images_per_prompt: int = 1,
) -> Iterator[None]:
    """Give every prompt of a batch adapters of its own, while the context lasts.

        with pipe.svfit_adapters_per_prompt(["rex", "tom", None], [0.8, 0.5, 1.0]):
            images = pipe(["a photo of sks dog", "a photo of sks cat", "a bicycle"]).images

    Each image is the one that its prompt gives alone with these adapters set, but for the rounding
    of the precision in use. Its negative prompt gets the same adapters. Call the pipeline with a
    list of as many prompts, and of as many negative prompts if any. This is for generating: shifts
    get no gradients. Afterwards the adapters active before are active again. Meanwhile adapters
    cannot be loaded, set, fused or removed, except by `unload_svfit_weights`.

    A layer costs what it costs without adapters, and memory for a `W'` of each mix, where a prompt
    has many tokens for its width, and three times as much elsewhere
    (`rows.row_weights_are_cheaper`).

    Args:
        pipe: the pipeline.
        adapters: for each prompt the name of its adapter, a mix such as `{"rex": 0.8, "tom": 0.5}`,
            or None for the base model.
        adapter_weights: strength for each prompt, as in `set_svfit_adapters`; it multiplies the
            strengths of a mix. One number counts for all.
        num_images_per_prompt: as the pipeline is called with.

    Raises:
        AdapterNameError: a name is unknown.
        ConfigError: there are no prompts, the numbers of prompts and weights differ, a weight is
            not a finite number, or `num_images_per_prompt` is not an integer of at least 1.
        StateError: adapters are fused or disabled, or given per prompt already.
        BatchError: raised by a model inside the context that gets other than these prompts.
    """
    of_prompts = mixes(adapters, adapter_weights)
    if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
        raise ConfigError(
            f"num_images_per_prompt must be an integer of at least 1, got {num_images_per_prompt!r}"
        )
    models = models_of(pipe)
    check_names(models, [name for mix in of_prompts for name in mix])
    refuse_change(models, "give adapters per prompt")
    with ExitStack() as stack:
        stack.enter_context(only_this_thread_draws(models.values()))
        for component, injection in injections(models).items():
            is_denoiser = component in DENOISERS
            layout = RowLayout(len(of_prompts))
            if is_denoiser:
                layout = RowLayout(len(of_prompts), num_images_per_prompt, _GUIDANCE_PASSES)
            here = [
                {
                    name: math.prod(in_component(strength, component) for strength in factors)
                    for name, factors in mix.items()
                    if name in injection.adapter_names
                }
                for mix in of_prompts
            ]
            stack.enter_context(
                injection.adapters_per_prompt(here, layout, is_denoiser=is_denoiser)
            )
        yield


def get_active_svfit_adapters(pipe: DiffusionPipeline) -> list[str]:
    """Names of the active adapters."""
    active = [
        name
        for injection in injections(models_of(pipe)).values()
        for name in injection.selection.weights
    ]
    return list(dict.fromkeys(active))


def get_list_svfit_adapters(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """Names of the loaded adapters, per component that they shift."""
    return {c: injection.adapter_names for c, injection in injections(models_of(pipe)).items()}


def enable_svfit(pipe: DiffusionPipeline) -> None:
    """Apply the active adapters again after `disable_svfit`.

    Raises:
        StateError: adapters are fused, or given per prompt at the moment.
    """
    let_act(pipe, enabled=True)


def disable_svfit(pipe: DiffusionPipeline) -> None:
    """Generate with the base model, keeping the adapters loaded.

    Raises:
        StateError: adapters are fused, or given per prompt at the moment.
    """
    let_act(pipe, enabled=False)


def fuse_svfit(pipe: DiffusionPipeline, scale: float = 1.0) -> None:
    """Keep the active adapters in the weights until `unfuse_svfit`: no change of them is taken.

    Set adapters are in the weights anyway, so that drawing costs the same and `save_pretrained`
    saves a merged model with or without; this is for code that relies on it.

    Args:
        pipe: the pipeline.
        scale: multiplies every adapter's weight.

    Raises:
        StateError: already fused or disabled, no adapter is active, or they are given per prompt at
            the moment.
    """
    models = models_of(pipe)
    active = {c: i.selection for c, i in injections(models).items() if i.selection.weights}
    if not active:
        raise StateError("no adapter is active, so there is nothing to fuse")
    refuse_copies(models, "fuse adapters")
    for selection in active.values():
        selection.refuse_fusing()
    factor = strengths(["scale"], scale)[0]
    select(models, {c: replace(s, fused=in_component(factor, c)) for c, s in active.items()})


def unfuse_svfit(pipe: DiffusionPipeline) -> None:
    """Undo `fuse_svfit`: the adapters act as before, and can be changed.

    Raises:
        StateError: adapters are not fused.
    """
    models = models_of(pipe)
    fused = {c: i.selection for c, i in injections(models).items() if i.selection.is_fused}
    if not fused:
        raise StateError("adapters are not fused; call fuse_svfit() before unfuse_svfit()")
    select(models, {c: replace(selection, fused=None) for c, selection in fused.items()})


def let_act(
    pipe: DiffusionPipeline,
    weights: Mapping[str, Strength] | None = None,
    *,
    enabled: bool | None = None,
) -> None:
    """Make these adapters active, or keep those that are; enable or disable them, or neither."""
    models = models_of(pipe)
    refuse_change(models, "change the active adapters")
    selections = {}
    for component, injection in injections(models).items():
        selection = injection.selection
        if weights is not None:
            here = {
                name: in_component(strength, component)
                for name, strength in weights.items()
                if name in injection.adapter_names
            }
            selection = replace(selection, weights=here)
        if enabled is not None:
            selection = replace(selection, enabled=enabled)
        selections[component] = selection
    select(models, selections)
