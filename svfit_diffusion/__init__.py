"""SVFit for 🤗 diffusers: teach a diffusion model a subject through its singular values.

Importing this package gives every diffusers pipeline `load_svfit_weights` and its kin.
"""

from svfit_diffusion.adapters.attention import SVFitAttnProcessor
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import eject, inject, sigma_parameters
from svfit_diffusion.adapters.pipeline_methods import add_pipeline_methods
from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    BasisError,
    BatchError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InterchangeError,
    StateError,
    SVFitError,
    TargetError,
)
from svfit_diffusion.version import __version__

__all__ = [
    "AdapterNameError",
    "BaseMismatchError",
    "BasisError",
    "BatchError",
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

add_pipeline_methods()
