"""Adapters on single models: put one on to train it, find its shifts, take all off."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.selection import Selection
from svfit_diffusion.adapters.targets import select_targets
from svfit_diffusion.errors import StateError, TargetError
from svfit_diffusion.spectrum.basis import full_rank
from svfit_diffusion.spectrum.cache import load_bases
from svfit_diffusion.spectrum.rank import check_rank_fits


@torch.inference_mode(False)
def inject(
    model: nn.Module,
    config: SVFitConfig | None = None,
    adapter_name: str = "default",
    *,
    trainable: bool = True,
    show_progress: bool = True,
    device: torch.device | None = None,
) -> Injection:
    """Put a new adapter with δ = 0 on a UNet, transformer or text encoder, and make it active.

    The model computes exactly what it did; its own parameters should be frozen by the caller. A
    weight that lacks rank trains what it has; a layer whose weight is zero is left out.

    Args:
        model: a diffusers or transformers model.
        config: rank and targets.
        adapter_name: a new name.
        trainable: whether the shifts require gradients.
        show_progress: show a progress bar while singular values are computed.
        device: where that is done, a weight at a time; by default where the weight is.

    Raises:
        TargetError: a target matches nothing, or nothing but zeros.
        ConfigError: the rank exceeds a weight's number of singular values.
        BasisError: a weight cannot be decomposed.
        CacheError: the disk has no room for what must be computed.
        AdapterNameError: the name is taken.
        StateError: adapters are fused, weights are not in memory, or the model runs its layers in a
            way that leaves no room for training; nothing is changed.
    """
    config = config or SVFitConfig()
    injection = Injection.of(model)
    injection.selection.refuse_change("add an adapter")
    layers = select_targets(model, config.target)
    base = base_weights(model, layers)
    if isinstance(config.rank, int):
        for path, weight in base.weights.items():
            check_rank_fits(config.rank, full_rank(weight), path)
    bases = {
        path: basis
        for path, basis in load_bases(
            base, config.rank, show_progress=show_progress, device=device
        ).items()
        if basis.rank
    }
    if not bases:
        raise TargetError(f"the weights that target {config.target!r} means are all zero")
    deltas = {path: torch.zeros(basis.rank) for path, basis in bases.items()}
    injection.add_adapter(adapter_name, deltas, bases, base.digests, trainable=trainable)
    try:
        injection.select(Selection({adapter_name: 1.0}))
    except BaseException:
        withdraw(injection, adapter_name)
        raise
    return injection


def inject_beside(model: nn.Module, other: str, adapter_name: str) -> None:
    """Put a new adapter with δ = 0 on a model, of the layers and ranks of another that is in
    training there, whose basis it shares; it does not act yet.

    Raises:
        AdapterNameError: the name is taken, or there is no such other.
        StateError: adapters are fused, or given per prompt at the moment.
    """
    injection = Injection.of(model)
    zeros = {path: torch.zeros_like(d) for path, d in injection.sigma_parameters(other)}
    injection.add_adapter(adapter_name, zeros, {}, {}, trainable=True)


def withdraw(injection: Injection, adapter_name: str) -> None:
    """Take back an adapter that was added, but failed to act."""
    try:
        injection.remove_adapter(adapter_name)
    except StateError:  # so was letting it act refused, before anything was changed
        injection.forget([adapter_name])


def eject(model: nn.Module) -> None:
    """Remove every adapter from a model; it is again what it was. Idempotent.

    Raises:
        StateError: weights were changed by something else, or another thread is drawing.
    """
    injection = Injection.find(model)
    if injection is not None:
        injection.eject()


def sigma_parameters(
    model: nn.Module, adapter_name: str = "default"
) -> Iterator[tuple[str, nn.Parameter]]:
    """The trainable shifts of an adapter on `model`, `(r,)` float32, by module path.

    Raises:
        StateError: the model carries no adapter.
        AdapterNameError: there is no such adapter.
    """
    injection = Injection.find(model)
    if injection is None:
        raise StateError(f"{type(model).__name__} carries no SVFit adapter; call inject() first")
    yield from injection.sigma_parameters(adapter_name)
