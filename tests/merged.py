"""How an adapter should act: as a model whose plain weights hold it, no trace of the package."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from svfit_diffusion import SVFitConfig, eject, inject, sigma_parameters
from svfit_diffusion.adapters.components import collect_adapter, models_of
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.files.adapter import Adapter, state_dict

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-3}
"""Of pictures: float16 vectors round a shift by some 3e-4 of itself, and it changes them by 0.3."""


def make_adapter(
    models: dict[str, nn.Module],
    seed: int = 0,
    config: SVFitConfig | None = None,
    size: float = 0.5,
) -> Adapter:
    """A random adapter of these models, which are left as they were."""
    generator = torch.Generator().manual_seed(seed)
    for model in models.values():
        inject(model, config, "made", trainable=False, show_progress=False)
        for _, delta in sigma_parameters(model, "made"):
            delta.copy_(torch.randn(delta.shape, generator=generator) * size)
    adapter = collect_adapter(models, "made")
    for model in models.values():
        eject(model)
    return adapter


def merged(model: nn.Module, deltas: dict[str, Tensor], strength: float = 1.0) -> Any:
    """A copy of a model without adapters whose weights are `W + strength · U diag(δ) Vᵀ`.

    By the float64 SVD of the float16 rounding of each weight, which the definition of a basis says.
    """
    copied = copy.deepcopy(model)
    assert Injection.find(copied) is None
    for path, delta in deltas.items():
        layer: Any = copied.get_submodule(path)
        matrix = layer.weight.detach().half().double().flatten(1)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        shift = (u[:, : len(delta)] * (strength * delta.double())) @ vh[: len(delta)]
        whole = layer.weight.detach().double() + shift.reshape(layer.weight.shape)
        layer.weight = nn.Parameter(whole.to(layer.weight.dtype), requires_grad=False)
    return copied


def merge_pipeline(pipe: Any, adapter: Adapter, strength: float = 1.0) -> Any:
    """A pipeline like `pipe`, which carries no adapters, with `merged` models."""
    replaced = {
        component: merged(model, adapter.deltas[component], strength)
        for component, model in models_of(pipe).items()
        if component in adapter.deltas
    }
    others = {
        name: copy.deepcopy(part) if isinstance(part, nn.Module) else part
        for name, part in pipe.components.items()
        if name not in replaced
    }
    settings = {
        name: value
        for name, value in pipe.config.items()
        if name in inspect.signature(type(pipe)).parameters and name not in pipe.components
    }
    whole = type(pipe)(**others | replaced, **settings)
    whole.set_progress_bar_config(disable=True)
    return whole


@functools.cache
def tiny_adapter() -> Adapter:
    """A random adapter of `make_tiny_pipeline()`: of its UNet and of its text encoder."""
    return make_adapter(models_of(tiny.make_tiny_pipeline()))


def load(pipe: Any, name: str = "a", **kwargs: Any) -> Any:
    """Load `tiny_adapter` in a pipeline, and return the pipeline."""
    pipe.load_svfit_weights(state_dict(tiny_adapter()), name, show_progress=False, **kwargs)
    return pipe


CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda pipe: pipe.disable_svfit(),
    lambda pipe: pipe.set_svfit_adapters("a", 0.5),
    lambda pipe: pipe.fuse_svfit(),
    lambda pipe: pipe.delete_svfit_adapters("a"),
    lambda pipe: pipe.unload_svfit_weights(),
    lambda pipe: pipe.svfit_adapters_per_prompt(["a"]).__enter__(),
    lambda pipe: load(pipe, "b"),
)
"""All that changes how a pipeline with `load`'s adapter draws."""


@dataclass(frozen=True)
class Expected:
    """What a pipeline or model has to give.

    Attributes:
        base: without adapters.
        adapted: of the merged model.
    """

    base: Tensor
    adapted: Tensor

    def __post_init__(self) -> None:
        assert (self.adapted - self.base).abs().max() > 0.1


Draw = Callable[[Any], Tensor]


@functools.cache
def tiny_pictures(
    prepare: Callable[[Any], Any] = lambda pipe: pipe, draw: Draw = tiny.run_pipeline
) -> Expected:
    """The pictures of `make_tiny_pipeline()`, and of a merge with `tiny_adapter`.

    Args:
        prepare: what is done to either pipeline first; returns the pipeline to draw with.
        draw: how they draw.
    """
    plain = tiny.make_tiny_pipeline()
    whole = merge_pipeline(plain, tiny_adapter())
    return Expected(draw(prepare(plain)), draw(prepare(whole)))


def check_switching(pipe: Any, expected: Expected, draw: Draw = tiny.run_pipeline) -> None:
    """A loaded, active adapter draws as the merged model; switched off in any way, as the base."""
    torch.testing.assert_close(draw(pipe), expected.adapted, **CLOSE)
    adapted = draw(pipe)
    pipe.disable_svfit()
    assert torch.equal(draw(pipe), expected.base)
    pipe.enable_svfit()
    assert torch.equal(draw(pipe), adapted)
    pipe.set_svfit_adapters("a", 0.0)
    assert torch.equal(draw(pipe), expected.base)
    pipe.set_svfit_adapters("a")
    assert torch.equal(draw(pipe), adapted)
    pipe.unload_svfit_weights()
    assert torch.equal(draw(pipe), expected.base)


def put(model: nn.Module, adapter: Adapter, name: str = "a") -> Injection:
    """Put an adapter of one component on a model, and let it act."""
    (component,) = adapter.deltas
    put_adapter({component: model}, adapter, name, show_progress=False)
    injection = Injection.of(model)
    injection.set_active({name: 1.0})
    return injection


def check_output(found: Tensor, base: Tensor, expected: Tensor) -> None:
    """An output that should be the merged model's: float16 vectors round a shift by some 3e-4 of
    itself, which networks of random weights make more of, up to 1e-3 of its effect.
    """
    effect = (expected - base).abs().max()
    assert effect > 1e-3
    assert (found - expected).abs().max() <= 3e-3 * effect
