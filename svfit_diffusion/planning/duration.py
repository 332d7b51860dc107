"""How long the first load of a base takes: its singular vectors."""

from __future__ import annotations

import time

import torch

from svfit_diffusion.planning.layers import PlannedLayers
from svfit_diffusion.spectrum.solver import singular_basis

_PROBE = 512
"""Side of the matrix that is decomposed to see how fast this machine is."""


def first_load_seconds(layers: PlannedLayers, cores: int) -> float:
    """An estimate of how long all bases take on this machine, from one small decomposition.

    A decomposition takes `c · d_out · d_in · min(d_out, d_in)`, and each core makes its own.
    """
    work = sum(
        layer.d_out * layer.d_in * layer.full_rank
        for own in layers.values()
        for layer in own.values()
    )
    return work * _seconds_of_probe() / _PROBE**3 / cores


def _seconds_of_probe() -> float:
    """Time of the probe's decomposition by one thread, the better of two."""
    matrix = torch.randn(_PROBE, _PROBE, generator=torch.Generator().manual_seed(0)).half()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_seconds(matrix) for _ in range(2))
    finally:
        torch.set_num_threads(threads)


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    singular_basis(matrix)
    return time.perf_counter() - began
