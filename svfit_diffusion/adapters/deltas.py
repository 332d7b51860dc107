"""Copies of shifts beside the layers they shift."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from svfit_diffusion.adapters.layers import Shiftable


def copied_deltas(
    deltas: Mapping[str, Tensor], layers: Mapping[str, Shiftable], *, whole: bool
) -> dict[str, Tensor]:
    """Float32 copies of shifts, beside their layers; `whole` puts those of a device in one piece of
    memory, which saves a third where thousands of adapters are loaded.
    """
    copies = {
        path: delta.detach().to(_device(layers[path]), torch.float32, copy=True)
        for path, delta in deltas.items()
    }
    if not whole:
        return copies
    for device in {copy.device for copy in copies.values()}:
        here = {path: copy for path, copy in copies.items() if copy.device == device}
        sizes = [copy.numel() for copy in here.values()]
        copies |= zip(here, torch.cat([*here.values()]).split(sizes), strict=True)
    return copies


def _device(layer: Shiftable) -> torch.device:
    # Sequential offloading leaves no more than a shape in the layer.
    return torch.device("cpu") if layer.weight.is_meta else layer.weight.device
