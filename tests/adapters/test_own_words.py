"""A word of the subject's own: pictures are those of merged weights that read it, or refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merged import CLOSE
from own_words import NAMED, UNNAMED, by_hand, draw, make_pipe, saved, worded
from test_beside_lora import load_lora
from test_copies import animated, draw_frames
from tiny import make_tiny_pipeline, run_pipeline
from tiny_pipelines.flux import flux

from svfit_diffusion import CheckpointError, StateError
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.loading import put_adapter

every = pytest.mark.parametrize("component", ["unet", "sdxl", "transformer"])
both = pytest.mark.parametrize("component", ["unet", "transformer"])


def load(pipe: Any, component: str, name: str = "a", **changes: Any) -> Any:
    put_adapter(models_of(pipe), worded(component, **changes), name, show_progress=False)
    pipe.set_svfit_adapters(name)
    return pipe


def hooks_of(pipe: Any) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for module in part.modules()
    )


@every
def test_a_file_draws_as_words_read_by_hand(component: str, tmp_path: Path) -> None:
    prompts = NAMED, UNNAMED, "sks"
    expected = draw(by_hand(make_pipe(component), [(worded(component), 1.0)], prompts), *prompts)
    pipe = make_pipe(component)
    base, hooks = draw(pipe, *prompts), hooks_of(pipe)
    pipe.load_svfit_weights(saved(worded(component), tmp_path), show_progress=False)
    torch.testing.assert_close(draw(pipe, *prompts), expected, **CLOSE)
    pipe.disable_svfit()
    assert torch.equal(draw(pipe, *prompts), base)
    pipe.enable_svfit()
    torch.testing.assert_close(draw(pipe, *prompts), expected, **CLOSE)
    pipe.set_svfit_adapters("default_0", 0.0)
    assert torch.equal(draw(pipe, *prompts), base)
    again = pipe.save_svfit_weights(tmp_path / "again").read_bytes()
    pipe.unload_svfit_weights()
    assert torch.equal(draw(pipe, *prompts), base)
    assert hooks_of(pipe) == hooks
    other = make_pipe(component)
    other.load_svfit_weights(tmp_path / "again", show_progress=False)
    assert other.save_svfit_weights(tmp_path / "third").read_bytes() == again
    torch.testing.assert_close(draw(other, *prompts), expected, **CLOSE)


@every
def test_the_word_alone_makes_a_difference_where_it_is_said(component: str) -> None:
    plain = make_pipe(component)
    put_adapter(models_of(plain), replace(worded(component), words={}), "a", show_progress=False)
    plain.set_svfit_adapters("a")
    named, unnamed = draw(plain, NAMED, UNNAMED)
    pipe = load(make_pipe(component), component)
    told = draw(pipe, NAMED, UNNAMED)
    assert (told[0] - named).abs().max() > 5e-3
    assert torch.equal(told[1], unnamed)


@every
def test_strength_counts_for_the_word_too_and_two_add_up(component: str) -> None:
    other = worded(component, 1, "sks dog"), -0.4
    both_said = [(worded(component), 0.6), other]
    expected = draw(by_hand(make_pipe(component), both_said, [NAMED]), NAMED)
    pipe = load(load(make_pipe(component), component), component, "b", seed=1, identifier="sks dog")
    pipe.set_svfit_adapters(["a", "b"], [0.6, -0.4])
    torch.testing.assert_close(draw(pipe, NAMED), expected, **CLOSE)
    pipe.delete_svfit_adapters("b")
    only = draw(by_hand(make_pipe(component), both_said[:1], [NAMED]), NAMED)
    torch.testing.assert_close(draw(pipe, NAMED), only, **CLOSE)


@both
def test_embeddings_of_the_pipeline_are_known_and_others_refused(component: str) -> None:
    pipe = make_pipe(component)
    early = encoded(pipe, NAMED)
    load(pipe, component)
    expected = draw(pipe, NAMED)
    seed = torch.Generator().manual_seed
    assert torch.equal(draw(pipe, generator=seed(0), **encoded(pipe, NAMED)), expected)
    if component == "unet":  # the one that is trained, too, so that another text comes out
        with pytest.raises(StateError, match="made before the adapter was loaded"):
            draw(pipe, generator=seed(0), **early)
    weighted = {k: v * 1.1 for k, v in encoded(pipe, NAMED).items()}
    with pytest.raises(StateError, match="no weighted prompts"):
        draw(pipe, generator=seed(0), **weighted)
    assert torch.equal(draw(pipe, NAMED), expected)  # and it goes on


def encoded(pipe: Any, prompt: str) -> dict[str, Any]:
    if hasattr(pipe, "unet"):
        positive, negative = pipe.encode_prompt(prompt, "cpu", 1, True)
        return {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    text, pooled, _ = pipe.encode_prompt(prompt, None, max_sequence_length=32)
    return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}


@both
@pytest.mark.parametrize("way", [lambda pipe: pickle.loads(pickle.dumps(pipe)), copy.deepcopy])
def test_copies_read_it_by_themselves(component: str, way: Callable[[Any], Any]) -> None:
    pipe = load(make_pipe(component), component)
    expected = draw(pipe, NAMED)
    other = way(pipe)
    pipe.unload_svfit_weights()
    assert torch.equal(draw(other, NAMED), expected)


@both
def test_it_is_read_in_other_pipelines_of_the_same_models(component: str) -> None:
    pipe = load(make_pipe(component), component)
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(draw(other, NAMED), draw(pipe, NAMED))


def test_beside_a_lora_in_either_order() -> None:
    pipe = load_lora(make_tiny_pipeline())
    pipe.fuse_lora()  # its weights as if they were the base's; ours are of the base before
    pipe.unload_lora_weights()
    expected = draw(by_hand(pipe, [(only_word(), 1.0)], [NAMED], merge=False), NAMED)
    first = load(make_tiny_pipeline(), "unet")
    load_lora(first)
    last = load(load_lora(make_tiny_pipeline()), "unet")
    assert torch.equal(draw(first, NAMED), draw(last, NAMED))
    alone = load_lora(make_tiny_pipeline())
    put_adapter(models_of(alone), only_word(), "a", show_progress=False)
    alone.set_svfit_adapters("a")
    torch.testing.assert_close(draw(alone, NAMED), expected, **CLOSE)
    alone.unload_lora_weights()
    without = draw(by_hand(make_tiny_pipeline(), [(only_word(), 1.0)], [NAMED], merge=False), NAMED)
    torch.testing.assert_close(draw(alone, NAMED), without, **CLOSE)


def only_word() -> Any:
    """An adapter whose shifts are zero."""
    adapter = worded("unet")
    zeros = {c: {p: d * 0 for p, d in own.items()} for c, own in adapter.deltas.items()}
    return replace(adapter, deltas=zeros, sketches={})


@every
def test_each_prompt_of_a_batch_reads_the_words_of_its_own_adapters(component: str) -> None:
    pipe = load(make_pipe(component), component)
    load(pipe, component, "b", seed=1, identifier="sks dog")
    base = make_pipe(component)
    mixes = [{"a": 1.0}, {"a": 0.6, "b": -0.4}, None, {"b": 1.0}]
    draw(pipe, NAMED)  # transformers puts hooks of its own
    hooks = hooks_of(pipe)
    with pipe.svfit_adapters_per_prompt(mixes, num_images_per_prompt=2):
        together = draw(pipe, *[NAMED] * 4, num_images_per_prompt=2, generator=seeds(8))
    assert hooks_of(pipe) == hooks
    for mix, images in zip(mixes, together.split(2), strict=True):
        if mix is None:
            expected = draw(base, NAMED, num_images_per_prompt=2, generator=seeds(2))
        else:
            pipe.set_svfit_adapters(list(mix), list(mix.values()))
            expected = draw(pipe, NAMED, num_images_per_prompt=2, generator=seeds(2))
        torch.testing.assert_close(images, expected, **CLOSE)


def seeds(count: int) -> list[torch.Generator]:
    """As many for each prompt, two and two alike."""
    return [torch.Generator().manual_seed(i % 2) for i in range(count)]


@both
def test_what_is_unloaded_meanwhile_leaves_nothing(component: str) -> None:
    pipe = make_pipe(component)
    base, hooks = draw(pipe, NAMED), hooks_of(pipe)
    load(pipe, component)
    with pipe.svfit_adapters_per_prompt(["a"]):
        draw(pipe, NAMED)
        pipe.unload_svfit_weights()
    assert torch.equal(draw(pipe, NAMED), base)
    assert hooks_of(pipe) == hooks


@both
def test_what_no_weights_hold_is_refused_by_name(component: str) -> None:
    pipe = load(make_pipe(component), component)
    expected = draw(pipe, NAMED)
    with pytest.raises(StateError, match="fuse adapters: adapter 'a' has a word of its own, 'sks'"):
        pipe.fuse_svfit()
    if component == "unet":
        pipe.fuse_qkv_projections()
        with pytest.raises(StateError, match="fused projections: adapter 'a' has a word"):
            draw(pipe, NAMED)
        pipe.unfuse_qkv_projections()
    assert torch.equal(draw(pipe, NAMED), expected)


def test_animatediff_copies_no_word_and_says_so() -> None:
    pipe = load(make_tiny_pipeline(), "unet")
    other = animated(pipe)
    with pytest.raises(StateError, match="AnimateDiff's copy of the UNet: adapter 'a' has a word"):
        draw_frames(other)
    pipe.unload_svfit_weights()
    assert torch.equal(draw_frames(animated(pipe)), draw_frames(animated(make_tiny_pipeline())))


def test_what_has_no_place_for_it_is_refused_before_anything_changes() -> None:
    pipe = make_tiny_pipeline()
    base = run_pipeline(pipe)
    adapter = worded("unet")
    word = adapter.words["unet"]
    narrow = replace(adapter, words={"unet": replace(word, vectors=word.vectors[:1])})
    with pytest.raises(CheckpointError, match="adapter's word 'sks' has vectors of"):
        put_adapter(models_of(pipe), narrow, "a", show_progress=False)
    with pytest.raises(CheckpointError, match="no text_encoder, which tells where"):
        one = replace(adapter, deltas={"unet": adapter.deltas["unet"]}, sketches={})
        put_adapter({"unet": pipe.unet}, one, "a", show_progress=False)
    astray = replace(adapter, words={"text_encoder": word})
    with pytest.raises(CheckpointError, match="where a CLIPTextModel of this kind reads"):
        put_adapter(models_of(pipe), astray, "a", show_progress=False)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(run_pipeline(pipe), base)


def test_strength_by_component() -> None:
    pipe = make_tiny_pipeline()
    base = draw(pipe, NAMED)
    put_adapter(models_of(pipe), worded("unet"), "a", show_progress=False)
    pipe.set_svfit_adapters("a", {"unet": 0.0, "text_encoder": 0.0})
    assert torch.equal(draw(pipe, NAMED), base)


COMPILED: dict[str, Callable[[Any], Any]] = {
    "whole": lambda model: torch.compile(model, backend="eager"),
    "in place": lambda model: (model.compile(backend="eager"), model)[1],
    "in blocks": lambda model: (model.compile_repeated_blocks(backend="eager"), model)[1],
}


@pytest.mark.usefixtures("fresh_compiler")
@both
@pytest.mark.parametrize("way", COMPILED)
def test_compiled_denoisers_are_refused_while_a_word_acts(component: str, way: str) -> None:
    pipe = make_pipe(component)
    setattr(pipe, component, COMPILED[way](getattr(pipe, component)))
    base = draw(pipe, NAMED)
    load(pipe, component)
    with pytest.raises(StateError, match="a compiled denoiser: adapter 'a' has a word of its own"):
        draw(pipe, NAMED)
    pipe.set_svfit_adapters("a", 0.0)
    assert torch.equal(draw(pipe, NAMED), base)


def test_two_denoisers_share_an_encoder() -> None:
    one, other = make_pipe("transformer"), make_pipe("transformer")
    other.text_encoder_2 = one.text_encoder_2
    load(one, "transformer")
    expected = draw(one, NAMED)
    load(other, "transformer")
    assert torch.equal(draw(other, NAMED), expected)
    one.unload_svfit_weights()
    assert torch.equal(draw(other, NAMED), expected)
    other.unload_svfit_weights()
    assert not one.text_encoder_2._forward_hooks


def test_another_encoder_is_refused_until_an_adapter_is_loaded_with_it() -> None:
    pipe = load(make_pipe("transformer"), "transformer")
    pipe.text_encoder_2 = flux(1).text_encoder_2
    with pytest.raises(StateError, match="did not come from the pipeline's text_encoder_2"):
        draw(pipe, NAMED)
    load(pipe, "transformer", "b")
    fresh = make_pipe("transformer")
    fresh.text_encoder_2 = flux(1).text_encoder_2
    assert torch.equal(draw(pipe, NAMED), draw(load(fresh, "transformer"), NAMED))


@both
@pytest.mark.parametrize("way", ["model", "leaf_level", "block_level"])
def test_offloaded(component: str, way: str) -> None:
    pipe = load(make_pipe(component), component)
    expected = draw(pipe, NAMED)
    cpu = torch.device("cpu")
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        blocks = {"num_blocks_per_group": 1} if way == "block_level" else {}
        pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=way, **blocks)
    torch.testing.assert_close(draw(pipe, NAMED), expected, **CLOSE)
    pipe.set_svfit_adapters("a", 0.0)
    draw(pipe, NAMED)
    pipe.set_svfit_adapters("a")
    torch.testing.assert_close(draw(pipe, NAMED), expected, **CLOSE)
