"""Pipelines with adapters in their weights, as folders that diffusers loads."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.atomic import write_folder_atomically
from svfit_diffusion.interchange.comparing import Digests, digests, refuse_differences
from svfit_diffusion.interchange.export import Export
from svfit_diffusion.interchange.merging import Merge, Weighted, merging

_INDEX = "model_index.json"


@torch.no_grad()
def export_pipeline(
    pipe: Any,
    adapters: Weighted,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    ignore_base_mismatch: bool = False,
) -> Export:
    """Write a pipeline with adapters merged into its weights, for `from_pretrained`.

    All but the weights is as the pipeline has it, and nothing of this package is needed to load the
    folder. Before it appears, diffusers reads it back, and what it reads is compared with what was
    meant, bit by bit.

    Args:
        pipe: a pipeline of the base model; it is as before afterwards. Adapters that it has set do
            not count.
        adapters: as files, folders, hub ids or in memory, with their strengths: a mapping or pairs.
        folder: to be made.
        dtype: of all models' weights: float16, bfloat16 or float32. If not given, every weight has
            the dtype that it has in the pipeline, which by default is loaded in float32 whatever
            the base is stored in.
        max_shard_size: of the weight files, such as `"2GB"`; diffusers' and transformers' own
            default if not given.
        variant: a word in the names of the weight files, such as `"fp16"`.
        overwrite: replace a pipeline's folder that is there, when the new one is complete.
        ignore_base_mismatch: merge although an adapter was trained on another base.

    Raises:
        InterchangeError: nothing would be merged; the pipeline holds LoRAs or other weights that no
            folder can hold; diffusers does not read the folder back as it was meant; or a folder is
            there.
        ConfigError: a strength is not a finite number.
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading an adapter.
        OSError: the folder could not be written; nothing is left of it.
    """
    folder = Path(folder).resolve()
    _refuse_existing(folder, pipe, overwrite)
    with merging(pipe, adapters, dtype, ignore_base_mismatch) as merge:
        write_folder_atomically(folder, partial(_write, pipe, merge, max_shard_size, variant))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Export(folder, size, merge.shifts.rank, merge.shifts.error, merge.shifts.errors)


def _refuse_existing(folder: Path, pipe: Any, overwrite: bool) -> None:
    if not folder.parent.is_dir():
        raise InterchangeError(f"there is no folder {folder.parent}; make it first")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InterchangeError(f"{folder} exists; choose another name, or pass overwrite=True")
    if not (folder / _INDEX).is_file():
        raise InterchangeError(
            f"{folder} holds no pipeline, so it is not replaced; remove it first"
        )
    base = Path(str(pipe.config.get("_name_or_path", "")))
    if base.is_dir() and base.samefile(folder):
        raise InterchangeError(
            f"{folder} is the base model itself, which its adapters need; choose another name"
        )


def _write(
    pipe: Any, merge: Merge, max_shard_size: int | str | None, variant: str | None, target: Path
) -> None:
    meant: dict[str, Digests] = {}

    def tensors_of(component: str) -> dict[str, Tensor]:
        # When its turn comes to be saved: no two merged models are in memory at a time.
        tensors = merge.tensors(component)
        meant[component] = digests(tensors)
        return tensors

    merged = copy.copy(pipe)
    for component, model in merge.models.items():
        setattr(merged, component, _saving(model, partial(tensors_of, component)))
    try:
        merged.save_pretrained(target, max_shard_size=max_shard_size, variant=variant)
    except SafetensorError as error:  # its wrapping of the system's errors
        raise OSError(f"could not write {target}: {error}") from error
    for component, model in merge.models.items():
        own = meant.get(component) or digests(merge.tensors(component))  # a MultiControlNetModel
        read = _read(model, target / component, variant, own)
        refuse_differences({component: own}, {component: read})
    # The rest of it: the index, tokenizers, the scheduler. What is missing has to be said.
    absent = {component: None for component, part in pipe.components.items() if part is None}
    _reading(type(pipe).from_pretrained, target, **merge.models, **absent)


def _saving(model: Any, tensors: Callable[[], Mapping[str, Tensor]]) -> Any:
    """A model that is `model` in all, but for the tensors that it saves."""
    stand_in = object.__new__(type(model))
    stand_in.__dict__ = {**model.__dict__, "state_dict": tensors}
    if "config" in model.__dict__:  # transformers notes there what it saves
        stand_in.__dict__["config"] = copy.deepcopy(model.config)
    return stand_in


def _read(model: Any, folder: Path, variant: str | None, meant: Digests) -> Digests:
    """What diffusers or transformers reads from a model's folder, cast as it was meant."""
    floats = Counter(dtype for dtype, _, _ in meant.values() if dtype.is_floating_point)
    # The dtype of most first; in float32, weights of mixed dtypes are exact.
    for dtype in (floats.most_common(1)[0][0], torch.float32):
        read = _reading(type(model).from_pretrained, folder, torch_dtype=dtype, variant=variant)
        tensors = read.state_dict()
        if all(meant[name][0] == tensor.dtype for name, tensor in tensors.items() if name in meant):
            break
    return digests({n: t.to(meant[n][0]) if n in meant else t for n, t in tensors.items()})


def _reading(load: Callable[..., Any], folder: Path, **arguments: Any) -> Any:
    try:
        return load(str(folder), **arguments)
    except Exception as error:  # of any class
        reason = str(error).strip().partition("\n")[0][:200]
        raise InterchangeError(
            f"nothing was written, since diffusers does not read the folder back "
            f"({type(error).__name__}: {reason})"
        ) from error
