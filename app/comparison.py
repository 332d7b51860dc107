"""The same noise under different settings, side by side: axes, cells and the labelled grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from PIL import Image

from svfit_diffusion.training.grid import labelled_grid

from .errors import SettingError, at_field
from .generation import ImageGenerator
from .picture import PictureSettings
from .settings import Limits
from .visits import Picture, Progress

BASE_MODEL = "base model"
"""The value of an adapter axis that means no adapter."""
MIX = "the mix"
"""The value of an adapter axis that means the adapters chosen, at their strengths."""
_TILES = (160, 512)
"""Least and largest side of a tile in pixels."""


class AxisKind(str, Enum):
    """What may vary along an axis. A cell's two values are applied in this order."""

    NONE = "nothing"
    ADAPTER = "adapter"
    STRENGTH = "strength"
    PROMPT = "prompt"
    SEED = "seed"
    GUIDANCE = "guidance"
    STEPS = "steps"


@dataclass(frozen=True)
class Axis:
    """One direction of a comparison.

    Attributes:
        kind: what varies.
        values: one per column or row, as a visitor writes them; a single empty one for nothing.
    """

    kind: AxisKind
    values: tuple[str, ...]

    def labels(self) -> list[str]:
        """What to write at each column or row."""
        named = self.kind in (AxisKind.NONE, AxisKind.ADAPTER, AxisKind.PROMPT)
        return [value if named else f"{self.kind.value} {value}" for value in self.values]


def parse_axis(kind: str, values: str | Sequence[str]) -> Axis:
    """An axis as a form gives it.

    Args:
        kind: a value of `AxisKind`.
        values: for numbers a text with commas or line ends between them, for prompts one a line,
            for adapters a list of names.

    Raises:
        SettingError: the kind is unknown, or there are no values.
    """
    try:
        known = AxisKind(kind)
    except ValueError:
        raise SettingError(
            f"An axis must be one of {', '.join(kind.value for kind in AxisKind)}."
        ) from None
    if known is AxisKind.NONE:
        return Axis(known, ("",))
    if isinstance(values, str):
        lines = values if known is AxisKind.PROMPT else values.replace(",", "\n")
        values = lines.splitlines()
    kept = tuple(dict.fromkeys(value.strip() for value in values if value.strip()))
    if not kept:
        raise SettingError(f"Give at least one {known.value} to compare.")
    return Axis(known, kept)


def cells(settings: PictureSettings, x: Axis, y: Axis) -> list[list[PictureSettings]]:
    """The settings of every picture, a row per value of `y`.

    Raises:
        SettingError: both axes vary the same, a value is no number, or a strength is to vary where
            no adapter is chosen.
    """
    if x.kind is y.kind is not AxisKind.NONE:
        raise SettingError(f"Both axes vary the {x.kind.value}; choose two different ones.")
    kinds = {x.kind, y.kind}
    if AxisKind.STRENGTH in kinds and AxisKind.ADAPTER not in kinds and not settings.adapters:
        raise SettingError("Choose the adapter whose strength is to vary.", "adapters")
    fields = {x.kind: "x-values", y.kind: "y-values"}
    adapter_first = sorted((x.kind, y.kind), key=list(AxisKind).index)
    return [
        [
            _applied(settings, adapter_first, {x.kind: x_value, y.kind: y_value}, fields)
            for x_value in x.values
        ]
        for y_value in y.values
    ]


def _applied(
    settings: PictureSettings,
    order: Sequence[AxisKind],
    values: Mapping[AxisKind, str],
    fields: Mapping[AxisKind, str],
) -> PictureSettings:
    for kind in order:
        with at_field(fields[kind]):
            settings = _changed(settings, kind, values[kind])
    return settings


def _changed(settings: PictureSettings, kind: AxisKind, value: str) -> PictureSettings:
    change = dataclasses.replace
    match kind:
        case AxisKind.NONE:
            return settings
        case AxisKind.ADAPTER if value == BASE_MODEL:
            return change(settings, adapters={})
        case AxisKind.ADAPTER if value == MIX:
            return settings
        case AxisKind.ADAPTER:
            return change(settings, adapters={value: settings.adapters.get(value, 1.0)})
        case AxisKind.STRENGTH:
            return change(settings, adapters=dict.fromkeys(settings.adapters, _number(value)))
        case AxisKind.PROMPT:
            return change(settings, prompt=value)
        case AxisKind.SEED:
            return change(settings, seed=_whole(value))
        case AxisKind.GUIDANCE:
            return change(settings, guidance_scale=_number(value))
        case AxisKind.STEPS:
            return change(settings, steps=_whole(value))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"“{text:.40}” is no number; give some like 0.7, 1.") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"“{text:.40}” is no whole number; give some like 1, 2.") from None


@dataclass(frozen=True)
class ComparisonProgress:
    """How far a comparison has come.

    Attributes:
        done: finished pictures.
        total: pictures of the whole grid.
        step: sampling steps done of the batch in work.
        steps: sampling steps of that batch.
        grid: the grid with what is finished; None where nothing is new.
    """

    done: int
    total: int
    step: int
    steps: int
    grid: Image.Image | None


def compare(
    generator: ImageGenerator, settings: PictureSettings, x: Axis, y: Axis, limits: Limits
) -> Iterator[ComparisonProgress]:
    """Draw a grid, columns along `x` and rows along `y`; closing the iterator stops it.

    Raises:
        SettingError: as `cells`, or there are too many pictures.
        LibraryError: an adapter is not there.
    """
    wanted = [cell for row in cells(settings, x, y) for cell in row]
    if len(wanted) > limits.max_cells:
        raise SettingError(
            f"{len(x.values)} by {len(y.values)} are {len(wanted)} pictures; a comparison has at "
            f"most {limits.max_cells}."
        )
    images = [_placeholder(cell) for cell in wanted]
    done, step, steps = 0, 0, settings.steps
    for event in generator.run(wanted):
        grid = None
        match event:
            case Progress():
                step, steps = event.step, event.steps
            case Picture():
                images[event.index] = event.image
                done, grid = done + 1, _grid(images, settings, x, y)
        yield ComparisonProgress(done, len(wanted), step, steps, grid)


def grid_pixels(x: Axis, y: Axis, limits: Limits) -> int:
    """Pixels of the largest grid that two axes can make."""
    return min(len(x.values) * len(y.values), limits.max_cells) * _TILES[1] ** 2


def _placeholder(settings: PictureSettings) -> Image.Image:
    return Image.new("RGB", (settings.width, settings.height), "gainsboro")


def _grid(
    images: Sequence[Image.Image], settings: PictureSettings, x: Axis, y: Axis
) -> Image.Image:
    columns = len(x.values)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    row_labels = y.labels()
    if AxisKind.PROMPT not in (x.kind, y.kind):
        row_labels = [", ".join(filter(None, (settings.prompt, label))) for label in row_labels]
    column_labels = x.labels() if x.kind is not AxisKind.NONE else []
    tile = min(max(_TILES[0], settings.width, settings.height), _TILES[1])
    return labelled_grid(rows, row_labels, column_labels, tile=tile)
