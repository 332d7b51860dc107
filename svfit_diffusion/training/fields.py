"""Fields of settings: help, range, and whether a resumed run may change them."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from svfit_diffusion.errors import ConfigError

FREE_WHEN_RESUMED = frozenset(
    {
        "pretrained_model_name_or_path",
        "instance_data_dir",
        "output_dir",
        "class_data_dir",
        "sample_batch_size",
        "cache_to_disk",
        "offload",
        "max_train_steps",
        "num_train_epochs",
        "allow_tf32",
        "enable_xformers_memory_efficient_attention",
        "validation_prompt",
        "num_validation_images",
        "validation_steps",
        "num_inference_steps",
        "guidance_scale",
        "report_to",
        "logging_dir",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "push_to_hub",
        "hub_token",
        "hub_model_id",
    }
)
"""Settings that may change when a run is resumed: they do not decide what it computes."""

_AT_LEAST_ONE = frozenset(
    {
        "budget",
        "num_class_images",
        "sample_batch_size",
        "resolution",
        "train_batch_size",
        "gradient_accumulation_steps",
        "max_train_steps",
        "num_train_epochs",
        "num_validation_images",
        "validation_steps",
        "num_inference_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
    }
)
_NOT_NEGATIVE = frozenset(
    {
        "prior_loss_weight",
        "mask_background_weight",
        "lr_warmup_steps",
        "adam_weight_decay",
        "snr_gamma",
        "noise_offset",
    }
)
_POSITIVE = frozenset({"learning_rate", "text_encoder_lr", "max_grad_norm"})


def setting(default: Any, help: str) -> Any:
    """A field with its help text."""
    metadata = {"help": help}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_range(name: str, value: Any) -> None:
    """Raise `ConfigError` unless the value of a setting is in its range; None always is."""
    if value is None:
        return
    if name in _AT_LEAST_ONE and not value >= 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    if name in _NOT_NEGATIVE and not value >= 0:
        raise ConfigError(f"{name} must not be negative, got {value}")
    if name in _POSITIVE and not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a positive number, got {value}")
