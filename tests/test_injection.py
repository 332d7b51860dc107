"""Adapters on whole models: exact at zero, exactly undone, and true to a dense oracle between."""

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
from diffusers.utils import recurse_remove_peft_layers
from torch import Tensor, nn

from svfit_diffusion import (
    AdapterNameError,
    ConfigError,
    StateError,
    SVFitAttnProcessor,
    SVFitConfig,
    TargetError,
    eject,
    inject,
    sigma_parameters,
    spectral,
)
from svfit_diffusion.injection import (
    Injection,
    attention_layers,
    select_targets,
    shiftable_layers,
)

ATTENTION = SVFitConfig()
ALL = SVFitConfig(target="all")
# Largest difference of two float32 ways to one output, over a dozen layers.
CLOSE = {"rtol": 0, "atol": 2e-5}

MODELS: dict[str, tuple[Callable[[], Any], SVFitConfig]] = {
    "unet-attention": (tiny.make_tiny_unet, ATTENTION),
    "unet-all": (tiny.make_tiny_unet, ALL),
    "unet-conv": (tiny.make_tiny_unet, SVFitConfig(rank=0.5, target=("conv1", "conv_in"))),
    "text-attention": (tiny.make_tiny_text_encoder, ATTENTION),
    "text-all": (tiny.make_tiny_text_encoder, ALL),
}
EVERY_MODEL = pytest.mark.parametrize("kind", MODELS)


def put(
    model: nn.Module,
    config: SVFitConfig | None = None,
    name: str = "default",
    *,
    scale: float = 0.0,
    trainable: bool = True,
    seed: int = 0,
) -> Injection:
    """Inject, with normal random shifts of the given scale."""
    injection = inject(model, config, name, trainable=trainable, show_progress=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, delta in injection.sigma_parameters(name):
            delta.copy_(torch.randn(delta.shape, generator=generator) * scale)
    injection.set_active(injection.active)
    return injection


def dense_copy(model: nn.Module, injection: Injection, weights: dict[str, float]) -> Any:
    """A copy of an unadapted model whose weights hold the shifts, computed apart in float64."""
    model = copy.deepcopy(model)
    for name, weight in weights.items():
        for path, delta in injection.sigma_parameters(name):
            layer = model.get_submodule(path)
            matrix = injection.projections[path].layer.weight.half().double().flatten(1)
            # A basis is kept in float16, and its rounding is part of what it is.
            u, vh = (t.half().double() for t in torch.linalg.svd(matrix, full_matrices=False)[::2])
            shift = delta.detach().double() * weight
            rank = shift.numel()
            update = (u[:, :rank] * shift) @ vh[:rank]
            layer.weight.data += update.reshape(layer.weight.shape).to(layer.weight.dtype)
    return model


class Snapshot:
    """Everything about a model that adapters must give back, and a check that they did."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = self._read()
        self.values = {name: t.clone() for name, t in model.state_dict().items()}
        self.output = tiny.run_model(model)

    def _read(self) -> Any:
        return {
            "state dict": {n: id(t) for n, t in self.model.named_parameters()},
            "keys": list(self.model.state_dict()),
            "modules": {n: id(m) for n, m in self.model.named_modules()},
            "attributes": {
                n: {k: id(v) for k, v in vars(m).items() if k != "training"}
                for n, m in self.model.named_modules()
            },
        }

    def check(self) -> None:
        assert self._read() == self.state
        assert all(torch.equal(self.values[n], t) for n, t in self.model.state_dict().items())
        assert torch.equal(tiny.run_model(self.model), self.output)


@EVERY_MODEL
@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_zero_shift_is_the_base_bit_for_bit(kind: str, trainable: bool, dtype: torch.dtype) -> None:
    make, config = MODELS[kind]
    model = make().to(dtype)
    base = tiny.run_model(model)
    assert torch.isfinite(base).all()
    put(model, config, trainable=trainable)
    assert torch.equal(tiny.run_model(model), base)


@EVERY_MODEL
def test_injecting_leaves_the_module_tree_and_ejecting_restores_all(kind: str) -> None:
    make, config = MODELS[kind]
    model = make()
    snapshot = Snapshot(model)
    injection = put(model, config, scale=0.5)
    assert not torch.equal(tiny.run_model(model), snapshot.output)
    read = snapshot._read()
    assert {k: v for k, v in read.items() if k != "attributes"} == {
        k: v for k, v in snapshot.state.items() if k != "attributes"
    }
    assert not any(parameter.requires_grad for parameter in model.parameters())
    eject(model)
    snapshot.check()
    eject(model)
    snapshot.check()
    assert Injection.find(model) is None
    assert injection.adapter_names == []


@EVERY_MODEL
@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
def test_a_shift_is_the_dense_update(kind: str, trainable: bool) -> None:
    make, config = MODELS[kind]
    model = make()
    base = tiny.run_model(model)
    injection = put(model, config, scale=0.3, trainable=trainable)
    expected = tiny.run_model(dense_copy(make(), injection, {"default": 1.0}))
    actual = tiny.run_model(model)
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert (actual - base).abs().max() > 1e-2


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


def test_adapters_of_different_ranks_and_targets_add_up() -> None:
    unet = tiny.make_tiny_unet()
    put(unet, SVFitConfig(rank=3), "a", scale=1.0)
    put(unet, SVFitConfig(rank=0.9, target="all"), "b", scale=0.2, seed=1)
    injection = put(unet, SVFitConfig(rank=30, target="to_v"), "c", scale=0.5, seed=2)
    assert injection.active == {"c": 1.0}
    for weights in ({"a": 1.0, "b": -0.5, "c": 2.0}, {"b": 1.0}, {"c": 0.3, "a": 0.1}, {}):
        injection.set_active(weights)
        expected = dense_copy(tiny.make_tiny_unet(), injection, weights)
        torch.testing.assert_close(tiny.run_unet(unet), tiny.run_unet(expected), **CLOSE)


def test_removing_adapters_one_by_one_ends_at_the_base() -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, SVFitConfig(rank=4), "a", scale=1.0)
    only_a = tiny.run_unet(unet)
    put(unet, ALL, "b", scale=0.5)
    injection.set_active({"a": 1.0, "b": 1.0})
    injection.remove_adapter("b")
    assert torch.equal(tiny.run_unet(unet), only_a)
    assert set(injection.projections) == set(attention_layers(unet))
    # What only "b" shifted is a plain layer again.
    assert not any("forward" in vars(layer) for layer in shiftable_layers(unet).values())
    injection.remove_adapter("a")
    snapshot.check()


@pytest.mark.parametrize("weights", [{"default": 0.0}, {}])
@EVERY_MODEL
def test_weight_zero_is_the_base(kind: str, weights: dict[str, float]) -> None:
    make, config = MODELS[kind]
    model = make()
    base = tiny.run_model(model)
    injection = put(model, config, scale=0.5)
    injection.set_active(weights)
    assert torch.equal(tiny.run_model(model), base)
    injection.set_active({"default": 1.0})
    injection.set_enabled(False)
    assert torch.equal(tiny.run_model(model), base)
    injection.set_enabled(True)
    assert not torch.equal(tiny.run_model(model), base)


@EVERY_MODEL
def test_fusing_writes_the_weights_and_unfusing_gives_the_parameters_back(kind: str) -> None:
    make, config = MODELS[kind]
    model = make()
    snapshot = Snapshot(model)
    injection = put(model, config, scale=0.3, trainable=False)
    shifted = tiny.run_model(model)
    injection.fuse()
    assert list(model.state_dict()) == snapshot.state["keys"]
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(tiny.run_model(plain), shifted)
    assert torch.equal(tiny.run_model(model), shifted)
    injection.unfuse()
    assert torch.equal(tiny.run_model(model), shifted)
    injection.fuse(scale=-0.5)
    eject(model)
    snapshot.check()


def test_fusing_zero_is_the_base() -> None:
    unet = tiny.make_tiny_unet()
    base = copy.deepcopy(unet.state_dict())
    injection = put(unet, scale=0.5)
    injection.fuse(scale=0.0)
    assert all(torch.equal(base[name], tensor) for name, tensor in unet.state_dict().items())


FUSED_CALLS: dict[str, Callable[[Injection], object]] = {
    "set_active": lambda injection: injection.set_active({"default": 0.5}),
    "set_enabled": lambda injection: injection.set_enabled(False),
    "set_trainable": lambda injection: injection.set_trainable("default", False),
    "fuse": lambda injection: injection.fuse(),
    "remove_adapter": lambda injection: injection.remove_adapter("default"),
    "inject": lambda injection: inject(injection.model, None, "other", show_progress=False),
}


@pytest.mark.parametrize("call", FUSED_CALLS)
def test_changes_while_fused_are_refused(call: str) -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, scale=0.5)
    injection.fuse()
    fused = tiny.run_unet(unet)
    with pytest.raises(StateError, match="fuse"):
        FUSED_CALLS[call](injection)
    assert torch.equal(tiny.run_unet(unet), fused)
    assert injection.adapter_names == ["default"]
    eject(unet)
    snapshot.check()


def test_unfusing_and_fusing_out_of_order() -> None:
    injection = put(tiny.make_tiny_unet())
    with pytest.raises(StateError, match="not fused"):
        injection.unfuse()
    injection.set_active({})
    with pytest.raises(StateError, match="nothing to fuse"):
        injection.fuse()


def loss_gradients(model: nn.Module, injection: Injection) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    model(**tiny.unet_inputs(dtype)).sample.float().square().mean().backward()
    gradients = {}
    for path, delta in injection.sigma_parameters("default"):
        assert delta.grad is not None, path
        gradients[path] = delta.grad
        delta.grad = None
    return gradients


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("zero", [True, False], ids=["zero", "shifted"])
def test_gradients_are_for_the_shifts_only_and_those_of_autograd(
    config: SVFitConfig, zero: bool
) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.0 if zero else 0.2)
    gradients = loss_gradients(unet, injection)
    assert all(parameter.grad is None for parameter in unet.parameters())

    double = dense_copy(tiny.make_tiny_unet(), injection, {"default": 1.0}).double()
    for path in gradients:
        double.get_submodule(path).weight.requires_grad_()
    double(**tiny.unet_inputs(torch.float64)).sample.square().mean().backward()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for path, gradient in gradients.items():
        basis = injection.projections[path].basis
        full = double.get_submodule(path).weight.grad.flatten(1)
        expected = torch.einsum("ro,oi,ri->r", basis.u.double(), full, basis.v.double())
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
def test_gradient_checkpointing_changes_nothing(config: SVFitConfig) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.2)
    unet.train()
    plain = loss_gradients(unet, injection)
    unet.enable_gradient_checkpointing()
    checkpointed = loss_gradients(unet, injection)
    assert all(torch.equal(plain[path], checkpointed[path]) for path in plain)


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_float32_shifts_and_gradients(
    config: SVFitConfig, base: torch.dtype
) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.2)
    exact = loss_gradients(unet, injection)
    unet.to(base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_gradients(unet, injection)
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
    first, second = (torch.cat([g[p].flatten() for p in exact]) for g in (exact, rounded))
    # bfloat16 keeps 8 bits; a dozen layers of it leave some percent.
    assert torch.dist(first, second) < 0.1 * first.norm()


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models_train(config: SVFitConfig, dtype: torch.dtype) -> None:
    unet = tiny.make_tiny_unet().to(dtype)
    injection = put(unet, config, scale=0.2)
    gradients = loss_gradients(unet, injection)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())


def test_freezing_turns_a_live_adapter_into_a_held_one_with_the_same_output() -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, ALL, scale=0.3)
    live = tiny.run_unet(unet)
    injection.set_trainable("default", False)
    assert not any(delta.requires_grad for _, delta in sigma_parameters(unet))
    torch.testing.assert_close(tiny.run_unet(unet), live, **CLOSE)
    injection.set_trainable("default", True)
    assert torch.equal(tiny.run_unet(unet), live)


def test_training_reaches_a_target() -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, SVFitConfig(rank=8))
    teacher = tiny.make_tiny_unet()
    put(teacher, SVFitConfig(rank=8), scale=0.3)
    target = tiny.run_unet(teacher)
    optimizer = torch.optim.Adam([delta for _, delta in sigma_parameters(unet)], lr=0.03)
    losses = []
    for _ in range(40):
        loss = (unet(**tiny.unet_inputs()).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert injection.active == {"default": 1.0}


# --- attention processors ---------------------------------------------------------------------


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


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
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
        assert any(path.endswith("add_k_proj") for path in injection.projections)
    eject(unet)
    snapshot.check()


@pytest.mark.parametrize("kind", [IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0])
def test_ip_adapter_keeps_its_processor_and_its_own_weights(kind: type[nn.Module]) -> None:
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
    injection = put(unet, scale=0.4)
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


def test_a_processor_set_later_stays_and_the_adapter_returns_around_it() -> None:
    unet = tiny.make_tiny_unet()
    base = tiny.run_unet(unet)
    injection = put(unet, scale=0.3, trainable=False)
    shifted = tiny.run_unet(unet)
    later = AttnProcessor2_0()
    unet.set_attn_processor(later)
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


# --- other tools ------------------------------------------------------------------------------


def test_a_lora_loaded_later_is_an_error_that_names_the_way_out() -> None:
    peft = pytest.importorskip("peft")
    unet = tiny.make_tiny_unet()
    put(unet, scale=0.3)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "l")
    with pytest.raises(StateError, match="unload_svfit_weights"):
        tiny.run_unet(unet)
    eject(unet)
    assert torch.isfinite(tiny.run_unet(unet)).all()


@pytest.mark.parametrize("kind", ["unet-attention", "unet-all", "text-attention", "text-all"])
def test_an_adapter_goes_on_top_of_a_lora_loaded_before(kind: str) -> None:
    peft = pytest.importorskip("peft")
    make, config = MODELS[kind]

    def with_lora() -> Any:
        model = make()
        torch.manual_seed(5)
        names = ["to_q", "to_out.0", "q_proj", "out_proj"]
        lora = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
        peft.inject_adapter_in_model(lora, model, "lora")
        return model.requires_grad_(False)

    model = with_lora()
    snapshot = Snapshot(model)
    without = make()
    assert not torch.equal(snapshot.output, tiny.run_model(without))
    injection = put(model, config)
    assert list(injection.projections) == list(select_targets(without, config.target))
    assert torch.equal(tiny.run_model(model), snapshot.output)
    eject(model)
    snapshot.check()
    for trainable in (True, False):
        injection = put(model, config, scale=0.3, trainable=trainable)
        expected = tiny.run_model(dense_copy(with_lora(), injection, {"default": 1.0}))
        # The random LoRA doubles the size of what passes through.
        torch.testing.assert_close(tiny.run_model(model), expected, rtol=0, atol=5e-5)
        eject(model)
        snapshot.check()
    # The LoRA may leave first.
    injection = put(model, config, scale=0.3)
    recurse_remove_peft_layers(model)
    expected = tiny.run_model(dense_copy(without, injection, {"default": 1.0}))
    torch.testing.assert_close(tiny.run_model(model), expected, **CLOSE)
    eject(model)
    assert torch.equal(tiny.run_model(model), tiny.run_model(without))


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
def test_a_deep_copy_is_independent(config: SVFitConfig) -> None:
    for make in (tiny.make_tiny_unet, tiny.make_tiny_text_encoder):
        model = make()
        base = tiny.run_model(model)
        put(model, config, scale=0.3)
        shifted = tiny.run_model(model)
        twin = copy.deepcopy(model)
        assert torch.equal(tiny.run_model(twin), shifted)
        for _, delta in sigma_parameters(twin):
            delta.data.mul_(-1)
        assert torch.equal(tiny.run_model(model), shifted)
        assert not torch.equal(tiny.run_model(twin), shifted)
        eject(twin)
        assert torch.equal(tiny.run_model(twin), base)
        assert torch.equal(tiny.run_model(model), shifted)


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("small", [0, 2**16], ids=["one side", "both sides"])
def test_compiling_the_full_graph(
    config: SVFitConfig, trainable: bool, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "_SMALL", small)
    torch._dynamo.reset()
    unet = tiny.make_one_block_unet()
    injection = put(unet, config, scale=0.3, trainable=trainable)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(tiny.run_unet(compiled), tiny.run_unet(unet), **CLOSE)
    # Changes of the shift are followed after compiling.
    for _, delta in injection.sigma_parameters("default"):
        delta.data.mul_(-1)
    injection.set_active({"default": 1.0})
    torch.testing.assert_close(tiny.run_unet(compiled), tiny.run_unet(unet), **CLOSE)


# --- targets ----------------------------------------------------------------------------------


def paths(target: str | tuple[str, ...]) -> set[str]:
    return set(select_targets(tiny.make_tiny_unet(), target))


def test_target_attention_is_the_four_projections_of_every_attention() -> None:
    names = [path.partition(".attn")[2][2:] for path in paths("attention")]
    assert set(names) == {"to_q", "to_k", "to_v", "to_out.0"}
    # Two attentions in each of four transformer blocks.
    assert len(names) == 4 * 2 * 4


def test_target_all_is_every_linear_and_convolution() -> None:
    expected = {
        name
        for name, tensor in tiny.make_tiny_unet().state_dict().items()
        if name.endswith(".weight") and tensor.dim() >= 2
    }
    assert {f"{path}.weight" for path in paths("all")} == expected


def test_target_of_a_text_encoder() -> None:
    model = tiny.make_tiny_text_encoder()
    chosen = select_targets(model, "attention")
    assert len(chosen) == 2 * 4
    assert {path.rpartition(".")[2] for path in chosen} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
    }


def test_targets_as_suffix_and_regular_expression() -> None:
    assert all(path.endswith(".to_v") for path in paths("to_v"))
    assert paths("attn1.to_v") < paths("to_v")
    assert paths(r".*\.to_v") == paths("to_v")
    assert paths("conv_in") == {"conv_in"}
    # A name matches whole parts of a path, a regular expression the whole path.
    assert paths(("conv_in", "conv_out")) == {"conv_in", "conv_out"}
    assert paths(("to_q", "attention")) == paths("attention")
    assert "time_embedding.linear_1" in paths("linear_1")


@pytest.mark.parametrize("target", ["to_x", "o_q", "to_", "(", "*", "norm1", ("to_q", "to_x")])
def test_targets_that_match_nothing_are_refused(target: str | tuple[str, ...]) -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    with pytest.raises(TargetError, match="target"):
        inject(unet, SVFitConfig(target=target), show_progress=False)
    snapshot.check()


@pytest.mark.parametrize(
    "settings",
    [{"target": ""}, {"target": ()}, {"target": ("to_q", "")}, {"rank": 0}, {"rank": 1.5}],
)
def test_bad_settings_are_refused_on_construction(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SVFitConfig(**settings)


# --- failures leave nothing half done ---------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "already"),
    [
        *((failure, already) for failure in ("rank", "target", "svd") for already in (False, True)),
        ("name", True),
    ],
)
def test_a_failed_injection_leaves_the_model_as_it_was(
    failure: str, already: bool, monkeypatch: pytest.MonkeyPatch, empty_cache: Any
) -> None:
    unet = tiny.make_tiny_unet()
    if already:
        put(unet, SVFitConfig(rank=2, target="to_q"), "default", scale=0.3)
    snapshot = Snapshot(unet)
    config = SVFitConfig(
        rank=65 if failure == "rank" else 1.0, target="to_x" if failure == "target" else "all"
    )
    if failure == "svd":
        computed = []

        def fail_midway(matrix: Tensor) -> spectral.Basis:
            computed.append(matrix)
            if len(computed) > 5:
                raise torch.linalg.LinAlgError("did not converge")
            return original(matrix)

        original = spectral.singular_basis
        monkeypatch.setattr(spectral, "singular_basis", fail_midway)
    errors = {"rank": ConfigError, "target": TargetError, "name": AdapterNameError}
    with pytest.raises(errors.get(failure, torch.linalg.LinAlgError)):
        inject(unet, config, "default" if failure == "name" else "new", show_progress=False)
    snapshot.check()
    injection = Injection.find(unet)
    assert (injection.adapter_names if injection else []) == ["default"] * already


def test_unknown_names_are_refused_and_change_nothing() -> None:
    unet = tiny.make_tiny_unet()
    with pytest.raises(StateError, match="inject"):
        list(sigma_parameters(unet))
    injection = put(unet, scale=0.3)
    shifted = tiny.run_unet(unet)
    calls: list[Callable[[], object]] = [
        lambda: injection.set_active({"default": 0.5, "nobody": 1.0}),
        lambda: injection.remove_adapter("nobody"),
        lambda: injection.set_trainable("nobody", True),
        lambda: list(sigma_parameters(unet, "nobody")),
    ]
    for call in calls:
        with pytest.raises(AdapterNameError, match="nobody"):
            call()
        assert torch.equal(tiny.run_unet(unet), shifted)


def test_injecting_enables_shifts_that_were_disabled() -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, name="a")
    injection.set_enabled(False)
    put(unet, name="b", scale=0.3)
    assert not torch.equal(tiny.run_unet(unet), tiny.run_unet(tiny.make_tiny_unet()))


def test_ranks_by_energy_differ_per_layer() -> None:
    unet = tiny.make_tiny_unet()
    put(unet, SVFitConfig(rank=0.9))
    for path, delta in sigma_parameters(unet):
        sigma = torch.linalg.svdvals(unet.get_submodule(path).weight.half().double())
        energy = sigma.square().cumsum(0) / sigma.square().sum()
        assert energy[delta.numel() - 1] >= 0.9
        assert delta.numel() == 1 or energy[delta.numel() - 2] < 0.9
