"""Put adapters under a model and take them away again, exactly.

Attention projections of diffusers models are shifted by an `SVFitAttnProcessor`; every other layer
(text encoders, feed-forward, convolutions, layers inside a LoRA, and attention whose processor
carries weights of its own, as IP-Adapter's does) by replacing the layer's `forward`. Neither adds a
module or a parameter to the model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion import spectral
from svfit_diffusion.attention import (
    SVFitAttnProcessor,
    attention_projections,
    without_lora,
    wrap_processor,
)
from svfit_diffusion.basis import fingerprint, load_bases, read_base
from svfit_diffusion.checkpoint import AdapterMetadata
from svfit_diffusion.config import SVFitConfig
from svfit_diffusion.errors import AdapterNameError, StateError, TargetError
from svfit_diffusion.layers import SHIFTABLE, Shiftable, ShiftedProjection
from svfit_diffusion.mixing import Mix, RowLayout, RowProjection
from svfit_diffusion.spectral import Basis

# Projections of attention in transformers' text encoders: CLIP's, then T5's.
_TEXT_ATTENTION = (("q_proj", "k_proj", "v_proj", "out_proj"), ("q", "k", "v", "o"))
_ATTRIBUTE = "_svfit_injection"


def shiftable_layers(model: nn.Module) -> dict[str, Shiftable]:
    """Every Linear and Conv of a model by module path, in model order.

    A layer that PEFT has wrapped in a LoRA keeps the path it had; the LoRA's own are left out.
    """
    return {
        path.replace(".base_layer", ""): module
        for path, module in model.named_modules()
        if isinstance(module, SHIFTABLE) and ".lora_" not in path
    }


def attention_layers(model: nn.Module) -> dict[str, Shiftable]:
    """The query, key, value and output projections of a diffusers or transformers model."""
    found: dict[str, Shiftable] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if hasattr(module, "get_processor"):
            for name, layer in attention_projections(module).items():
                found[prefix + name] = layer
        for names in _TEXT_ATTENTION:
            layers = {name: without_lora(getattr(module, name, None)) for name in names}
            if all(isinstance(layer, nn.Linear) for layer in layers.values()):
                found.update({prefix + name: layer for name, layer in layers.items()})
    return found


def select_targets(model: nn.Module, target: str | tuple[str, ...]) -> dict[str, Shiftable]:
    """The layers that `target` means in `model`, by module path, in model order.

    Args:
        target: `"attention"`, `"all"`, a layer name (matched at the end of a path, as PEFT's
            `target_modules`), a regular expression over whole paths, or several of these.

    Raises:
        TargetError: one of them matches no layer that can be shifted.
    """
    layers = shiftable_layers(model)
    chosen: set[str] = set()
    for entry in (target,) if isinstance(target, str) else target:
        if entry == "attention":
            matched = set(attention_layers(model))
        elif entry == "all":
            matched = set(layers)
        else:
            matched = _matching(entry, layers)
        if not matched:
            raise TargetError(
                f"target {entry!r} matches no Linear or Conv layer of {type(model).__name__}; use "
                f'"attention", "all", a layer name or a regular expression over whole paths such '
                f"as {next(iter(layers), 'none: this model has no such layer')!r}"
            )
        chosen |= matched
    return {path: layer for path, layer in layers.items() if path in chosen}


def _matching(entry: str, layers: dict[str, Shiftable]) -> set[str]:
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise TargetError(f"target {entry!r} is not a valid regular expression: {error}") from None
    return {path for path in layers if f".{path}".endswith(f".{entry}") or pattern.fullmatch(path)}


@dataclass(frozen=True)
class _Patch:
    """One change made to a model, and what was there before."""

    module: Any
    attribute: str
    new: Any
    old: Any  # None: the attribute came from the class


class Injection:
    """All adapters of one model.

    Get it with `Injection.of(model)`; it hangs on the model until `eject`.

    Attributes:
        model: the model whose layers are shifted.
        projections: shifted layers by module path.
        digests: of the base weight under each shifted layer (`BaseWeights.digests`), by path.
        metadata: what is known of adapters that came from a file, by adapter name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.projections: dict[str, ShiftedProjection] = {}
        # Of each adapter in order, by module path: those that the projections have, too.
        self._deltas: dict[str, dict[str, nn.Parameter]] = {}
        self.digests: dict[str, str] = {}
        self.metadata: dict[str, AdapterMetadata] = {}
        self._weights: dict[str, float] = {}
        self._enabled = True
        self._mixing = False
        self._patches: list[_Patch] = []
        self._unfused: dict[str, nn.Parameter] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    @staticmethod
    def of(model: nn.Module) -> Injection:
        """The injection of `model`, a new one if it has none."""
        return Injection.find(model) or Injection(model)

    @staticmethod
    def find(model: nn.Module) -> Injection | None:
        """The injection of `model`, or None if it carries no adapter."""
        return getattr(model, _ATTRIBUTE, None)

    @property
    def adapter_names(self) -> list[str]:
        """The adapters added, in order."""
        return list(self._deltas)

    def add_adapter(
        self,
        adapter_name: str,
        deltas: dict[str, Tensor],
        bases: dict[str, Basis],
        digests: dict[str, str],
        *,
        trainable: bool = False,
    ) -> None:
        """Add an adapter, inactive at first. On an error the model is as before.

        Args:
            adapter_name: a new name.
            deltas: shift `(r,)` of each layer, by module path; copied as float32.
            bases: bases of at least these layers and ranks, save those `at_hand`.
            digests: of the base weights under the layers that have a basis.
            trainable: whether the shifts require gradients.

        Raises:
            AdapterNameError: the name is taken.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.refuse_change("add an adapter")
        if adapter_name in self._deltas:
            raise AdapterNameError(
                f"adapter name {adapter_name!r} is taken; delete that adapter or use another name"
            )
        layers = shiftable_layers(self.model)
        parameters = {
            path: nn.Parameter(value, requires_grad=trainable)
            for path, value in _copied(deltas, layers, whole=not trainable).items()
        }
        added = [path for path in deltas if path not in self.projections]
        for path in added:
            self.projections[path] = ShiftedProjection(layers[path], bases[path])
        for path, parameter in parameters.items():
            projection = self.projections[path]
            if projection.basis.rank < parameter.numel():
                projection.basis = bases[path]
            projection.add(adapter_name, parameter)
        for path in bases:
            self.digests[path] = digests[path]
            self._seen[path] = _version_of(layers[path].weight)
        self._deltas[adapter_name] = parameters
        if added:
            self._patch()
        setattr(self.model, _ATTRIBUTE, self)

    def at_hand(self, ranks: Mapping[str, int]) -> dict[str, str]:
        """Digests, by path, of those layers asked for whose basis another adapter brought.

        Those whose weight has been exchanged or written to since, or of which a higher rank is
        wanted, are left out.
        """
        layers = {path: self.projections[path].layer for path in ranks if path in self.projections}
        return {
            path: self.digests[path]
            for path, layer in layers.items()
            if self._seen[path] == _version_of(layer.weight)
            and self.projections[path].basis.rank >= ranks[path]
        }

    def remove_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; layers that no adapter shifts any more are restored.

        Raises:
            AdapterNameError: there is no such adapter.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.refuse_change("delete an adapter")
        check_known([adapter_name], self._deltas)
        for projection in self.projections.values():
            if adapter_name in projection.deltas:
                projection.remove(adapter_name)
                # Not even where someone keeps a wrapped processor or forward of ours.
                projection.activate({})
        del self._deltas[adapter_name]
        self.projections = {p: proj for p, proj in self.projections.items() if proj.deltas}
        self._weights.pop(adapter_name, None)
        self.digests = {path: self.digests[path] for path in self.projections}
        self.metadata.pop(adapter_name, None)
        if not self._deltas:
            self.eject()
        else:
            self._patch()
            self._activate()

    def set_active(self, weights: dict[str, float]) -> None:
        """Make exactly these adapters active, each times its weight; 0 is the base model.

        Raises:
            AdapterNameError: one of them is unknown.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.refuse_change("change the active adapters")
        check_known(weights, self._deltas)
        self._weights = dict(weights)
        self._activate()

    @property
    def active(self) -> dict[str, float]:
        """Weights of the active adapters, whether or not shifting is enabled."""
        return dict(self._weights)

    def set_enabled(self, enabled: bool) -> None:
        """Switch all shifts off or on again, keeping the active adapters.

        Raises:
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.refuse_change("enable or disable adapters")
        if enabled != self._enabled:
            self._enabled = enabled
            self._activate()

    def set_trainable(self, adapter_name: str, trainable: bool) -> None:
        """Thaw an adapter's shifts for training, or freeze them for generating at the base's cost.

        Raises:
            AdapterNameError: there is no such adapter.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.refuse_change("freeze or thaw an adapter")
        for _, parameter in self.sigma_parameters(adapter_name):
            parameter.requires_grad_(trainable)
        self._activate()

    @contextmanager
    def adapters_per_prompt(self, mixes: Sequence[Mix], layout: RowLayout) -> Iterator[None]:
        """Shift the rows of each prompt by adapters of its own, in place of the active ones.

        The active adapters and what is held of them stay as they are, and count again afterwards.

        Args:
            mixes: the adapters of each prompt.
            layout: which rows of a batch are whose.

        Raises:
            AdapterNameError: an adapter is unknown.
            StateError: adapters are fused or disabled, or given per prompt already.
        """
        self.refuse_change("give adapters per prompt")
        if not self._enabled:
            raise StateError("adapters are disabled; call enable_svfit() first")
        check_known([name for mix in mixes for name in mix], self._deltas)
        projections = list(self.projections.values())
        self._mixing = True
        try:
            for projection in projections:
                projection.stand_in = RowProjection(projection, mixes, layout)
            yield
        finally:
            self._mixing = False
            for projection in projections:
                projection.stand_in = None
                projection.basis.release()

    def sigma_parameters(self, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The shifts `δ = σ − σ⁰` of an adapter, `(r,)` float32, by module path.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        check_known([adapter_name], self._deltas)
        yield from self._deltas[adapter_name].items()

    def fingerprint(self, adapter_name: str, paths: Iterable[str] | None = None) -> str:
        """One digest of the base weights under an adapter's layers, or under some of them.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        chosen = [path for path, _ in self.sigma_parameters(adapter_name)]
        return fingerprint(self.digests, chosen if paths is None else paths)

    def fuse(self, scale: float = 1.0) -> None:
        """Write the active adapters, times `scale`, into the model's weights until `unfuse`.

        Raises:
            StateError: already fused, or nothing is active.
        """
        self.refuse_change("fuse again")
        if not self._weights:
            raise StateError("no adapter is active, so there is nothing to fuse")
        for projection in self.projections.values():
            projection.activate({name: w * scale for name, w in self._weights.items()})
        with torch.no_grad():
            fused = {
                path: nn.Parameter(projection.effective_weight(), requires_grad=False)
                for path, projection in self.projections.items()
            }
        for path, projection in self.projections.items():
            self._unfused[path] = projection.layer.get_parameter("weight")
            projection.activate({})
            projection.layer.weight = fused[path]

    def unfuse(self) -> None:
        """Put the original weights back: the very parameters, not a subtraction.

        Raises:
            StateError: nothing is fused.
        """
        if not self.is_fused:
            raise StateError("adapters are not fused; call fuse_svfit() before unfuse_svfit()")
        for path, original in self._unfused.items():
            layer = self.projections[path].layer
            original.data = original.data.to(layer.weight.device, layer.weight.dtype)
            layer.weight = original
        self._unfused = {}
        self._activate()

    @property
    def is_fused(self) -> bool:
        """Whether the model's weights currently include the adapters."""
        return bool(self._unfused)

    def eject(self) -> None:
        """Remove all adapters and restore the model's own objects. Idempotent."""
        if self.is_fused:
            self.unfuse()
        self._unpatch()
        for projection in self.projections.values():
            # Someone may keep a wrapped processor or forward of ours: let it be the base's.
            projection.stand_in = None
            projection.activate({})
        self.projections = {}
        self._deltas = {}
        self.digests = {}
        self.metadata = {}
        self._weights = {}
        if Injection.find(self.model) is self:
            delattr(self.model, _ATTRIBUTE)

    def _activate(self) -> None:
        weights = self._weights if self._enabled else {}
        for projection in self.projections.values():
            projection.activate(weights)

    def refuse_change(self, what: str) -> None:
        """Raise `StateError` if adapters are fused or mixed; `what` completes "cannot …"."""
        if self.is_fused:
            raise StateError(f"cannot {what} while adapters are fused; call unfuse_svfit() first")
        if self._mixing:
            raise StateError(f"cannot {what} inside svfit_adapters_per_prompt(); leave it first")

    def _patch(self) -> None:
        """Patch the model for the current projections, replacing earlier patches."""
        self._unpatch()
        remaining = dict(self.projections)
        for path, module in self.model.named_modules():
            processor = getattr(module, "processor", None)
            if not hasattr(module, "set_processor") or isinstance(processor, nn.Module):
                continue
            prefix = f"{path}." if path else ""
            inside = {
                name: remaining.pop(prefix + name)
                for name, layer in attention_projections(module).items()
                # Inside a LoRA the layer is out of the processor's sight: shifted in place.
                if prefix + name in remaining and module.get_submodule(name) is layer
            }
            if inside:
                new = wrap_processor(module, processor, inside)
                self._patches.append(_Patch(module, "processor", new, processor))
                setter = functools.partial(self._set_processor, module)
                self._patches.append(_Patch(module, "set_processor", setter, None))
        for projection in remaining.values():
            layer = projection.layer
            old = layer.__dict__.get("forward")
            self._patches.append(_Patch(layer, "forward", projection.forward, old))
        for patch in self._patches:
            setattr(patch.module, patch.attribute, patch.new)

    def _set_processor(self, attention: Any, processor: Any) -> None:
        """Replaces `attention.set_processor`: a processor chosen later runs on shifts as well."""
        if isinstance(processor, SVFitAttnProcessor):
            processor = processor.inner
        self._unpatch()
        attention.set_processor(processor)
        self._patch()

    def _unpatch(self) -> None:
        for patch in reversed(self._patches):
            # Someone may have set another processor meanwhile; that one stays.
            if patch.module.__dict__.get(patch.attribute) != patch.new:
                continue
            if patch.old is None:
                delattr(patch.module, patch.attribute)
            else:
                setattr(patch.module, patch.attribute, patch.old)
        self._patches = []


def _version_of(weight: Tensor) -> tuple[int, int]:
    """Changes when a weight is exchanged, moved or written to (unless behind autograd's back)."""
    return weight.data_ptr(), weight._version


def _copied(
    deltas: Mapping[str, Tensor], layers: Mapping[str, Shiftable], *, whole: bool
) -> dict[str, Tensor]:
    """Float32 copies of shifts, beside their layers; `whole` puts those of a device in one piece of
    memory, which saves a third where thousands of adapters are loaded.
    """
    copies = {
        path: delta.detach().to(layers[path].weight.device, torch.float32, copy=True)
        for path, delta in deltas.items()
    }
    if not whole:
        return copies
    for device in {copy.device for copy in copies.values()}:
        here = {path: copy for path, copy in copies.items() if copy.device == device}
        sizes = [copy.numel() for copy in here.values()]
        copies |= zip(here, torch.cat([*here.values()]).split(sizes), strict=True)
    return copies


def check_known(names: Iterable[str], loaded: Collection[str]) -> None:
    """Raise `AdapterNameError` if one of `names` is not among the `loaded` adapters."""
    unknown = [name for name in names if name not in loaded]
    if unknown:
        raise AdapterNameError(
            f"unknown adapter {', '.join(map(repr, unknown))}; "
            f"loaded: {', '.join(map(repr, loaded)) or 'none'}"
        )


def inject(
    model: nn.Module,
    config: SVFitConfig | None = None,
    adapter_name: str = "default",
    *,
    trainable: bool = True,
    show_progress: bool = True,
) -> Injection:
    """Put a new adapter with δ = 0 on a UNet, transformer or text encoder, and make it active.

    The model computes exactly what it did; its own parameters should be frozen by the caller.

    Args:
        model: a diffusers or transformers model.
        config: rank and targets.
        adapter_name: a new name.
        trainable: whether the shifts require gradients.
        show_progress: show a progress bar while singular values are computed.

    Raises:
        TargetError: a target matches nothing.
        ConfigError: the rank exceeds a weight's number of singular values.
        BasisError: a weight cannot be decomposed.
        AdapterNameError: the name is taken.
        StateError: adapters are fused.
    """
    config = config or SVFitConfig()
    injection = Injection.of(model)
    injection.refuse_change("add an adapter")
    layers = select_targets(model, config.target)
    if isinstance(config.rank, int):
        for path, layer in layers.items():
            spectral.check_rank_fits(config.rank, spectral.full_rank(layer.weight), path)
    base = read_base(model, layers)
    bases = load_bases(base, show_progress=show_progress)
    deltas = {
        path: torch.zeros(spectral.select_rank(basis.sigma, config.rank))
        for path, basis in bases.items()
    }
    kept = {path: bases[path].truncated(delta.numel()) for path, delta in deltas.items()}
    injection.add_adapter(adapter_name, deltas, kept, base.digests, trainable=trainable)
    injection.set_enabled(True)
    injection.set_active({adapter_name: 1.0})
    return injection


def eject(model: nn.Module) -> None:
    """Remove every adapter from a model; it is again what it was. Idempotent."""
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
