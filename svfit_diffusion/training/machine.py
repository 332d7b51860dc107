"""What a run needs of the machine, checked before any work."""

from __future__ import annotations

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from diffusers.utils import is_xformers_available
from huggingface_hub import get_token

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.fields import check_choice
from svfit_diffusion.training.quantization import check_quantization


def check_machine(config: TrainingConfig) -> None:
    """Raise `ConfigError` if a setting needs what this machine lacks."""
    config.optimizer_settings.check()
    if config.enable_xformers_memory_efficient_attention and not is_xformers_available():
        raise ConfigError(
            "enable_xformers_memory_efficient_attention needs the package xformers: pip install "
            "xformers, or leave it out, as torch's own attention is about as fast"
        )
    check_quantization(config.quantization, config.bnb_quantization_config_path)
    _check_tracker(config.report_to)
    if config.push_to_hub and not (config.hub_token or get_token()):
        raise ConfigError("push_to_hub needs a token: run `hf auth login`, or give hub_token")


def _check_tracker(name: str | None) -> None:
    check_choice("report_to", name, LoggerType.list())
    if name not in (None, "all") and name not in map(str, get_available_trackers()):
        package = "comet-ml" if name == "comet_ml" else name
        raise ConfigError(f"report_to {name} needs the package {package}: pip install {package}")
