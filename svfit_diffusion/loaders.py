"""The pipeline methods: `pipe.load_svfit_weights(...)` and its kin.

Importing `svfit_diffusion` gives the public functions of this module to every diffusers pipeline as
methods. They are spelled and behave as diffusers' LoRA methods do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from svfit_diffusion import components
from svfit_diffusion.checkpoint import (
    COMPONENTS,
    WEIGHTS_NAME,
    Adapter,
    parse_adapter,
    read_adapter,
    write_adapter,
)
from svfit_diffusion.errors import AdapterNameError, CheckpointError, ConfigError, StateError
from svfit_diffusion.injection import Injection
from svfit_diffusion.mixing import RowLayout

AdapterSource = str | Path | Mapping[str, Tensor]
Weight = float | Mapping[str, float]
"""An adapter's strength: one number, or one per component such as `{"unet": 0.8}` (others 1)."""
AdapterMix = str | Mapping[str, Weight] | None
"""The adapters of one prompt: a name, several names with their strengths, or None for the base."""

_DENOISERS = ("unet", "transformer")
_GUIDANCE_PASSES = 3
"""Guidance runs a batch twice; with a second condition, as InstructPix2Pix has, three times."""


def load_svfit_weights(
    pipe: DiffusionPipeline,
    pretrained_model_name_or_path_or_dict: AdapterSource,
    adapter_name: str | None = None,
    *,
    weight_name: str = WEIGHTS_NAME,
    subfolder: str | None = None,
    activate: bool = True,
    ignore_base_mismatch: bool = False,
    show_progress: bool = True,
    **hub_kwargs: Any,
) -> None:
    """Load an adapter and, unless told otherwise, make it the active one.

    Everything is checked before the pipeline is touched. The first adapter on a base model computes
    the singular vectors of its layers, once; later ones find them in the cache. A LoRA or an
    IP-Adapter goes on before an adapter.

    Args:
        pipe: the pipeline.
        pretrained_model_name_or_path_or_dict: a file, a folder, a hub id or a state dict.
        adapter_name: a new name; `default_0`, `default_1`, … if not given.
        weight_name: file name in the folder or repository.
        subfolder: folder in the folder or repository.
        activate: make it the active one; False only adds it, which takes milliseconds once the
            layers are known, so that thousands can be kept to choose from.
        ignore_base_mismatch: load although the adapter was trained on another base model, such as
            the one this base was fine-tuned from; the subject may come out weaker.
        show_progress: show a progress bar while singular vectors are computed.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: passed
            to `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: the file is missing, damaged, no adapter, or fits other layers.
        BaseMismatchError: it was trained on another base model.
        AdapterNameError: the name is taken.
        StateError: adapters are fused, or given per prompt at the moment.
    """
    models = components.models_of(pipe)
    name = adapter_name or _free_name(components.adapter_names(models))
    adapter = _read(
        pretrained_model_name_or_path_or_dict, weight_name, subfolder=subfolder, **hub_kwargs
    )
    components.put_adapter(
        models,
        adapter,
        name,
        ignore_base_mismatch=ignore_base_mismatch,
        show_progress=show_progress,
    )
    if activate:
        set_svfit_adapters(pipe, name)
        enable_svfit(pipe)


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
            values above 1 are allowed. One number counts for all.

    Raises:
        AdapterNameError: a name is unknown; the active adapters stay.
        ConfigError: the numbers of names and weights differ, or a weight is not a finite number.
        StateError: adapters are fused, or given per prompt at the moment.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    components.check_names(components.models_of(pipe), names)
    weights = dict(zip(names, _weight_list(names, adapter_weights), strict=True))
    components.refuse_change(components.models_of(pipe), "change the active adapters")
    for component, injection in _injections(pipe).items():
        injection.set_active(
            {
                name: _in_component(weight, component)
                for name, weight in weights.items()
                if name in injection.adapter_names
            }
        )


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
    (`spectral.row_weights_are_cheaper`).

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
    mixes = _mixes(adapters, adapter_weights)
    if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
        raise ConfigError(
            f"num_images_per_prompt must be an integer of at least 1, got {num_images_per_prompt!r}"
        )
    models = components.models_of(pipe)
    components.check_names(models, [name for mix in mixes for name in mix])
    components.refuse_change(models, "give adapters per prompt")
    with ExitStack() as stack:
        for component, injection in components.injections(models).items():
            layout = RowLayout(len(mixes))
            if component in _DENOISERS:
                layout = RowLayout(len(mixes), num_images_per_prompt, _GUIDANCE_PASSES)
            here = [
                {
                    name: math.prod(_in_component(weight, component) for weight in weights)
                    for name, weights in mix.items()
                    if name in injection.adapter_names
                }
                for mix in mixes
            ]
            stack.enter_context(injection.adapters_per_prompt(here, layout))
        yield


def get_active_svfit_adapters(pipe: DiffusionPipeline) -> list[str]:
    """Names of the active adapters."""
    active = [name for injection in _injections(pipe).values() for name in injection.active]
    return list(dict.fromkeys(active))


def get_list_svfit_adapters(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """Names of the loaded adapters, per component that they shift."""
    return {c: injection.adapter_names for c, injection in _injections(pipe).items()}


def enable_svfit(pipe: DiffusionPipeline) -> None:
    """Apply the active adapters again after `disable_svfit`.

    Raises:
        StateError: adapters are fused, or given per prompt at the moment.
    """
    _set_enabled(pipe, True)


def disable_svfit(pipe: DiffusionPipeline) -> None:
    """Generate with the base model, keeping the adapters loaded.

    Raises:
        StateError: adapters are fused, or given per prompt at the moment.
    """
    _set_enabled(pipe, False)


def delete_svfit_adapters(pipe: DiffusionPipeline, adapter_names: str | Sequence[str]) -> None:
    """Remove adapters; layers that none shifts any more are restored.

    Raises:
        AdapterNameError: a name is unknown; none is removed.
        StateError: adapters are fused, or given per prompt at the moment; none is removed.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    components.check_names(components.models_of(pipe), names)
    components.refuse_change(components.models_of(pipe), "delete an adapter")
    for injection in _injections(pipe).values():
        for name in names:
            if name in injection.adapter_names:
                injection.remove_adapter(name)


def unload_svfit_weights(pipe: DiffusionPipeline) -> None:
    """Remove all adapters and restore the pipeline's own objects, fused or not. Idempotent."""
    for injection in _injections(pipe).values():
        injection.eject()


def fuse_svfit(pipe: DiffusionPipeline, scale: float = 1.0) -> None:
    """Write the active adapters into the weights, so that `save_pretrained` saves a merged model.

    Generation is as fast without: this is for saving, and for tools that read the weights.

    Args:
        pipe: the pipeline.
        scale: multiplies every adapter's weight.

    Raises:
        StateError: already fused, no adapter is active, or they are given per prompt at the moment.
    """
    injections = [injection for injection in _injections(pipe).values() if injection.active]
    if not injections:
        raise StateError("no adapter is active, so there is nothing to fuse")
    for injection in injections:
        injection.refuse_change("fuse again")
    for injection in injections:
        injection.fuse(scale)


def unfuse_svfit(pipe: DiffusionPipeline) -> None:
    """Undo `fuse_svfit`: the original parameters return, bit for bit.

    Raises:
        StateError: adapters are not fused.
    """
    injections = [injection for injection in _injections(pipe).values() if injection.is_fused]
    if not injections:
        raise StateError("adapters are not fused; call fuse_svfit() before unfuse_svfit()")
    for injection in injections:
        injection.unfuse()


def save_svfit_weights(
    pipe: DiffusionPipeline, save_directory: str | Path, adapter_name: str | None = None
) -> Path:
    """Save an adapter as `pytorch_svfit_weights.safetensors` in a folder, and return the path.

    Args:
        pipe: the pipeline.
        save_directory: folder, made if missing.
        adapter_name: which adapter; may be left out where only one is loaded.

    Raises:
        AdapterNameError: the name is unknown, or left out where several are loaded.
        OSError: the file could not be written; one that was there is untouched.
    """
    models = components.models_of(pipe)
    names = components.adapter_names(models)
    if adapter_name is None:
        if len(names) != 1:
            raise AdapterNameError(
                f"say which adapter to save with adapter_name=…; "
                f"loaded: {', '.join(map(repr, names)) or 'none'}"
            )
        adapter_name = names[0]
    path = Path(save_directory) / WEIGHTS_NAME
    write_adapter(path, components.collect_adapter(models, adapter_name))
    return path


PIPELINE_METHODS: tuple[Callable[..., Any], ...] = (
    load_svfit_weights,
    set_svfit_adapters,
    svfit_adapters_per_prompt,
    get_active_svfit_adapters,
    get_list_svfit_adapters,
    enable_svfit,
    disable_svfit,
    delete_svfit_adapters,
    unload_svfit_weights,
    fuse_svfit,
    unfuse_svfit,
    save_svfit_weights,
)


def add_pipeline_methods() -> None:
    """Give every diffusers pipeline the methods above."""
    for method in PIPELINE_METHODS:
        setattr(DiffusionPipeline, method.__name__, method)


def _set_enabled(pipe: DiffusionPipeline, enabled: bool) -> None:
    components.refuse_change(components.models_of(pipe), "enable or disable adapters")
    for injection in _injections(pipe).values():
        injection.set_enabled(enabled)


def _injections(pipe: DiffusionPipeline) -> dict[str, Injection]:
    return components.injections(components.models_of(pipe))


def _free_name(taken: Sequence[str]) -> str:
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)


def _in_component(weight: Weight, component: str) -> float:
    return weight.get(component, 1.0) if isinstance(weight, Mapping) else weight


def _mixes(
    adapters: Sequence[AdapterMix], adapter_weights: Weight | Sequence[Weight] | None
) -> list[dict[str, tuple[Weight, ...]]]:
    """The adapters of each prompt, with the strengths that multiply."""
    if isinstance(adapters, str | Mapping) or not adapters:
        raise ConfigError(
            f"give a list with the adapter of each prompt, such as ['rex', None], got {adapters!r}"
        )
    mixes: list[dict[str, tuple[Weight, ...]]] = []
    per_prompt = _weight_list(adapters, adapter_weights)
    for adapter, weight in zip(adapters, per_prompt, strict=True):
        if isinstance(adapter, Mapping):
            own = zip(adapter, _weight_list([*adapter], [*adapter.values()]), strict=True)
            mixes.append({name: (strength, weight) for name, strength in own})
        elif isinstance(adapter, str):
            mixes.append({adapter: (weight,)})
        elif adapter is None:
            mixes.append({})
        else:
            raise ConfigError(
                f"a prompt's adapter is a name, a mapping of names to strengths or None, "
                f"got {adapter!r}"
            )
    return mixes


def _weight_list(
    adapters: Sequence[Any], weights: Weight | Sequence[Weight] | None
) -> list[Weight]:
    if weights is None:
        weights = 1.0
    if isinstance(weights, int | float | Mapping):
        weights = [weights] * len(adapters)
    if len(weights) != len(adapters):
        raise ConfigError(f"got {len(adapters)} adapters and {len(weights)} weights")
    for weight in weights:
        by_component = weight if isinstance(weight, Mapping) else {COMPONENTS[0]: weight}
        for component, number in by_component.items():
            if component not in COMPONENTS:
                raise ConfigError(
                    f"a weight is given for {component!r}; components: {', '.join(COMPONENTS)}"
                )
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"an adapter's weight must be a finite number, got {number!r}")
    return list(weights)


def _read(source: AdapterSource, weight_name: str, **hub_kwargs: Any) -> Adapter:
    if isinstance(source, Mapping):
        return parse_adapter(source, {})
    return read_adapter(_locate(source, weight_name, **hub_kwargs))


def _locate(
    source: str | Path, weight_name: str, subfolder: str | None = None, **hub_kwargs: Any
) -> Path:
    """The adapter file that `source` means, downloaded if it is a hub id."""
    local = Path(source)
    if local.is_file():
        return local
    if local.is_dir():
        return local / (subfolder or "") / weight_name
    try:
        return Path(hf_hub_download(str(source), weight_name, subfolder=subfolder, **hub_kwargs))
    except HFValidationError:
        raise CheckpointError(
            f"{str(source)!r} is no file, no folder and no hub id such as 'user/my-subject'"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{str(source)!r} is no local file or folder, and {weight_name!r} could not be fetched "
            f"from a hub repository of that name: {error}"
        ) from error
