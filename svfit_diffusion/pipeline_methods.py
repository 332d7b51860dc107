"""The methods that every diffusers pipeline gets; what they do is in `adapters`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import MethodType
from typing import Any

from svfit_diffusion.calls import watch_calls

PIPELINES = "diffusers.pipelines.pipeline_utils"
"""The module of all pipelines' base class."""

METHODS = {
    "svfit_diffusion.adapters.pipeline_methods": (
        "load_svfit_weights",
        "delete_svfit_adapters",
        "unload_svfit_weights",
        "save_svfit_weights",
    ),
    "svfit_diffusion.adapters.choosing": (
        "set_svfit_adapters",
        "svfit_adapters_per_prompt",
        "get_active_svfit_adapters",
        "get_list_svfit_adapters",
        "enable_svfit",
        "disable_svfit",
        "fuse_svfit",
        "unfuse_svfit",
    ),
}
"""Functions of a pipeline, by the module that defines them."""


def add_pipeline_methods() -> None:
    """Give every pipeline these methods, and note its calls; `PIPELINES` is imported."""
    pipeline = sys.modules[PIPELINES].DiffusionPipeline
    watch_calls(pipeline)
    for module, names in METHODS.items():
        for name in names:
            setattr(pipeline, name, _Method(module, name))


class _Method:
    """A method that is imported when it is first asked for.

    At once would be too early: a module of ours may be what imports diffusers.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        function = getattr(import_module(self._module), self._name)
        return function if pipe is None else MethodType(function, pipe)
