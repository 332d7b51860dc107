"""Pictures of things in the styles of several emoji sets, as a task of naming the thing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
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


def things(folder: Path, styles: Sequence[ArtSet], edge: int) -> Examples:
    """What the styles draw of Toybox's things, on white.

    Args:
        folder: of the sets' archives, downloaded by npm the first time.
        styles: which sets.
        edge: of the pictures, in pixels; a multiple of 14.

    Raises:
        TaskError: a set is not to be had.
    """
    for style in styles:
        _fetch(style, folder)
    library = ArtLibrary(folder, sprite_size=edge)
    inputs, labels = [], []
    for label, icon in enumerate(dict.fromkeys(concept.icon for concept in CONCEPTS)):
        for style in styles:
            sprite = library.sprite(style, icon)
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
