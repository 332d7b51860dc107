"""How long the first load of a base takes: its singular vectors."""

from __future__ import annotations

import time

import torch

from svfit_diffusion.spectrum.leading import is_partial
from svfit_diffusion.spectrum.solver import solve
from svfit_diffusion.training.layers import PlannedLayer, PlannedLayers

_PROBE = PlannedLayer(512, 512, 512)
_LEADING_PROBE = PlannedLayer(1280, 1280, 32)
"""Decomposed to see how fast this machine is: all triplets, and the leading ones alone."""
_SMALL_STEPS = 1.3e7
"""Multiply-adds that would take as long as the small matrices of a dimension do."""


def first_load_seconds(layers: PlannedLayers, cores: int) -> float:
    """An estimate of how long all bases take on this machine, from one or two decompositions.

    Leading triplets of weights whose σ fall are found in half the time of those that hardly do.
    """
    every = [layer for own in layers.values() for layer in own.values()]
    leading = [layer for layer in every if _is_partial(layer)]
    seconds = 0.0
    for probe, alike in (
        (_PROBE, [layer for layer in every if not _is_partial(layer)]),
        (_LEADING_PROBE, leading),
    ):
        if alike:
            seconds += _seconds_of(probe) * sum(map(_work, alike)) / _work(probe)
    return seconds / cores


def _is_partial(layer: PlannedLayer) -> bool:
    return is_partial(layer.full_rank, layer.rank)


def _work(layer: PlannedLayer) -> float:
    """Multiply-adds of a decomposition, up to a factor; of leading triplets those of the Gram
    matrix, of a Krylov space of some dimensions and of a Cholesky factor, as
    `benchmarks/basis_by_rank.py` measures them.
    """
    side, long = layer.full_rank, max(layer.d_out, layer.d_in)
    if not _is_partial(layer):
        return side * side * long
    dimensions = 4 * layer.rank + 150
    krylov = 2 * side * side * dimensions + 6 * side * dimensions**2 + _SMALL_STEPS * dimensions
    return side * side * long + krylov + side**3 / 3


def _seconds_of(probe: PlannedLayer) -> float:
    """Time of a processor for a probe's decomposition, the better of two."""
    matrix = torch.randn(probe.d_out, probe.d_in, generator=torch.Generator().manual_seed(0))
    falling = (matrix * (1 + torch.arange(probe.d_in) / 8) ** -0.5).half()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_seconds(falling, probe.rank) for _ in range(2))
    finally:
        torch.set_num_threads(threads)


def _seconds(matrix: torch.Tensor, rank: int) -> float:
    began = time.thread_time()
    solve(matrix, rank)
    return time.thread_time() - began
