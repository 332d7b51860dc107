"""Attention is found whole in every family of models, and copies of it never."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from tiny import make_tiny_unet
from tiny_families import DENOISERS, TEXT_ENCODERS
from torch import nn

from svfit_diffusion.adapters.targets import (
    attention_layers,
    attention_projections,
    fused_projections,
    select_targets,
    shiftable_layers,
)
from svfit_diffusion.errors import TargetError

SELF = r"(to_[qkv]|to_out\.0)"
JOINT = r"(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
ADDED = r"(to_[qkv]|to_out\.0|add_[kv]_proj)"
BLOCKS = r"transformer_blocks\.\d\.attn"
UNET = rf"(down|mid|up)_block.*\.transformer_blocks\.\d\.attn[12]\.{SELF}"
UNET_ADDED = rf"(down|mid|up)_block.*attentions\.\d\.{ADDED}"
FLUX = rf"(single_)?{BLOCKS}\.{JOINT}"
REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.\d\.attn"
DECODER = r"\.\d\.self_attn\.[qkvo]_proj"
VISION = r"\.\d\.self_attn\.([qkv]|out)_proj"

# Of each family: where its attention is, as an expression over paths, and how many layers these are
# by its configuration, such as attentions × projections. The expressions are not the code's.
EXPECTED: dict[str, tuple[str, int]] = {
    "sd": (UNET, 8 * 4),
    "sdxl": (UNET, 16 * 4),
    "if": (UNET_ADDED, 4 * 6),
    "unclip": (UNET_ADDED, 4 * 4),
    "kandinsky2": (UNET_ADDED, 4 * 6),
    "kandinsky3": (rf"(down|up|add_time).*attention\.{SELF}", 13 * 4),
    "stable-cascade": (rf"(down|up)_blocks\.\d\.\d\.attention\.{SELF}", 4 * 4),
    "dit": (rf"{BLOCKS}1\.{SELF}", 2 * 4),
    "pixart": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    # The last block drops its text tokens.
    "sd3": (rf"{BLOCKS}2?\.{JOINT}", 3 * 8 - 1 + 4),
    "auraflow": (rf"(joint|single)_{BLOCKS}\.{JOINT}", 8 + 2 * 4),
    **dict.fromkeys(["flux", "chroma", "bria", "bria-fibo", "longcat", "ovis"], (FLUX, 8 + 2 * 3)),
    "flux2": (rf"{FLUX}|single_{BLOCKS}\.(to_qkv_mlp_proj|to_out)", 8 + 2 * 2),
    "flux3": (rf"(txt_mode|mode|single_transformer)_blocks.*\.attn\.{SELF}", 5 * 4),
    "qwen-image": (rf"{BLOCKS}\.{JOINT}", 2 * 8),
    "qwen-image-2.1": (rf"{BLOCKS}\.{SELF}", 2 * 4),
    "z-image": (rf"(layers|\w+_refiner)\.\d\.attention\.{SELF}", 4 * 4),
    "sana": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    # Both attentions go through the second one's output.
    "lumina": (rf"layers\.\d\.attn[12]\.{SELF}", 2 * (3 + 4)),
    "lumina2": (rf"(layers|\w+_refiner)\.\d\.attn\.{SELF}", 4 * 4),
    "hidream": (r"\w+_stream_blocks\.\d\.block\.attn1\.to_([qkv]|out)(_t)?", 8 + 2 * 4),
    "krea2": (rf"(transformer|.*layerwise|.*refiner)_blocks\.\d\.attn\.{SELF}", 4 * 4),
    "ideogram4": (rf"layers\.\d\.attention\.{SELF}", 2 * 4),
    "hunyuan-dit": (rf"blocks\.\d\.attn[12]\.{SELF}", 6 * 4),
    "hunyuan-image": (rf"{FLUX}|{REFINER}\.{SELF}", 8 + 2 * 3 + 4),
    "cogview3": (rf"{BLOCKS}1\.{SELF}", 2 * 4),
    "cogview4": (rf"{BLOCKS}1\.{SELF}", 2 * 4),
    "kandinsky2-prior": (rf"{BLOCKS}1\.{SELF}", 2 * 4),
    "prx": (r"blocks\.\d\.attention\.(img_qkv_proj|txt_kv_proj|to_out\.0)", 2 * 3),
    "joyimage": (r"double_blocks\.\d\.attn\.(img|txt)_attn_(qkv|proj)", 2 * 4),
    "omnigen": (rf"layers\.\d\.self_attn\.{SELF}", 2 * 4),
    "kandinsky5": (
        r"(text|visual)_transformer_blocks\.\d\.\w+_attention\.(to_(query|key|value)|out_layer)",
        (1 + 2 * 2) * 4,
    ),
    "hunyuan-video": (rf"{FLUX}|{REFINER}\.{SELF}", 8 + 2 * 3 + 4),
    "cogvideox": (rf"{BLOCKS}1\.{SELF}", 2 * 4),
    "consisid": (
        rf"{BLOCKS}1\.{SELF}|(local_facial_extractor|perceiver_cross).*\.to_(q|kv|out)",
        2 * 4 + (5 + 2) * 3,
    ),
    "mochi": (rf"{BLOCKS}1\.{JOINT}|time_embed\.pooler\.to_(q|kv|out)", 2 * 8 - 1 + 3),
    "allegro": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    "latte": (rf"(temporal_)?{BLOCKS}[12]\.{SELF}", (2 * 2 + 2) * 4),
    "ltx": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    "ltx2": (rf"transformer_blocks\.\d\.(audio_|video_)?(to_\w+_)?attn[12]?\.{SELF}", 2 * 6 * 4),
    "wan": (rf"blocks\.\d\.attn[12]\.{SELF}", 4 * 4),
    "wan-i2v": (rf"blocks\.\d\.attn[12]\.{ADDED}", 4 * 4 + 2 * 2),
    "wan-vace": (rf"(vace_)?blocks\.\d\.attn[12]\.{SELF}", 8 * 4),
    "skyreels": (rf"blocks\.\d\.attn[12]\.{SELF}", 4 * 4),
    "cosmos": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    "cosmos-transfer": (rf"{BLOCKS}[12]\.({SELF}|[qkv]_img)", 4 * 4 + 2 * 3),
    "easyanimate": (rf"{BLOCKS}1\.{JOINT}", 8 + 4),
    "sana-wm": (
        r"blocks\.\d\.(attn\.(qkv|proj|([qkv]|out)_proj_cam)|cross_attn\.(q_linear|kv_linear|proj))",
        2 * (2 + 4 + 3),
    ),
    "stable-audio": (rf"{BLOCKS}[12]\.{SELF}", 4 * 4),
    "stable-audio-3": (r"transformer_blocks\.\d\.(self|cross)_attn\.to_(qkv|q|kv|out)", 2 * 5),
    "animatediff": (UNET, (8 + 7 * 2) * 4),
    "text-to-video": (rf"{UNET}|transformer_in\.{BLOCKS}[12]\.{SELF}", (8 + 8 + 2) * 4),
    "dance-diffusion": (r".*\.attentions\.\d\.(query|key|value|proj_attn)", (3 + 6 + 3) * 4),
    "clip": (rf".*encoder\.layers{VISION}", 2 * 4),
    "clip-g": (rf".*encoder\.layers{VISION}", 2 * 4),
    "t5": (r"encoder\.block\.\d\.layer\.0\.SelfAttention\.[qkvo]", 2 * 4),
    "umt5": (r"encoder\.block\.\d\.layer\.0\.SelfAttention\.[qkvo]", 2 * 4),
    "t5gemma": (rf"encoder\.layers{DECODER}", 2 * 4),
    "t5gemma2": (rf"text_model\.layers{DECODER}|vision_.*\.layers{VISION}", 4 * 4),
    "gemma": (rf"layers{DECODER}", 2 * 4),
    "gemma2": (rf"layers{DECODER}", 2 * 4),
    "gemma3": (rf"model\.(language_.*layers{DECODER}|vision_.*layers{VISION})", 4 * 4),
    "qwen2": (rf"layers{DECODER}", 2 * 4),
    "qwen2-vl": (rf".*layers{DECODER}|.*visual\.blocks\.\d\.attn\.(qkv|proj)", 2 * 4 + 2 * 2),
    "qwen2.5-vl": (rf".*layers{DECODER}|.*visual\.blocks\.\d\.attn\.(qkv|proj)", 2 * 4 + 2 * 2),
    "qwen3": (rf"model\.layers{DECODER}", 2 * 4),
    "qwen3-vl": (rf".*layers{DECODER}|.*visual\.blocks\.\d\.attn\.(qkv|proj)", 2 * 4 + 2 * 2),
    "mistral": (rf"layers{DECODER}", 2 * 4),
    "mistral3": (r".*(layers\.\d\.self_attn|layers\.\d\.attention)\.[qkvo]_proj", 4 * 4),
    "llama": (rf"layers{DECODER}", 2 * 4),
    "llava": (rf".*language_model\.layers{DECODER}|.*vision_.*layers{VISION}", 4 * 4),
    "smollm3": (rf"model\.layers{DECODER}", 2 * 4),
    "glm": (rf"layers{DECODER}", 2 * 4),
    "bert": (r".*\.attention\.(self\.(query|key|value)|output\.dense)", 2 * 4),
    "xlm-roberta": (r".*\.attention\.(self\.(query|key|value)|output\.dense)", 2 * 4),
    "clap": (r".*\.attention\.(self\.(query|key|value)|output\.dense)", 2 * 4),
    "chatglm": (r"encoder\.layers\.\d\.self_attention\.(query_key_value|dense)", 2 * 2),
}
MODELS = {**DENOISERS, **TEXT_ENCODERS}

NAMED = re.compile(r"(^|[._])(q|k|v|kv|qkv|query|key|value)($|[._])")
# Layers named like attention's that are not: pools that mix a prompt into the time embedding, and
# what a prompt passes before an attention.
NOT_ATTENTION = {
    "if": r"add_embedding\.pool\.[qkv]_proj",
    "hunyuan-dit": r"time_extra_emb\.pooler\.[qkv]_proj",
    "stable-cascade": r".*\.kv_mapper\.1",
}

# How many copies `fuse_qkv_projections` makes, by name.
FUSED: dict[str, dict[str, int]] = {
    "sd": {"to_qkv": 4, "to_kv": 4},
    "pixart": {"to_qkv": 2, "to_kv": 2},
    "sd3": {"to_qkv": 3 + 1, "to_added_qkv": 3},
    "auraflow": {"to_qkv": 1 + 2, "to_added_qkv": 1},
    "flux": {"to_qkv": 1 + 2, "to_added_qkv": 1},
    "chroma": {"to_qkv": 1 + 2, "to_added_qkv": 1},
    "flux2": {"to_qkv": 1, "to_added_qkv": 1},
    "krea2": {"to_qkv": 4},
    "hunyuan-dit": {"to_qkv": 3, "to_kv": 3},
    "cogvideox": {"to_qkv": 2},
    "wan": {"to_qkv": 2, "to_kv": 2},
    "wan-i2v": {"to_qkv": 2, "to_kv": 2, "to_added_kv": 2},
}


def linear_paths(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]


def copies_in(model: nn.Module) -> list[tuple[nn.Module, str, tuple[str, ...]]]:
    return [
        (module, name, parts)
        for module in model.modules()
        for name, parts in fused_projections(module).items()
    ]


def test_every_family_has_its_expectation() -> None:
    assert set(EXPECTED) == set(MODELS)


@pytest.mark.parametrize("family", EXPECTED)
def test_attention_is_found_whole_and_nothing_else(family: str) -> None:
    pattern, count = EXPECTED[family]
    model = MODELS[family]()
    found = attention_layers(model)
    assert list(found) == [path for path in linear_paths(model) if re.fullmatch(pattern, path)]
    assert len(found) == count
    assert all(model.get_submodule(path) is layer for path, layer in found.items())
    assert found.items() <= shiftable_layers(model).items()
    assert not copies_in(model)
    # Were an expression above too narrow, as the code is, the names left would tell.
    left = [path for path in linear_paths(model) if NAMED.search(path) and path not in found]
    assert all(re.fullmatch(NOT_ATTENTION.get(family, ""), path) for path in left)


@pytest.mark.parametrize("family", FUSED)
def test_fused_copies_are_told_with_their_parts_and_are_never_targets(family: str) -> None:
    model = DENOISERS[family]()
    before = [list(listing(model)) for listing in (attention_layers, shiftable_layers)]
    model.fuse_qkv_projections()
    copies = copies_in(model)
    assert Counter(name for _, name, _ in copies) == FUSED[family]
    for module, name, parts in copies:
        fused = module.get_submodule(name)
        layers = [module.get_submodule(part) for part in parts]
        assert torch.equal(fused.weight, torch.cat([layer.weight for layer in layers]))
        if fused.bias is not None:
            assert torch.equal(fused.bias, torch.cat([layer.bias for layer in layers]))
    assert before == [list(listing(model)) for listing in (attention_layers, shiftable_layers)]
    with pytest.raises(TargetError, match="'to_qkv' matches no"):
        select_targets(model, "to_qkv")


def test_a_projection_that_the_model_fused_itself_is_a_target() -> None:
    model = DENOISERS["stable-audio-3"]()
    assert len(select_targets(model, "to_qkv")) == len(select_targets(model, "to_kv")) == 2
    # As in an IP-Adapter's resampler, which drops what it has fused.
    attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("to_q", "to_k", "to_v", "to_kv")})
    assert fused_projections(attention) == {"to_kv": ("to_k", "to_v")}
    assert set(attention_projections(attention)) == {"to_q", "to_k", "to_v"}
    del attention["to_k"], attention["to_v"]
    assert set(attention_projections(attention)) == {"to_q", "to_kv"}


LORA = ["to_q", "to_out.0", "to_qkv_mlp_proj", "add_k_proj", "query", "o_proj", "linear_1", "dense"]


@pytest.mark.parametrize("family", ["sd", "flux2", "mochi", "bert", "gemma2"])
def test_layers_inside_a_lora_keep_their_paths(family: str) -> None:
    peft = pytest.importorskip("peft")
    model = MODELS[family]()
    attention, layers = attention_layers(model), shiftable_layers(model)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=LORA), model)
    assert any(".lora_" in path for path in linear_paths(model))
    # The very layers, not PEFT's around them.
    for listing, before in ((attention_layers, attention), (shiftable_layers, layers)):
        now = listing(model)
        assert list(now) == list(before)
        assert all(now[path] is before[path] for path in before)


def test_a_copy_inside_a_lora_is_no_target_either() -> None:
    peft = pytest.importorskip("peft")
    model = DENOISERS["flux"]()
    layers = list(shiftable_layers(model))
    model.fuse_qkv_projections()
    copies = len(copies_in(model))
    config = peft.LoraConfig(r=2, target_modules=["to_k", "to_qkv", "to_added_qkv"])
    peft.inject_adapter_in_model(config, model)
    assert len(copies_in(model)) == copies > 0
    assert list(shiftable_layers(model)) == layers


class Quantised(nn.Linear):
    """A Linear whose weight cannot be read, as some quantisers leave it."""

    @property
    def weight(self) -> torch.Tensor:
        raise NotImplementedError


def test_listing_reads_no_weight() -> None:
    unet = make_tiny_unet()
    attention, layers = list(attention_layers(unet)), list(shiftable_layers(unet))
    for path in (attention[0], attention[5], "conv_in", "time_embedding.linear_1"):
        nn.utils.parametrizations.weight_norm(unet.get_submodule(path))
    quantised = unet.get_submodule(attention[2])
    del quantised._parameters["weight"]
    quantised.__class__ = Quantised
    assert list(attention_layers(unet)) == attention
    assert list(shiftable_layers(unet)) == layers
    assert list(select_targets(unet, ("attention", "conv_in"))) == ["conv_in", *attention]


class Treacherous(nn.Module):
    """Named like an attention, by properties that must not be asked."""

    @property
    def q(self) -> nn.Linear:
        raise RuntimeError

    k = v = o = q


def test_only_linear_children_make_an_attention() -> None:
    width = {"in_channels": 4, "out_channels": 4, "kernel_size": 1}
    names = ("to_q", "to_k", "to_v")
    convolutional = nn.ModuleDict({name: nn.Conv2d(**width) for name in names})
    convolutional["to_out"] = nn.Linear(4, 4)
    half = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("to_q", "to_k", "to_out", "o_proj")})
    for module in (
        convolutional,
        half,
        Treacherous(),
        nn.MultiheadAttention(4, 1),
        nn.Linear(4, 4),
    ):
        assert attention_projections(module) == {} == attention_layers(module)
    assert set(shiftable_layers(convolutional)) == {*names, "to_out"}


def test_a_layer_that_two_attentions_share_is_listed_once() -> None:
    names = ("to_q", "to_k", "to_v")
    model = nn.ModuleList(nn.ModuleDict({n: nn.Linear(4, 4) for n in names}) for _ in range(2))
    model[1]["to_k"] = model[0]["to_k"]
    expected = ["0.to_q", "0.to_k", "0.to_v", "1.to_q", "1.to_v"]
    assert list(attention_layers(model)) == list(select_targets(model, "attention")) == expected
