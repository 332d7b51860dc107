"""Strengths of adapters, as users write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.adapter import COMPONENTS

Weight = SupportsFloat | Mapping[str, SupportsFloat]
"""An adapter's strength: whatever `float()` takes, for all components, or for each that is named,
such as `{"unet": 0.8}` (others 1)."""

AdapterMix = str | Mapping[str, Weight] | None
"""The adapters of one prompt: a name, several names with their strengths, or None for the base."""

Strength = float | dict[str, float]
"""A `Weight` that has been checked."""


def in_component(strength: Strength, component: str) -> float:
    """What a strength is in one component."""
    return strength.get(component, 1.0) if isinstance(strength, dict) else strength


def strengths(adapters: Sequence[Any], weights: Weight | Sequence[Weight] | None) -> list[Strength]:
    """A strength for each of some adapters or prompts.

    Args:
        adapters: the adapters or prompts.
        weights: one for each, or one for all; None is 1.

    Raises:
        ConfigError: the numbers differ, or a weight is not a finite number.
    """
    if weights is None:
        weights = 1.0
    each: Sequence[Any] = weights if _is_list(weights) else [weights] * len(adapters)  # type: ignore[assignment]
    if len(each) != len(adapters):
        raise ConfigError(f"got {len(adapters)} adapters and {len(each)} weights")
    return [_strength(weight) for weight in each]


def _is_list(weights: Any) -> bool:
    if isinstance(weights, Mapping | str | bytes):
        return False
    try:
        len(weights)  # which arrays and tensors of no dimension have not, in spite of the method
    except TypeError:
        return False
    return True


def _strength(weight: Any) -> Strength:
    if isinstance(weight, Mapping):
        unknown = [component for component in weight if component not in COMPONENTS]
        if unknown:
            raise ConfigError(
                f"a weight is given for {unknown[0]!r}; components: {', '.join(COMPONENTS)}"
            )
        return {component: _number(number) for component, number in weight.items()}
    return _number(weight)


def _number(number: Any) -> float:
    try:
        value = math.nan if isinstance(number, str | bytes) else float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises the last
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"an adapter's weight must be a finite number, got {number!r}")
    return value


def mixes(
    adapters: Sequence[AdapterMix], weights: Weight | Sequence[Weight] | None
) -> list[dict[str, tuple[Strength, ...]]]:
    """The adapters of each prompt, with the strengths that multiply.

    Raises:
        ConfigError: an entry is no adapter, or as for `strengths`.
    """
    if isinstance(adapters, str | Mapping) or not adapters:
        raise ConfigError(
            f"give a list with the adapter of each prompt, such as ['rex', None], got {adapters!r}"
        )
    per_prompt = strengths(adapters, weights)
    return [_mix(adapter, own) for adapter, own in zip(adapters, per_prompt, strict=True)]


def _mix(adapter: AdapterMix, strength: Strength) -> dict[str, tuple[Strength, ...]]:
    if isinstance(adapter, Mapping):
        return {name: (_strength(weight), strength) for name, weight in adapter.items()}
    if isinstance(adapter, str):
        return {adapter: (strength,)}
    if adapter is None:
        return {}
    raise ConfigError(
        f"a prompt's adapter is a name, a mapping of names to strengths or None, got {adapter!r}"
    )
