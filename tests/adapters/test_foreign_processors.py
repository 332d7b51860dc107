"""Attention processors of others, set before or after an adapter: all of them see its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionSAGPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from merged import (
    CLOSE,
    check_switching,
    load,
    merged,
    tiny_adapter,
    tiny_pictures,
)
from tiny import IMAGE_SIZE, make_tiny_pipeline, run_pipeline
from tiny_adapters import ip_adapter
from torch import Tensor, nn

from svfit_diffusion import StateError, inject
from svfit_diffusion.adapters.injection import Injection


def assign(pipe: Any) -> Any:
    """As guidance by perturbed attention does, past `set_processor`."""
    for module in pipe.unet.modules():
        if hasattr(module, "processor"):
            module.processor = AttnProcessor()
    return pipe


def with_default_processors(pipe: Any) -> Any:
    pipe.unet.set_default_attn_processor()
    return pipe


def sliced(pipe: Any) -> Any:
    pipe.enable_attention_slicing(1)
    return pipe


PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "default": with_default_processors,
    "assigned": assign,
    "sliced": sliced,
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_processors_see_a_set_adapter(kind: str, order: str) -> None:
    change, pipe = PROCESSORS[kind], make_tiny_pipeline()
    pipe = load(change(pipe)) if order == "before" else change(load(pipe))
    check_switching(pipe, tiny_pictures(change))


def test_slicing_may_begin_and_end_under_a_live_adapter() -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    Injection.of(pipe.unet).set_trainable("a", True)
    for change in (pipe.enable_attention_slicing, pipe.disable_attention_slicing):
        change()
        torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE)
    pipe.unload_svfit_weights()
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.equal(run_pipeline(pipe), expected.base)


def with_perturbed_attention(pipe: Any) -> Any:
    components = {**pipe.components, "requires_safety_checker": False}
    return StableDiffusionPAGPipeline(**components, pag_applied_layers=["mid"])


def with_self_attention_guidance(pipe: Any) -> Any:
    return StableDiffusionSAGPipeline(**pipe.components, requires_safety_checker=False)


GUIDANCE: dict[str, tuple[Callable[[Any], Any], dict[str, float]]] = {
    "perturbed": (with_perturbed_attention, {"pag_scale": 3.0}),
    "self-attention": (with_self_attention_guidance, {"sag_scale": 1.0}),
}


def guided(pipe: Any, **settings: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    return run_pipeline(pipe, height=IMAGE_SIZE, width=IMAGE_SIZE, **settings)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", GUIDANCE)
def test_guidance_by_assigned_processors(kind: str, order: str) -> None:
    make, settings = GUIDANCE[kind]

    def draw(pipe: Any) -> Tensor:
        return guided(pipe, **settings)

    expected, pipe = tiny_pictures(make, draw), make_tiny_pipeline()
    pipe = load(make(pipe)) if order == "before" else make(load(pipe))
    assert not torch.equal(draw(pipe), tiny_pictures().adapted)  # the guidance does something
    check_switching(pipe, expected, draw)


def test_perturbed_attention_refuses_mixed_batches_and_recovers() -> None:
    pipe = with_perturbed_attention(load(make_tiny_pipeline()))
    with (
        pytest.raises(StateError, match=r"perturbed-attention.*set adapters for all prompts"),
        pipe.svfit_adapters_per_prompt(["a", None]),
    ):
        guided(pipe, prompt=["a dog", "a dog"], pag_scale=3.0)
    # The pipeline has left its own processors in place, as it does on any error.
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    adapted = tiny_pictures().adapted
    torch.testing.assert_close(guided(pipe, pag_scale=0.0), adapted, **CLOSE)


def with_image(pipe: Any) -> Any:
    weights = ip_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)
    return pipe


def draw_with_image(pipe: Any) -> Tensor:
    embeds = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(5))
    return run_pipeline(pipe, ip_adapter_image_embeds=[embeds])


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_ip_adapter_beside_an_adapter(order: str) -> None:
    pipe, expected = make_tiny_pipeline(), tiny_pictures()
    pipe = load(with_image(pipe)) if order == "before" else with_image(load(pipe))
    with_both = tiny_pictures(with_image, draw_with_image)
    assert (with_both.adapted - expected.adapted).abs().max() > 0.1
    torch.testing.assert_close(draw_with_image(pipe), with_both.adapted, **CLOSE)
    pipe.unload_ip_adapter()
    check_switching(pipe, expected)


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_ip_adapter_beside_a_live_adapter(order: str) -> None:
    pipe, expected = make_tiny_pipeline(), tiny_pictures()
    pipe = with_image(load(pipe)) if order == "before" else load(pipe)
    Injection.of(pipe.unet).set_trainable("a", True)
    if order == "after":
        with_image(pipe)
    both = tiny_pictures(with_image, draw_with_image).adapted
    torch.testing.assert_close(draw_with_image(pipe), both, **CLOSE)
    pipe.unload_ip_adapter()
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), expected.base)
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {AttnProcessor2_0}


class Doubling(nn.Module):
    """A processor that is a module, and no Attention's own."""

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * AttnProcessor2_0()(attention, hidden_states, *args, **kwargs)


def double(
    attention: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
) -> Tensor:
    """A processor that is a plain function: nothing can be derived from its class."""
    return 2 * AttnProcessor2_0()(attention, hidden_states, encoder_hidden_states)


@pytest.mark.parametrize("processor", [Doubling(), double], ids=["module", "function"])
@pytest.mark.parametrize("live", [False, True])
def test_processors_of_any_kind(processor: Any, live: bool) -> None:
    unet = make_tiny_pipeline().unet
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = processor
    deltas = tiny_adapter().deltas["unet"]
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = merged(unet, deltas)
        expected = whole.mid_block.attentions[0].transformer_blocks[0].attn1(x)
        base = attention(x)
        injection = inject(unet, trainable=live, show_progress=False)
        for path, parameter in injection.sigma_parameters("default"):
            parameter.copy_(deltas[path])
        injection.set_active({"default": 1.0})
        torch.testing.assert_close(attention(x), expected, **CLOSE)
        injection.eject()
        assert torch.equal(attention(x), base)
    assert attention.processor is processor
