"""The base model of a run: a folder, a hub id or a single file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors import SafetensorError, safe_open
from torch import nn

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.quantised import holds_quantised
from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.files.adapter import DENOISERS
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.training.quantization import cast_to_float8, loading_arguments

_SINGLE_FILES = (".safetensors", ".ckpt")
_SINGLE_FILE_CLASSES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "playground-v2-5": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}
"""The pipeline for what diffusers takes a single file for."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class BaseSource:
    """Where a base model is.

    Attributes:
        name: a folder, a hub id or a single file.
        revision: on the hub.
        variant: of its weight files, such as `"fp16"`.
        single_file_config: folder or hub id of the configuration files of a single file's pipeline.
    """

    name: str
    revision: str | None = None
    variant: str | None = None
    single_file_config: str | None = None

    @property
    def identity(self) -> str:
        """Names the base model, wherever the process runs."""
        if self.name and Path(self.name).exists():
            return str(Path(self.name).resolve())
        return f"{self.name}@{self.revision}" if self.revision else self.name


def load_base(source: BaseSource, dtype: torch.dtype = torch.float32) -> Any:
    """The base pipeline, in a precision that its bases lose nothing by.

    They are of weights rounded to float16, and of a model in bfloat16 those in its files are read
    (`base_weights`); a single file in bfloat16 cannot be read so, and is loaded in float32.
    What is quantised in its files stays so.

    Args:
        source: where it is.
        dtype: of the run: float32, float16 or bfloat16.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if dtype == torch.bfloat16 and _is_single_file(source.name):
        dtype = torch.float32
    arguments = _without_safety_checker(source.name)
    if dtype != torch.float32:
        return _load(source, arguments, dtype)
    pipe = _load(source, arguments)
    _make_float32(pipe)
    return pipe


def load_quantised_base(
    source: BaseSource, quantization: str | None, config_path: str | None, dtype: torch.dtype
) -> Any:
    """The base pipeline, its denoiser quantised and the rest in float32.

    Args:
        source: where it is; a folder or a hub id.
        quantization: one of `quantization.QUANTIZATIONS`, or
        config_path: a file with bitsandbytes' settings.
        dtype: what the denoiser computes in.

    Raises:
        ConfigError: it cannot be loaded so.
    """
    if Path(source.name).suffix in _SINGLE_FILES:
        raise ConfigError(
            "quantization goes with a base model in a folder or on the hub, and "
            f"{source.name} is a single file"
        )
    try:
        components = dict(DiffusionPipeline.load_config(source.name, revision=source.revision))
    except Exception as error:
        raise unusable(source.name, error) from error
    denoiser = next((name for name in DENOISERS if name in components), "")
    arguments = loading_arguments(quantization, config_path, denoiser, dtype)
    pipe = _load(source, _without_safety_checker(source.name) | arguments)
    _make_float32(pipe)
    if quantization == "fp8":
        cast_to_float8(getattr(pipe, denoiser), dtype)
    return pipe


def _make_float32(pipe: Any) -> None:
    for model in models_of(pipe).values():
        is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
        if not is_float32 and not holds_quantised(model):
            model.float()


def load_whole_base(source: BaseSource) -> Any:
    """The base pipeline with all that belongs to it, each model in the precision of its files.

    Raises:
        ConfigError: it cannot be loaded.
    """
    pipe = _load(source, {})
    folder = Path(str(pipe.config.get("_name_or_path", source.name)))
    for component, model in pipe.components.items():
        if isinstance(model, nn.Module):
            file = Path(source.name) if Path(source.name).is_file() else folder / component
            model.to(_stored_dtype(file, source.variant))
    return pipe


def _stored_dtype(place: Path, variant: str | None) -> torch.dtype:
    """What most tensors are in a safetensors file, or the first of a folder; else float32."""
    pattern = f"*.{variant}*safetensors" if variant else "*.safetensors"
    files = [place] if place.is_file() else sorted(place.glob(pattern))
    if not files:
        return torch.float32
    with safe_open(files[0], framework="pt") as file:
        found = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    return _DTYPES.get(found.most_common(1)[0][0], torch.float32) if found else torch.float32


def _load(source: BaseSource, arguments: dict[str, Any], dtype: torch.dtype | None = None) -> Any:
    if not source.name:
        raise ConfigError("pretrained_model_name_or_path is missing: a folder or a hub id")
    precision = {} if dtype is None else {"torch_dtype": dtype}
    try:
        if _is_single_file(source.name):
            return _load_single_file(Path(source.name), source.single_file_config, precision)
        return DiffusionPipeline.from_pretrained(
            source.name,
            revision=source.revision,
            variant=source.variant,
            **arguments,
            **precision,
        )
    except ConfigError:
        raise
    except Exception as error:  # others read there what others wrote: it may be any
        raise unusable(source.name, error, _variant_hint(source)) from error


def unusable(name: str, error: Exception, hint: str = "") -> ConfigError:
    """What to say of a base model that cannot be read.

    Args:
        name: of it.
        error: what came of trying.
        hint: what to do, in brackets.
    """
    known = isinstance(error, OSError | ValueError | ImportError | RuntimeError)
    said = clipped(error) if known else f"{type(error).__name__}: {clipped(error)}"
    return ConfigError(f"cannot load base model {name!r}{hint}: {said}")


def _without_safety_checker(name: str) -> dict[str, Any]:
    """Arguments that leave Stable Diffusion's safety checker out; others know none."""
    try:
        config = dict(DiffusionPipeline.load_config(name))
    except Exception:  # as loading will say
        return {}
    return (
        {"safety_checker": None, "requires_safety_checker": False}
        if "safety_checker" in config
        else {}
    )


def _variant_hint(source: BaseSource) -> str:
    """What to try where a folder has files of another variant only."""
    folder = Path(source.name)
    if source.variant or not folder.is_dir():
        return ""
    files = {path.name for path in folder.rglob("*.safetensors")}
    if files and all(".fp16." in name for name in files):
        return " (its files are of the variant fp16: add --variant=fp16)"
    return ""


def _is_single_file(name: str) -> bool:
    return Path(name).suffix in _SINGLE_FILES and Path(name).is_file()


def _load_single_file(path: Path, config: str | None, precision: Mapping[str, Any]) -> Any:
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} may be a pickle, which can run code when it is loaded: convert it to "
            f".safetensors"
        )
    name = _class_in(config) if config else _SINGLE_FILE_CLASSES.get(_kind(path), "")
    if not name:
        raise ConfigError(
            f"{path} is a single file of {_kind(path)!r}; single files of Stable Diffusion 1, 2, "
            f"3, XL and FLUX.1 can be loaded, others by single_file_config"
        )
    return getattr(diffusers, name).from_single_file(str(path), config=config, **precision)


def _class_in(config: str) -> str:
    index = Path(config) / "model_index.json"
    if index.is_file():
        return str(parse_json(index.read_text(encoding="utf-8"))["_class_name"])
    return str(DiffusionPipeline.load_config(config)["_class_name"])


def _kind(path: Path) -> str:
    """What diffusers takes a file for, by the names and shapes of its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(infer_diffusers_model_type(_Shapes(file)))
    except KeyError as error:
        raise ConfigError(f"{path} is a single file of no known kind: it lacks {error}") from None
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {clipped(error)}") from error


class _Shapes(Mapping[str, Any]):
    """The tensors of a file by name, of which no more than the shape is read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = frozenset(file.keys())

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return SimpleNamespace(shape=tuple(self._file.get_slice(name).get_shape()))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
