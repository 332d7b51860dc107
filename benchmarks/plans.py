"""What training takes on the published architectures: `svfit plan` of their configurations.

python -m benchmarks.plans

Written as `results/plans.json`. Nothing is trained and no weights are read; the tokenizers are
Toybox's, which changes no size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import transformers
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from benchmarks.architectures import TOYBOX, clip_text_encoder, sd15_unet, sdxl_unet
from benchmarks.report import Row, write_report
from svfit_diffusion.planning import Plan, make_plan
from svfit_diffusion.training.config import TrainingConfig

_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
_HALF = {"mixed_precision": "bf16"}
_CHECKPOINTED = {"mixed_precision": "bf16", "gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """Plans of one base.

    Attributes:
        base: its name.
        build: makes its pipeline without weights.
        resolution: sides of its pictures in pixels.
        settings: of trainings.
        batch_sizes: photos in a step.
    """

    base: str
    build: Callable[[], Any]
    resolution: int
    settings: list[dict[str, Any]] = field(default_factory=list)
    batch_sizes: tuple[int, ...] = (1,)


def sd15() -> Any:
    """Stable Diffusion 1.5."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**_VAE),
        text_encoder=clip_text_encoder(),
        tokenizer=tokenizer(77),
        unet=sd15_unet(),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Stable Diffusion XL."""
    wide = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**_VAE),
        text_encoder=clip_text_encoder(),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        unet=sdxl_unet(),
        scheduler=DDIMScheduler(clip_sample=False),
        add_watermarker=False,
    )


def flux() -> Any:
    """FLUX.1 dev."""
    t5 = T5Config(
        d_model=4096,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        vocab_size=32128,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=AutoencoderKL(**_VAE, latent_channels=16, use_quant_conv=False),
        text_encoder=clip_text_encoder(),
        tokenizer=tokenizer(77),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer(512),
        transformer=FluxTransformer2DModel(guidance_embeds=True),
    )


CASES = (
    Case("Stable Diffusion 1.5", sd15, 512, [{}, {"mixed_precision": "fp16"}], (1, 4)),
    Case(
        "SDXL",
        sdxl,
        1024,
        [_HALF, _CHECKPOINTED, _CHECKPOINTED | {"train_text_encoder": False}],
    ),
    Case(
        "FLUX.1 dev",
        flux,
        1024,
        [
            _CHECKPOINTED | {"rank": "1.0"},
            _CHECKPOINTED,
            _CHECKPOINTED | {"group_offload": True},
        ],
    ),
)


def rows_of(case: Case) -> Iterator[Row]:
    """A row for each setting, batch size and method."""
    with tempfile.TemporaryDirectory() as folder:
        write_configurations(case.build, Path(folder))
        for settings in case.settings:
            config = TrainingConfig(folder, "photos", "a photo of sks dog", **settings)
            plan = make_plan(config, (case.resolution,), case.batch_sizes, show_progress=False)
            yield from _told(case, settings, plan)


def _told(case: Case, settings: dict[str, Any], plan: Plan) -> Iterator[Row]:
    about = {
        "base": case.base,
        "settings": settings,
        "values": plan.values,
        "adapter_bytes": plan.adapter_bytes,
        "basis_bytes": plan.basis_bytes,
        "lora_values": {str(rank): size.values for rank, size in plan.lora.items()},
        "bytes_of_all_models": plan.whole_bytes,
        "bytes_of_the_largest_model": plan.largest_bytes,
        "bytes_of_text_encoders": plan.encoders_bytes,
    }
    for step in plan.steps:
        if step.unknown:
            raise RuntimeError(f"{case.base}: {step.unknown}")
        for method, memory in step.memory.items():
            yield about | {
                "resolution": step.resolution,
                "batch_size": step.batch_size,
                "method": method,
                **vars(memory),
                "total": memory.total,
            }


def write_configurations(build: Callable[[], Any], folder: Path) -> None:
    """Save a pipeline as `save_pretrained` does, without its weights."""
    with init_empty_weights():
        pipe = build()
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        if isinstance(part, transformers.PreTrainedModel):
            part.config.save_pretrained(folder / name)
        elif isinstance(part, diffusers.ConfigMixin):
            part.save_config(folder / name)
        elif part is not None and hasattr(part, "save_pretrained"):
            part.save_pretrained(folder / name)


def tokenizer(length: int) -> Any:
    """Toybox's tokenizer, of prompts of so many tokens."""
    return AutoTokenizer.from_pretrained(TOYBOX / "tokenizer", model_max_length=length)


def main() -> None:
    """Make all plans and write what they say."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for case in CASES:
        for row in rows_of(case):
            rows.append(row)
            print(
                f"{row['base']}, {row['settings']}, batch {row['batch_size']}, {row['method']}: "
                f"{row['total'] / 1e9:.2f} GB",
                flush=True,
            )
    print(write_report("plans", rows))


if __name__ == "__main__":
    main()
