"""What the commands that train do."""

from __future__ import annotations

from collections.abc import Sequence

from svfit_diffusion.training.arguments import parse_command
from svfit_diffusion.training.run import train
from svfit_diffusion.training.subject_list import SubjectList
from svfit_diffusion.training.subjects_run import train_subjects
from svfit_diffusion.training.threads import leave_busy_cores


def run_command(
    arguments: Sequence[str] | None = None, description: str = "", prog: str | None = None
) -> None:
    """Train as a command line says, one subject or several; arguments as `parse_command`.

    Raises:
        SVFitError: as `train` and `train_subjects`.
    """
    asked = parse_command(arguments, description, prog)
    leave_busy_cores()
    if isinstance(asked, SubjectList):
        train_subjects(asked.configs, asked.at_once)
    else:
        train(asked)
