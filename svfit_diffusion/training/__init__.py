"""Training: photos in, shifts out.

from svfit_diffusion.training import SharedPass, Trainer, TrainingConfig
"""

from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.shared_pass import SharedPass
from svfit_diffusion.training.step import StepRecord
from svfit_diffusion.training.trainer import Trainer

__all__ = ["SharedPass", "StepRecord", "Trainer", "TrainingConfig"]
