"""Single tensors from the files of a base model, without loading the model."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)
"""Files as diffusers and transformers name them, in one piece or several."""


def model_folders(source: str) -> list[Path]:
    """The folders with weights of a model, or of a pipeline's parts: which of them it is, is not
    kept by a model that was loaded as a `subfolder`.

    Args:
        source: a folder, or the id of a repository that has been downloaded.
    """
    if not source:
        return []
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, local_files_only=True))
        except (OSError, ValueError):  # not downloaded, or no id
            return []
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    return [each for each in (folder, *below) if _files(each)]


def stored_tensors(folder: Path, names: Collection[str], variant: str = "") -> dict[str, Tensor]:
    """Tensors of a model's safetensors files, mapped, in the precision they are stored in.

    Libraries rename what they load, so that a name stands for the one in the files with the longest
    end in common, if there is just one: `encoder.0.weight` for `text_model.encoder.0.weight`.

    Args:
        folder: of the files.
        names: of tensors.
        variant: of the files, such as `"fp16"`.

    Returns:
        Those found, by the names asked for; none where there are no such files.
    """
    where: dict[str, Path] = {}
    files = [path for path in _files(folder) if _variant(path) == variant]
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                where |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError):
            continue
    keys = {name: key for name in names if (key := _key(name, where)) is not None}
    found: dict[str, Tensor] = {}
    for path in files:
        here = {name: key for name, key in keys.items() if where[key] == path}
        if here:
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(key) for name, key in here.items()}
    return found


def _files(folder: Path) -> list[Path]:
    """The files of weights in a folder, by name."""
    return sorted(path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))


def _variant(path: Path) -> str:
    match = _WEIGHTS.fullmatch(path.name)
    return (match and match["variant"]) or ""


def _key(name: str, keys: Collection[str]) -> str | None:
    """The key with the longest end in common with a name, in whole words; None if several have."""
    if name in keys:
        return name
    words = name.split(".")
    for begin in range(len(words) - 1):
        end = ".".join(words[begin:])
        alike = [key for key in keys if f".{key}".endswith(f".{end}")]
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None
