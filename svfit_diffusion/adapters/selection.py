"""Which adapters of a model act, and how strongly."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.errors import AdapterNameError, StateError


@dataclass(frozen=True)
class Selection:
    """What a model's adapters are to do.

    Attributes:
        weights: of the active adapters, by name.
        enabled: whether they act at all.
        fused: what multiplies their weights while they are fused; None while they are not.
        mixing: whether they are given per prompt at the moment.
        owners: whose rows are whose, where each acts on rows of its own while it is trained.
    """

    weights: dict[str, float] = field(default_factory=dict)
    enabled: bool = True
    fused: float | None = None
    mixing: bool = False
    owners: RowOwners | None = None

    @property
    def effective(self) -> dict[str, float]:
        """The weights that act."""
        if not self.enabled:
            return {}
        scale = 1.0 if self.fused is None else self.fused
        return {name: weight * scale for name, weight in self.weights.items()}

    @property
    def is_fused(self) -> bool:
        """Whether the adapters are fused."""
        return self.fused is not None

    def refuse_change(self, what: str) -> None:
        """Raise `StateError` if adapters are fused or mixed; `what` completes "cannot …"."""
        if self.is_fused:
            raise StateError(f"cannot {what} while adapters are fused; call unfuse_svfit() first")
        if self.mixing:
            raise StateError(f"cannot {what} inside svfit_adapters_per_prompt(); leave it first")

    def refuse_fusing(self) -> None:
        """Raise `StateError` unless adapters can be fused."""
        self.refuse_change("fuse again")
        if not self.weights:
            raise StateError("no adapter is active, so there is nothing to fuse")
        if not self.enabled:
            raise StateError("adapters are disabled; call enable_svfit() before fuse_svfit()")


def check_known(names: Iterable[str], loaded: Collection[str]) -> None:
    """Raise `AdapterNameError` if one of `names` is not among the `loaded` adapters."""
    unknown = [name for name in names if name not in loaded]
    if unknown:
        raise AdapterNameError(
            f"unknown adapter {', '.join(map(repr, unknown))}; "
            f"loaded: {', '.join(map(repr, loaded)) or 'none'}"
        )
