"""Options that several commands share, and what their words mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svfit_diffusion.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from svfit_diffusion.files.adapter import Adapter
    from svfit_diffusion.training.base import BaseSource

Base = Annotated[
    str,
    typer.Option(
        "--base",
        "--pretrained_model_name_or_path",
        help="Base model: a folder, a single file or an id on huggingface.co; default: the one "
        "that the adapter names.",
    ),
]
NeededBase = Annotated[
    str,
    typer.Option(
        "--base",
        "--pretrained_model_name_or_path",
        help="Base model: a folder, a single file or an id on huggingface.co.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of the base model.")]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Variant of its weight files, such as fp16.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target that is there.")]
IgnoreMismatch = Annotated[
    bool,
    typer.Option(
        "--ignore_base_mismatch", help="Go on although the adapter was trained on another base."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

OWN_PARSER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Of commands whose words are left to parsers of their own."""

_ON_ONE_LINE = 3


class Dtype(str, Enum):
    """Types of numbers in files and in memory."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    @property
    def torch(self) -> torch.dtype:
        """As torch has it."""
        import torch

        found: torch.dtype = getattr(torch, self.value)
        return found


def weighted(text: str) -> tuple[str, float]:
    """An adapter and its strength from `adapter` or `adapter:strength`; 1 by default.

    Raises:
        ConfigError: the strength is no finite number.
    """
    source, colon, number = text.rpartition(":")
    if not colon or len(source) < 2 or "/" in number or "\\" in number:  # a path, or a drive's name
        return text, 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = float("nan")
    if not abs(strength) < float("inf"):
        raise ConfigError(f"{text!r} should end in a strength, such as {source}:0.7")
    return source, strength


def read(source: str) -> Adapter:
    """The adapter in a file, a folder or a hub repository; `CheckpointError` if there is none."""
    from svfit_diffusion.adapters.sources import adapter_from
    from svfit_diffusion.files.adapter import WEIGHTS_NAME

    return adapter_from(source, WEIGHTS_NAME)


def base_of(
    base: str, revision: str | None, variant: str | None, adapters: Sequence[Adapter] = ()
) -> BaseSource:
    """Where the base model is; where none is named, the one that adapters were trained on.

    Raises:
        ConfigError: no base is named, or several.
    """
    from svfit_diffusion.training.base import BaseSource

    named = list(dict.fromkeys(a.metadata.base_model for a in adapters if a.metadata.base_model))
    if not base and len(named) != 1:
        found = f"name several ({', '.join(named)})" if named else "do not name one"
        raise ConfigError(f"the adapters {found}: say which base model by --base")
    return BaseSource(base or named[0], revision, variant)


def device_named(wanted: str | None, *, float64: bool = False) -> torch.device:
    """The device of that name; if none is named, the accelerator, or the CPU.

    Args:
        wanted: the name.
        float64: whether it must know such numbers, if none is named.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    is_usable = found is not None and not (float64 and found.type == "mps")
    try:
        return torch.zeros((), device=wanted or (found if is_usable else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # as torch says it of unknown and absent ones
        raise ConfigError(f"--device {wanted} cannot be used: {error}") from None


def adapter_file(output: Path) -> Path:
    """Where an adapter goes: into a file of that name, or a folder under its usual name."""
    from svfit_diffusion.files.adapter import WEIGHTS_NAME

    return output if output.suffix == ".safetensors" else output / WEIGHTS_NAME


def save(adapter: Adapter, output: Path, overwrite: bool) -> Path:
    """Write an adapter to a file, or into a folder.

    Raises:
        ConfigError: it is there already.
        OSError: it could not be written; nothing is left of it.
    """
    from svfit_diffusion.files.adapter import write_adapter

    path = adapter_file(output)
    refuse_existing(path, overwrite)
    write_adapter(path, adapter)
    return path


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `ConfigError` if something is at `path`."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; choose another name, or add --overwrite")


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts as JSON, or to be read: a line each, and one for each entry of a long one."""
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(len(label) for label in facts)
    for label, value in facts.items():
        name = label.replace("_", " ")
        if isinstance(value, dict) and len(value) > _ON_ONE_LINE:
            print(name)
            for own, entry in value.items():
                print(f"  {_as_text(entry):>10}  {own}")
        else:
            print(f"{name:<{width}}  {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
