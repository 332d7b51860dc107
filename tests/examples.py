"""How many examples Hypothesis tries."""

from __future__ import annotations

from hypothesis import settings


def share(percent: int) -> settings:
    """Of the examples that the profile wants (`conftest`), as many as a test's slowness allows."""
    return settings(max_examples=settings().max_examples * percent // 100)
