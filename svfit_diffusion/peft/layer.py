"""A layer under PEFT whose singular values adapters shift."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from svfit_diffusion.errors import BatchError, CheckpointError, StateError
from svfit_diffusion.peft.merging import Merging, refuse_quantised
from svfit_diffusion.peft.output import ShiftedOutput, ShiftedWords
from svfit_diffusion.peft.targets import Spectrum
from svfit_diffusion.spectrum.rank import Rank, select_rank
from svfit_diffusion.spectrum.shift import pad_sum

BASE = "__base__"
"""PEFT's name for rows of a batch without an adapter."""


class SVFitLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer, and a shift of its singular values per adapter.

    Args:
        base_layer: the layer, or what another method of PEFT's has put around it.
        spectrum: of the layer's weight.

    Attributes:
        svfit_delta: the shift of each adapter, `(r,)` float32.
        scaling: the strength of each adapter.
        spectrum: of the layer's weight; one with more triplets may take its place.
    """

    adapter_layer_names = ("svfit_delta",)
    other_param_names = ("scaling",)

    # Of BaseTunerLayer, for mypy, which does not look into PEFT.
    active_adapters: list[str]
    get_base_layer: Callable[[], Any]
    weight: Tensor

    def __init__(self, base_layer: nn.Module, spectrum: Spectrum) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.svfit_delta = nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.spectrum = spectrum
        layer = self.get_base_layer()
        kind = ShiftedWords if isinstance(layer, nn.Embedding) else ShiftedOutput
        self._output = kind(layer, spectrum.basis.truncated(1), is_alone=base_layer is layer)
        self._merging = Merging(layer, turned=self._output.is_turned)

    def add(self, adapter_name: str, rank: Rank, *, starts_at_zero: bool = True) -> None:
        """Add an adapter; it acts once PEFT makes it active.

        Args:
            adapter_name: a new name, or one to begin anew.
            rank: as in `SVFitConfig`; a weight that lacks rank trains what it has.
            starts_at_zero: else the shifts are small and random.
        """
        sigma = self.spectrum.basis.sigma
        count = select_rank(sigma, min(rank, len(sigma)) if isinstance(rank, int) else rank)
        random = torch.randn(count) * sigma[:count] / 10
        self.svfit_delta[adapter_name] = nn.Parameter(
            torch.zeros(count) if starts_at_zero else random
        )
        self.scaling[adapter_name] = 1.0
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self._output.keep(self.spectrum.basis.truncated(count))

    def fitted(self, adapter_name: str, values: Tensor) -> Tensor:
        """A shift from a file with the zeros that files leave out; a longer one makes room.

        Args:
            adapter_name: whose it is to be.
            values: `(n,)`.

        Raises:
            CheckpointError: it has more values than the layer has singular values.
        """
        delta, full = self.svfit_delta[adapter_name], self.spectrum.basis.rank
        if values[full:].any():
            raise CheckpointError(f"{len(values)} values, the layer has {full} singular values")
        values = values[:full]
        if len(values) > len(delta):
            delta = nn.Parameter(delta.new_zeros(len(values)), delta.requires_grad)
            self.svfit_delta[adapter_name] = delta
            self._output.keep(self.spectrum.basis.truncated(len(values)))
        return nn.functional.pad(values, (0, len(delta) - len(values)))

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT would cast to the layer's dtype, too coarse for what training adds up.
        delta = self.svfit_delta.get(adapter_name)
        if delta is not None and not delta.is_meta:
            delta.data = delta.data.to(device or self.weight.device, torch.float32)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Let an adapter act at this strength, if it is on this layer."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the strengths of the active adapters."""
        for name in self._here(self.active_adapters):
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strengths of the active adapters, or set them to 1."""
        for name in self._here(self.active_adapters):
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def combined(self, adapter_names: Sequence[str]) -> Tensor | None:
        """`Σ wₐ δₐ` `(r,)` of some adapters at their strengths; None where nothing is shifted."""
        terms = [
            (self.scaling[name], self.svfit_delta[name].float())
            for name in self._here(adapter_names)
            if self.scaling[name] != 0
        ]
        return pad_sum(terms) if terms else None

    def _here(self, adapter_names: Sequence[str]) -> list[str]:
        return [name for name in adapter_names if name in self.svfit_delta]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter at its strength adds to the weight, in the weight's shape and dtype, or
        float32 if that is quantised.
        """
        shift = self.scaling[adapter] * self.svfit_delta[adapter].detach()
        change = self._output.change_of_weight(shift)
        return change if self._output.quantization else change.to(self.weight.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put `W'` in the weight's place; see `Merging`.

        Args:
            safe_merge: raise if it is not finite.
            adapter_names: by default the active ones.

        Raises:
            CheckpointError: it is not; what was merged before stays merged.
            StateError: the weight is quantised.
        """
        refuse_quantised(self.get_base_layer())
        names = self._here(check_adapters_to_merge(self, adapter_names))
        shift = self.combined(names)
        if shift is None:
            return
        before, basis = self._merging.shift, self._output.basis
        total = shift.detach()
        if before is not None:
            total = pad_sum([(1.0, before.to(total.device)), (1.0, total)])
            self._merging.undo(basis)
        try:
            self._merging.put(basis, total, safely=safe_merge)
        except CheckpointError as error:
            if before is not None:
                self._merging.put(basis, before, safely=False)
            raise CheckpointError(
                f"{error}. The adapter {', '.join(names)} seems to be broken"
            ) from None
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the layer's own weight back."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._merging.undo(self._output.basis)
        self.merged_adapters.clear()

    def forward(
        self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """The layer's output with the active adapters, or those of each row.

        Args:
            x: layer input.
            *args: for the layer.
            adapter_names: of each row of a batch; `__base__` is the layer itself.
            **kwargs: for the layer.

        Raises:
            BatchError: there are not as many names as rows.
            StateError: names are given while adapters are merged.
        """
        if adapter_names is not None:
            self._refuse_names(adapter_names, len(x))
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            y: Tensor = self.base_layer(x, *args, **kwargs)
            return y
        if adapter_names is not None:
            return self._mixed(x, adapter_names, *args, **kwargs)
        return self._output.of(
            self.base_layer, x, self.combined(self.active_adapters), *args, **kwargs
        )

    def _refuse_names(self, adapter_names: Sequence[str], rows: int) -> None:
        if len(adapter_names) != rows:
            raise BatchError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {rows} respectively"
            )
        if self.merged:
            raise StateError(
                "Cannot pass `adapter_names` when there are merged adapters, call "
                "unmerge_adapter() first"
            )

    def _mixed(self, x: Tensor, adapter_names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Rows of one adapter together, each as they come out alone."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(adapter_names):
            rows.setdefault(name, []).append(row)
        parts = [
            self._output.of(self.base_layer, x[chosen], self.combined([name]), *args, **kwargs)
            for name, chosen in rows.items()
        ]
        order = torch.tensor([row for chosen in rows.values() for row in chosen], device=x.device)
        return torch.cat(parts)[order.argsort()]

    def __repr__(self) -> str:
        return f"svfit.{super().__repr__()}"


class SVFitLinear(SVFitLayer):
    """A linear layer, which `"all-linear"` finds by the name of its class."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `peft.convert_to_lora` can convert the layer."""
        return True
