"""`svfit doctor`: what is installed, what it runs on, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from svfit_diffusion.cli.options import AsJson, show

_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow")
_EXTRAS = {
    "app": ("gradio", "matplotlib"),
    "LoRA of other programs (export, import)": ("peft",),
    "photos in HEIC": ("pillow-heif",),
    "prodigy": ("prodigyopt",),
    "8-bit Adam": ("bitsandbytes",),
    "quantised bases": ("bitsandbytes", "torchao", "gguf"),
    "fleets, serving": ("ray", "fsspec"),
}


def doctor(as_json: AsJson = False) -> None:
    """Say which versions and devices are here, where the cache is, and what is missing."""
    facts = {
        "svfit-diffusion": _version("svfit-diffusion"),
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in _NEEDED},
        **_devices(),
        **_cache(),
        **_extras(),
    }
    show(facts, as_json)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing: pip install {name}"


def _extras() -> dict[str, str]:
    found = {}
    for use, packages in _EXTRAS.items():
        missing = [name for name in packages if _version(name).startswith("missing")]
        found[use] = f"missing: pip install {' '.join(missing)}" if missing else "installed"
    return found


def _devices() -> dict[str, str]:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    if accelerator is None:
        return {"device": f"cpu ({threads})"}
    if accelerator.type != "cuda":
        return {"device": f"{accelerator.type} ({threads})"}
    return {"device": ", ".join(map(_card, range(torch.cuda.device_count())))}


def _card(index: int) -> str:
    import torch

    found: Any = torch.cuda.get_device_properties(index)
    return f"{found.name} ({found.total_memory / 2**30:.0f} GiB)"


def _cache() -> dict[str, str]:
    from svfit_diffusion.spectrum.cache import cache_directory
    from svfit_diffusion.spectrum.room import free_bytes, in_units, nearest
    from svfit_diffusion.spectrum.stored import stored_bases

    folder = cache_directory()
    try:
        stored = stored_bases(folder)
    except OSError as error:
        return {"cache": f"{folder} CANNOT BE READ: {error}"}
    size, free = sum(file.size for file in stored), free_bytes(folder)
    state = f"{len(stored):,} bases, {in_units(size)}; {in_units(free)} free"
    can_write = os.access(nearest(folder), os.W_OK)
    return {"cache": f"{folder} ({state}{'' if can_write else '; NOT WRITABLE'})"}
