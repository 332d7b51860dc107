"""What training takes, from a base model's configuration alone: no weights are read.

from svfit_diffusion.planning import make_plan
"""

from svfit_diffusion.planning.plan import LoRASize, Plan, PlannedStep, make_plan
from svfit_diffusion.planning.step import StepMemory

__all__ = ["LoRASize", "Plan", "PlannedStep", "StepMemory", "make_plan"]
