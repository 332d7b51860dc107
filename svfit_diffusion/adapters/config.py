"""Which singular values of a model an adapter trains."""

from __future__ import annotations

from dataclasses import dataclass

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.spectrum.rank import Rank, check_rank


@dataclass(frozen=True)
class SVFitConfig:
    """Which singular values of a model an adapter trains.

    Attributes:
        rank: how many per weight: an int, or the share of spectral energy to cover as a float in
            (0, 1]; 1.0 trains all of them.
        target: which layers: `"attention"` (the q, k, v and output projections), `"all"` (every
            Linear and Conv), a layer name such as `"to_v"`, a regular expression over whole module
            paths, or several of these.
    """

    rank: Rank = 1.0
    target: str | tuple[str, ...] = "attention"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if not self.target or not all(self.targets):
            raise ConfigError(
                'target is empty; use "attention", "all", layer names or a regular expression'
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """`target` as a tuple."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)
