"""Bytes of files that do not exist yet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import safetensors.torch
import torch

from svfit_diffusion.files.adapter import Adapter, file_header, state_dict
from svfit_diffusion.files.own_word import OwnWord
from svfit_diffusion.spectrum.basis_file import basis_bytes
from svfit_diffusion.spectrum.sketch import PROBES
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.layers import PlannedLayers, value_count
from svfit_diffusion.training.metadata import adapter_metadata

_DIGEST = "0" * 64
_ITEM_BYTES = {"F32": 4, "F16": 2}
_ANY_SEED = 2**30  # of as many digits as most


def adapter_bytes(
    config: TrainingConfig, rank: str, layers: PlannedLayers, words: Mapping[str, OwnWord]
) -> int:
    """Bytes of the adapter's file as training writes it.

    Exact but for the digits of a seed that is drawn. Of a budget, whose values may lie anywhere,
    they are spread evenly.
    """
    share = config.budget / value_count(layers) if config.budget else 1.0
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    for component, own in layers.items():
        kept = {path: _kept(layer.rank, share) for path, layer in own.items()}
        deltas[component] = {path: delta for path, delta in kept.items() if delta.any()}
    sketches = {
        component: {path: torch.zeros(PROBES) for path in own} for component, own in deltas.items()
    }
    seed = _ANY_SEED if config.seed is None else config.seed
    digests = dict.fromkeys(layers, _DIGEST)
    metadata = adapter_metadata(config, rank, digests, {}, seed, config.instance_prompt)
    adapter = Adapter(deltas, metadata, sketches, dict(words))
    return len(safetensors.torch.save(state_dict(adapter), file_header(adapter)))


def _kept(rank: int, share: float) -> torch.Tensor:
    """A shift of which a share of the values is kept."""
    delta = torch.zeros(rank)
    count = round(rank * share)
    delta[torch.arange(count) * rank // max(count, 1)] = 1.0
    return delta


def bases_bytes(layers: PlannedLayers) -> int:
    """Bytes of the layers' bases in the cache, if their weights are all different."""
    return sum(
        basis_bytes(layer.d_out, layer.d_in, layer.rank)
        for own in layers.values()
        for layer in own.values()
    )


def lora_values(layers: PlannedLayers, rank: int) -> int:
    """Numbers that a LoRA of this rank trains in the layers."""
    return sum(layer.lora_values(rank) for own in layers.values() for layer in own.values())


def lora_bytes(layers: PlannedLayers, rank: int) -> int:
    """Bytes of that LoRA's file as diffusers writes it, in float32."""
    shapes = {
        f"{component}.{path}.{side}.weight": ("F32", shape)
        for component, own in layers.items()
        for path, layer in own.items()
        for side, shape in (("lora_A", (rank, layer.d_in)), ("lora_B", (layer.d_out, rank)))
    }
    return _file_bytes(shapes, {"format": "pt"})


def _file_bytes(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> int:
    """Bytes of a safetensors file.

    Args:
        shapes: type and shape of its tensors, by name, in the order of the file: larger types
            first.
        metadata: of its header.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (kind, shape) in shapes.items():
        begin, end = end, end + _ITEM_BYTES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-text // 8) * 8 + end
