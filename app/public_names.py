"""What files may tell strangers of the server's folders: no more than the name of what is there."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from svfit_diffusion.files.adapter import read_adapter, write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata

_ABSOLUTE = re.compile(r"(/|~[\\/]|[A-Za-z]:[\\/]|\\\\)\S")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def public_name(source: str) -> str:
    """A base model's id on the hub; of a path, what it ends with."""
    if _HUB_ID.fullmatch(source) and not Path(source).exists():
        return source
    return re.split(r"[\\/]+", source.rstrip("\\/"))[-1]


def without_paths(metadata: AdapterMetadata) -> AdapterMetadata:
    """What an adapter says of itself, without the folders of the machine it was trained on."""
    training = {
        name: public_name(value) if _is_path(value) else value
        for name, value in metadata.training.items()
    }
    base_model = public_name(metadata.base_model)
    return dataclasses.replace(metadata, base_model=base_model, training=training)


def copy_without_paths(source: Path, target: Path) -> None:
    """Copy an adapter's file; where it tells of no folders, to the last byte.

    Raises:
        CheckpointError: it is damaged.
        OSError: it could not be written.
    """
    adapter = read_adapter(source)
    public = without_paths(adapter.metadata)
    if public == adapter.metadata:
        shutil.copyfile(source, target)
    else:
        write_adapter(target, dataclasses.replace(adapter, metadata=public))


def _is_path(value: Any) -> bool:
    """Whether a setting is the path of a file or folder, of whatever system; prompts are not."""
    return isinstance(value, str) and _ABSOLUTE.match(value) is not None
