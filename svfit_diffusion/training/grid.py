"""Labelled grids of images, for before/after pictures and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_TEXT = 15


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    tile: int = 160,
) -> Image.Image:
    """Images in a grid with column labels above and a caption above each row.

    Args:
        rows: images, a sequence per row; shorter rows are filled with white.
        row_labels: caption of each row, shortened to fit.
        column_labels: label of each column.
        tile: side of a tile in pixels; images are scaled to it, keeping their aspect.

    Returns:
        An RGB picture on white.
    """
    font = ImageFont.load_default(_TEXT)
    columns = max([len(column_labels), *map(len, rows)])
    line = _TEXT + _MARGIN
    header = line if column_labels else 0
    width = _MARGIN + columns * (tile + _MARGIN)
    height = header + len(rows) * (line + tile) + _MARGIN
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, label in enumerate(column_labels):
        x = _MARGIN + column * (tile + _MARGIN)
        draw.text((x, _MARGIN // 2), _fit(draw, label, font, tile), "black", font)
    for row, (images, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = header + row * (line + tile)
        caption = _fit(draw, label, font, width - 2 * _MARGIN)
        draw.text((_MARGIN, top + _MARGIN // 2), caption, "dimgray", font)
        for column, image in enumerate(images):
            scale = tile / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            x = _MARGIN + column * (tile + _MARGIN)
            picture.paste(
                image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, top + line)
            )
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures one below the other, on white."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _fit(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """`text`, with an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
