"""What is written under pictures, and said of them to those who cannot see them."""

from __future__ import annotations

from ..picture import PictureSettings


def caption(settings: PictureSettings) -> str:
    """The prompt, the seed, and the adapters if there are any."""
    adapters = (f"{name} × {strength:g}" for name, strength in settings.adapters.items())
    return " · ".join((settings.prompt, f"seed {settings.seed}", *adapters))
