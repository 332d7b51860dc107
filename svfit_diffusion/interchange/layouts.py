"""The tensors of an exported file, under the names that its readers look for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.quantised import weight_shape
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import DENOISERS
from svfit_diffusion.interchange.factors import Factors, fused, zero_factors
from svfit_diffusion.interchange.slots import slot_of, with_text_model
from svfit_diffusion.spectrum.basis import matrix_shape

_SIBLINGS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
_FLUX_MARKS = (
    "transformer.single_transformer_blocks.0.attn.to_q",
    "transformer.transformer_blocks.0.attn.add_q_proj",
)


@dataclass(frozen=True)
class Base:
    """The models that a file is for.

    Attributes:
        denoiser: the model that draws.
        layers: all layers that can be shifted, by `<component>.<module path>`.
    """

    denoiser: Any
    layers: dict[str, Shiftable]

    @staticmethod
    def of(pipe: Any) -> Base:
        """The models of a pipeline; `InterchangeError` if none of them draws."""
        models = models_of(pipe)
        denoiser = next((models[name] for name in DENOISERS if name in models), None)
        if denoiser is None:
            raise InterchangeError(f"a {type(pipe).__name__} has no UNet and no transformer")
        return Base(
            denoiser,
            {
                f"{component}.{path}": layer
                for component, model in models.items()
                for path, layer in shiftable_layers(model).items()
            },
        )

    @property
    def kind(self) -> str:
        """Class of the denoiser."""
        return type(self.denoiser).__name__

    @property
    def is_unet(self) -> bool:
        """Whether it draws with a UNet, whose LoRAs are kohya's."""
        return self.kind == "UNet2DConditionModel"

    def zeros(self, name: str) -> Factors:
        """No change of a layer."""
        return zero_factors(*matrix_shape(weight_shape(self.layers[name])))

    def groups(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The layers under each kohya name that holds one of `names`, in the order of their parts.

        Raises:
            InterchangeError: a layer has no such name.
        """
        wanted = {self._slot(name).name for name in names}
        parts: dict[str, dict[int, str]] = {}
        for name in self.layers:
            try:
                slot = self._slot(name)
            except InterchangeError:
                continue  # none of those asked for, which were looked up above
            if slot.name in wanted:
                parts.setdefault(slot.name, {})[slot.part] = name
        return {name: [found[i] for i in sorted(found)] for name, found in parts.items()}

    def _slot(self, name: str) -> Any:
        component, _, path = name.partition(".")
        return slot_of(component, path, self.denoiser)


def filled(changes: Mapping[str, Factors], base: Base, names: Iterable[str]) -> dict[str, Factors]:
    """Changes and, of further layers that a file must hold, zeros."""
    return {name: base.zeros(name) for name in names if name not in changes} | dict(changes)


def marks(changes: Mapping[str, Factors], base: Base) -> list[str]:
    """Layers that InvokeAI looks for to tell a file's family, and that the changes may lack.

    Of SD and SDXL it wants one whose inputs are the text's, or a text encoder's attention; of
    FLUX.1 the first block of either kind, and of query, key and value all or none.
    """
    if base.is_unet:
        if any(".attn2.to_k" in n or ".attn2.to_v" in n or ".self_attn." in n for n in changes):
            return []
        return [name for name in base.layers if name.endswith(".attn2.to_k")][:1]
    if base.kind != "FluxTransformer2DModel":
        return []
    found = {name for name in (*changes, *_FLUX_MARKS) if name in base.layers}
    for name in list(found):
        block, _, own = name.rpartition(".")
        if block.startswith("transformer.transformer_blocks."):
            found |= {f"{block}.{other}" for row in _SIBLINGS if own in row for other in row}
    return sorted(found)


def peft_tensors(changes: Mapping[str, Factors], base: Base) -> dict[str, Tensor]:
    """`<component>.<path>.lora_A.weight` and `lora_B`, without alphas."""
    tensors = {}
    for name, change in changes.items():
        component, _, path = name.partition(".")
        down, up = _shaped(change, weight_shape(base.layers[name]))
        file_name = f"{component}.{with_text_model(path)}"
        tensors[f"{file_name}.lora_A.weight"] = down
        tensors[f"{file_name}.lora_B.weight"] = up
    return tensors


def kohya_tensors(changes: Mapping[str, Factors], base: Base) -> dict[str, Tensor]:
    """`<name>.lora_down.weight`, `lora_up` and `alpha`.

    Readers scale a change by alpha over its rank. diffusers 0.42 mistakes whose alpha is whose
    where they differ, so all layers have one, and factors that make up for it.

    Args:
        changes: with all parts of layers that are fused.
        base: of the file.
    """
    groups = base.groups(changes)
    whole = {name: fused([changes[part] for part in parts]) for name, parts in groups.items()}
    alpha = alpha_of(max(change.rank for change in whole.values()))
    tensors = {}
    for name, change in whole.items():
        scaled = change.scaled(change.rank / alpha)
        down, up = _shaped(scaled, weight_shape(base.layers[groups[name][0]]))
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def alpha_of(rank: int) -> int:
    """The alpha of a file whose largest rank is this: the rank, or the next number of eight
    significant bits, which bfloat16 holds.
    """
    step = 2 ** max(rank.bit_length() - 8, 0)
    return -(-rank // step) * step


def dense_tensors(changes: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
    """`<name>.diff` in the shape of the layer's weight.

    Args:
        changes: `ΔW` `(d_out, d_in)` by layer, of one dtype.
        base: of the file.
    """
    tensors = {}
    dtype = next(iter(changes.values())).dtype
    for name, parts in base.groups(changes).items():
        shapes = [weight_shape(base.layers[part]) for part in parts]
        matrices = [
            changes.get(part, torch.zeros(matrix_shape(shape), dtype=dtype))
            for part, shape in zip(parts, shapes, strict=True)
        ]
        tensors[f"{name}.diff"] = torch.cat(matrices).reshape(-1, *shapes[0][1:])
    return tensors


def _shaped(change: Factors, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """`down` and `up` as a layer with a weight of this shape has them: a convolution's with its
    kernel.
    """
    down = change.down.reshape(-1, *shape[1:])
    return down, change.up.reshape(*change.up.shape, *[1] * (len(shape) - 2))
