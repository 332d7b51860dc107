"""How shifts act on one model: as weights in place of its own, or as patches while live."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from torch import Tensor, nn

from svfit_diffusion.adapters.added import AddedProjection, AddedShifts
from svfit_diffusion.adapters.drawing import nobody_draws
from svfit_diffusion.adapters.layers import Shiftable, ShiftedLayer
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.adapters.mixing import Mix, RowProjection
from svfit_diffusion.adapters.patches import Patches
from svfit_diffusion.adapters.rows import RowLayout, RowOwners
from svfit_diffusion.adapters.targets import fused_projections
from svfit_diffusion.adapters.weights import (
    Exchange,
    WeightPlace,
    commit,
    exchange_for,
    give_back,
    refuse_weights_on_disk,
)
from svfit_diffusion.errors import StateError


@dataclass(frozen=True)
class Change:
    """What `Applied.prepare` has made ready for one model, all of it computed.

    Attributes:
        applied: of the model.
        weights: of the adapters that will act.
        owners: whose rows are whose, if each acts on rows of its own.
        exchanges: the weights to put in place.
        fused: modules that diffusers has fused others into, and their new weights.
        live: projections to put under the model.
        added: projections to add to the outputs of quantised layers.
    """

    applied: Applied
    weights: Mapping[str, float]
    owners: RowOwners | None
    exchanges: list[Exchange]
    fused: list[tuple[nn.Module, nn.Parameter]]
    live: dict[str, LiveProjection]
    added: dict[str, AddedProjection]


class Applied:
    """The shifts that act on a model.

    Args:
        model: the model.
        layers: its shifted layers by module path; followed as it changes.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, ShiftedLayer]) -> None:
        self.model = model
        self._layers = layers
        self._places: dict[str, WeightPlace] = {}
        self._patches = Patches(model)
        self._added = AddedShifts(model, layers)
        self._weights: Mapping[str, float] = {}
        self._owners: RowOwners | None = None

    def own_weight(self, path: str, layer: Shiftable) -> Tensor:
        """A layer's own weight, whether or not another is in its place.

        Raises:
            StateError: it is not in memory, or computed by a parametrisation.
        """
        return self._places.get(path, WeightPlace(layer)).own

    def refuse_foreign_changes(self) -> None:
        """Raise `StateError` if something else has changed weights in or under ours, or keeps them
        on disk, where nobody can tell.
        """
        if self._places:
            refuse_weights_on_disk(self.model)
        changed = [path for path, place in self._places.items() if not place.is_untouched]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise StateError(
                f"the weights of {', '.join(changed[:3])}{more} have been changed by something "
                f"else since adapters were loaded (a LoRA fused into them, load_state_dict, …): "
                f"undo that first, as by unfuse_lora(), or call "
                f"unload_svfit_weights(keep_changed_weights=True), which leaves them as they are"
            )

    def accept_foreign_changes(self) -> None:
        """Take weights that something else has changed for the layers' own, as they are.

        Raises:
            StateError: they are on disk.
        """
        if self._places:
            refuse_weights_on_disk(self.model)
        for place in self._places.values():
            if not place.is_untouched:
                place.original = None
                place.see()

    def see(self, layers: Mapping[str, ShiftedLayer]) -> None:
        """Remember the weights of layers that become known now, those that can be exchanged."""
        places = {
            path: WeightPlace(shifted.layer)
            for path, shifted in layers.items()
            if not shifted.quantization
        }
        for place in places.values():
            place.see()
        self._places |= places

    def forget(self, paths: Collection[str]) -> None:
        """Forget layers whose own weights are in place."""
        self._added.forget(paths)
        for path in paths:
            place = self._places.pop(path, None)
            assert place is None or place.original is None

    @torch.no_grad()
    def prepare(
        self,
        weights: Mapping[str, float],
        *,
        owners: RowOwners | None = None,
        fused: bool = False,
        for_good: bool = False,
    ) -> Change:
        """Compute all that it takes to let exactly these adapters act. Nothing is changed yet.

        Args:
            weights: of adapters, by name.
            owners: whose rows are whose, if each is to act on rows of its own in training.
            fused: shifts in training become weights, too.
            for_good: layers that none of them shifts get their own weights back in any case.

        Raises:
            StateError: weights are not in memory, were changed by something else, or are quantised
                and thus cannot hold what should be fused into them.
        """
        self.refuse_foreign_changes()
        live = [] if fused else self._live_paths(weights)
        self._patches.check(live, self._modules())
        added = self._added.of_weights(weights, owners, fused=fused)
        exchanges = {}
        for path, place in self._places.items():
            shifted = self._layers[path]
            if shifted.active(weights) and path not in live:
                base = place.own.to(place.current.device)
                exchanges[path] = exchange_for(place, shifted.merged(base, weights))
            elif (exchange := give_back(place, for_good=for_good)) is not None:
                exchanges[path] = exchange
        copies = list(self._fused(exchanges))
        projections = self._live(live, weights, owners)
        changed = list(exchanges.values())
        return Change(self, weights, owners, changed, copies, projections, added)

    def _fused(self, exchanges: Mapping[str, Exchange]) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """What diffusers has fused must follow its parts."""
        for path, module in self.model.named_modules() if exchanges else ():
            prefix = f"{path}." if path else ""
            for name, parts in fused_projections(module).items():
                if any(prefix + part in exchanges for part in parts):
                    weights = [
                        exchange.weight
                        if (exchange := exchanges.get(prefix + part))
                        else module.get_submodule(part).get_parameter("weight")
                        for part in parts
                    ]
                    fused = module.get_submodule(name)
                    old = fused.get_parameter("weight")
                    yield fused, nn.Parameter(torch.cat(weights), requires_grad=old.requires_grad)

    @contextmanager
    def rows(self, mixes: Sequence[Mix], layout: RowLayout, *, is_denoiser: bool) -> Iterator[None]:
        """Shift the rows of each prompt by adapters of its own, in place of those that act.

        Afterwards those act again, unless all were withdrawn meanwhile.

        Args:
            mixes: the adapters of each prompt.
            layout: which rows of a batch are whose.
            is_denoiser: whether the model is called with such a batch; else its layers alone are.

        Raises:
            StateError: the model cannot be used so; all is as it was.
        """
        projections = {
            path: projection
            for path, shifted in self._layers.items()
            if not (projection := RowProjection(shifted, mixes, layout)).shifts_nothing
        }
        added = self._added.of_rows(projections)
        patched = {path: own for path, own in projections.items() if path not in added}
        self._patches.check(patched, self._modules())
        base, weights, owners = self.prepare({}), self._weights, self._owners
        # To be put back without computing it anew.
        held = [Exchange(e.place, e.place.current) for e in base.exchanges]
        fused = [(module, module.get_parameter("weight")) for module, _ in base.fused]
        make([base])
        try:
            watch = layout.see if is_denoiser and projections else None
            self._patches.put(patched, self._modules(), watch)
            self._added.put(added)
            yield
        finally:
            self._patches.remove()
            for shifted in self._layers.values():
                shifted.basis.release()
            if self._layers:
                for exchange in held:
                    now = exchange.place.current
                    exchange.weight.data = exchange.weight.data.to(now.device, now.dtype)
                commit(held, fused)
                live = self._live(self._live_paths(weights), weights, owners)
                added = self._added.of_weights(weights, owners)
                self.finish(Change(self, weights, owners, held, fused, live, added))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While shifts are in training: let the model be the base, at no cost."""
        projections: list[Any] = [*self._patches.live, *self._added.acting]
        for projection in projections:
            projection.paused = True
        try:
            yield
        finally:
            for projection in projections:
                projection.paused = False

    def _live_paths(self, weights: Mapping[str, float]) -> list[str]:
        """The layers on which these adapters are in training."""
        return [
            path
            for path, shifted in self._layers.items()
            if not shifted.quantization and shifted.is_live(weights)
        ]

    def _live(
        self, paths: Iterable[str], weights: Mapping[str, float], owners: RowOwners | None
    ) -> dict[str, LiveProjection]:
        return {path: LiveProjection(self._layers[path], weights, owners) for path in paths}

    def _modules(self) -> dict[str, nn.Module]:
        return {path: shifted.layer for path, shifted in self._layers.items()}

    def finish(self, change: Change) -> None:
        """Do what is left of a change once its weights are in place."""
        self._weights, self._owners = dict(change.weights), change.owners
        self._patches.put(change.live, self._modules(), None)
        self._added.put(change.added)
        if change.exchanges:
            # diffusers' own step after weights were exchanged: offloading keeps references.
            _maybe_remove_and_reapply_group_offloading(self.model)


def make(changes: Sequence[Change]) -> None:
    """Make the changes of several models at once.

    Raises:
        StateError: another thread is drawing with one of them; nothing is changed.
    """
    with nobody_draws([change.applied.model for change in changes]):
        commit(
            [exchange for change in changes for exchange in change.exchanges],
            [pair for change in changes for pair in change.fused],
        )
        for change in changes:
            change.applied.finish(change)
