"""Models that have the shapes of another's weights, and none of their memory."""

from __future__ import annotations

import copy
from typing import Any

from accelerate import init_empty_weights
from torch import nn


def hollow(model: Any) -> nn.Module:
    """A model made anew by the configuration of one of diffusers or transformers, on no device.

    By its configuration: a copy would bring hooks, LoRAs and our own adapters along.
    """
    with init_empty_weights():
        if hasattr(type(model), "from_config"):
            made: nn.Module = type(model).from_config(model.config)
        else:
            made = type(model)(copy.deepcopy(model.config))
    return made
