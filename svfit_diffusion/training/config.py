"""Settings of a training run, valid once they exist; the command line is derived from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.spectrum.rank import parse_rank

_FREE_WHEN_RESUMED = frozenset(
    {
        "pretrained_model_name_or_path",
        "instance_data_dir",
        "output_dir",
        "class_data_dir",
        "sample_batch_size",
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


def _setting(default: Any, help: str) -> Any:
    """A field with its help text."""
    metadata = {"help": help}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingConfig:
    """Settings of a DreamBooth training run; names and meanings are diffusers' where it has them.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    # What to learn
    pretrained_model_name_or_path: str = _setting(
        "", "Base model: a folder or an id on huggingface.co."
    )
    instance_data_dir: str = _setting("", "Folder with the photos of the subject.")
    instance_prompt: str = _setting(
        "",
        "Prompt that names the subject by an identifier, such as 'a photo of sks dog'. A photo's "
        "own caption (photo.txt beside it, or metadata.jsonl) goes before it.",
    )
    revision: str | None = _setting(None, "Revision of the base model.")
    variant: str | None = _setting(None, "Variant of its weight files, such as 'fp16'.")
    output_dir: str = _setting(
        "svfit-dreambooth-model", "Where the adapter, checkpoints and pictures go."
    )
    seed: int | None = _setting(None, "Seed of everything random; drawn and recorded if not given.")

    # Which singular values
    rank: str = _setting(
        "1.0",
        "Singular values to train per weight: an integer, or a fraction of the spectral energy to "
        "cover such as 0.99; 1.0 trains all.",
    )
    budget: int | None = _setting(
        None,
        "Keep only this many of them, the most useful over the whole model, and zero the others on "
        "the way; default: keep all.",
    )
    target: list[str] = _setting(  # noqa: RUF009
        ["attention"],
        "Layers: 'attention', 'all' (every Linear and Conv), layer names such as to_v, or regular "
        "expressions over module paths.",
    )
    train_text_encoder: bool = _setting(
        True,
        "Also train the singular values of the text encoder's attention, which gives the "
        "identifier a meaning; --no_train_text_encoder needs less memory.",
    )

    # Prior preservation
    with_prior_preservation: bool = _setting(
        False, "Keep what the base knows of the class by training on its own class images too."
    )
    class_prompt: str | None = _setting(
        None, "Prompt of the class without the identifier, such as 'a photo of a dog'."
    )
    class_data_dir: str | None = _setting(
        None,
        "Folder of class images, filled up by the base model; default: class_images in output_dir.",
    )
    num_class_images: int = _setting(100, "How many class images to have.")
    prior_loss_weight: float = _setting(1.0, "Weight of the loss on class images.")
    sample_batch_size: int = _setting(
        4, "Images generated at a time (class and validation images)."
    )

    # Images
    resolution: int | None = _setting(
        None, "Side of training images in pixels; default: the base model's own."
    )
    center_crop: bool = _setting(
        True, "Crop photos to a square at the centre; --no_center_crop crops at random."
    )
    random_flip: bool = _setting(False, "Mirror photos at random (not for asymmetric subjects).")
    cache_latents: bool = _setting(
        True, "Encode each photo once, then take the VAE off the device. Needs center_crop."
    )
    pre_compute_text_embeddings: bool = _setting(
        True,
        "Encode each prompt once, then take the text encoder off the device. Needs "
        "--no_train_text_encoder.",
    )

    # Optimisation
    train_batch_size: int = _setting(4, "Photos per device and forward pass.")
    gradient_accumulation_steps: int = _setting(1, "Forward passes per optimizer step.")
    max_train_steps: int | None = _setting(
        None, "Optimizer steps; overrides num_train_epochs. Default: 400."
    )
    num_train_epochs: int | None = _setting(None, "Passes over the photos.")
    learning_rate: float = _setting(0.05, "Learning rate of the shifts (far above LoRA's).")
    text_encoder_lr: float | None = _setting(
        None, "Learning rate of the text encoder's shifts; default: learning_rate."
    )
    scale_lr: bool = _setting(
        False, "Multiply learning rates by processes × accumulation steps × batch size."
    )
    lr_scheduler: str = _setting(
        "cosine",
        "linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup.",
    )
    lr_warmup_steps: int = _setting(20, "Optimizer steps over which the learning rate rises.")
    lr_num_cycles: int = _setting(1, "Hard restarts of cosine_with_restarts.")
    lr_power: float = _setting(1.0, "Power of polynomial.")
    optimizer: Literal["AdamW", "prodigy"] = _setting(
        "AdamW", "AdamW, or prodigy, which finds the learning rate itself (use 1.0)."
    )
    use_8bit_adam: bool = _setting(False, "AdamW of bitsandbytes, with 8-bit state.")
    adam_beta1: float = _setting(0.9, "AdamW's and Prodigy's β₁.")
    adam_beta2: float = _setting(0.99, "AdamW's and Prodigy's β₂.")
    adam_weight_decay: float = _setting(0.0, "Weight decay: pulls shifts back to the base model.")
    adam_epsilon: float = _setting(1e-8, "AdamW's and Prodigy's ε.")
    max_grad_norm: float = _setting(1.0, "Gradients are clipped to this norm.")
    snr_gamma: float = _setting(
        0.0, "γ of Min-SNR weighting of the loss (arXiv 2303.09556), such as 5; 0 is none."
    )
    noise_offset: float = _setting(0.0, "Strength of noise that shifts whole channels.")

    # Machine
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _setting(
        None,
        "Precision of the frozen base, shifts are always float32; default: accelerate's setting.",
    )
    gradient_checkpointing: bool = _setting(False, "Less memory for a slower backward pass.")
    allow_tf32: bool = _setting(False, "TF32 matrix products on Ampere GPUs and later.")
    enable_xformers_memory_efficient_attention: bool = _setting(False, "Attention by xformers.")

    # Watching
    validation_prompt: list[str] = _setting(  # noqa: RUF009
        [], "Prompts to generate while training and for the final picture."
    )
    num_validation_images: int = _setting(2, "Images per validation prompt.")
    validation_steps: int = _setting(100, "Generate every so many steps.")
    num_inference_steps: int = _setting(25, "Sampling steps of generated images.")
    guidance_scale: float = _setting(7.5, "Guidance of generated images.")
    report_to: str | None = _setting(None, "Tracker: tensorboard, wandb, comet_ml, … or all.")
    logging_dir: str = _setting("logs", "Folder of tracker logs in output_dir.")

    # Keeping
    checkpointing_steps: int = _setting(500, "Save a resumable checkpoint every so many.")
    checkpoints_total_limit: int | None = _setting(None, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = _setting(
        None, "A checkpoint folder, or 'latest' for the last one in output_dir."
    )
    push_to_hub: bool = _setting(False, "Upload output_dir to the hub, with a model card.")
    hub_token: str | None = _setting(None, "Token for the hub.")
    hub_model_id: str | None = _setting(
        None, "Repository to upload to; default: the name of output_dir."
    )

    def __post_init__(self) -> None:
        self.svfit  # noqa: B018  (checks rank and target)
        for name in (
            "budget",
            "num_class_images",
            "sample_batch_size",
            "train_batch_size",
            "gradient_accumulation_steps",
            "max_train_steps",
            "num_train_epochs",
            "num_validation_images",
            "validation_steps",
            "num_inference_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "resolution",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "text_encoder_lr", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number, got {value}")
        for name in (
            "prior_loss_weight",
            "adam_weight_decay",
            "noise_offset",
            "lr_warmup_steps",
            "snr_gamma",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.with_prior_preservation and not self.class_prompt:
            raise ConfigError(
                "with_prior_preservation needs class_prompt: the instance prompt without the "
                "identifier, such as 'a photo of a dog'"
            )
        if self.cache_latents and not self.center_crop:
            raise ConfigError(
                "random crops cannot be cached: leave center_crop on, or add --no_cache_latents"
            )
        if self.use_8bit_adam and self.optimizer != "AdamW":
            raise ConfigError(f"use_8bit_adam goes with AdamW, not with {self.optimizer}")

    @property
    def svfit(self) -> SVFitConfig:
        """Which singular values to train."""
        return SVFitConfig(parse_rank(self.rank), tuple(self.target))

    def binding_settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run it continues."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _FREE_WHEN_RESUMED
        }
