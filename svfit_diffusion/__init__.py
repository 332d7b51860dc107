"""SVFit for 🤗 diffusers: teach a diffusion model a subject through its singular values.

Importing this package gives every diffusers pipeline `load_svfit_weights` and its kin. Torch and
diffusers are imported when they are first needed, so that the command `svfit` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    BasisError,
    BatchError,
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InterchangeError,
    StateError,
    SVFitError,
    TargetError,
)
from svfit_diffusion.imports import when_imported
from svfit_diffusion.pipeline_methods import PIPELINES, add_pipeline_methods
from svfit_diffusion.version import __version__

if TYPE_CHECKING:
    from svfit_diffusion.adapters.attention import SVFitAttnProcessor
    from svfit_diffusion.adapters.config import SVFitConfig
    from svfit_diffusion.adapters.inject import eject, inject, sigma_parameters

__all__ = [
    "AdapterNameError",
    "BaseMismatchError",
    "BasisError",
    "BatchError",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "InterchangeError",
    "SVFitAttnProcessor",
    "SVFitConfig",
    "SVFitError",
    "StateError",
    "TargetError",
    "__version__",
    "eject",
    "inject",
    "sigma_parameters",
]

_NEED_TORCH = {
    "SVFitAttnProcessor": "svfit_diffusion.adapters.attention",
    "SVFitConfig": "svfit_diffusion.adapters.config",
    "eject": "svfit_diffusion.adapters.inject",
    "inject": "svfit_diffusion.adapters.inject",
    "sigma_parameters": "svfit_diffusion.adapters.inject",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_TORCH[name]), name)


def __dir__() -> list[str]:
    return __all__


when_imported(PIPELINES, add_pipeline_methods)
