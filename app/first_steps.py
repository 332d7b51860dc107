"""What a newcomer is offered: prompts that suit the base model, with the adapters they need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .settings import SAMPLES

PLAIN_PROMPT = "a photo of a teapot on a wooden floor"
"""A prompt that needs no adapter."""


@dataclass(frozen=True)
class Example:
    """A prompt to begin with.

    Attributes:
        prompt: as it is written.
        adapter: the one it needs, if any.
    """

    prompt: str
    adapter: str | None = None

    @property
    def adapters(self) -> list[str]:
        """The names of those it needs, at most one."""
        return [self.adapter] if self.adapter else []


_PLAIN = (
    Example(PLAIN_PROMPT),
    Example("a cartoon of a cat in the jungle"),
    Example("a 3d render of a robot in the city"),
    Example("a flat drawing of a red mushroom on grass"),
)
_WITH_SAMPLES = {
    SAMPLES / "toybox_flow": (
        Example("a photo of sks clock on the beach", "flow_blue_clock"),
        Example("a photo of sks car in the snow", "flow_blue_car"),
    ),
    SAMPLES / "toybox": (
        Example("a photo of sks car on the beach", "blue_car"),
        Example("a photo of sks car in the snow", "blue_car"),
    ),
}
"""For the adapters that come with an embedded base model."""


def examples_for(base: str, adapters: Collection[str]) -> list[Example]:
    """What suits a base model; the first is the one to begin with.

    Args:
        base: its folder or hub id.
        adapters: names of those at hand.
    """
    own = _WITH_SAMPLES.get(Path(base).resolve(), ())
    return [*(example for example in own if example.adapter in adapters), *_PLAIN]
