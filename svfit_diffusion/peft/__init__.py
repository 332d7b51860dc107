"""SVFit as a method of PEFT: importing this makes `SVFitConfig` work wherever PEFT's configs do.

    import svfit_diffusion.peft
    from peft import get_peft_model

    model = get_peft_model(model, svfit_diffusion.peft.SVFitConfig(target_modules="all-linear"))

PEFT itself is not changed: its tables of methods take ours beside its own.
"""

from svfit_diffusion.peft.requirement import require_peft

require_peft()

from svfit_diffusion.peft.config import SVFitConfig  # noqa: E402
from svfit_diffusion.peft.exchange import read_peft_adapter, write_peft_adapter  # noqa: E402
from svfit_diffusion.peft.layer import SVFitLayer  # noqa: E402
from svfit_diffusion.peft.method import Method, register  # noqa: E402
from svfit_diffusion.peft.model import SVFitModel  # noqa: E402

__all__ = [
    "Method",
    "SVFitConfig",
    "SVFitLayer",
    "SVFitModel",
    "read_peft_adapter",
    "write_peft_adapter",
]

register(SVFitConfig, SVFitModel)
