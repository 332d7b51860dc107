"""How shifts act on one model: as weights in place of its own, or as patches while live."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from torch import Tensor, nn

from svfit_diffusion.adapters.added import AddedProjection, AddedShifts
from svfit_diffusion.adapters.drawing import nobody_draws
from svfit_diffusion.adapters.layers import Shiftable, ShiftedLayer, keep_bases_near
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.adapters.mixing import Mix, RowProjection
from svfit_diffusion.adapters.patches import Patches
from svfit_diffusion.adapters.room import has_room
from svfit_diffusion.adapters.rows import RowLayout, RowOwners
from svfit_diffusion.adapters.weights import (
    Exchange,
    WeightPlace,
    commit,
    commit_in_turn,
    exchange_for,
    fused_copies,
    give_back,
    hook_registries,
    refuse_touched,
    refuse_weights_on_disk,
    touched,
)
from svfit_diffusion.adapters.words import OwnWords


@dataclass(frozen=True)
class Change:
    """What `Applied.prepare` has made ready for one model, as far as there is room for it.

    Attributes:
        applied: of the model.
        weights: of the adapters that will act.
        owners: whose rows are whose, if each acts on rows of its own.
        exchanges: the weights to put in place, all at once.
        fused: modules that diffusers has fused others into, and their new weights.
        live: projections to put under the model.
        added: projections to add to the outputs of quantised layers.
        new_weight: what to put in place of a layer's weight, if anything, by module path.
        in_turn: where it is to be computed and put in place one after the other instead.
    """

    applied: Applied
    weights: Mapping[str, float]
    owners: RowOwners | None
    exchanges: list[Exchange]
    fused: list[tuple[nn.Module, nn.Parameter]]
    live: dict[str, LiveProjection]
    added: dict[str, AddedProjection]
    new_weight: Callable[[str], Exchange | None]
    in_turn: Collection[str]


class Applied:
    """The shifts that act on a model.

    Args:
        model: the model.
        layers: its shifted layers by module path; followed as it changes.
        words: what its subjects are called, which acts with the shifts.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, ShiftedLayer], words: OwnWords
    ) -> None:
        self.model = model
        self._layers, self._words = layers, words
        self._places: dict[str, WeightPlace] = {}
        self._patches = Patches(model)
        self._added = AddedShifts(model, layers)
        self._weights: Mapping[str, float] = {}
        self._owners: RowOwners | None = None
        self._new_weight_last = self._new_weight_by({}, (), False)

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
        refuse_touched(self._places)

    def accept_foreign_changes(self) -> None:
        """Take weights that something else has changed for the layers' own, as they are.

        Raises:
            StateError: they are on disk.
        """
        if self._places:
            refuse_weights_on_disk(self.model)
        for place in touched(self._places.values()):
            place.original = None
            place.see()

    def see(self, layers: Mapping[str, ShiftedLayer]) -> None:
        """Remember the weights of layers that become known now, those that can be exchanged."""
        plain = {path: shifted for path, shifted in layers.items() if not shifted.quantization}
        places = {path: WeightPlace(shifted.layer) for path, shifted in plain.items()}
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
        """Make ready what it takes to let exactly these adapters act. Nothing is changed yet.

        All weights are computed, where they fit beside those that are there; where an accelerator
        has no room for that, they are to be exchanged one after the other.

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
        projections = self._live(live, weights, owners)
        shifted = {path for path, own in self._layers.items() if own.active(weights)} - set(live)
        moving = [p for p, place in self._places.items() if place.is_exchanged or p in shifted]
        new_weight = self._new_weight_by(weights, live, for_good)
        current = {path: self._places[path].current for path in moving}
        in_turn: list[str] = []
        if not has_room([(weight.device, weight.nbytes) for weight in current.values()]):
            in_turn, moving = moving, []
        keep_bases_near([(self._layers[path], current[path].device) for path in moving])
        exchanges = {path: new for path in moving if (new := new_weight(path)) is not None}
        made = list(exchanges.values()), list(fused_copies(self.model, exchanges))
        return Change(self, weights, owners, *made, projections, added, new_weight, in_turn)

    def _new_weight_by(
        self, weights: Mapping[str, float], live: Collection[str], for_good: bool
    ) -> Callable[[str], Exchange | None]:
        return functools.partial(self._new_weight, weights, frozenset(live), for_good)

    def _new_weight(
        self, weights: Mapping[str, float], live: Collection[str], for_good: bool, path: str
    ) -> Exchange | None:
        """What puts a layer's weight by these adapters in place, or its own where it is `live`."""
        place, shifted = self._places[path], self._layers[path]
        if path in live or not shifted.active(weights):
            return give_back(place, for_good=for_good)
        base = place.own.to(place.current.device)
        return exchange_for(place, shifted.merged(base, weights))

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
        new_weight = self._new_weight_last
        # To be put back without computing it anew.
        held = [Exchange(e.place, e.place.current) for e in base.exchanges]
        fused = [(module, module.get_parameter("weight")) for module, _ in base.fused]
        make([base])
        try:
            watch = layout.see if is_denoiser and projections else None
            self._patches.put(patched, self._modules(), watch)
            self._added.put(added)
            self._words.put_by_prompt(mixes, layout)
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
                commit_in_turn(self.model, base.in_turn, new_weight)
                live = self._live(self._live_paths(weights), weights, owners)
                added = self._added.of_weights(weights, owners)
                acting = weights, owners, held, fused, live, added, new_weight, base.in_turn
                self.finish(Change(self, *acting))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While shifts are in training: let the model be the base, at no cost."""
        projections: list[Any] = [*self._patches.live, *self._added.acting, self._words]
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
        self._new_weight_last = change.new_weight
        self._patches.put(change.live, self._modules(), None)
        self._added.put(change.added)
        self._words.put(change.weights, change.owners)
        # diffusers' own step after weights were exchanged: offloading keeps references.
        if (change.exchanges or change.in_turn) and hook_registries(self.model):
            _maybe_remove_and_reapply_group_offloading(self.model)

    def restore(self) -> None:
        """Put the weights that acted last in place again, computed anew."""
        commit_in_turn(self.model, self._places, self._new_weight_last)


def make(changes: Sequence[Change]) -> None:
    """Make the changes of several models: at once, or where there is no room for that one weight
    after the other, and all or none.

    Raises:
        StateError: another thread is drawing with one of them; nothing is changed.
    """
    with nobody_draws([change.applied.model for change in changes]):
        commit(
            [exchange for change in changes for exchange in change.exchanges],
            [pair for change in changes for pair in change.fused],
        )
        try:
            for change in changes:
                commit_in_turn(change.applied.model, change.in_turn, change.new_weight)
        except BaseException:
            for change in changes:
                change.applied.restore()
            raise
        for change in changes:
            change.applied.finish(change)
