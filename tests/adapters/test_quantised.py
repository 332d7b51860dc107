"""Quantised bases: pictures and gradients are those of the dequantised, merged model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from merged import Expected, check_output, make_adapter, merge_pipeline, merged
from quantised_models import (
    EVERY_KIND,
    ROUNDED_INPUTS,
    computed_weight,
    dequantised,
    is_quantised,
    quantise,
)
from tiny import (
    make_tiny_pipeline,
    make_tiny_unet,
    run_pipeline,
    run_unet,
    save_tiny_pipeline,
    unet_inputs,
)
from torch import nn

from svfit_diffusion import BaseMismatchError, BasisError, StateError, inject, sigma_parameters
from svfit_diffusion.adapters.added import AddedShifts
from svfit_diffusion.adapters.components import collect_adapter, models_of
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.adapters.quantised import dense_weight, quantization_of, weight_shape
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.interchange import export_lora
from svfit_diffusion.interchange.reading import read_lora
from svfit_diffusion.spectrum.shift import shift_matrix
from svfit_diffusion.spectrum.solver import singular_basis

META = AdapterMetadata()
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def make_pipeline(kind: str) -> Any:
    pipe = make_tiny_pipeline()
    quantise(pipe.unet, kind)
    return pipe


def plain_copy(pipe: Any) -> Any:
    """`make_tiny_pipeline` with the weights that the quantised UNet of a pipeline computes with."""
    plain = make_tiny_pipeline()
    dequantised(pipe.unet, plain.unet)
    return plain


def adapter_of(pipe: Any) -> Any:
    """A random adapter of the UNet and the text encoder of the pipeline, made on plain weights."""
    return make_adapter(models_of(pipe))


@EVERY_KIND
def test_what_a_layer_computes_with_is_read(kind: str) -> None:
    unet = quantise(make_tiny_unet(), kind)
    layers = [m for m in unet.modules() if isinstance(m, nn.Linear) and is_quantised(m)]
    assert len(layers) > 10
    for layer in layers:
        assert quantization_of(layer, layer.weight) == kind
        before = dense_weight(layer, layer.weight)
        assert weight_shape(layer) == before.shape == (layer.out_features, layer.in_features)
        computed = computed_weight(layer)
        # The difference of two float32 outputs, after a bias of up to 0.2.
        torch.testing.assert_close(before, computed, rtol=1e-5, atol=1e-5)
        assert torch.equal(dense_weight(layer, layer.weight), before)  # after a call, too


@EVERY_KIND
def test_it_draws_as_the_dequantised_merged_model(kind: str) -> None:
    pipe = make_pipeline(kind)
    plain = plain_copy(pipe)
    adapter = adapter_of(plain)
    base, own = run_pipeline(pipe), dict(pipe.unet.named_parameters())
    expected = Expected(base, run_pipeline(merge_pipeline(plain, adapter)))
    half = run_pipeline(merge_pipeline(plain, adapter, 0.5))
    put(pipe, adapter)
    # float16 vectors round a shift by 3e-4 of itself.
    close = {"rtol": 0, "atol": 5e-2 if kind == ROUNDED_INPUTS else 2e-3}
    adapted = run_pipeline(pipe)
    torch.testing.assert_close(adapted, expected.adapted, **close)
    pipe.set_svfit_adapters("a", 0.5)
    torch.testing.assert_close(run_pipeline(pipe), half, **close)
    for leave in (
        lambda: pipe.set_svfit_adapters("a", 0.0),
        lambda: pipe.disable_svfit(),
        lambda: pipe.unload_svfit_weights(),
    ):
        leave()
        assert torch.equal(run_pipeline(pipe), base)
        if pipe.get_list_svfit_adapters():
            pipe.enable_svfit()
            pipe.set_svfit_adapters("a")
            assert torch.equal(run_pipeline(pipe), adapted)
    assert all(own[name] is parameter for name, parameter in pipe.unet.named_parameters())
    for module in pipe.unet.modules():
        assert not module._forward_hooks
        assert kind == "float8_e4m3fn" or "forward" not in module.__dict__


def put(pipe: Any, adapter: Any, name: str = "a", **kwargs: Any) -> None:
    put_adapter(models_of(pipe), adapter, name, show_progress=False, **kwargs)
    pipe.set_svfit_adapters(name)


@EVERY_KIND
def test_gradients_are_those_of_the_dequantised_model(kind: str) -> None:
    quantised = quantise(make_tiny_unet(), kind)
    plain = dequantised(quantised, make_tiny_unet())
    outputs = {}
    for name, model in (("quantised", quantised), ("plain", plain)):
        inject(model, show_progress=False)
        generator = torch.Generator().manual_seed(3)
        for _, delta in sigma_parameters(model):
            delta.data.copy_(torch.randn(delta.shape, generator=generator) * 0.3)
        model.requires_grad_(False)
        y = model(**unet_inputs()).sample
        y.square().sum().backward()
        outputs[name] = y.detach()
    # Two float32 ways to one number, over a dozen layers, with vectors rounded to float16 in both.
    close = 1e-2 if kind == ROUNDED_INPUTS else 1e-4
    torch.testing.assert_close(outputs["quantised"], outputs["plain"], rtol=0, atol=close)
    found, expected = dict(sigma_parameters(quantised)), dict(sigma_parameters(plain))
    assert found.keys() == expected.keys()
    for path, delta in found.items():
        scale = expected[path].grad.norm()
        assert scale > 0
        tolerance = 0.1 if kind == ROUNDED_INPUTS else 2e-3
        assert (delta.grad - expected[path].grad).norm() <= tolerance * scale, path


@EVERY_KIND
def test_a_quantised_base_is_another_base(kind: str) -> None:
    pipe, full = make_pipeline(kind), make_tiny_pipeline()
    trained_on_full = adapter_of(full)
    with pytest.raises(BaseMismatchError, match=rf"unet is not quantised, .* here is .*as {kind}"):
        put(pipe, trained_on_full)
    assert pipe.get_list_svfit_adapters() == {}
    put(pipe, trained_on_full, ignore_base_mismatch=True)
    inject(pipe.unet, adapter_name="own", show_progress=False, trainable=False)
    trained_on_quantised = collect_adapter({"unet": pipe.unet}, "own")
    assert trained_on_quantised.metadata.quantization == {"unet": kind}
    with pytest.raises(BaseMismatchError, match=rf"unet is quantised as {kind}, .*not quantised"):
        put(full, trained_on_quantised)
    put(full, trained_on_quantised, ignore_base_mismatch=True)


def test_an_adapter_of_the_full_base_takes_its_vectors_from_the_files(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "base")
    full = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    adapter = adapter_of(full)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    quantise(pipe.unet, "float8_e4m3fn")
    plain = plain_copy(pipe)
    for path, delta in adapter.deltas["unet"].items():
        own: Any = full.unet.get_submodule(path)
        u, _, vh = torch.linalg.svd(own.weight.half().double(), full_matrices=False)
        layer: Any = plain.unet.get_submodule(path)
        layer.weight.data += ((u[:, : len(delta)] * delta) @ vh[: len(delta)]).float()
    whole = merge_pipeline(plain, Adapter({"text_encoder": adapter.deltas["text_encoder"]}, META))
    put(pipe, adapter)
    torch.testing.assert_close(run_pipeline(pipe), run_pipeline(whole), rtol=0, atol=2e-3)
    pipe.unload_svfit_weights()
    shutil.rmtree(folder)
    with pytest.raises(BaseMismatchError, match="svfit export"):
        put(pipe, adapter)


@pytest.mark.parametrize("kind", ["bitsandbytes nf4", "GGUF Q8_0", "float8_e4m3fn"])
def test_a_lora_is_made_on_it(kind: str, tmp_path: Path) -> None:
    pipe = make_pipeline(kind)
    adapter = adapter_of(plain_copy(pipe))
    made = export_lora(pipe, adapter, tmp_path / "lora.safetensors", dtype=torch.float32)
    assert made.error < 1e-6
    plain = make_tiny_pipeline()
    put(pipe, adapter)
    found = read_lora(plain, made.path)
    for path, shifted in Injection.of(pipe.unet).layers.items():
        meant = shift_matrix(shifted.basis, shifted.deltas["a"].detach())
        torch.testing.assert_close(found[f"unet.{path}"].matrix, meant, rtol=0, atol=1e-5)


def test_half_of_the_layers_quantised() -> None:
    unet = quantise(make_tiny_unet(), "float8_e4m3fn", among="attn1")
    plain = dequantised(unet, make_tiny_unet())
    adapter = make_adapter({"unet": plain})
    base, expected = run_unet(plain), run_unet(merged(plain, adapter.deltas["unet"]))
    put_adapter({"unet": unet}, adapter, "a", show_progress=False)
    Injection.of(unet).set_active({"a": 1.0})
    check_output(run_unet(unet), base, expected)
    Injection.of(unet).eject()
    assert torch.equal(run_unet(unet), base)


def test_prompts_with_adapters_of_their_own() -> None:
    pipe = make_pipeline("float8_e4m3fn")
    adapter = adapter_of(plain_copy(pipe))
    put(pipe, adapter)
    arguments = {"prompt": ["a dog", "a cat"], "generator": [seeded(1), seeded(2)]}
    alone = run_pipeline(pipe, **arguments)[0]
    pipe.disable_svfit()
    arguments["generator"] = [seeded(1), seeded(2)]
    base = run_pipeline(pipe, **arguments)[1]
    pipe.enable_svfit()
    arguments["generator"] = [seeded(1), seeded(2)]
    with pipe.svfit_adapters_per_prompt(["a", None]):
        rows = run_pipeline(pipe, **arguments)
    torch.testing.assert_close(rows[0], alone, rtol=0, atol=1e-3)
    torch.testing.assert_close(rows[1], base, rtol=0, atol=1e-5)
    assert (alone - run_pipeline(pipe, **arguments)[0]).abs().max() < 1  # adapters act again
    with pipe.svfit_adapters_per_prompt(["a", None]), pytest.raises(Exception, match="batch"):
        run_pipeline(pipe, prompt=["one", "two", "three"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_are_never_merged_into() -> None:
    pipe = make_pipeline("float8_e4m3fn")
    put(pipe, adapter_of(plain_copy(pipe)))
    adapted = run_pipeline(pipe)
    with pytest.raises(StateError, match=r"attn1\.to_q is quantised as float8_e4m3fn.*fused"):
        pipe.fuse_svfit()
    assert torch.equal(run_pipeline(pipe), adapted)


def test_projections_that_are_fused_are_refused() -> None:
    pipe = make_tiny_pipeline()
    adapter = adapter_of(pipe)
    pipe.fuse_qkv_projections()
    quantise(pipe.unet, "float8_e4m3fn")
    base = run_pipeline(pipe)
    put_adapter(models_of(pipe), adapter, "a", ignore_base_mismatch=True, show_progress=False)
    with pytest.raises(StateError, match=r"fused.*unfuse_qkv_projections"):
        pipe.set_svfit_adapters("a")
    assert torch.equal(run_pipeline(pipe), base)


def test_hooks_that_come_later_leave_the_adapter_on() -> None:
    unet = quantise(make_tiny_unet(), "float8_e4m3fn", among="attn1")
    adapter = make_adapter({"unet": dequantised(unet, make_tiny_unet())})
    put_adapter({"unet": unet}, adapter, "a", show_progress=False)
    Injection.of(unet).set_active({"a": 1.0})
    adapted, layer = run_unet(unet), unet.get_submodule(LAYER)
    inner = layer.forward
    layer.forward = lambda *args: inner(*args)  # as offloading hooks do when they come,
    assert torch.equal(run_unet(unet), adapted)
    Injection.of(unet).set_active({})
    Injection.of(unet).set_active({"a": 1.0})
    layer.forward = inner.func  # and when they go, with what they found before ours
    assert torch.equal(run_unet(unet), adapted)
    Injection.of(unet).eject()
    assert layer.forward == inner.func and not layer._forward_hooks


def test_a_compiled_layer_notices_adapters() -> None:
    class Doubled(nn.Linear):
        """A layer that computes by itself, which a graph can hold whole."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, 2 * self.weight, self.bias)

    torch.manual_seed(0)
    layer: Any = Doubled(8, 8).requires_grad_(False)
    model = nn.Sequential(layer, nn.GELU())
    basis = singular_basis(layer.weight)
    shifted = ShiftedLayer(layer, basis, quantization="some kind")
    added = AddedShifts(model, {"0": shifted})
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(3, 8)
    base = compiled(x)
    assert torch.equal(base, model(x))
    for size in (1.0, 2.0):
        shifted.deltas["a"] = nn.Parameter(torch.full((8,), size), requires_grad=False)
        added.put(added.of_weights({"a": 1.0}, None))
        change = size * basis.u.mT.float() @ basis.v.float()
        expected = model[1](layer.forward(x) + x @ change.mT)
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-3)
    added.put({})
    assert torch.equal(compiled(x), base)
    added.put(added.of_weights({"a": 1.0}, None))
    assert not torch.equal(compiled(x), base)
    added.forget(["0"])
    assert torch.equal(compiled(x), base)
    assert "forward" not in vars(layer)


def test_a_kernel_without_gradients_is_named() -> None:
    unet = quantise(make_tiny_unet(), "float8_e4m3fn", among="attn1")
    inject(unet, show_progress=False)
    layer = unet.get_submodule(LAYER)
    inner = layer.forward

    def without_gradient(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return inner(x)

    layer.forward = without_gradient
    with pytest.raises(StateError, match="quantised as float8_e4m3fn gives no gradients"):
        unet(**unet_inputs())


def test_a_weight_that_bitsandbytes_has_laid_out_anew_is_named() -> None:
    unet = quantise(make_tiny_unet(), "bitsandbytes nf4")
    unet.get_submodule(LAYER).weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BasisError, match=rf"{LAYER}: bitsandbytes has laid a weight out anew"):
        inject(unet, show_progress=False)
    assert Injection.find(unet) is None


def test_a_weight_that_is_not_quantised_yet_is_named() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    with pytest.raises(BasisError, match="quantised only when it is moved to its device"):
        dense_weight(layer, layer.weight)


def test_float8_with_a_scale_elsewhere_is_refused() -> None:
    class FP8Linear(nn.Linear):
        """As transformers' fine-grained float8 has it: `weight_scale_inv` beside the weight."""

    unet = make_tiny_unet()
    layer = unet.get_submodule(LAYER)
    layer.__class__ = FP8Linear
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    assert quantization_of(layer, layer.weight) == ""
    with pytest.raises(BasisError, match=f"{LAYER}: cannot decompose a weight of dtype"):
        inject(unet, show_progress=False)
