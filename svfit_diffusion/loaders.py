"""The pipeline methods: `pipe.load_svfit_weights(...)` and its kin.

Importing `svfit_diffusion` gives the public functions of this module to every diffusers pipeline as
methods. They are spelled and behave as diffusers' LoRA methods do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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

AdapterSource = str | Path | Mapping[str, Tensor]
Weight = float | Mapping[str, float]
"""An adapter's strength: one number, or one per component such as `{"unet": 0.8}` (others 1)."""


def load_svfit_weights(
    pipe: DiffusionPipeline,
    pretrained_model_name_or_path_or_dict: AdapterSource,
    adapter_name: str | None = None,
    *,
    weight_name: str = WEIGHTS_NAME,
    subfolder: str | None = None,
    ignore_base_mismatch: bool = False,
    show_progress: bool = True,
    **hub_kwargs: Any,
) -> None:
    """Load an adapter and make it the active one.

    Everything is checked before the pipeline is touched. The first adapter on a base model computes
    the singular vectors of its layers, once; later ones find them in the cache. A LoRA or an
    IP-Adapter goes on before an adapter.

    Args:
        pipe: the pipeline.
        pretrained_model_name_or_path_or_dict: a file, a folder, a hub id or a state dict.
        adapter_name: a new name; `default_0`, `default_1`, … if not given.
        weight_name: file name in the folder or repository.
        subfolder: folder in the folder or repository.
        ignore_base_mismatch: load although the adapter was trained on another base model, such as
            the one this base was fine-tuned from; the subject may come out weaker.
        show_progress: show a progress bar while singular vectors are computed.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: passed
            to `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: the file is missing, damaged, no adapter, or fits other layers.
        BaseMismatchError: it was trained on another base model.
        AdapterNameError: the name is taken.
        StateError: adapters are fused.
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
        StateError: adapters are fused.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    components.check_names(components.models_of(pipe), names)
    weights = dict(zip(names, _weight_list(names, adapter_weights), strict=True))
    components.refuse_while_fused(components.models_of(pipe), "change the active adapters")
    for component, injection in _injections(pipe).items():
        injection.set_active(
            {
                name: weight.get(component, 1.0) if isinstance(weight, Mapping) else weight
                for name, weight in weights.items()
                if name in injection.adapter_names
            }
        )


def get_active_svfit_adapters(pipe: DiffusionPipeline) -> list[str]:
    """Names of the active adapters."""
    active = [name for injection in _injections(pipe).values() for name in injection.active]
    return list(dict.fromkeys(active))


def get_list_svfit_adapters(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """Names of the loaded adapters, per component that they shift."""
    return {c: list(injection.adapter_names) for c, injection in _injections(pipe).items()}


def enable_svfit(pipe: DiffusionPipeline) -> None:
    """Apply the active adapters again after `disable_svfit`.

    Raises:
        StateError: adapters are fused.
    """
    _set_enabled(pipe, True)


def disable_svfit(pipe: DiffusionPipeline) -> None:
    """Generate with the base model, keeping the adapters loaded.

    Raises:
        StateError: adapters are fused.
    """
    _set_enabled(pipe, False)


def delete_svfit_adapters(pipe: DiffusionPipeline, adapter_names: str | Sequence[str]) -> None:
    """Remove adapters; layers that none shifts any more are restored.

    Raises:
        AdapterNameError: a name is unknown; none is removed.
        StateError: adapters are fused; none is removed.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    components.check_names(components.models_of(pipe), names)
    components.refuse_while_fused(components.models_of(pipe), "delete an adapter")
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
        StateError: already fused, or no adapter is active.
    """
    injections = [injection for injection in _injections(pipe).values() if injection.active]
    if not injections:
        raise StateError("no adapter is active, so there is nothing to fuse")
    for injection in injections:
        injection.refuse_while_fused("fuse again")
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
    components.refuse_while_fused(components.models_of(pipe), "enable or disable adapters")
    for injection in _injections(pipe).values():
        injection.set_enabled(enabled)


def _injections(pipe: DiffusionPipeline) -> dict[str, Injection]:
    return components.injections(components.models_of(pipe))


def _free_name(taken: Sequence[str]) -> str:
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)


def _weight_list(names: Sequence[str], weights: Weight | Sequence[Weight] | None) -> list[Weight]:
    if weights is None:
        weights = 1.0
    if isinstance(weights, int | float | Mapping):
        weights = [weights] * len(names)
    if len(weights) != len(names):
        raise ConfigError(f"got {len(names)} adapter names and {len(weights)} weights")
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
