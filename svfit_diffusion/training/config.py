"""Settings of a training run, valid once they exist; the command line is derived from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.families import NoiseSettings
from svfit_diffusion.spectrum.rank import parse_rank
from svfit_diffusion.training.agreement import check_together
from svfit_diffusion.training.base import BaseSource
from svfit_diffusion.training.fields import (
    FREE_WHEN_RESUMED,
    check_choice,
    check_range,
    choices,
    setting,
)
from svfit_diffusion.training.optimization import OptimizerSettings, ScheduleSettings


@dataclass
class TrainingConfig:
    """Settings of a DreamBooth training run; names and meanings are diffusers' where it has them.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    # What to learn
    pretrained_model_name_or_path: str = setting(
        "", "Base model: a folder or an id on huggingface.co."
    )
    instance_data_dir: str = setting("", "Folder with the photos of the subject.")
    instance_prompt: str = setting(
        "",
        "Prompt that names the subject by an identifier, such as 'a photo of sks dog'. A photo's "
        "own caption (photo.txt beside it, or metadata.jsonl) goes before it, and so does the name "
        "of a folder such as '10_sks dog' in instance_data_dir.",
    )
    revision: str | None = setting(None, "Revision of the base model.")
    variant: str | None = setting(None, "Variant of its weight files, such as 'fp16'.")
    single_file_config: str | None = setting(
        None, "For a base model in a single file: folder or id with its pipeline's configuration."
    )
    output_dir: str = setting(
        "svfit-dreambooth-model", "Where the adapter, checkpoints and pictures go."
    )
    overwrite: bool = setting(
        False, "Begin anew in an output_dir that holds an earlier run, in place of that."
    )
    seed: int | None = setting(None, "Seed of everything random; drawn and recorded if not given.")

    # Which singular values
    rank: str | None = setting(
        None,
        "Singular values to train per weight: an integer, or a fraction of the spectral energy to "
        "cover such as 0.99; 1.0 trains all. Default: all, of very wide weights the leading ones.",
    )
    budget: int | None = setting(
        None, "Keep only this many of them, the most useful of the whole model; default: all."
    )
    target: list[str] = setting(  # noqa: RUF009
        ["attention"],
        "Layers: 'attention', 'all' (every Linear and Conv), layer names such as to_v, or regular "
        "expressions over module paths.",
    )
    train_text_encoder: bool | None = setting(
        None,
        "Also train the singular values of the CLIP text encoders' attention, which gives the "
        "identifier a meaning; default: where the base model has no other text encoder (Stable "
        "Diffusion, SDXL). --no_train_text_encoder needs less memory.",
    )
    train_identifier: str | None = setting(
        None,
        "Also learn a vector for each layer that reads the text, where prompts say this word, such "
        "as 'sks': more like the subject at less drift, and less true to the rest of the prompt.",
    )

    # Prior preservation
    with_prior_preservation: bool = setting(
        False, "Keep what the base knows of the class by training on its own class images too."
    )
    class_prompt: str | None = setting(
        None, "Prompt of the class without the identifier, such as 'a photo of a dog'."
    )
    class_data_dir: str | None = setting(
        None,
        "Folder of class images, filled up by the base model, own ones counted; default: "
        "class_images in output_dir.",
    )
    num_class_images: int = setting(100, "How many class images to have.")
    with_base_prior: bool = setting(
        False,
        "Keep what the base knows of the class without class images: the subject's photos, under "
        "class_prompt, are to be denoised as the base would.",
    )
    prior_loss_weight: float = setting(1.0, "Weight of the loss that keeps the class.")
    sample_batch_size: int = setting(4, "Images generated at a time (class and validation images).")

    # Images
    resolution: int | None = setting(
        None, "Side of training images in pixels; default: the base model's own."
    )
    center_crop: bool = setting(
        True, "Crop photos to a square at the centre; --no_center_crop crops at random."
    )
    aspect_buckets: bool = setting(
        False, "Keep the shape of each photo, at about the area of a square of the resolution."
    )
    mask_background_weight: float = setting(
        0.0,
        "Where a photo has a mask (photo.mask.png, the subject white), weight of the loss outside "
        "it: 0 learns nothing there, 1 as much as inside.",
    )
    proportion_empty_prompts: float = setting(
        0.0, "Share of the examples that are trained with an empty prompt (caption dropout)."
    )
    random_flip: bool = setting(False, "Mirror photos at random (not for asymmetric subjects).")
    cache_latents: bool = setting(
        True, "Encode each photo once, then take the VAE off the device. Needs center_crop."
    )
    pre_compute_text_embeddings: bool = setting(
        True,
        "Encode each prompt once, then take the text encoders off the device. Works where none of "
        "them is trained.",
    )
    cache_to_disk: bool = setting(
        False, "Keep what is encoded in a folder in output_dir meanwhile, not in memory."
    )
    offload: bool = setting(
        False, "Have text encoders, autoencoder and denoiser on the device each in its turn."
    )
    group_offload: bool = setting(
        False, "Have on the device no more than some blocks of the denoiser; nothing is drawn then."
    )
    shard_base: bool = setting(
        False, "Spread the denoiser over the processes (FSDP2, ZeRO-3); nothing is drawn then."
    )

    # Optimisation
    train_batch_size: int = setting(4, "Photos per device and forward pass.")
    gradient_accumulation_steps: int = setting(1, "Forward passes per optimizer step.")
    max_train_steps: int | None = setting(
        None, "Optimizer steps; overrides num_train_epochs. Default: 400."
    )
    num_train_epochs: int | None = setting(None, "Passes over the photos.")
    learning_rate: float = setting(0.05, "Learning rate of the shifts (far above LoRA's).")
    text_encoder_lr: float | None = setting(
        None, "Learning rate of the text encoder's shifts; default: learning_rate."
    )
    scale_lr: bool = setting(
        False, "Multiply learning rates by processes × accumulation steps × batch size."
    )
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
    ] = setting("cosine", "How the learning rate changes over the run.")
    lr_warmup_steps: int = setting(20, "Optimizer steps over which the learning rate rises.")
    lr_num_cycles: int = setting(1, "Hard restarts of cosine_with_restarts.")
    lr_power: float = setting(1.0, "Power of polynomial.")
    optimizer: Literal["AdamW", "adafactor", "prodigy"] = setting(
        "AdamW",
        "AdamW; adafactor; or prodigy, which finds the learning rate itself (learning_rate 1).",
    )
    use_8bit_adam: bool = setting(False, "AdamW of bitsandbytes, with 8-bit state.")
    adam_beta1: float = setting(0.9, "AdamW's and Prodigy's β₁.")
    adam_beta2: float = setting(0.99, "AdamW's and Prodigy's β₂.")
    adam_weight_decay: float = setting(0.0, "Weight decay: pulls shifts back to the base model.")
    adam_epsilon: float = setting(1e-8, "AdamW's and Prodigy's ε.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    snr_gamma: float = setting(0.0, "γ of Min-SNR weighting (arXiv 2303.09556), such as 5; 0: no.")
    noise_offset: float = setting(0.0, "Strength of noise that shifts whole channels.")
    weighting_scheme: Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"] | None = (
        setting(
            None,
            "Density of times and weights of errors of a flow-matching base (arXiv 2403.03206); "
            "default: the one its family is trained with.",
        )
    )
    logit_mean: float = setting(0.0, "Mean of logit_normal.")
    logit_std: float = setting(1.0, "Standard deviation of logit_normal.")
    mode_scale: float = setting(1.29, "How far mode departs from uniform times.")
    output_strength: float | None = setting(None, "Draw and save what was learned times this.")
    use_ema: bool = setting(False, "Draw with and save a running mean of the shifts.")
    ema_decay: float = setting(0.99, "Decay of that mean for each step.")

    # Machine
    quantization: Literal["nf4", "int8", "torchao_int8", "torchao_float8", "fp8"] | None = setting(
        None,
        "Quantise the denoiser: bitsandbytes' nf4 or int8, torchao's int8 or float8, or fp8, as "
        "diffusers' layerwise casting stores it.",
    )
    bnb_quantization_config_path: str | None = setting(None, "BitsAndBytesConfig as a JSON file.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None,
        "Precision of the frozen base, shifts are always float32; default: accelerate's setting.",
    )
    gradient_checkpointing: bool = setting(False, "Less memory for a slower backward pass.")
    allow_tf32: bool = setting(False, "TF32 matrix products on Ampere GPUs and later.")
    enable_xformers_memory_efficient_attention: bool = setting(False, "Attention by xformers.")

    # Watching
    validation_prompt: list[str] = setting(  # noqa: RUF009
        [], "Prompts to generate while training and for the final picture."
    )
    num_validation_images: int = setting(2, "Images per validation prompt.")
    validation_steps: int = setting(100, "Generate every so many steps.")
    num_inference_steps: int | None = setting(
        None, "Sampling steps of generated images; default: the base model's family's."
    )
    guidance_scale: float | None = setting(
        None, "Guidance of generated images; default: the base model's family's."
    )
    report_to: str | None = setting(None, "Tracker: tensorboard, wandb, comet_ml, … or all.")
    logging_dir: str = setting("logs", "Folder of tracker logs in output_dir.")

    # Keeping
    checkpointing_steps: int | None = setting(
        None, "Steps between checkpoints; default: 100, or 1/20 of a long run, and after the last."
    )
    checkpoints_total_limit: int | None = setting(None, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = setting(
        None, "A checkpoint folder, or 'latest' for the last one in output_dir."
    )
    push_to_hub: bool = setting(False, "Upload output_dir to the hub, with a model card.")
    hub_token: str | None = setting(None, "Token for the hub.")
    hub_model_id: str | None = setting(None, "Repository; default: the name of output_dir.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_range(name, value)
            if name in _CHOICES:
                check_choice(name, value, _CHOICES[name])
        self.svfit_of("1.0" if self.rank is None else self.rank)  # checks rank and target
        self.noise  # noqa: B018  (checks what is said about noise)
        check_together(vars(self))

    def svfit_of(self, rank: str) -> SVFitConfig:
        """Which singular values to train, of this rank (`layers.rank_to_train`)."""
        return SVFitConfig(parse_rank(rank), tuple(self.target))

    @property
    def in_parts(self) -> bool:
        """Whether the denoiser is never whole in one place."""
        return self.shard_base or self.group_offload

    @property
    def source(self) -> BaseSource:
        """Where the base model is."""
        return BaseSource(
            self.pretrained_model_name_or_path,
            self.revision,
            self.variant,
            self.single_file_config,
        )

    @property
    def noise(self) -> NoiseSettings:
        """What is said about noise."""
        names = [field.name for field in dataclasses.fields(NoiseSettings)]
        values = {name: getattr(self, name) for name in names}
        return NoiseSettings(**values | {"snr_gamma": self.snr_gamma or None})

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """Which optimizer, and how it moves."""
        betas = (self.adam_beta1, self.adam_beta2)
        decay, epsilon = self.adam_weight_decay, self.adam_epsilon
        return OptimizerSettings(self.optimizer, self.use_8bit_adam, betas, decay, epsilon)

    @property
    def schedule_settings(self) -> ScheduleSettings:
        """How the rates change."""
        cycles, power = self.lr_num_cycles, self.lr_power
        return ScheduleSettings(self.lr_scheduler, self.lr_warmup_steps, cycles, power)

    @property
    def class_folder(self) -> Path:
        """Where the class images are."""
        return Path(self.class_data_dir or Path(self.output_dir) / "class_images")

    def binding_settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run it continues."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in FREE_WHEN_RESUMED
        }


_CHOICES = choices(TrainingConfig)
