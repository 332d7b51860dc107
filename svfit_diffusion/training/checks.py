"""What a run is checked for before any work, and what follows from its base model."""

from __future__ import annotations

from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import Family
from svfit_diffusion.training.config import TrainingConfig


def check_fit(
    family: Family, config: TrainingConfig, precision: str, *, edits: bool = False
) -> list[str]:
    """Make sure that settings are such as a base model of this kind can be trained with.

    Its configurations alone are asked, never its weights.

    Args:
        family: of the base.
        config: the settings.
        precision: `no`, `fp16` or `bf16`.
        edits: whether photos have images to edit beside them.

    Returns:
        Components of the text encoders to train along.

    Raises:
        ConfigError: one is not, or the base model cannot be trained at all.
    """
    family.check()
    check_precision(family, precision)
    check_checkpointing(family, config.gradient_checkpointing)
    trained = trained_text_encoders(family, config.train_text_encoder)
    if config.text_encoder_lr is not None and not trained:
        raise ConfigError(
            f"text_encoder_lr {config.text_encoder_lr:g} is for a text encoder, and none of this "
            f"{type(family.pipe).__name__} is trained; leave it out, or add train_text_encoder"
        )
    if config.train_identifier is not None:
        readers_of(family.model)
    family.noise_process(config.noise)
    training_resolution(family, config.resolution)
    check_references(family, edits, config.with_prior_preservation)
    return trained


def check_precision(family: Family, precision: str) -> None:
    """Raise `ConfigError` if a family overflows in this precision (`no`, `fp16` or `bf16`)."""
    if precision == "fp16" and not family.float16:
        raise ConfigError(
            f"a {type(family.pipe).__name__} overflows in float16; use mixed_precision bf16 or no"
        )


def check_checkpointing(family: Family, wanted: bool) -> None:
    """Raise `ConfigError` if a family computes something else under gradient checkpointing."""
    if wanted and not family.checkpointing:
        raise ConfigError(
            f"the {family.denoiser} of a {type(family.pipe).__name__} computes something else "
            f"under gradient checkpointing in this version of diffusers; leave "
            f"gradient_checkpointing out"
        )


def check_references(family: Family, given: bool, class_images: bool) -> None:
    """Raise `ConfigError` if photos have images to edit beside them that cannot be used."""
    if given and not family.takes_references:
        raise ConfigError(
            f"photos have images to edit beside them (photo.condition.png), which a "
            f"{type(family.pipe).__name__} does not take; FLUX.1 Kontext does"
        )
    if given and class_images:
        raise ConfigError(
            "class images have no images to edit: leave out with_prior_preservation, and use "
            "with_base_prior"
        )


def trained_text_encoders(family: Family, wanted: bool | None) -> list[str]:
    """Components of the text encoders to train along.

    Args:
        family: of the base.
        wanted: what the user says; None is where the family has no text encoders but such.

    Raises:
        ConfigError: they are wanted, and the family has none that can be trained.
    """
    here = [name for name in family.trained_text_encoders if name in family.encoders]
    if wanted is None:
        return here if set(here) == set(family.encoders) else []
    if wanted and not here:
        raise ConfigError(
            f"the text encoder of a {type(family.pipe).__name__} "
            f"({', '.join(type(e).__name__ for e in family.encoders.values())}) cannot be trained; "
            f"leave out train_text_encoder"
        )
    return here if wanted else []


def training_resolution(family: Family, wanted: int | None) -> int:
    """The side of training images in pixels.

    Raises:
        ConfigError: it does not fit the base model.
    """
    resolution, step = wanted or family.native_size, family.size_multiple
    if resolution % step:
        raise ConfigError(
            f"resolution {resolution} does not fit this base model; use a multiple of {step}, "
            f"such as {max(step, round(resolution / step) * step)}"
        )
    return resolution
