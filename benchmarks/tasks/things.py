"""Pictures in the styles of several emoji sets, as tasks of naming the thing, or its kind."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.tasks.examples import Examples
from benchmarks.tasks.packages import TaskError
from samples.toybox_builder.art import (
    EMOJIONE,
    FLUENT_3D,
    FLUENT_FLAT,
    FXEMOJI,
    NOTO,
    NOTO_V1,
    TWEMOJI,
    ArtLibrary,
    ArtSet,
    fetch,
)
from samples.toybox_builder.concepts import CONCEPTS

TRAINING_STYLES = (FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI)
VALIDATION_STYLES = (NOTO_V1,)
TEST_STYLES = (EMOJIONE, FXEMOJI)

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels that DINOv2 was trained on (ImageNet's)."""


KINDS = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""Unicode's groups but flags, which differ by colours alone, and people, who are most of all."""

Icons = Mapping[str, int]
"""Names of icons, which agree across the sets, each with the number of its class."""


class Pictures:
    """What sets draw, on white, with classes.

    Args:
        folder: of the sets' archives, downloaded by npm the first time.
        edge: of the pictures, in pixels; a multiple of 14.
    """

    def __init__(self, folder: Path, edge: int) -> None:
        self._folder = folder
        self._library = ArtLibrary(folder, sprite_size=edge)

    def things(self) -> Icons:
        """Toybox's things, each a class of its own."""
        icons = dict.fromkeys(concept.icon for concept in CONCEPTS)
        return {icon: label for label, icon in enumerate(icons)}

    def kinds(self) -> Icons:
        """All icons of `KINDS` by Noto's table.

        Raises:
            TaskError: Noto's set is not to be had.
        """
        _fetch(NOTO, self._folder)
        categories = self._library.categories(NOTO)
        return {icon: label for label, kind in enumerate(KINDS) for icon in categories[kind]}

    def draw(self, icons: Icons, styles: Sequence[ArtSet]) -> Examples:
        """What the styles have of the icons.

        Raises:
            TaskError: a set is not to be had.
        """
        for style in styles:
            _fetch(style, self._folder)
        inputs, labels = [], []
        for icon, label in icons.items():
            for style in styles:
                sprite = self._library.sprite(style, icon)
                if sprite is not None:
                    inputs.append(as_input(sprite))
                    labels.append(label)
        return Examples(inputs, torch.tensor(labels))


def as_input(sprite: np.ndarray) -> Tensor:
    """An RGBA sprite `(edge, edge, 4)` uint8 on white, as DINOv2 wants it: `(3, edge, edge)`."""
    colours, alpha = np.split(sprite.astype(np.float32) / 255, [3], axis=2)
    on_white = colours * alpha + 1 - alpha
    return torch.from_numpy((on_white - _MEAN) / _DEVIATION).float().permute(2, 0, 1)


def _fetch(style: ArtSet, folder: Path) -> None:
    try:
        fetch(style, folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TaskError(
            f"the emoji set {style.package} cannot be downloaded by npm ({error}): where there is "
            f"a network, run `npm pack {style.package}@{style.version}`, and put "
            f"{style.archive_name} into {folder}"
        ) from error
