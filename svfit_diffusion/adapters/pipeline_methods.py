"""The pipeline methods: `pipe.load_svfit_weights(...)` and its kin.

Importing `svfit_diffusion` gives the public functions of this module and of `choosing` to every
diffusers pipeline as methods, by the table in `svfit_diffusion.pipeline_methods`. They are spelled
and behave as diffusers' LoRA methods do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from svfit_diffusion.adapters.choosing import (
    let_act,
)
from svfit_diffusion.adapters.components import (
    adapter_names,
    check_names,
    collect_adapter,
    eject_all,
    injections,
    models_of,
    refuse_change,
    refuse_copies,
    remove_adapters,
)
from svfit_diffusion.adapters.inject import withdraw
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.loading import only_components, put_adapter
from svfit_diffusion.adapters.sources import AdapterSource, adapter_from
from svfit_diffusion.errors import AdapterNameError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, write_adapter


def load_svfit_weights(
    pipe: DiffusionPipeline,
    pretrained_model_name_or_path_or_dict: AdapterSource,
    adapter_name: str | None = None,
    *,
    weight_name: str = WEIGHTS_NAME,
    subfolder: str | None = None,
    components: Collection[str] | None = None,
    activate: bool = True,
    ignore_base_mismatch: bool = False,
    show_progress: bool = True,
    **hub_kwargs: Any,
) -> None:
    """Load an adapter and, unless told otherwise, make it the active one.

    Everything is checked before the pipeline is touched. The first adapter on a base model computes
    the singular vectors of its layers, once; later ones find them in the cache.

    A set adapter is weights: while it acts, the layers hold `W'` in place of their own weights, so
    that LoRAs, IP-Adapters, other attention processors, offloading and `torch.compile` see nothing
    else, and `save_pretrained` saves a merged model. One thread may change adapters while no other
    draws with the same models: a change in the midst of another thread's call of a pipeline is
    refused, and a call that would begin during a change waits for it. Loops of your own that call
    the models themselves need a lock of your own.

    Args:
        pipe: the pipeline.
        pretrained_model_name_or_path_or_dict: a file, a folder, a hub id or a state dict.
        adapter_name: a new name; `default_0`, `default_1`, … if not given.
        weight_name: file name in the folder or repository.
        subfolder: folder in the folder or repository.
        components: which of the components that the adapter shifts to load it for, such as
            `["unet"]`; all by default.
        activate: make it the active one; False only adds it, which takes milliseconds once the
            layers are known, so that thousands can be kept to choose from.
        ignore_base_mismatch: load although the adapter was trained on another base model, such as
            the one this base was fine-tuned from; the subject may come out weaker.
        show_progress: show a progress bar while singular vectors are computed.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: passed
            to `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: the file is missing, damaged, no adapter, or fits other layers or
            components.
        ConfigError: it does not shift one of `components`.
        BaseMismatchError: it was trained on another base model, or its singular vectors come out
            otherwise here.
        BasisError: a weight is sharded, parametrised, quantised in an unknown way or not finite.
        AdapterNameError: the name is taken.
        StateError: adapters are fused, or given per prompt at the moment; or weights are not in
            memory, were changed by something else, or are in use by another thread.
    """
    models = models_of(pipe)
    name = adapter_name or _free_name(adapter_names(models))
    adapter = adapter_from(
        pretrained_model_name_or_path_or_dict, weight_name, subfolder=subfolder, **hub_kwargs
    )
    if components is not None:
        adapter = only_components(adapter, components)
    put_adapter(
        models,
        adapter,
        name,
        ignore_base_mismatch=ignore_base_mismatch,
        show_progress=show_progress,
    )
    if activate:
        try:
            let_act(pipe, {name: 1.0}, enabled=True)
        except BaseException:
            for component in adapter.deltas:
                withdraw(Injection.of(models[component]), name)
            raise


def delete_svfit_adapters(pipe: DiffusionPipeline, adapter_names: str | Sequence[str]) -> None:
    """Remove adapters; layers that none shifts any more are restored.

    Raises:
        AdapterNameError: a name is unknown; none is removed.
        StateError: adapters are fused, or given per prompt at the moment; none is removed.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    models = models_of(pipe)
    check_names(models, names)
    refuse_change(models, "delete an adapter")
    remove_adapters(models, names)


def unload_svfit_weights(pipe: DiffusionPipeline, *, keep_changed_weights: bool = False) -> None:
    """Remove all adapters and restore the pipeline's own objects, fused or not. Idempotent.

    Args:
        pipe: the pipeline.
        keep_changed_weights: leave weights that something else has changed since they were set (a
            fused LoRA, another checkpoint) as they are, instead of refusing.

    Raises:
        StateError: weights were changed by something else, are not in memory, or in use by another
            thread; the adapters stay.
    """
    models = models_of(pipe)
    if keep_changed_weights:
        for injection in injections(models).values():
            injection.applied.accept_foreign_changes()
    refuse_copies(models, "unload adapters")
    eject_all(models)


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
    models = models_of(pipe)
    names = adapter_names(models)
    if adapter_name is None:
        if len(names) != 1:
            raise AdapterNameError(
                f"say which adapter to save with adapter_name=…; "
                f"loaded: {', '.join(map(repr, names)) or 'none'}"
            )
        adapter_name = names[0]
    path = Path(save_directory) / WEIGHTS_NAME
    write_adapter(path, collect_adapter(models, adapter_name))
    return path


def _free_name(taken: Sequence[str]) -> str:
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)
