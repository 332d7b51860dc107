"""What the nodes ask of ComfyUI.

It is no dependency and there only inside itself, so its modules are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

_FOLDER = "svfit"


def adapter_files() -> list[str]:
    """The adapter files in `models/svfit`, and in folders that the user has set for `svfit`."""
    import folder_paths

    own = str(Path(folder_paths.models_dir) / _FOLDER)
    if own not in folder_paths.folder_names_and_paths.get(_FOLDER, ([],))[0]:
        folder_paths.add_model_folder_path(_FOLDER, own)
    # A folder of our own takes any type of file.
    files: list[str] = folder_paths.get_filename_list(_FOLDER)
    return [file for file in files if file.endswith(".safetensors")]


def adapter_path(name: str) -> Path:
    """Where one of `adapter_files` is; `FileNotFoundError` if it is gone."""
    import folder_paths

    return Path(folder_paths.get_full_path_or_raise(_FOLDER, name))


def compute_device() -> torch.device:
    """ComfyUI's own device if that has the float64 which singular vectors need, or the CPU."""
    import comfy.model_management

    device: torch.device = comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


def make_room(size: int, device: torch.device) -> None:
    """Let models that ComfyUI holds on a device make room for `size` bytes."""
    import comfy.model_management

    if device.type != "cpu":
        comfy.model_management.free_memory(size, device)


def progress(total: int) -> Callable[[], None]:
    """A bar on the node; each call is a step, and raises if the user has cancelled."""
    import comfy.utils

    bar = comfy.utils.ProgressBar(total)
    return lambda: bar.update(1)
