"""Exchanging the weights of layers: for others in their place, and back for the very same objects.

While another weight is in a layer's place its own `Parameter` is kept here, on the CPU where an
accelerator has no room for two. Where the weight lies is followed: in the layer, or, under
sequential CPU offload, in the map that a layer is loaded from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.marks import Mark, mark, misfits
from svfit_diffusion.adapters.room import spare_bytes
from svfit_diffusion.adapters.targets import fused_projections
from svfit_diffusion.errors import StateError


class WeightPlace:
    """The weight of one layer, its own or another in its place.

    Attributes:
        layer: the layer.
        original: the layer's own weight while another is in its place, else None.
    """

    def __init__(self, layer: Shiftable) -> None:
        self.layer = layer
        self.original: nn.Parameter | None = None
        self._mark: Mark | None = None

    @property
    def current(self) -> Tensor:
        """The weight in place.

        Raises:
            StateError: it is not in memory.
        """
        entries, key = _where(self.layer)
        return entries[key]

    @property
    def own(self) -> Tensor:
        """The layer's own weight, in place or not; `StateError` as for `current`."""
        return self.current if self.original is None else self.original

    @property
    def is_exchanged(self) -> bool:
        """Whether another weight is in place."""
        return self.original is not None

    @property
    def is_untouched(self) -> bool:
        """Whether the weight in place is the one last seen here, moved or cast perhaps."""
        return not touched([self])

    def see(self) -> None:
        """Take the weight in place for the one that should be there."""
        self._mark = mark(self.current)


def touched(places: Iterable[WeightPlace]) -> list[WeightPlace]:
    """Those where another weight is in place than the one last seen there, or other values."""
    seen = [place for place in places if place._mark is not None]
    # One of another class was quantised or sharded since.
    plain = [place for place in seen if type(place.current) in (nn.Parameter, Tensor)]
    marks = [place._mark for place in plain if place._mark is not None]
    changed = {id(plain[n]) for n in misfits(marks, [place.current for place in plain])}
    as_seen = {id(place) for place in plain} - changed
    return [place for place in seen if id(place) not in as_seen]


def refuse_touched(places: Mapping[str, WeightPlace]) -> None:
    """Raise `StateError` if something else has changed a weight, by module path."""
    foreign = touched(places.values())
    if foreign:
        changed = [path for path, place in places.items() if place in foreign]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise StateError(
            f"the weights of {', '.join(changed[:3])}{more} have been changed by something "
            f"else since adapters were loaded (a LoRA fused into them, load_state_dict, …): "
            f"undo that first, as by unfuse_lora(), or call "
            f"unload_svfit_weights(keep_changed_weights=True), which leaves them as they are"
        )


@dataclass(frozen=True)
class Exchange:
    """A weight about to be put in place.

    Attributes:
        place: where.
        weight: the new weight; the place's `original` puts the layer's own back.
    """

    place: WeightPlace
    weight: Tensor


def exchange_for(place: WeightPlace, values: Tensor) -> Exchange:
    """Put values in place of the layer's own weight, as a new parameter like the one in place now.

    Args:
        place: where.
        values: of its own memory, unless their dtype is not that of the weight in place.
    """
    current = place.current
    fresh = values.detach().to(current.device, current.dtype)
    if fresh.stride() != current.stride():
        fresh = torch.empty_like(current, requires_grad=False).copy_(fresh)
    # As the layer's own: to a compiled graph it is the same kind of input.
    return Exchange(place, nn.Parameter(fresh, requires_grad=place.own.requires_grad))


def give_back(place: WeightPlace, *, for_good: bool) -> Exchange | None:
    """Put the layer's own weight back, on the device and in the dtype of the one in place now.

    Args:
        place: where.
        for_good: no other weight will come. Else a weight stored in float8 gets a copy only, since
            a shift can no more be added to its own once that is rounded so far.
    """
    if place.original is None:
        return None
    current = place.current
    if current.element_size() == 1 and not for_good:
        return exchange_for(place, place.original)
    place.original.data = place.original.data.to(current.device, current.dtype)
    return Exchange(place, place.original)


def commit(exchanges: Iterable[Exchange], others: Iterable[tuple[nn.Module, nn.Parameter]]) -> None:
    """Make all exchanges at once: another thread sees all of them or none.

    Args:
        exchanges: from `exchange_for` and `give_back`.
        others: further modules and their new `weight`, put in place together with those.
    """
    exchanges = list(exchanges)
    kept = [e.place.own for e in exchanges]
    targets = [_where(e.place.layer) for e in exchanges]
    fused = [(module._parameters, "weight", weight) for module, weight in others]
    writes: Any = chain(
        ((d, key, _stored(d, e)) for (d, key), e in zip(targets, exchanges, strict=True)), fused
    )
    tables, keys, values = zip(*writes, strict=True) if exchanges or fused else ((), (), ())
    # In C throughout, so that Python changes threads before or after.
    deque(map(_put, tables, keys, values), maxlen=0)
    for exchange, own in zip(exchanges, kept, strict=True):
        place = exchange.place
        if exchange.weight is own:
            place.original = None
        elif place.original is None:
            # Sequential offloading leaves a plain tensor of it.
            own = own if isinstance(own, nn.Parameter) else nn.Parameter(own, requires_grad=False)
            place.original = own
            if spare_bytes(own.device) < 0:
                own.data = own.data.cpu()
        place.see()


@torch.inference_mode(False)
@torch.no_grad()
def commit_in_turn(
    model: nn.Module, paths: Iterable[str], exchange: Callable[[str], Exchange | None]
) -> None:
    """Make exchanges one after the other, each computed when the one before is made, so that no
    more than one weight at a time is in memory beside those in place.

    Args:
        model: the model.
        paths: of its layers to go through.
        exchange: what to put in place there, if anything.
    """
    made = []
    for path in paths:
        if (new := exchange(path)) is not None:
            commit([new], ())
            made.append(path)
    for pair in fused_copies(model, dict.fromkeys(made)):
        commit((), [pair])


def fused_copies(
    model: nn.Module, exchanges: Mapping[str, Exchange | None]
) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The layers that diffusers has fused from others, and what must be their weights.

    Args:
        model: the model.
        exchanges: of the other layers, by module path; None where one is made already.
    """
    for prefix in dict.fromkeys(path.rpartition(".")[0] for path in exchanges):
        module, dot = model.get_submodule(prefix), "." if prefix else ""
        for name, parts in fused_projections(module).items():
            new = {part: exchanges.get(f"{prefix}{dot}{part}") for part in parts}
            if any(f"{prefix}{dot}{part}" in exchanges for part in parts):
                weights = [
                    module.get_submodule(part).get_parameter("weight") if e is None else e.weight
                    for part, e in new.items()
                ]
                fused = module.get_submodule(name)
                old = fused.get_parameter("weight")
                yield fused, nn.Parameter(torch.cat(weights), requires_grad=old.requires_grad)


_put = dict.__setitem__


def _stored(table: MutableMapping[str, Any], exchange: Exchange) -> Tensor:
    is_module = table is exchange.place.layer._parameters
    return exchange.weight if is_module else exchange.weight.detach()


def _where(layer: Shiftable) -> tuple[dict[str, Any], str]:
    """The table that holds a layer's weight, and its key there."""
    weight = layer._parameters.get("weight")
    if weight is None:
        raise StateError(
            f"the weight of a {type(layer).__name__} is computed by a parametrisation: remove that "
            f"first (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if not weight.is_meta:
        return layer._parameters, "weight"
    for hook in _accelerate_hooks(layer):
        prefixed: Any = getattr(hook, "weights_map", None)
        table = getattr(prefixed, "dataset", None)
        if isinstance(table, dict):
            return table, f"{prefixed.prefix}weight"
    raise StateError(
        "a weight is not in memory (meta device, or offloaded to disk): load and set adapters "
        "before offloading, or offload to the CPU"
    )


def is_hooked(layer: nn.Module) -> bool:
    """Whether offloading or casting takes a layer's weight away, or casts it, between two calls."""
    registry = getattr(layer, "_diffusers_hook", None)
    return bool(_accelerate_hooks(layer)) or bool(registry is not None and registry.hooks)


def hook_registries(model: nn.Module) -> list[Any]:
    """What holds diffusers' hooks on the modules of a model."""
    # Not by `getattr`, which asks a module for what it lacks at length.
    found = (vars(module).get("_diffusers_hook") for module in model.modules())
    return [registry for registry in found if registry is not None]


def refuse_weights_on_disk(model: nn.Module) -> None:
    """Raise `StateError` if group offloading keeps weights of a model on disk."""
    hooks = [hook for registry in hook_registries(model) for hook in registry.hooks.values()]
    groups = [group for hook in hooks if (group := getattr(hook, "group", None)) is not None]
    if any(group.offload_to_disk_path is not None for group in groups):
        raise StateError(
            "weights are offloaded to disk: load and set adapters before "
            "enable_group_offload(offload_to_disk_path=…); to change them afterwards, load the "
            "pipeline anew"
        )


def _accelerate_hooks(layer: nn.Module) -> list[Any]:
    hook = getattr(layer, "_hf_hook", None)
    if hook is None:
        return []
    return list(getattr(hook, "hooks", [hook]))
