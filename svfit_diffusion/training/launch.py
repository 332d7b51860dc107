"""What accelerate was told by its launcher, or by its configuration, beyond how many processes.

Its ways to spread a training prepare the model that is trained, and its optimizer, for an engine of
theirs. Here shifts are trained, which each process holds whole, beside a frozen base: processes are
all that is taken from accelerate, and of DeepSpeed's ZeRO-3 how the base is spread over them.
"""

from __future__ import annotations

import os

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, parse_flag_from_env

from svfit_diffusion.errors import ConfigError

_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_OTHERS = {
    "ACCELERATE_USE_FSDP": "FSDP (use_fsdp)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM (use_megatron_lm)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config (use_parallelism_config)",
}
"""As `accelerate launch` and accelerators tell them, and what they are called in messages."""

_PLAIN = (
    "use accelerate launch --multi_gpu --num_processes=2 …, with --shard_base for a base that one "
    "card does not hold"
)


def check_launch(*, shard_base: bool) -> None:
    """Raise `ConfigError` if accelerate was told something that a training does not do.

    Args:
        shard_base: whether the denoiser is to be spread over the processes.
    """
    for flag, name in _OTHERS.items():
        if parse_flag_from_env(flag):
            raise ConfigError(
                f"accelerate was told to use {name}, which is for models that are trained, and "
                f"here the base is frozen: {_PLAIN}"
            )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise ConfigError(
            f"accelerate was told to compile (dynamo_backend {compiler.lower()}), which a training "
            f"does not do: leave it out"
        )
    if parse_flag_from_env(_DEEPSPEED):
        _check_deepspeed(shard_base)


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise `ConfigError` if an accelerator hands what is trained to an engine of another's."""
    kind = DistributedType(accelerator.distributed_type)
    if kind in (
        DistributedType.DEEPSPEED,
        DistributedType.FSDP,
        DistributedType.MEGATRON_LM,
        DistributedType.XLA,
    ):
        raise ConfigError(
            f"an accelerator of distributed_type {kind.value} does not train shifts beside a "
            f"frozen base; give a plain one, or none: {_PLAIN}"
        )


def zero_settings() -> dict[str, object] | None:
    """How DeepSpeed is to spread a model, as its configuration has it under `zero_optimization`;
    None if accelerate was not told to use it.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    if not parse_flag_from_env(_DEEPSPEED):
        return None
    try:
        found: dict[str, object] = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    except (ValueError, OSError) as error:
        raise ConfigError(f"the configuration of DeepSpeed cannot be read: {error}") from None
    # What is left to be chosen, DeepSpeed chooses itself where nothing is said.
    return {name: value for name, value in found.items() if value != "auto"}


def _check_deepspeed(shard_base: bool) -> None:
    settings = zero_settings() or {}
    if settings.get("stage") != 3:
        raise ConfigError(
            f"accelerate was told to use DeepSpeed with zero_stage {settings.get('stage')}, which "
            f"spreads the state of an optimizer, here of less than a megabyte: use zero_stage 3 "
            f"with --shard_base, which spreads the base, or leave DeepSpeed out"
        )
    if not shard_base:
        raise ConfigError(
            "accelerate was told to use DeepSpeed with zero_stage 3, which spreads the base over "
            "the processes: add --shard_base, or leave DeepSpeed out"
        )
