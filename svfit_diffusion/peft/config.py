"""The settings of SVFit as a PEFT method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.peft.method import Method
from svfit_diffusion.spectrum.rank import Rank, check_rank


@dataclass
class SVFitConfig(PeftConfig):  # type: ignore[misc]
    """Which singular values of a model are trained, spelled as PEFT's other methods spell it.

    Attributes:
        r: how many per weight: an int, or the share of spectral energy to cover as a float in
            (0, 1]; 1.0 trains all of them.
        target_modules: layers by names at the end of their paths, or a regular expression over
            whole paths, or `"all-linear"`. By default those that PEFT gives LoRA on a model of
            transformers.
        exclude_modules: layers left out, given in the same way.
        rank_pattern: other ranks for some layers, by the end of a path or a regular expression.
        layers_to_transform: numbers of the blocks that are shifted; by default all.
        layers_pattern: name of the list that holds the blocks, if it is unusual.
        modules_to_save: modules that are trained and saved as a whole, such as a classifier's head.
        init_weights: whether shifts begin at zero, where the model is the base to the last bit;
            False gives small random ones, for tests.
        base_fingerprint: of the weights that are shifted, entered when an adapter is saved, which
            is refused on another base then; None lets it be tried on a fine-tune of its own.

    Raises:
        ConfigError: a rank is out of range, or settings contradict one another.
    """

    r: Rank = 1.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    rank_pattern: dict[str, Rank] = field(default_factory=dict)
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    base_fingerprint: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = Method.SVFIT
        if not isinstance(self.rank_pattern, dict):
            raise ConfigError(
                f"rank_pattern must be a dict of ranks by layer, got {clipped(self.rank_pattern)}"
            )
        for name in ("target_modules", "exclude_modules"):
            _check_names(name, getattr(self, name))
        for rank in (self.r, *self.rank_pattern.values()):
            check_rank(rank)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                f"layers_to_transform goes with names in target_modules, got the pattern "
                f"{self.target_modules!r}: let the pattern say which blocks"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern goes with layers_to_transform, which is missing")


def _check_names(setting: str, value: object) -> None:
    """Raise `ConfigError` unless a setting names layers: a pattern, several names, or nothing."""
    several = isinstance(value, list | set | tuple)
    if value is None or isinstance(value, str) or (several and _are_texts(value)):
        return
    raise ConfigError(f"{setting} must be a text or a list of texts, got {clipped(value)}")


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
