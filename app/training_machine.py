"""How a training uses the machine: as the visitor says, or as device and base model suggest."""

from __future__ import annotations

import importlib.util

import torch
from accelerate.utils import is_bf16_available
from torch import nn

from svfit_diffusion.families import Family
from svfit_diffusion.training.checks import check_checkpointing, check_precision
from svfit_diffusion.training.freezing import PRECISIONS

from .errors import SettingError, at_field

AUTO = "auto"
SWITCH = (AUTO, "on", "off")
PRECISION_NAMES = (AUTO, "no", *PRECISIONS)

_RECOMPUTE_FROM = 0.25
_OFFLOAD_FROM = 0.5
"""Shares of the device's free memory that the models' weights alone take."""


class TrainingMachine:
    """Decides what is left to `AUTO`.

    Args:
        device: where training runs.
        family: of the base model; None where training knows none.
    """

    def __init__(self, device: torch.device, family: Family | None) -> None:
        self._device = device
        self._family = family

    def precision(self, wanted: str) -> str:
        """`no`, `fp16` or `bf16`: on a GPU 16 bits, if device and base model can.

        Raises:
            SettingError: they cannot do what is wanted, or it is none of these.
        """
        _check(wanted, PRECISION_NAMES, "precision")
        on_cpu = self._device.type == "cpu"
        if wanted == "fp16" and on_cpu:
            raise SettingError("Precision: fp16 needs a GPU; choose no or bf16.", "precision")
        if wanted != AUTO:
            if self._family:
                with at_field("precision"):
                    check_precision(self._family, wanted)
            return wanted
        if on_cpu:
            return "no"
        if is_bf16_available(ignore_tpu=True):
            return "bf16"
        return "fp16" if self._family is None or self._family.float16 else "no"

    def checkpointing(self, wanted: str, precision: str) -> bool:
        """Whether to compute again instead of keeping: where memory is short and it does no harm.

        Raises:
            SettingError: the base model cannot do what is wanted.
        """
        _check(wanted, SWITCH, "checkpointing")
        if wanted == "on" and self._family:
            with at_field("checkpointing"):
                check_checkpointing(self._family, True)
        can = self._family is None or self._family.checkpointing
        return self._decided(wanted, can and self._share(precision) > _RECOMPUTE_FROM)

    def offload(self, wanted: str, precision: str) -> bool:
        """Whether to have the models on the device one after the other: where memory is short.

        Raises:
            SettingError: `wanted` is nothing of `SWITCH`.
        """
        _check(wanted, SWITCH, "offload")
        return self._decided(wanted, self._share(precision) > _OFFLOAD_FROM)

    @property
    def has_8_bit(self) -> bool:
        """Whether there is an optimizer with 8-bit state."""
        return self._device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None

    def _decided(self, wanted: str, usual: bool) -> bool:
        return usual if wanted == AUTO else wanted == "on"

    def _share(self, precision: str) -> float:
        """Share of the device's free memory that the weights take in a precision; 0 on a CPU, whose
        memory they are in already.
        """
        if self._device.type != "cuda" or self._family is None:
            return 0.0
        free, _ = torch.cuda.mem_get_info(self._device)
        size = 4 if precision == "no" else 2
        models = (m for m in self._family.pipe.components.values() if isinstance(m, nn.Module))
        return size * sum(p.numel() for m in models for p in m.parameters()) / max(free, 1)


def _check(value: str, known: tuple[str, ...], field: str) -> None:
    if value not in known:
        raise SettingError(f"{field.capitalize()}: one of {', '.join(known)}, not {value}.", field)
