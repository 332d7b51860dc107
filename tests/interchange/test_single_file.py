"""Stable Diffusion with adapters in one file: its names, what diffusers draws from it, refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import merged
import pytest
import tiny
import tiny_adapters
import tiny_pipelines
import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.architectures import sdxl_unet
from svfit_diffusion import SVFitConfig
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import BaseMismatchError, InterchangeError
from svfit_diffusion.files import atomic
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.interchange import export_checkpoint, single_file
from svfit_diffusion.interchange.original_layout import parts_of

SAMPLES = Path(__file__).parents[2] / "samples"
TOYBOX, BLUE_CAR = SAMPLES / "toybox", SAMPLES / "adapters" / "blue_car"

# ---- full size, without weights ----


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def clip(width: int, layers: int, act: str, kind: Any = CLIPTextModel) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            hidden_act=act,
        )
    )


def sd1() -> Any:
    unet = UNet2DConditionModel(cross_attention_dim=768)
    return SimpleNamespace(unet=unet, vae=vae(), text_encoder=clip(768, 12, "quick_gelu"))


def sd2() -> Any:
    unet = UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return SimpleNamespace(unet=unet, vae=vae(), text_encoder=clip(1024, 23, "gelu"))


def sdxl() -> Any:
    encoder_2 = clip(1280, 32, "gelu", CLIPTextModelWithProjection)
    return SimpleNamespace(
        unet=sdxl_unet(),
        vae=vae(),
        text_encoder=clip(768, 12, "quick_gelu"),
        text_encoder_2=encoder_2,
    )


UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = (
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
)
# The published files hold as many, but for `logit_scale` and, of Stable Diffusion 2, a last layer
# that is never run.
COUNTS = {
    sd1: {UNET: 686, VAE: 248, CLIP: 197},
    sd2: {UNET: 686, VAE: 248, OPEN_CLIP: 23 * 12 + 4},
    sdxl: {UNET: 1680, VAE: 248, CLIP_XL: 197, OPEN_CLIP_XL: 389},
}
KINDS = {sd1: "v1", sd2: "v2", sdxl: "xl_base"}
VAE_SHAPES = {
    "decoder.up.3.block.0.norm1.weight": (512,),
    "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "decoder.up.1.upsample.conv.weight": (256, 256, 3, 3),
    "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "encoder.mid.attn_1.norm.bias": (512,),
    "encoder.mid.block_2.conv2.bias": (512,),
    "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "encoder.down.2.downsample.conv.bias": (512,),
    "encoder.norm_out.weight": (512,),
    "encoder.conv_out.weight": (8, 512, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.bias": (4,),
}
SHAPES: dict[Any, dict[str, tuple[int, ...]]] = {
    sd1: {
        f"{UNET}time_embed.2.weight": (1280, 1280),
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        f"{UNET}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{UNET}input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        f"{UNET}middle_block.2.in_layers.0.bias": (1280,),
        f"{UNET}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}output_blocks.8.2.conv.bias": (640,),
        f"{UNET}output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        f"{UNET}out.0.weight": (320,),
        f"{UNET}out.2.bias": (4,),
        f"{CLIP}embeddings.position_ids": (1, 77),
        f"{CLIP}encoder.layers.11.self_attn.q_proj.bias": (768,),
        f"{CLIP}final_layer_norm.weight": (768,),
    },
    sd2: {
        f"{UNET}input_blocks.2.1.proj_in.weight": (320, 320),
        f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        f"{OPEN_CLIP}token_embedding.weight": (49408, 1024),
        f"{OPEN_CLIP}positional_embedding": (77, 1024),
        f"{OPEN_CLIP}transformer.resblocks.22.attn.in_proj_bias": (3072,),
        f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_proj.weight": (1024, 4096),
        f"{OPEN_CLIP}ln_final.bias": (1024,),
    },
    sdxl: {
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (640, 640),
        f"{UNET}input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        f"{UNET}input_blocks.6.0.op.bias": (640,),
        f"{UNET}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        f"{UNET}output_blocks.8.0.emb_layers.1.weight": (320, 1280),
        f"{CLIP_XL}encoder.layers.0.mlp.fc1.weight": (3072, 768),
        f"{OPEN_CLIP_XL}transformer.resblocks.0.attn.in_proj_weight": (3840, 1280),
        f"{OPEN_CLIP_XL}transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        f"{OPEN_CLIP_XL}transformer.resblocks.31.ln_2.weight": (1280,),
        f"{OPEN_CLIP_XL}text_projection": (1280, 1280),
    },
}


@pytest.mark.parametrize("make", KINDS)
def test_full_size_files_have_the_published_names(make: Any) -> None:
    with init_empty_weights():
        pipe = make()
    parts = parts_of(pipe)
    states = {part.component: getattr(pipe, part.component).state_dict() for part in parts}
    checkpoint = {
        part.prefix + name: tensor
        for part in parts
        for name, tensor in part.to_original(states[part.component]).items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.items()}
    expected = SHAPES[make] | {VAE + name: shape for name, shape in VAE_SHAPES.items()}
    assert {name: shapes.get(name) for name in expected} == expected
    counts = Counter(next(p for p in COUNTS[make] if name.startswith(p)) for name in checkpoint)
    assert counts == COUNTS[make]
    assert infer_diffusers_model_type(checkpoint) == KINDS[make]
    for part in parts:
        read = part.read(checkpoint)
        assert {name: tensor.shape for name, tensor in read.items()} == {
            name: tensor.shape for name, tensor in states[part.component].items()
        }


# ---- with weights ----


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def tiny_clip(width: int, act: str, kind: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tiny.TEXT_LENGTH,
        hidden_act=act,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    model = kind(config)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            nn.init.normal_(parameter, std=width**-0.5)
    return model.eval().requires_grad_(False)


def tiny_sd2() -> StableDiffusionPipeline:
    pipe = tiny.make_tiny_pipeline(use_linear_projection=True)
    pipe.text_encoder = tiny_clip(tiny.TEXT_WIDTH, "gelu", CLIPTextModel, 5)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    return pipe


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """With encoders of unequal widths, by which diffusers tells them apart."""
    pipe = tiny_pipelines.build("sdxl")
    pipe.text_encoder = tiny_clip(24, "quick_gelu", CLIPTextModel, 6)
    pipe.text_encoder_2 = tiny_clip(40, "gelu", CLIPTextModelWithProjection, 7)
    pipe.unet = tiny.make_tiny_unet(
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )
    return pipe


def adapter_of(pipe: Any, component: str) -> Adapter:
    return merged.make_adapter({component: models_of(pipe)[component]}, 0, SVFitConfig(8))


def draw(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    return tiny.run_pipeline(pipe, height=16, width=16)


@pytest.mark.parametrize("make", [tiny.make_tiny_pipeline, tiny_sd2, tiny_sdxl])
def test_diffusers_draws_the_adapters_picture_from_the_file(
    make: Any, target: Path, tmp_path: Path
) -> None:
    pipe = make()
    adapter = merged.make_adapter(models_of(pipe), 0, SVFitConfig(target="all"), size=0.2)
    base = draw(pipe)
    written = export_checkpoint(pipe, [(adapter, 0.5)], target)
    assert written.path == target and written.size == target.stat().st_size
    assert torch.equal(draw(pipe), base)

    pipe.save_pretrained(tmp_path / "base")
    arguments = {} if hasattr(pipe, "text_encoder_2") else {"safety_checker": None}
    read = type(pipe).from_single_file(str(target), config=str(tmp_path / "base"), **arguments)
    expected = draw(merged.merge_pipeline(pipe, adapter, 0.5))
    assert (expected - base).abs().max() > 0.1
    # Against float64 vectors; ours are float16.
    torch.testing.assert_close(draw(read), expected, **merged.CLOSE)


def test_toybox_as_a_file_draws_the_adapters_picture(tmp_path: Path) -> None:
    def draw_car(pipe: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2}
        return pipe("a sks car", generator=generator, output_type="pt", **settings).images

    pipe = StableDiffusionPipeline.from_pretrained(TOYBOX)
    files = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in (None, torch.float16)}
    for dtype, file in files.items():
        export_checkpoint(pipe, {BLUE_CAR: 0.9}, file, dtype=dtype)
    pipe.load_svfit_weights(BLUE_CAR, "car", show_progress=False)
    pipe.set_svfit_adapters("car", 0.9)
    expected = draw_car(pipe)
    full, half = (
        StableDiffusionPipeline.from_single_file(str(file), config=str(TOYBOX))
        for file in files.values()
    )
    # In float32 the weights are those that a set adapter has, to the last bit.
    assert torch.equal(draw_car(full), expected)
    # float16 rounds every weight by up to 5e-4 of itself: in the picture less than a level of 255.
    assert 0 < (draw_car(half) - expected).abs().max() < 1 / 255
    assert {tensor.dtype for tensor in load_file(files[torch.float16]).values()} == {
        torch.float16,
        torch.int64,
    }


def test_open_clip_has_its_weights_fused_and_its_projection_on_its_side(target: Path) -> None:
    pipe = tiny_sdxl()
    export_checkpoint(pipe, [(adapter_of(pipe, "unet"), 1)], target)
    tensors, encoder = load_file(target), pipe.text_encoder_2
    attention = encoder.text_model.encoder.layers[1].self_attn
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    name = f"{OPEN_CLIP_XL}transformer.resblocks.1.attn.in_proj_"
    assert torch.equal(tensors[f"{name}weight"], torch.cat([layer.weight for layer in layers]))
    assert torch.equal(tensors[f"{name}bias"], torch.cat([layer.bias for layer in layers]))
    assert torch.equal(tensors[f"{OPEN_CLIP_XL}text_projection"], encoder.text_projection.weight.T)
    positions = tensors[f"{CLIP_XL}embeddings.position_ids"]
    assert torch.equal(positions, torch.arange(tiny.TEXT_LENGTH)[None])


def test_every_weight_keeps_its_dtype_unless_told_otherwise(tiny_pipe: Any, target: Path) -> None:
    tiny_pipe.unet.half()
    tiny_pipe.text_encoder.bfloat16()
    adapter = adapter_of(tiny_pipe, "unet")
    export_checkpoint(tiny_pipe, [(adapter, 1)], target)
    found = {(n.partition(".")[0], t.dtype) for n, t in load_file(target).items()}
    assert found == {
        ("model", torch.float16),
        ("first_stage_model", torch.float32),
        ("cond_stage_model", torch.bfloat16),
        ("cond_stage_model", torch.int64),
    }
    with pytest.raises(InterchangeError, match="dtype must be"):
        export_checkpoint(tiny_pipe, [(adapter, 1)], target, dtype=torch.float64, overwrite=True)


def test_an_adapter_of_a_text_encoder_alone_is_merged(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "text_encoder")
    export_checkpoint(tiny_pipe, [(adapter, 1)], target)
    tensors = load_file(target)
    whole = merged.merged(tiny_pipe.text_encoder, adapter.deltas["text_encoder"]).state_dict()
    for path in adapter.deltas["text_encoder"]:
        expected = whole[f"{path}.weight"]
        assert (tensors[f"{CLIP}{path}.weight"] - expected).norm() < 2e-3 * expected.norm()
    assert torch.equal(tensors[f"{UNET}out.2.weight"], tiny_pipe.unet.conv_out.weight)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_sdxl_that_predicts_v_is_marked(zero_snr: bool, target: Path) -> None:
    pipe = tiny_sdxl()
    adapters = [(adapter_of(pipe, "unet"), 1.0)]
    export_checkpoint(pipe, adapters, target)
    assert not load_file(target).keys() & {"v_pred", "ztsnr"}
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr
    )
    export_checkpoint(pipe, adapters, target, overwrite=True)
    found = load_file(target).keys() & {"v_pred", "ztsnr"}
    assert found == ({"v_pred", "ztsnr"} if zero_snr else {"v_pred"})


@pytest.mark.parametrize(
    ("make", "architecture", "prediction"),
    [
        (lambda: tiny_pipelines.build("sd"), "stable-diffusion-v1", "epsilon"),
        (lambda: tiny_pipelines.build("sd_v"), "stable-diffusion-v1", "v"),
        (tiny_sdxl, "stable-diffusion-xl-v1-base", "epsilon"),
    ],
)
def test_the_header_names_the_architecture(
    make: Any, architecture: str, prediction: str, target: Path
) -> None:
    pipe = make()
    export_checkpoint(pipe, [(adapter_of(pipe, "unet"), 1)], target)
    with safe_open(target, "pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == architecture
    assert header["modelspec.prediction_type"] == prediction
    assert header["modelspec.title"] == "model" and header["format"] == "pt"
    assert not [key for key in header if key.startswith("ss_") or "lora" in header[key]]


@pytest.mark.parametrize("family", ["flux", "sd3", "pixart_sigma"])
def test_other_families_are_refused(family: str, target: Path) -> None:
    pipe = tiny_pipelines.build(family)
    name = type(pipe).__name__
    with pytest.raises(InterchangeError, match=rf"a {name} .* 1.x, 2.x and XL .*export_pipeline"):
        export_checkpoint(pipe, {"no-such-adapter": 1}, target)
    assert not list(target.parent.iterdir())


def test_what_the_layout_has_no_place_for_is_named(target: Path) -> None:
    lcm = tiny.make_tiny_consistency_pipeline()
    with pytest.raises(InterchangeError, match=r"no known name for unet.time_embedding.cond_proj"):
        export_checkpoint(lcm, [(adapter_of(lcm, "text_encoder"), 1)], target)
    without = tiny_sdxl()
    without.text_encoder = None
    with pytest.raises(InterchangeError, match="with their text encoders"):
        export_checkpoint(without, [(adapter_of(without, "unet"), 1)], target)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("wrong", ["another bit", "a tensor less", "a tensor more"])
def test_a_file_that_is_read_otherwise_does_not_appear(
    wrong: str, tiny_pipe: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(file: Path) -> dict[str, Tensor]:
        found = load_file(file)
        name = f"{VAE}encoder.mid.block_1.norm1.weight"
        if wrong == "another bit":
            found[name][0] += 1e-6
        elif wrong == "a tensor less":
            del found[name]
        else:
            found[f"{UNET}input_blocks.1.0.strange"] = found[name]
        return found

    monkeypatch.setattr(single_file, "load_file", misread)
    merged.load(tiny_pipe)
    snapshot = tiny_adapters.PipelineSnapshot(tiny_pipe)
    with pytest.raises(InterchangeError, match=r"nothing was written[^\n]*\n  (vae|unet)\."):
        export_checkpoint(tiny_pipe, [(adapter_of(tiny.make_tiny_pipeline(), "unet"), 1)], target)
    snapshot.check()
    assert not list(target.parent.iterdir())


def test_a_full_disk_leaves_the_file_that_was_there(
    tiny_pipe: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    adapters = [(adapter_of(tiny_pipe, "unet"), 1.0)]
    target.write_text("mine")
    with pytest.raises(InterchangeError, match="exists"):
        export_checkpoint(tiny_pipe, adapters, target)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(atomic, "save_file", fail)
        export_checkpoint(tiny_pipe, adapters, target, overwrite=True)
    assert target.read_text() == "mine" and list(target.parent.iterdir()) == [target]
    export_checkpoint(tiny_pipe, adapters, target, overwrite=True)
    assert load_file(target)


def test_an_adapter_of_another_base_is_refused(target: Path) -> None:
    with pytest.raises(BaseMismatchError):
        export_checkpoint(tiny.make_tiny_pipeline(seed=1), [(merged.tiny_adapter(), 1)], target)
    assert not list(target.parent.iterdir())
