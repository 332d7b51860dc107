"""Fields of settings: help, range, choices, and whether a resumed run may change them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from svfit_diffusion.errors import ConfigError

FREE_WHEN_RESUMED = frozenset(
    {
        "pretrained_model_name_or_path",
        "instance_data_dir",
        "output_dir",
        "overwrite",
        "class_data_dir",
        "sample_batch_size",
        "cache_to_disk",
        "offload",
        "group_offload",
        "shard_base",
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

COMMON_TO_A_PASS = frozenset(
    {
        "pretrained_model_name_or_path",
        "revision",
        "variant",
        "single_file_config",
        "rank",
        "target",
        "train_text_encoder",
        "resolution",
        "mask_background_weight",
        "cache_latents",
        "pre_compute_text_embeddings",
        "offload",
        "group_offload",
        "shard_base",
        "gradient_accumulation_steps",
        "snr_gamma",
        "noise_offset",
        "weighting_scheme",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "quantization",
        "bnb_quantization_config_path",
        "mixed_precision",
        "gradient_checkpointing",
        "allow_tf32",
        "enable_xformers_memory_efficient_attention",
    }
)
"""Settings that subjects which are trained in one pass must share."""

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
        "lr_num_cycles",
        "num_validation_images",
        "validation_steps",
        "num_inference_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
    }
)
_NOT_NEGATIVE = frozenset(
    {
        "seed",
        "guidance_scale",
        "prior_loss_weight",
        "mask_background_weight",
        "lr_warmup_steps",
        "adam_weight_decay",
        "snr_gamma",
        "noise_offset",
    }
)
_POSITIVE = frozenset(
    {
        "learning_rate",
        "text_encoder_lr",
        "output_strength",
        "max_grad_norm",
        "adam_epsilon",
        "lr_power",
        "logit_std",
    }
)
_BELOW_ONE = frozenset({"proportion_empty_prompts", "ema_decay", "adam_beta1", "adam_beta2"})
_LARGEST_SEED = 2**63  # what torch's generators take
_MODE_SCALES = (-1.0, 1.75)  # beyond, times leave 0..1 (arXiv 2403.03206)


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
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a number, got {value}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{name} has a NUL character, which texts of settings have not")
    if name in _AT_LEAST_ONE and not value >= 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    if name in _NOT_NEGATIVE and not value >= 0:
        raise ConfigError(f"{name} must not be negative, got {value}")
    if name in _POSITIVE and not value > 0:
        raise ConfigError(f"{name} must be a positive number, got {value}")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and less than 1, got {value}")
    if name == "seed" and value >= _LARGEST_SEED:
        raise ConfigError(f"seed must be less than 2⁶³, got {value}")
    low, high = _MODE_SCALES
    if name == "mode_scale" and not low <= value <= high:
        raise ConfigError(f"mode_scale must be between {low:g} and {high:g}, got {value}")


def choices(settings: type) -> dict[str, tuple[str, ...]]:
    """What the settings of a class may be that are a choice, by name."""
    return {
        name: get_args(kind)
        for name, hint in get_type_hints(settings).items()
        for kind in (hint, *get_args(hint))
        if get_origin(kind) is Literal
    }


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise `ConfigError`, with the nearest right spelling, unless a value is one of those known;
    None always is.
    """
    known = list(known)
    if value is None or value in known:
        return
    near = nearest(str(value), known)
    hint = f"; did you mean {near}?" if near else ""
    raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one that a misspelt word is most like, whatever its case, if there is any."""
    by_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_case, n=1)
    return by_case[near[0]] if near else None
