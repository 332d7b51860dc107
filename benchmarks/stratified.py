"""Times spread evenly over the steps of a training, where chance alone leaves gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.families import NoiseProcess

_GOLDEN = (5**0.5 - 1) / 2
_TIMES = 4096
"""Times drawn to know their distribution."""


@dataclass(frozen=True)
class Stratified(NoiseProcess):
    """A noise process whose times are as likely as before and fill their range evenly.

    The quantiles of the times are those of the golden ratio's sequence, of which any stretch lies
    more evenly in 0..1 than chance has it.

    Attributes:
        process: the process it is, noise and all but times.
        times: `(n,)`, sorted: a sample of the process's own times.
        quantiles: of the times to come, each in 0..1.
    """

    process: NoiseProcess
    times: Tensor
    quantiles: Iterator[float]

    @classmethod
    def of(cls, process: NoiseProcess, seed: int) -> Stratified:
        """The process with times that `seed` begins."""
        generator = torch.Generator().manual_seed(seed)
        latent = torch.zeros(1, 1, 1)
        times = [process.draw(latent, generator)[1] for _ in range(_TIMES)]
        start = float(torch.rand((), generator=generator))
        return cls(process, torch.stack(times).sort().values, _golden(start))

    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise, _ = self.process.draw(latent, generator)
        return noise, self.times[int(next(self.quantiles) * len(self.times))]

    def noisy(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.process.noisy(latents, noise, time)

    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.process.target(latents, noise, time)

    def weigh(self, errors: Tensor, time: Tensor) -> Tensor:
        return self.process.weigh(errors, time)


def _golden(value: float) -> Iterator[float]:
    while True:
        yield value
        value = (value + _GOLDEN) % 1
