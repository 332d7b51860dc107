"""Quantising a base model's denoiser while it is loaded, to train on it in less memory.

It is done by diffusers: with bitsandbytes or torchao by their configurations, or by its layerwise
casting, which stores weights in float8 and computes in the precision of the run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from diffusers.quantizers import PipelineQuantizationConfig
from torch import nn

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.json_text import parse_json

Quantization = Literal["nf4", "int8", "torchao_int8", "torchao_float8", "fp8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
_TORCHAO = {"torchao_int8": "Int8WeightOnlyConfig", "torchao_float8": "Float8WeightOnlyConfig"}


def check_quantization(name: str | None, config_path: str | None) -> None:
    """Raise `ConfigError` if a denoiser cannot be quantised so on this machine.

    Args:
        name: one of `QUANTIZATIONS`.
        config_path: a file with bitsandbytes' settings, as diffusers' scripts take one.
    """
    if config_path is not None:
        name = quantization_named(Path(config_path))
    if name in _BITSANDBYTES:
        _require("bitsandbytes", name)
        if not torch.accelerator.is_available():
            raise ConfigError(
                "diffusers quantises by bitsandbytes on a GPU only, and this machine has none; use "
                "another machine, or quantization fp8 or torchao_int8"
            )
    if name in _TORCHAO:
        _require("torchao", name)
    if name in ("torchao_float8", "fp8"):
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        try:
            torch.ones(1, device=device).to(torch.float8_e4m3fn).float()
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"quantization {name}: {device} knows no float8 ({error})") from None


def _require(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"quantization {name} needs the package {package}: pip install {package}, or use fp8"
        )


def read_bitsandbytes(path: Path) -> dict[str, Any]:
    """bitsandbytes' settings in a JSON file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"bnb_quantization_config_path {path} cannot be read: {error}") from None
    ways = ("load_in_4bit", "load_in_8bit")
    if not isinstance(settings, dict) or sum(bool(settings.get(way)) for way in ways) != 1:
        raise ConfigError(
            f"{path} should hold BitsAndBytesConfig's settings, one of {' and '.join(ways)} true, "
            f'such as {{"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}'
        )
    return settings


def quantization_named(path: Path) -> Quantization:
    """Which of `QUANTIZATIONS` a file with bitsandbytes' settings means; `ConfigError` if none."""
    return "nf4" if read_bitsandbytes(path).get("load_in_4bit") else "int8"


def loading_arguments(
    name: str | None, config_path: str | None, denoiser: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of `DiffusionPipeline.from_pretrained` that quantise a denoiser.

    Args:
        name: one of `QUANTIZATIONS`, if that is wanted.
        config_path: a file with bitsandbytes' settings, if that is wanted.
        denoiser: component of the pipeline.
        dtype: what it computes in.
    """
    config: Any
    if config_path is not None or name in _BITSANDBYTES:
        given = read_bitsandbytes(Path(config_path)) if config_path else None
        settings = given or _BITSANDBYTES[str(name)]
        if settings.get("load_in_4bit"):
            settings = settings | {"bnb_4bit_compute_dtype": dtype}
        try:
            config = BitsAndBytesConfig(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"these are no settings of bitsandbytes: {error}") from None
    elif name in _TORCHAO:
        import torchao.quantization

        config = TorchAoConfig(getattr(torchao.quantization, _TORCHAO[name])())
    else:
        return {}
    return {
        "quantization_config": PipelineQuantizationConfig(quant_mapping={denoiser: config}),
        "torch_dtype": {denoiser: dtype, "default": torch.float32},
    }


def cast_to_float8(model: Any, dtype: torch.dtype) -> None:
    """Store the weights of a model's Linear layers in float8, and compute in `dtype`.

    Not of convolutions: their backward pass would find the float8 weight, where a Linear layer
    keeps the one that it has computed with.
    """
    model.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=dtype,
        skip_modules_classes=(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    )
