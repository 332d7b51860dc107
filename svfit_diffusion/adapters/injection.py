"""All adapters of one model: their shifts, and which of them act."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.applied import Applied, Change, make
from svfit_diffusion.adapters.mixing import Mix
from svfit_diffusion.adapters.registry import Registry
from svfit_diffusion.adapters.rows import RowLayout, RowOwners
from svfit_diffusion.adapters.selection import Selection, check_known
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.adapters.words import OwnWords
from svfit_diffusion.errors import AdapterNameError, StateError
from svfit_diffusion.spectrum.basis import Basis

_ATTRIBUTE = "_svfit_injection"


class Injection(Registry):
    """All adapters of one model, and which of them act.

    Get it with `Injection.of(model)`; it hangs on the model until `eject`.

    Attributes:
        model: the model whose layers are shifted.
        words: of its adapters' own.
        applied: how their shifts act.
        selection: which adapters act.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.words = OwnWords(model)
        self.applied = Applied(model, self.layers, self.words)
        self.selection = Selection()

    @staticmethod
    def of(model: nn.Module) -> Injection:
        """The injection of `model`, a new one if it has none."""
        return Injection.find(model) or Injection(model)

    @staticmethod
    def find(model: nn.Module) -> Injection | None:
        """The injection of `model`, or None if it carries no adapter."""
        return getattr(model, _ATTRIBUTE, None)

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
        new = self._new_layers(deltas, shiftable_layers(self.model), bases, digests)
        self.applied.see(new)
        try:
            self._enter(adapter_name, deltas, bases, new, trainable=trainable)
            setattr(self.model, _ATTRIBUTE, self)
        except BaseException:
            self.forget([adapter_name])
            raise

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
        self.applied.forget(self._strike(adapter_names))
        self.words.strike(adapter_names)
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
        if selection.is_fused:
            self.words.refuse(selection.weights, "fuse adapters")
        return self.applied.prepare(
            selection.effective,
            owners=selection.owners,
            fused=selection.is_fused,
            for_good=for_good,
        )

    def select(self, selection: Selection) -> None:
        """Let `selection` act; raises as `prepare`, and if another thread is drawing."""
        make([self.prepare(selection)])
        self.selection = selection

    def set_active(self, weights: Mapping[str, float], owners: RowOwners | None = None) -> None:
        """Make exactly these adapters active, each times its weight; 0 is the base model.

        Args:
            weights: by name.
            owners: in training, whose rows are whose: each then acts on its own alone.

        Raises:
            AdapterNameError: one of them is unknown.
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.selection.refuse_change("change the active adapters")
        self.select(replace(self.selection, weights=dict(weights), owners=owners))

    def set_enabled(self, enabled: bool) -> None:
        """Switch all shifts off or on again, keeping the active adapters.

        Raises:
            StateError: adapters are fused, or given per prompt at the moment.
        """
        self.selection.refuse_change("enable or disable adapters")
        if enabled != self.selection.enabled:
            self.select(replace(self.selection, enabled=enabled))

    def parameters(self, adapter_name: str) -> list[nn.Parameter]:
        """All that is trained of an adapter: its shifts, and the vectors of its word.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        shifts = [shift for _, shift in self.sigma_parameters(adapter_name)]
        return [*shifts, *self.words.parameters(adapter_name)]

    def set_trainable(self, adapter_name: str, trainable: bool) -> None:
        """Thaw an adapter's shifts for training, or freeze them for generating at the base's cost.

        Raises:
            AdapterNameError: there is no such adapter.
            StateError: adapters are fused, given per prompt, or cannot be trained as layers run.
        """
        self.selection.refuse_change("freeze or thaw an adapter")
        parameters = {p: p.requires_grad for p in self.parameters(adapter_name)}
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
