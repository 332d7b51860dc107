"""How many singular values are trained: ranks as users write them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from svfit_diffusion.errors import ConfigError

Rank = int | float
"""A number of singular values (int ≥ 1), or the share of spectral energy to keep (float ≤ 1)."""

Ranks = Rank | Mapping[str, int]
"""A rank of every weight, or a number of singular values for each, by module path."""

_ROUNDING = 2e-7
"""Share by which rounding σ to float32 may change an energy, so that values once chosen suffice."""


def select_rank(sigma: Tensor, rank: Rank) -> int:
    """Number of singular values to train out of `sigma` `(k,)`.

    An int is taken as it is. A float in (0, 1] is an energy fraction: the smallest r with
    `Σ_{i≤r} σᵢ² ≥ rank · Σ σᵢ²` (the "information" of SVFit section 3.2); 1.0 means all.

    Raises:
        ConfigError: an int outside 1..k, or a float outside (0, 1].
    """
    check_rank(rank)
    if isinstance(rank, int):
        check_rank_fits(rank, sigma.numel(), "this weight")
        return rank
    if rank == 1.0:
        return sigma.numel()
    energy = sigma.double().square().cumsum(0)
    return int((energy < rank * energy[-1]).sum()) + 1


def select_leading(sigma: Tensor, rank: Rank, energy: float) -> int | None:
    """As `select_rank`, where there are more values than `sigma` `(k,)`; None if k are too few.

    Args:
        sigma: the leading values.
        rank: an int, or a share of the energy.
        energy: `Σ σᵢ²` over all values, which is `‖W‖²`.
    """
    if isinstance(rank, int):
        return rank if rank <= sigma.numel() else None
    lacking = sigma.double().square().cumsum(0) < rank * energy * (1 - _ROUNDING)
    return None if lacking.all() else int(lacking.sum()) + 1


def triplets_known(rank: Rank) -> int | None:
    """How many triplets a rank surely means: none of a share below 1; None for all."""
    if isinstance(rank, int):
        return rank
    return 0 if rank < 1 else None


def check_rank(rank: Rank) -> None:
    """Raise `ConfigError` unless `rank` is an int ≥ 1 or a float in (0, 1]."""
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise ConfigError(f"rank must be an int or a float, got {rank!r}")
    if isinstance(rank, int) and rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}")
    if isinstance(rank, float) and not 0.0 < rank <= 1.0:
        raise ConfigError(
            f"a float rank is an energy fraction in (0, 1], got {rank}; "
            f"for a fixed number of singular values pass an int"
        )


def check_rank_fits(rank: int, full: int, owner: str) -> None:
    """Raise `ConfigError` if `rank` exceeds the `full` number of singular values of `owner`."""
    if rank > full:
        raise ConfigError(
            f"rank {rank} exceeds the {full} singular values of {owner}; use at most {full}, or a "
            f"fraction such as 1.0 (all) or 0.99 (99 % of the energy)"
        )


def parse_rank(text: str) -> Rank:
    """Read a rank as users type it: `16` is a number of values, `0.99` or `1.0` a fraction.

    Raises:
        ConfigError: neither, or out of range.
    """
    try:
        rank: Rank = int(text)
    except ValueError:
        try:
            rank = float(text)
        except ValueError:
            raise ConfigError(
                f"rank must be an integer such as 16 or a fraction such as 0.99, got {text!r}"
            ) from None
    check_rank(rank)
    return rank
