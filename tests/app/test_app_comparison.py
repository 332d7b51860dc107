"""Grids of pictures: axes as visitors write them, and every picture in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from PIL import Image

from app.comparison import BASE_MODEL, MIX, Axis, AxisKind, cells, compare, parse_axis
from app.errors import SettingError
from app.picture import PictureSettings
from app.settings import Limits
from app.visits import Picture, Progress

SETTINGS = PictureSettings("a dog", adapters={"rex": 0.8, "tom": 0.5}, seed=7)
NOTHING = parse_axis("nothing", "")


def varied(kind: str, values: str, settings: PictureSettings = SETTINGS) -> list[PictureSettings]:
    (row,) = cells(settings, parse_axis(kind, values), NOTHING)
    return row


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("strength", "0, 0.5,1", ("0", "0.5", "1")),
        ("seed", "1\n2\n\n 3,", ("1", "2", "3")),
        ("prompt", "a dog, a cat\n\na bird", ("a dog, a cat", "a bird")),
        ("adapter", "rex, base model", ("rex", "base model")),
        ("steps", "5, 5, 6", ("5", "6")),
    ],
)
def test_values_are_read_as_visitors_write_them(
    kind: str, text: str, values: tuple[str, ...]
) -> None:
    assert parse_axis(kind, text) == Axis(AxisKind(kind), values)


def test_every_kind_varies_its_setting_alone() -> None:
    assert [c.adapters for c in varied("strength", "0, -1.5")] == [
        {"rex": 0, "tom": 0},
        {"rex": -1.5, "tom": -1.5},
    ]
    assert [c.adapters for c in varied("adapter", f"{BASE_MODEL}, rex, bob, {MIX}")] == [
        {},
        {"rex": 0.8},
        {"bob": 1.0},
        {"rex": 0.8, "tom": 0.5},
    ]
    assert [c.prompt for c in varied("prompt", "x\ny")] == ["x", "y"]
    assert [c.seed for c in varied("seed", "3, 4")] == [3, 4]
    assert [c.guidance_scale for c in varied("guidance", "1, 2.5")] == [1, 2.5]
    assert [c.steps for c in varied("steps", "5, 6")] == [5, 6]
    assert varied("nothing", "ignored") == [SETTINGS]
    assert {c.seed for c in varied("strength", "0, 1")} == {SETTINGS.seed}


@pytest.mark.parametrize("swapped", [False, True])
def test_strengths_apply_to_the_adapter_of_the_other_axis(swapped: bool) -> None:
    axes = [parse_axis("strength", "0.5, 1"), parse_axis("adapter", "rex, base model")]
    grid = cells(PictureSettings("a dog"), *(reversed(axes) if swapped else axes))
    adapters = [[cell.adapters for cell in row] for row in grid]
    if swapped:
        adapters = [list(column) for column in zip(*adapters, strict=True)]
    assert adapters == [[{"rex": 0.5}, {"rex": 1.0}], [{}, {}]]


@pytest.mark.parametrize(
    ("kind", "values"),
    [("colour", "1"), ("seed", ""), ("prompt", " \n "), ("adapter", [])],
)
def test_axes_that_mean_nothing_are_refused(kind: str, values: Any) -> None:
    with pytest.raises(SettingError):
        parse_axis(kind, values)


@pytest.mark.parametrize(
    ("kind", "values"), [("seed", "1.5"), ("seed", "x"), ("steps", "1e3"), ("guidance", "high")]
)
def test_values_that_are_no_numbers_are_refused(kind: str, values: str) -> None:
    with pytest.raises(SettingError, match="number"):
        varied(kind, values)


def test_axes_that_cannot_go_together_are_refused() -> None:
    seeds = parse_axis("seed", "1, 2")
    with pytest.raises(SettingError, match="different"):
        cells(SETTINGS, seeds, seeds)
    with pytest.raises(SettingError, match="adapter"):
        varied("strength", "0, 1", PictureSettings("a dog"))


class Painter:
    """Stands for the generator; the picture of a seed and a guidance is a colour."""

    def __init__(self) -> None:
        self.wanted: list[PictureSettings] = []

    def run(self, wanted: Sequence[PictureSettings]) -> Iterator[Progress | Picture]:
        self.wanted = list(wanted)
        yield Progress(1, 1, 1, 20)
        for index in reversed(range(len(wanted))):  # batches come in any order
            yield Picture(index, wanted[index], Image.new("RGB", (64, 64), colour(wanted[index])))


def colour(settings: PictureSettings) -> tuple[int, int, int]:
    return (settings.seed * 20, int(settings.guidance_scale * 20), 200)


def test_every_picture_lands_in_its_cell() -> None:
    x, y = parse_axis("seed", "1, 2, 3"), parse_axis("guidance", "4, 5")
    painter: Any = Painter()
    progress = list(compare(painter, SETTINGS, x, y, Limits()))
    assert [p.done for p in progress] == [0, 1, 2, 3, 4, 5, 6]
    assert {p.total for p in progress} == {6}
    assert progress[0].grid is None and all(p.grid for p in progress[1:])
    grid = progress[-1].grid
    assert grid is not None
    width, height = grid.width / 3, grid.height / 2
    for row, guidance in enumerate((4, 5)):
        for column, seed in enumerate((1, 2, 3)):
            at = (int(width * (column + 0.5)), int(height * (row + 0.6)))
            assert grid.getpixel(at) == (seed * 20, guidance * 20, 200)


def test_too_many_pictures_are_refused_before_the_first() -> None:
    painter: Any = Painter()
    seeds = parse_axis("seed", ",".join(map(str, range(10))))
    steps = parse_axis("steps", "1, 2, 3, 4")
    with pytest.raises(SettingError, match="36"):
        next(compare(painter, SETTINGS, seeds, steps, Limits(max_cells=36)))
    assert not painter.wanted
