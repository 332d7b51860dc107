"""What whole trainings leave in their folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter
from svfit_diffusion.training.output import LOG_NAME


def shifts(folder: Path) -> torch.Tensor:
    """All shifts of the adapter, as one vector."""
    adapter = read_adapter(folder / WEIGHTS_NAME)
    return torch.cat([delta for own in adapter.deltas.values() for delta in own.values()])


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / LOG_NAME).read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]
