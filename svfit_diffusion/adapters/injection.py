"""All adapters of one model: their shifts, and which of them act."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.applied import Applied, Change, make
from svfit_diffusion.adapters.deltas import copied_deltas
from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.mixing import Mix
from svfit_diffusion.adapters.rows import RowLayout
from svfit_diffusion.adapters.selection import Selection, check_known
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.errors import AdapterNameError, StateError
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import fingerprint

_ATTRIBUTE = "_svfit_injection"


class Injection:
    """All adapters of one model.

    Get it with `Injection.of(model)`; it hangs on the model until `eject`.

    Attributes:
        model: the model whose layers are shifted.
        layers: shifted layers by module path.
        applied: how their shifts act.
        metadata: what is known of adapters that came from a file, by adapter name.
        spans: the pipeline components that each adapter is on, by adapter name.
        selection: which adapters act.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, ShiftedLayer] = {}
        self.applied = Applied(model, self.layers)
        self.metadata: dict[str, AdapterMetadata] = {}
        self.spans: dict[str, tuple[str, ...]] = {}
        self.selection = Selection()
        # Of each adapter in order, by module path: those that the layers have, too.
        self._deltas: dict[str, dict[str, nn.Parameter]] = {}

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

    @torch.inference_mode(False)
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
        self.selection.refuse_change("add an adapter")
        if adapter_name in self._deltas:
            raise AdapterNameError(
                f"adapter name {adapter_name!r} is taken; delete that adapter or use another name"
            )
        layers = shiftable_layers(self.model)
        parameters = {
            path: nn.Parameter(value, requires_grad=trainable)
            for path, value in copied_deltas(deltas, layers, whole=not trainable).items()
        }
        new = [path for path in deltas if path not in self.layers]
        for path in new:
            self.layers[path] = ShiftedLayer(layers[path], bases[path])
        for path, parameter in parameters.items():
            shifted = self.layers[path]
            if shifted.basis.rank < parameter.numel():
                shifted.basis = bases[path]
            shifted.add(adapter_name, parameter)
        for path in bases:
            self.layers[path].digest = digests[path]
        self.applied.see(new)
        self._deltas[adapter_name] = parameters
        setattr(self.model, _ATTRIBUTE, self)

    def at_hand(self, ranks: Mapping[str, int]) -> dict[str, str]:
        """Digests, by path, of those layers asked for whose basis another adapter brought.

        Those of which a higher rank is wanted are left out.
        """
        return {
            path: self.layers[path].digest
            for path, rank in ranks.items()
            if path in self.layers and self.layers[path].basis.rank >= rank
        }

    def remove_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; layers that no adapter shifts any more are restored.

        Raises:
            AdapterNameError: there is no such adapter.
            StateError: adapters are fused or given per prompt at the moment, or weights changed.
        """
        make([self.prepare_removal([adapter_name])])
        self.forget([adapter_name])

    def prepare_removal(self, adapter_names: Collection[str]) -> Change:
        """The change after which these adapters no longer act; raises as `remove_adapter`."""
        self.selection.refuse_change("delete an adapter")
        check_known(adapter_names, self._deltas)
        left = {n: w for n, w in self.selection.weights.items() if n not in adapter_names}
        last = set(self._deltas) <= set(adapter_names)
        return self._prepared(replace(self.selection, weights=left), for_good=last)

    def forget(self, adapter_names: Collection[str]) -> None:
        """Forget adapters that no longer act."""
        weights = {n: w for n, w in self.selection.weights.items() if n not in adapter_names}
        self.selection = replace(self.selection, weights=weights)
        for name in adapter_names:
            for path in self._deltas.pop(name):
                del self.layers[path].deltas[name]
            self.metadata.pop(name, None)
            self.spans.pop(name, None)
        idle = [path for path, shifted in self.layers.items() if not shifted.deltas]
        self.applied.forget(idle)
        for path in idle:
            del self.layers[path]
        if not self._deltas and Injection.find(self.model) is self:
            delattr(self.model, _ATTRIBUTE)

    def prepare(self, selection: Selection) -> Change:
        """The change after which `selection` acts, all of it computed; nothing is changed yet.

        Raises:
            AdapterNameError: an adapter is unknown.
            StateError: weights are not in memory, or were changed by something else.
        """
        check_known(selection.weights, self._deltas)
        return self._prepared(selection)

    @torch.inference_mode(False)
    def _prepared(self, selection: Selection, *, for_good: bool = False) -> Change:
        return self.applied.prepare(
            selection.effective, fused=selection.is_fused, for_good=for_good
        )

    def select(self, selection: Selection) -> None:
        """Let `selection` act; raises as `prepare`, and if another thread is drawing."""
        make([self.prepare(selection)])
        self.selection = selection

    def set_active(self, weights: Mapping[str, float]) -> None:
        """Make exactly these adapters active, each times its weight; 0 is the base model.

        Raises:
            AdapterNameError: one of them is unknown.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.selection.refuse_change("change the active adapters")
        self.select(replace(self.selection, weights=dict(weights)))

    def set_enabled(self, enabled: bool) -> None:
        """Switch all shifts off or on again, keeping the active adapters.

        Raises:
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.selection.refuse_change("enable or disable adapters")
        if enabled != self.selection.enabled:
            self.select(replace(self.selection, enabled=enabled))

    def set_trainable(self, adapter_name: str, trainable: bool) -> None:
        """Thaw an adapter's shifts for training, or freeze them for generating at the base's cost.

        Raises:
            AdapterNameError: there is no such adapter.
            StateError: adapters are fused, or given per prompt at the moment, or the model runs its
                layers in a way that leaves no room for training; all is as it was.
        """
        self.selection.refuse_change("freeze or thaw an adapter")
        parameters = {p: p.requires_grad for _, p in self.sigma_parameters(adapter_name)}
        for parameter in parameters:
            parameter.requires_grad_(trainable)
        try:
            self.select(self.selection)
        except StateError:
            for parameter, before in parameters.items():
                parameter.requires_grad_(before)
            raise

    def fuse(self, scale: float = 1.0) -> None:
        """Keep the active adapters, times `scale`, in the model's weights until `unfuse`.

        Raises:
            StateError: already fused, disabled, or nothing is active.
        """
        self.selection.refuse_fusing()
        self.select(replace(self.selection, fused=scale))

    def unfuse(self) -> None:
        """Let the adapters be changed again.

        Raises:
            StateError: nothing is fused.
        """
        if self.selection.fused is None:
            raise StateError("adapters are not fused; call fuse_svfit() before unfuse_svfit()")
        self.select(replace(self.selection, fused=None))

    @contextmanager
    def adapters_per_prompt(
        self, mixes: Sequence[Mix], layout: RowLayout, *, is_denoiser: bool
    ) -> Iterator[None]:
        """Shift the rows of each prompt by adapters of its own, in place of the active ones.

        Args:
            mixes: the adapters of each prompt.
            layout: which rows of a batch are whose.
            is_denoiser: whether the model is called with such a batch; else its layers alone are.

        Raises:
            AdapterNameError: an adapter is unknown.
            StateError: adapters are fused or disabled, or given per prompt already.
        """
        self.selection.refuse_change("give adapters per prompt")
        if not self.selection.enabled:
            raise StateError("adapters are disabled; call enable_svfit() first")
        check_known([name for mix in mixes for name in mix], self._deltas)
        before = self.selection
        with self.applied.rows(mixes, layout, is_denoiser=is_denoiser):
            self.selection = replace(before, mixing=True)
            try:
                yield
            finally:
                # Unless all were ejected meanwhile.
                if self.selection.mixing:
                    self.selection = before

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
        digests = {path: shifted.digest for path, shifted in self.layers.items()}
        return fingerprint(digests, chosen if paths is None else paths)

    @torch.inference_mode(False)
    def prepare_ejection(self) -> Change:
        """The change after which the model has its own weights; `StateError` as `prepare`."""
        return self.applied.prepare({}, for_good=True)

    def eject(self) -> None:
        """Remove all adapters and restore the model's own objects. Idempotent.

        Raises:
            StateError: weights were changed by something else, or another thread is drawing.
        """
        make([self.prepare_ejection()])
        self.selection = Selection()
        self.forget(self.adapter_names)
