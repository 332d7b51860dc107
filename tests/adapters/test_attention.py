"""Attention processors around and under adapters: theirs stay, and see shifted projections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from one_model import ALL, ATTENTION, CLOSE, EITHER, Snapshot, dense_copy, put
from torch import Tensor, nn

from svfit_diffusion import StateError, SVFitAttnProcessor, SVFitConfig, eject
from svfit_diffusion.adapters.attention import stand_in

ADDED_KV = {
    "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
}
ONLY_ADDED = {**ADDED_KV, "only_cross_attention": True}
PROCESSORS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "plain": ({}, AttnProcessor),
    "sdpa": ({}, AttnProcessor2_0),
    "sliced": ({}, lambda: SlicedAttnProcessor(2)),
    "added-kv": (ADDED_KV, AttnAddedKVProcessor),
    "added-kv-sdpa": (ADDED_KV, AttnAddedKVProcessor2_0),
    "added-kv-only": (ONLY_ADDED, AttnAddedKVProcessor2_0),
}


def test_processors_are_wrapped_with_their_own_signature_and_given_back() -> None:
    unet = tiny.make_tiny_unet()
    before = unet.attn_processors
    put(unet)
    for name, processor in unet.attn_processors.items():
        assert isinstance(processor, SVFitAttnProcessor)
        assert type(processor).__name__ == "SVFitAttnProcessor"
        assert processor.inner is before[name]
    eject(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    put(unet, trainable=False)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_a_stand_in_is_its_layer_but_for_what_it_computes() -> None:
    class Doubling:
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer, projection, x = nn.Linear(4, 4), Doubling(), torch.randn(3, 4)
    module: Any = stand_in(layer, projection)  # type: ignore[arg-type]
    assert isinstance(module, nn.Linear) and module.weight is layer.weight
    # Set later, on either, as tools that gather weights do.
    layer._parameters = dict(layer._parameters, weight=nn.Parameter(torch.ones(4, 4)))
    module.mark, calls = 5, []
    assert module.weight is layer.weight and layer.mark == 5
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.forward = lambda x: x  # another tool's
    assert torch.equal(module(x), 2 * x) and calls == [1]
    assert torch.equal(copy.deepcopy(module)(x), 2 * x)


@EITHER
@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_processor_sees_shifted_projections(kind: str, trainable: bool) -> None:
    overrides, make_processor = PROCESSORS[kind]
    unet = tiny.make_tiny_unet(**overrides)
    unet.set_attn_processor(make_processor())
    plain = copy.deepcopy(unet)
    snapshot = Snapshot(unet)
    injection = put(unet, trainable=trainable)
    assert torch.equal(tiny.run_unet(unet), snapshot.output)
    eject(unet)
    snapshot.check()
    injection = put(unet, scale=0.4, trainable=trainable)
    expected = tiny.run_unet(dense_copy(plain, injection, {"default": 1.0}))
    torch.testing.assert_close(tiny.run_unet(unet), expected, **CLOSE)
    assert (expected - snapshot.output).abs().max() > 1e-2
    if overrides:
        assert any(path.endswith("add_k_proj") for path in injection.layers)
    eject(unet)
    snapshot.check()


@EITHER
@pytest.mark.parametrize("kind", [IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0])
def test_ip_adapter_keeps_its_processor_and_its_own_weights(
    kind: type[nn.Module], trainable: bool
) -> None:
    def make() -> UNet2DConditionModel:
        unet = tiny.make_tiny_unet()
        torch.manual_seed(11)
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.set_processor(kind(64, tiny.TEXT_WIDTH).requires_grad_(False))
        return unet

    image = torch.randn(2, 1, 4, tiny.TEXT_WIDTH, generator=torch.Generator().manual_seed(1))

    def run(unet: UNet2DConditionModel) -> Tensor:
        inputs = tiny.unet_inputs()
        inputs["encoder_hidden_states"] = (inputs["encoder_hidden_states"], [image])
        with torch.no_grad():
            return unet(**inputs).sample

    unet = make()
    base = run(unet)
    keys = list(unet.state_dict())
    processors = unet.attn_processors
    injection = put(unet, scale=0.4, trainable=trainable)
    assert list(unet.state_dict()) == keys
    assert any(isinstance(processor, kind) for processor in unet.attn_processors.values())
    expected = run(dense_copy(make(), injection, {"default": 1.0}))
    torch.testing.assert_close(run(unet), expected, **CLOSE)
    eject(unet)
    assert unet.attn_processors == processors
    assert torch.equal(run(unet), base)


class GainProcessor(AttnProcessor2_0):
    """A processor with a keyword of its own, as users write them."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, gain: float = 1.0, **kwargs: Any
    ) -> Tensor:
        return super().__call__(attn, hidden_states, *args, **kwargs) * gain


def test_cross_attention_kwargs_reach_the_inner_processor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unet = tiny.make_tiny_unet()
    unet.set_attn_processor(GainProcessor())
    kwargs = {"cross_attention_kwargs": {"gain": 0.25}}
    plain, quiet = tiny.run_unet(unet), tiny.run_unet(unet, **kwargs)
    assert not torch.equal(plain, quiet)
    put(unet)
    assert torch.equal(tiny.run_unet(unet), plain)
    assert torch.equal(tiny.run_unet(unet, **kwargs), quiet)
    assert "ignored" not in caplog.text


def test_the_attention_backend_reaches_the_inner_processor() -> None:
    class WithBackend(AttnProcessor2_0):
        _attention_backend = None
        _parallel_config = None

    unet = tiny.make_tiny_unet()
    unet.set_attn_processor(WithBackend())
    inner = next(iter(unet.attn_processors.values()))
    put(unet)
    unet.set_attention_backend("_native_math")
    assert inner._attention_backend == "_native_math"
    unet.reset_attention_backend()
    assert inner._attention_backend is None


def test_processors_without_a_backend_show_none() -> None:
    unet = tiny.make_tiny_unet()
    unet.set_attn_processor(AttnProcessor())
    put(unet)
    assert not any(hasattr(p, "_attention_backend") for p in unet.attn_processors.values())


def test_a_processor_set_later_stays_and_the_adapter_acts_under_it() -> None:
    unet = tiny.make_tiny_unet()
    base = tiny.run_unet(unet)
    injection = put(unet, scale=0.3, trainable=False)
    shifted = tiny.run_unet(unet)
    later = AttnProcessor2_0()
    unet.set_attn_processor(later)
    assert torch.equal(tiny.run_unet(unet), shifted)
    put(unet, SVFitConfig(target="conv_in"), "other")
    injection.set_active({"default": 1.0})
    assert torch.equal(tiny.run_unet(unet), shifted)
    eject(unet)
    assert all(processor is later for processor in unet.attn_processors.values())
    assert torch.equal(tiny.run_unet(unet), base)


def test_a_processor_chosen_later_runs_on_shifted_projections() -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    put(unet, scale=0.4)
    shifted = tiny.run_unet(unet)
    unet.set_attention_slice(1)
    # Slices of a batch are the same products in another order.
    torch.testing.assert_close(tiny.run_unet(unet), shifted)
    assert not torch.allclose(shifted, snapshot.output, atol=1e-2)
    kept = dict(unet.attn_processors)
    unet.set_attn_processor(kept)
    torch.testing.assert_close(tiny.run_unet(unet), shifted)
    eject(unet)
    assert {type(p) for p in unet.attn_processors.values()} == {SlicedAttnProcessor}
    unet.set_attn_processor(AttnProcessor2_0())
    torch.testing.assert_close(tiny.run_unet(unet), snapshot.output)
    assert all("set_processor" not in vars(module) for module in unet.modules())


def test_a_processor_assigned_over_one_in_training_is_refused_when_the_model_runs() -> None:
    unet = tiny.make_tiny_unet()
    put(unet, scale=0.4)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = GainProcessor()  # as perturbed-attention guidance does
    with pytest.raises(StateError, match=r"GainProcessor.*SVFit"):
        tiny.run_unet(unet)
    eject(unet)
    assert type(attention.processor) is GainProcessor
    assert torch.isfinite(tiny.run_unet(unet)).all()


class Wrapper:
    """A stranger's processor around whatever was there."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any, attention_mask: Any
    ) -> Any:
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


@pytest.mark.parametrize("leave", ["eject", "remove"])
def test_an_adapter_leaves_even_where_a_stranger_wraps_it(leave: str) -> None:
    for model, config in ((tiny.make_tiny_unet(), ATTENTION), (tiny.make_tiny_unet(), ALL)):
        base = tiny.run_unet(model)
        injection = put(model, config, scale=0.4)
        put(model, SVFitConfig(target="conv_in"), "other")
        injection.set_active({"default": 1.0})
        model.set_attn_processor({n: Wrapper(p) for n, p in model.attn_processors.items()})
        assert not torch.equal(tiny.run_unet(model), base)
        if leave == "eject":
            eject(model)
        else:
            injection.remove_adapter("default")
        assert torch.equal(tiny.run_unet(model), base)
