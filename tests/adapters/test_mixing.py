"""Batches with other adapters in every row, against dense float64 products and each row alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import tiny
import torch
from one_layer import OneLayer
from torch import Tensor, nn

from svfit_diffusion import BatchError, StateError, SVFitConfig, inject
from svfit_diffusion.adapters import mixing
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.mixing import Mix, RowProjection
from svfit_diffusion.adapters.rows import RowLayout
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import as_matrix

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    # Few tokens for the width are computed factored, many through a W' of each row.
    "tokens": (lambda: nn.Linear(12, 8), (2, 12)),
    "many tokens": (lambda: nn.Linear(12, 8), (64, 12)),
    "grid of tokens": (lambda: nn.Linear(8, 12), (5, 7, 8)),
    "vectors": (lambda: nn.Linear(8, 8), (8,)),
    "no bias": (lambda: nn.Linear(8, 8, bias=False), (3, 8)),
    "many, no bias": (lambda: nn.Linear(8, 8, bias=False), (30, 8)),
    "small map": (lambda: nn.Conv2d(8, 12, 3, padding=1), (8, 2, 2)),
    "large map": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 16, 16)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 16, 16)),
    "small circular": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), (8, 2, 2)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2), (8, 2, 2)),
    "sequence": (lambda: nn.Conv1d(8, 8, 3, bias=False), (8, 4)),
    "volume": (lambda: nn.Conv3d(4, 6, (1, 3, 3)), (4, 2, 3, 3)),
}
# Float32 sums of at most 108 products of order 1: an error of some 1e-6 in results of order 10.
FLOAT32 = {"rtol": 1e-5, "atol": 2e-5}
MIXES = [{"a": 1.0}, {}, {"a": 0.5, "b": -2.0}, {"b": 1.5}, {"a": 0.0}]


@pytest.fixture(autouse=True)
def small_layers_go_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones do, so that both ways are taken."""
    monkeypatch.setattr("svfit_diffusion.spectrum.rows._SMALL", 0)


def make_layer(kind: str, dtype: torch.dtype = torch.float32) -> OneLayer:
    """A layer with adapters `a`, of rank 3, and `b`, of all its rank; none is active."""
    torch.manual_seed(0)
    layer: Shiftable = LAYERS[kind][0]().requires_grad_(False).to(dtype)
    basis = solver.singular_basis(as_matrix(layer.weight))
    adapted = OneLayer(layer, basis)
    for name, rank in (("a", 3), ("b", basis.rank)):
        adapted.add(name, torch.randn(rank))
    return adapted


def mixed_rows(adapted: OneLayer, mixes: Sequence[Mix], layout: RowLayout | None = None) -> Any:
    """The layer's function while its rows have these mixes."""
    return RowProjection(adapted.shifted, mixes, layout or RowLayout(len(mixes))).forward


def make_input(kind: str, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *LAYERS[kind][1], generator=generator).to(dtype)


def expected_row(adapted: OneLayer, x: Tensor, mix: Mapping[str, float]) -> Tensor:
    """The layer's output for one row in float64, by a dense `U diag(σ + δ) Vᵀ`."""
    weight = as_matrix(adapted.own).double()
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    for name, strength in mix.items():
        delta = adapted.deltas[name].double()
        sigma[: delta.numel()] += strength * delta
    shifted = ((u * sigma) @ vh).reshape(adapted.own.shape)
    bias = None if adapted.layer.bias is None else adapted.layer.bias.double()
    return adapted.shifted.project(x.double()[None], shifted, bias)[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_every_row_is_the_dense_product_of_its_own_mix(kind: str) -> None:
    adapted = make_layer(kind)
    layout = RowLayout(len(MIXES), images=2, most_repeats=2)
    mixed = mixed_rows(adapted, MIXES, layout)
    for repeats in (2, 1):
        x = make_input(kind, 2 * len(MIXES) * repeats)
        y = mixed(x)
        assert y.dtype == x.dtype and y.is_contiguous()
        for row in range(len(x)):
            mix = MIXES[row % 10 // 2]
            expected = expected_row(adapted, x[row], mix)
            torch.testing.assert_close(y[row].double(), expected, **FLOAT32)


@pytest.mark.parametrize("kind", LAYERS)
def test_both_ways_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, x = make_layer(kind), make_input(kind, len(MIXES))
    results = []
    for holds in (False, True):
        monkeypatch.setattr(mixing, "row_weights_are_cheaper", lambda *_, holds=holds: holds)
        results.append(mixed_rows(adapted, MIXES)(x))
    torch.testing.assert_close(*results, **FLOAT32)


@pytest.mark.parametrize("kind", ["tokens", "many tokens", "small map", "large map"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rows_are_those_alone_within_its_rounding(
    kind: str, dtype: torch.dtype
) -> None:
    adapted, x = make_layer(kind, dtype), make_input(kind, len(MIXES), dtype)
    y = mixed_rows(adapted, MIXES)(x)
    assert y.dtype == dtype
    for row, mix in enumerate(MIXES):
        adapted.activate(mix)
        # Either rounds W', or z = Vᵀx, and the result: a few units of the last place.
        tolerance = 8 * torch.finfo(dtype).eps * y[row].abs().max().item()
        torch.testing.assert_close(y[row], adapted(x[row : row + 1])[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["tokens", "many tokens", "small map", "large map"])
def test_autocast_lowers_both_ways(kind: str) -> None:
    adapted, x = make_layer(kind), make_input(kind, len(MIXES))
    mixed = mixed_rows(adapted, MIXES)
    exact = mixed(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixed(x)
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", ["tokens", "many tokens", "large map"])
def test_one_mix_for_all_is_that_mix_active_to_the_last_bit(kind: str) -> None:
    adapted, x = make_layer(kind), make_input(kind, 3)
    mixed = mixed_rows(adapted, [MIXES[2]] * 3)(x)
    adapted.activate(MIXES[2])
    assert torch.equal(mixed, adapted(x))


def test_rows_without_an_adapter_of_this_layer_are_the_layer() -> None:
    adapted, x = make_layer("tokens"), make_input("tokens", 7)
    mixes = [{}, {"a": 0.0}, {"elsewhere": 1.0}]
    mixed = RowProjection(adapted.shifted, mixes, RowLayout(3))
    assert mixed.shifts_nothing
    # Whatever the number of rows, as there is nothing to tell apart.
    assert torch.equal(mixed.forward(x), adapted.layer(x))


def test_a_projection_that_was_closed_is_the_layer() -> None:
    for kind in ("tokens", "many tokens"):
        adapted, x = make_layer(kind), make_input(kind, len(MIXES))
        mixed = RowProjection(adapted.shifted, MIXES, RowLayout(len(MIXES)))
        assert not torch.equal(mixed.forward(x), adapted.layer(x))
        mixed.close()
        assert torch.equal(mixed.forward(x), adapted.layer(x))


def test_a_layer_that_changes_precision_is_followed() -> None:
    for kind in ("tokens", "many tokens"):
        adapted, x = make_layer(kind), make_input(kind, len(MIXES))
        mixed = mixed_rows(adapted, MIXES)
        before = mixed(x)
        adapted.layer.double()
        after = mixed(x.double())
        torch.testing.assert_close(after, before.double(), **FLOAT32)


def test_a_weight_taken_away_is_an_error() -> None:
    adapted = make_layer("tokens")
    mixed = mixed_rows(adapted, MIXES)
    adapted.layer.to("meta")
    with pytest.raises(StateError, match="sequential"):
        mixed(make_input("tokens", len(MIXES)))


def test_gradients_reach_the_input_and_no_shift() -> None:
    for kind in ("tokens", "many tokens", "small map", "large map"):
        adapted = make_layer(kind)
        for delta in adapted.deltas.values():
            delta.requires_grad_()
        x = make_input(kind, len(MIXES)).requires_grad_()
        y = mixed_rows(adapted, MIXES)(x)
        y.square().sum().backward()
        assert all(delta.grad is None for delta in adapted.deltas.values())
        alone = x.detach().double().requires_grad_()
        rows = [expected_row(adapted, alone[i], mix) for i, mix in enumerate(MIXES)]
        torch.stack(rows).square().sum().backward()
        torch.testing.assert_close(x.grad.double(), alone.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 1, 5, 7, 9, 24])
def test_a_batch_that_cannot_come_from_the_prompts_says_what_to_do(rows: int) -> None:
    layout = RowLayout(prompts=3, images=2, most_repeats=3)
    with pytest.raises(BatchError, match=rf"{rows} rows, expected 6 or 12 or 18.*3 prompts"):
        layout.prompt_of_rows(rows)


def test_rows_lie_image_by_image_and_guidance_repeats_them() -> None:
    layout = RowLayout(prompts=2, images=3, most_repeats=2)
    assert layout.prompt_of_rows(6) == [0, 0, 0, 1, 1, 1]
    assert layout.prompt_of_rows(12) == [0, 0, 0, 1, 1, 1] * 2


# --- whole models -----------------------------------------------------------------------------


def make_model(make: Any) -> tuple[Any, Injection]:
    """A model with adapters on attention, on every layer and on values alone, which is active."""
    model = make()
    values = "v_proj" if make is tiny.make_tiny_text_encoder else "to_v"
    configs = {
        "att": SVFitConfig(),
        "all": SVFitConfig(target="all", rank=0.9),
        "val": SVFitConfig(target=values, rank=2),
    }
    generator = torch.Generator().manual_seed(1)
    for name, config in configs.items():
        injection = inject(model, config, name, trainable=False, show_progress=False)
        for _, delta in injection.sigma_parameters(name):
            delta.data = torch.randn(delta.shape, generator=generator) * 0.2
    injection.set_active({"val": 1.0})
    return model, injection


def run_rows(model: nn.Module, rows: Sequence[int]) -> Tensor:
    """The model's output for some of four fixed inputs."""
    with torch.no_grad():
        if hasattr(model, "attn_processors"):
            inputs = tiny.unet_inputs(batch=4)
            return model(**{name: value[[*rows]] for name, value in inputs.items()}).sample
        tokens = torch.arange(4 * tiny.TEXT_LENGTH).reshape(4, -1) * 7 % 500
        return model(tokens[[*rows]])[0]


BATCH = [{"att": 1.0}, {"all": 1.0, "val": 0.5}, {}, {"val": -1.0}]


@pytest.mark.parametrize("make", [tiny.make_tiny_unet, tiny.make_tiny_text_encoder])
def test_a_models_rows_are_those_alone(make: Any) -> None:
    model, injection = make_model(make)
    active = run_rows(model, range(4))
    alone = []
    for row, mix in enumerate(BATCH):
        injection.set_active(mix)
        alone.append(run_rows(model, [row]))
    injection.set_active({"val": 1.0})
    held = {path: shifted.layer.weight for path, shifted in injection.layers.items()}
    before = [sorted(vars(module)) for module in model.modules()]
    is_denoiser = make is tiny.make_tiny_unet
    with injection.adapters_per_prompt(BATCH, RowLayout(4), is_denoiser=is_denoiser):
        mixed = run_rows(model, range(4))
        with pytest.raises(BatchError):
            run_rows(model, range(3))
    assert (active - mixed).abs().max() > 1e-2
    # Float32 over some ten layers, summed in another order.
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-4, atol=1e-4)
    # What was set is back, the very weights, and nothing else is left.
    assert all(p.layer.weight is held[path] for path, p in injection.layers.items())
    assert [sorted(vars(module)) for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(run_rows(model, range(4)), active)


def test_a_lora_under_the_adapters_stays() -> None:
    peft = pytest.importorskip("peft")

    def make() -> Any:
        model = tiny.make_tiny_unet()
        torch.manual_seed(5)
        names = ["to_q", "to_out.0"]
        model.add_adapter(
            peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False), "lora"
        )
        return model.requires_grad_(False)

    model, injection = make_model(make)
    alone = []
    for row, mix in enumerate(BATCH):
        injection.set_active(mix)
        alone.append(run_rows(model, [row]))
    with injection.adapters_per_prompt(BATCH, RowLayout(4), is_denoiser=True):
        torch.testing.assert_close(
            run_rows(model, range(4)), torch.cat(alone), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("target", ["attention", "all"])
def test_a_compiled_model_follows_into_the_context_and_out(target: str) -> None:
    torch._dynamo.reset()
    unet = tiny.make_one_block_unet()
    for name in "ab":
        config = SVFitConfig(target=target)
        injection = inject(unet, config, name, trainable=False, show_progress=False)
        for _, delta in injection.sigma_parameters(name):
            delta.data = torch.randn(delta.shape) * 0.2
    injection.set_active({"b": 1.0})
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    run = functools.partial(tiny.run_unet, compiled)
    before = run()
    mixes = [{"a": 1.0}, {"b": 0.5}]
    with injection.adapters_per_prompt(mixes, RowLayout(2), is_denoiser=True):
        torch.testing.assert_close(run(), tiny.run_unet(unet), rtol=1e-4, atol=1e-4)
        mixed = run()
    assert not torch.equal(mixed, before)
    assert torch.equal(run(), before)
