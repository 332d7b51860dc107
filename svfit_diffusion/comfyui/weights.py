"""The weights of a MODEL or a CLIP, as they were loaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from svfit_diffusion.errors import BasisError


class HostWeights:
    """The own weights of a MODEL or a CLIP, whatever patches are on it.

    Args:
        patcher: ComfyUI's `ModelPatcher`.
    """

    def __init__(self, patcher: Any) -> None:
        # Each entry: the own weight and how it is read, then the patches.
        self._entries = {key: entry[0] for key, entry in patcher.get_key_patches().items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by key."""
        return {key: tuple(weight.shape) for key, (weight, _) in self._entries.items()}

    def read(self, key: str) -> Tensor:
        """A weight, in the precision it is stored in.

        Raises:
            BasisError: it is quantised.
        """
        weight, convert = self._entries[key]
        # Quantised weights are tensors of other classes, or scaled ones of one byte.
        if type(weight) not in (Tensor, nn.Parameter) or weight.dtype.itemsize == 1:
            raise BasisError(
                f"{key} is quantised (a {type(weight).__name__} of {weight.dtype}), which changes "
                f"its singular vectors: load the base unquantised, or connect an unquantised MODEL "
                f"of it to basis_model, or export the adapter as a LoRA"
            )
        own: Tensor = convert(weight.detach())
        return own
