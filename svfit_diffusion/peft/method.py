"""SVFit among PEFT's methods."""

from __future__ import annotations

from enum import Enum
from typing import Any

from peft import mapping

from svfit_diffusion.errors import PackageError

PREFIX = "svfit_"
"""Of what an adapter adds to a layer."""


class Method(str, Enum):
    """A type of PEFT's; its own enum takes no further members, but its tables do."""

    SVFIT = "SVFIT"


def register(config: type[Any], tuner: type[Any]) -> None:
    """Enter SVFit in PEFT's tables, as `peft.utils.register_peft_method` does for its own.

    Args:
        config: a `peft.PeftConfig`.
        tuner: a `BaseTuner`.

    Raises:
        PackageError: this PEFT has a method of that name already.
    """
    tables = {
        "CONFIG": (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config),
        "TUNER": (mapping.PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        "PREFIX": (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    }
    if any(Method.SVFIT in table for table, _ in tables.values()):
        raise PackageError(
            f"PEFT has a method {Method.SVFIT.value!r} already: use that one, without importing "
            f"svfit_diffusion.peft"
        )
    for table, entry in tables.values():
        table[Method.SVFIT] = entry
