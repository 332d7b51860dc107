"""Drawn backgrounds: every function fills a canvas."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .canvas import UNITS, Canvas, Colour, as_array, as_image


def beach(canvas: Canvas) -> np.ndarray:
    """Sand, a strip of sea with foam, and sky."""
    horizon = canvas.length(16, 24)
    shore = horizon + canvas.length(6, 12)
    picture = canvas.texture(canvas.jitter((233, 208, 150)), 6, 7, 6)
    picture[:horizon] = canvas.sky(horizon)
    far, near = canvas.jitter((20, 120, 190)), canvas.jitter((60, 185, 210))
    picture[horizon:shore] = canvas.gradient(far, near, shore - horizon)
    picture[shore : shore + 2 * canvas.unit] = (245, 245, 240)
    return picture


def snow(canvas: Canvas) -> np.ndarray:
    """White ground, pale sky, small firs and flakes."""
    rng, unit = canvas.rng, canvas.unit
    horizon = canvas.length(18, 30)
    picture = canvas.texture(canvas.jitter((240, 244, 250), 4), 10, 5, 3)
    pale, paler = canvas.jitter((170, 190, 215)), canvas.jitter((215, 225, 238))
    picture[:horizon] = canvas.gradient(pale, paler, horizon)
    image, draw = as_image(picture)
    for _ in range(int(rng.integers(3, 8))):
        x, height = canvas.length(0, UNITS), canvas.length(8, 16)
        left, right = x - height // 3, x + height // 3
        foot = horizon + 2 * unit
        fir = [(left, foot), (right, foot), (x, horizon - height)]
        draw.polygon(fir, fill=canvas.fill((70, 110, 100), 8))
    for x, y in rng.integers(0, UNITS, (25, 2)) * unit:
        draw.rectangle([x, y, x + unit - 1, y + unit - 1], fill=(255, 255, 255))
    return as_array(image)


def jungle(canvas: Canvas) -> np.ndarray:
    """A dense wall of leaves."""
    rng = canvas.rng
    image, draw = as_image(canvas.texture(canvas.jitter((20, 75, 35), 6), 8, 10, 3))
    for _ in range(60):
        x, y = (int(value) * canvas.unit for value in rng.integers(-4, UNITS + 4, 2))
        long, short = canvas.length(4, 12), canvas.length(2, 5)
        half_width, half_height = (short, long) if rng.random() < 0.5 else (long, short)
        box = [x - half_width, y - half_height, x + half_width, y + half_height]
        draw.ellipse(box, fill=canvas.fill((30, 110, 45), 22))
    return as_array(image)


def grass(canvas: Canvas) -> np.ndarray:
    """A lawn under the sky."""
    horizon = canvas.length(10, 28)
    picture = canvas.texture(canvas.jitter((95, 170, 60)), 8, 10, 10)
    picture += np.repeat(canvas.rng.standard_normal((1, UNITS, 1)) * 8, canvas.unit, axis=1)
    picture[:horizon] = canvas.sky(horizon)
    return picture


def wooden_floor(canvas: Canvas) -> np.ndarray:
    """Horizontal planks with grain and dark joints."""
    rng, edge, unit = canvas.rng, canvas.edge, canvas.unit
    height = UNITS / int(rng.integers(5, 8))
    plank = np.repeat(((np.arange(UNITS) + rng.random() * height) // height).astype(int), unit)
    shade = rng.normal(0, 10, plank.max() + 1)[plank]
    grain = rng.standard_normal((UNITS, 8)).astype(np.float32)
    streaks = np.asarray(Image.fromarray(grain).resize((edge, edge), Image.Resampling.BILINEAR))
    picture = canvas.jitter((170, 112, 62)) + shade[:, None, None] + streaks[..., None] * 6
    joints = np.concatenate([np.full(unit, True), plank[unit:] != plank[:-unit]])
    picture[joints] *= 0.6
    for index in range(plank.max() + 1):
        left = canvas.length(0, UNITS)
        picture[plank == index, left : left + unit] *= 0.65
    return picture


def cobblestones(canvas: Canvas) -> np.ndarray:
    """Grey stones: cells around jittered grid points."""
    rng = canvas.rng
    count = int(rng.integers(6, 9))
    columns, rows = np.meshgrid(np.arange(-1, count + 1), np.arange(-1, count + 2), indexing="ij")
    points = np.stack([columns + (rows % 2) * 0.5, rows], -1).reshape(-1, 2)
    points = (points + rng.normal(0, 0.12, points.shape)) * UNITS / count
    across = (canvas.columns[..., None] - points[:, 0]) ** 2
    squared = across + (canvas.rows[..., None] - points[:, 1]) ** 2
    nearest = np.argpartition(squared, 1, -1)[..., :2]
    distance = np.sqrt(np.take_along_axis(squared, nearest, -1))
    shade = rng.normal(0, 14, len(points))[nearest[..., 0]]
    picture = canvas.jitter((135, 132, 130), 6) + shade[..., None]
    picture += canvas.grain(4)
    picture[(distance[..., 1] - distance[..., 0]) < 1.3] *= 0.5
    return picture


def fabric(canvas: Canvas, colour: Colour) -> np.ndarray:
    """Folded cloth of one colour."""
    angle = canvas.rng.random() * np.pi
    across = canvas.columns * np.cos(angle) + canvas.rows * np.sin(angle) + canvas.noise(20) * 6
    tone = canvas.jitter(colour, 8)
    return tone + (np.sin(across / canvas.rng.uniform(3, 5)) * 16)[..., None]


def night_sky(canvas: Canvas) -> np.ndarray:
    """Dark blue with stars and sometimes a moon."""
    rng, unit = canvas.rng, canvas.unit
    picture = canvas.gradient(canvas.jitter((8, 10, 40), 5), canvas.jitter((40, 40, 95), 8))
    for y, x in rng.integers(0, UNITS, (40, 2)) * unit:
        picture[y : y + unit, x : x + unit] = rng.uniform(170, 255)
    image, draw = as_image(picture)
    if rng.random() < 0.6:
        x, y = canvas.length(5, 59), canvas.length(4, 18)
        radius = 5 * unit
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(245, 240, 200))
    return as_array(image)


def city(canvas: Canvas) -> np.ndarray:
    """A row of houses with windows behind a street."""
    rng, edge, unit = canvas.rng, canvas.edge, canvas.unit
    image, draw = as_image(canvas.sky())
    ground = canvas.length(48, 54)
    walls = [(120, 130, 150), (150, 110, 100), (95, 105, 125), (165, 160, 150)]
    left = -3 * unit
    while left < edge:
        width, height = canvas.length(7, 14), canvas.length(18, 46)
        top = ground - height
        wall = canvas.fill(walls[int(rng.integers(len(walls)))], 8)
        draw.rectangle([left, top, left + width - 1, ground], fill=wall)
        for y in range(top + 2 * unit, ground - 2 * unit, 4 * unit):
            for x in range(left + unit, left + width - 2 * unit, 3 * unit):
                lit = (250, 235, 160) if rng.random() < 0.5 else (60, 70, 90)
                draw.rectangle([x, y, x + unit - 1, y + 2 * unit - 1], fill=lit)
        left += width
    draw.rectangle([0, ground, edge, edge], fill=canvas.fill((85, 85, 90), 5))
    middle = (ground + edge) // 2
    for x in range(canvas.length(0, 8), edge, 12 * unit):
        stripe = [x, middle, x + 7 * unit - 1, middle + 2 * unit - 1]
        draw.rectangle(stripe, fill=(235, 225, 150))
    return as_array(image)


def mountains(canvas: Canvas) -> np.ndarray:
    """Snow-capped peaks above a meadow."""
    edge = canvas.edge
    image, draw = as_image(canvas.sky())
    ground = canvas.length(44, 52)
    for _ in range(int(canvas.rng.integers(2, 4))):
        x, y = canvas.length(0, UNITS), canvas.length(4, 18)
        half, drop = canvas.length(22, 34), (ground - y) * 0.28
        rock = canvas.fill((115, 115, 135), 8)
        draw.polygon([(x - half, ground), (x + half, ground), (x, y)], fill=rock)
        slope = half * 0.28
        cap = [
            (x, y),
            (x - slope, y + drop),
            (x - slope * 0.3, y + drop * 0.75),
            (x + slope * 0.3, y + drop * 1.1),
            (x + slope, y + drop),
        ]
        draw.polygon(cap, fill=(248, 250, 252))
    draw.rectangle([0, ground, edge, edge], fill=canvas.fill((110, 155, 80), 8))
    picture = as_array(image)
    picture[ground:] += canvas.rng.standard_normal((edge - ground, edge, 1)) * 6
    return picture


def water(canvas: Canvas) -> np.ndarray:
    """Rippled blue water."""
    rng = canvas.rng
    picture = canvas.gradient(canvas.jitter((90, 170, 215)), canvas.jitter((15, 80, 160)))
    phase = (canvas.rows + canvas.noise(10) * 4) / rng.uniform(1.1, 1.8)
    ripples = np.sin(phase + np.sin(canvas.columns / 7 + rng.random() * 6))
    return picture + (ripples * 13)[..., None]


def rug(canvas: Canvas, field: Colour, border: Colour) -> np.ndarray:
    """A fringed rug seen from above."""
    unit = canvas.unit
    image, draw = as_image(canvas.texture(canvas.jitter((190, 150, 105), 8), 8, 4, 3))
    margin = canvas.length(2, 6)
    far = canvas.edge - margin
    edge = canvas.fill(border, 8)
    draw.rectangle([margin, margin, far - 1, far - 1], fill=canvas.fill(field, 8))
    inset = margin + 3 * unit
    inside = [inset, inset, canvas.edge - inset - 1, canvas.edge - inset - 1]
    draw.rectangle(inside, outline=edge, width=2 * unit)
    for y in range(margin, far, 3 * unit):
        for left in (margin - 2 * unit, far):
            draw.rectangle([left, y, left + 3 * unit - 1, y + unit - 1], fill=edge)
    return as_array(image) + canvas.grain(5)


def autumn_forest(canvas: Canvas) -> np.ndarray:
    """Trunks, and orange leaves above and on the ground."""
    rng = canvas.rng
    image, draw = as_image(canvas.texture(canvas.jitter((200, 120, 50), 8), 6, 10, 8))
    for _ in range(6):
        x, width = canvas.length(0, UNITS), canvas.length(2, 4)
        foot = canvas.length(36, 48)
        trunk = [x, 0, x + width + canvas.unit - 1, foot + canvas.unit - 1]
        draw.rectangle(trunk, fill=canvas.fill((85, 60, 45), 6))
    leaves = [(225, 110, 30), (240, 170, 40), (190, 60, 30)]
    for _ in range(70):
        x = canvas.length(-3, UNITS)
        y = canvas.length(-3, 22) if rng.random() < 0.7 else canvas.length(44, UNITS)
        radius = canvas.length(2, 5)
        leaf = canvas.fill(leaves[int(rng.integers(len(leaves)))], 12)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=leaf)
    return as_array(image)


def desert(canvas: Canvas) -> np.ndarray:
    """Two dunes under a hot sky."""
    rng, unit = canvas.rng, canvas.unit
    horizon = canvas.length(20, 30)
    picture = canvas.texture(canvas.jitter((225, 150, 80)), 10, 8, 4)
    picture[:horizon] = canvas.gradient(
        canvas.jitter((120, 185, 235)), canvas.jitter((235, 225, 200)), horizon
    )
    line = horizon / unit
    near = line + 6 + np.sin(canvas.columns / 11 + rng.random() * 6) * 5
    picture[near < canvas.rows] *= np.array([0.9, 0.86, 0.8])
    far = line - 3 + np.sin(canvas.columns / 14 + rng.random() * 6) * 4
    dune = (far < canvas.rows) & (line + 3 > canvas.rows)
    picture[dune] = canvas.jitter((235, 170, 95), 5)
    return picture


def brick_wall(canvas: Canvas) -> np.ndarray:
    """Red bricks in running bond."""
    rng, edge, unit = canvas.rng, canvas.edge, canvas.unit
    height = canvas.length(6, 9)
    width = height * 2
    offset_x = canvas.length(0, width // unit)
    offset_y = canvas.length(0, height // unit)
    picture = np.full((edge, edge, 3), (200.0, 190.0, 180.0))
    base = canvas.jitter((165, 75, 58), 8)
    for row in range(-1, edge // height + 2):
        for column in range(-2, edge // width + 2):
            top = row * height - offset_y
            left = column * width - offset_x + (width // 2 if row % 2 else 0)
            rows = slice(max(0, top), max(0, top + height - unit))
            columns = slice(max(0, left), max(0, left + width - unit))
            picture[rows, columns] = base + rng.normal(0, 12)
    return picture + canvas.grain(4)


def sunset(canvas: Canvas) -> np.ndarray:
    """A half-set sun over dark water."""
    horizon = canvas.length(36, 46)
    above = canvas.gradient(canvas.jitter((95, 50, 120)), canvas.jitter((255, 150, 70)), horizon)
    below = canvas.gradient(
        canvas.jitter((190, 90, 80)), canvas.jitter((50, 30, 70)), canvas.edge - horizon
    )
    image, draw = as_image(np.concatenate([above, below]))
    x, radius = canvas.length(8, 56), canvas.length(6, 10)
    box = [x - radius, horizon - radius, x + radius, horizon + radius]
    draw.pieslice(box, 180, 360, fill=(255, 225, 120))
    return as_array(image)


def checkered(canvas: Canvas) -> np.ndarray:
    """A red and white tablecloth."""
    cell = int(canvas.rng.integers(6, 9))
    offset = int(canvas.rng.integers(0, cell))
    tone = (canvas.rows + offset) // cell % 2 + (canvas.columns + offset) // cell % 2
    tones = np.array([[250, 248, 245], [235, 140, 140], [210, 40, 50]], dtype=np.float64)
    return tones[tone.astype(int)] + canvas.grain(4)


def plain(canvas: Canvas, colour: Colour) -> np.ndarray:
    """A studio background of one colour."""
    tone = canvas.jitter(colour, 7)
    return canvas.gradient(tone, tone * canvas.rng.uniform(0.86, 1.0))
