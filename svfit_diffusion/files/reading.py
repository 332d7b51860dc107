"""Files that others wrote."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svfit_diffusion.errors import CheckpointError, clipped


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, mapped, and its metadata.

    Raises:
        CheckpointError: it is missing or no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError) as error:  # torch maps the file, and may fail
        raise CheckpointError(
            f"{path} is not a readable safetensors file (damaged, truncated or another format): "
            f"{clipped(error)}"
        ) from error
