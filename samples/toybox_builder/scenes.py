"""Drawn backgrounds: every scene is a function from a random generator to a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
"""Edge of every picture, in pixels."""

Colour = tuple[float, float, float]
Draw = Callable[[np.random.Generator], np.ndarray]

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]


@dataclass(frozen=True)
class Scene:
    """A kind of background, with the words a caption may use for it."""

    name: str
    draw: Draw
    phrases: tuple[str, ...]
    weight: float = 1.0


def _jitter(rng: np.random.Generator, colour: Colour, spread: float = 10.0) -> np.ndarray:
    return np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255)


def _fill(rng: np.random.Generator, colour: Colour, spread: float = 10.0) -> tuple[int, int, int]:
    red, green, blue = _jitter(rng, colour, spread)
    return int(red), int(green), int(blue)


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Smooth noise with features about ``cell`` pixels wide."""
    edge = max(2, SIZE // cell + 1)
    coarse = rng.standard_normal((edge, edge)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _gradient(top: np.ndarray, bottom: np.ndarray, rows: int = SIZE) -> np.ndarray:
    ramp = np.linspace(0, 1, rows)[:, None, None]
    return np.repeat((1 - ramp) * top + ramp * bottom, SIZE, axis=1)


def _texture(
    rng: np.random.Generator, colour: np.ndarray, cell: int, coarse: float, fine: float
) -> np.ndarray:
    grain = _noise(rng, cell) * coarse + rng.standard_normal((SIZE, SIZE)) * fine
    return colour + grain[..., None]


def _sky(rng: np.random.Generator, rows: int = SIZE) -> np.ndarray:
    return _gradient(_jitter(rng, (110, 170, 235)), _jitter(rng, (190, 220, 245)), rows)


def _image(picture: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float64)


def beach(rng: np.random.Generator) -> np.ndarray:
    """Sand, a strip of sea with foam, and sky."""
    horizon = int(rng.integers(16, 24))
    shore = horizon + int(rng.integers(6, 12))
    picture = _texture(rng, _jitter(rng, (233, 208, 150)), 6, 7, 6)
    picture[:horizon] = _sky(rng, horizon)
    sea = _gradient(_jitter(rng, (20, 120, 190)), _jitter(rng, (60, 185, 210)), shore - horizon)
    picture[horizon:shore] = sea
    picture[shore : shore + 2] = (245, 245, 240)
    return picture


def snow(rng: np.random.Generator) -> np.ndarray:
    """White ground, pale sky, small firs and flakes."""
    horizon = int(rng.integers(18, 30))
    picture = _texture(rng, _jitter(rng, (240, 244, 250), 4), 10, 5, 3)
    pale, paler = _jitter(rng, (170, 190, 215)), _jitter(rng, (215, 225, 238))
    picture[:horizon] = _gradient(pale, paler, horizon)
    image, draw = _image(picture)
    for _ in range(int(rng.integers(3, 8))):
        x, height = int(rng.integers(0, SIZE)), int(rng.integers(8, 16))
        left, right = x - height // 3, x + height // 3
        fir = [(left, horizon + 2), (right, horizon + 2), (x, horizon - height)]
        draw.polygon(fir, fill=_fill(rng, (70, 110, 100), 8))
    for x, y in rng.integers(0, SIZE, (25, 2)):
        draw.point((int(x), int(y)), fill=(255, 255, 255))
    return _array(image)


def jungle(rng: np.random.Generator) -> np.ndarray:
    """A dense wall of leaves."""
    image, draw = _image(_texture(rng, _jitter(rng, (20, 75, 35), 6), 8, 10, 3))
    for _ in range(60):
        x, y = (int(value) for value in rng.integers(-4, SIZE + 4, 2))
        long, short = int(rng.integers(4, 12)), int(rng.integers(2, 5))
        half_width, half_height = (short, long) if rng.random() < 0.5 else (long, short)
        box = [x - half_width, y - half_height, x + half_width, y + half_height]
        draw.ellipse(box, fill=_fill(rng, (30, 110, 45), 22))
    return _array(image)


def grass(rng: np.random.Generator) -> np.ndarray:
    """A lawn under the sky."""
    horizon = int(rng.integers(10, 28))
    picture = _texture(rng, _jitter(rng, (95, 170, 60)), 8, 10, 10)
    picture += rng.standard_normal((1, SIZE, 1)) * 8
    picture[:horizon] = _sky(rng, horizon)
    return picture


def wooden_floor(rng: np.random.Generator) -> np.ndarray:
    """Horizontal planks with grain and dark joints."""
    plank_height = SIZE / int(rng.integers(5, 8))
    plank = ((np.arange(SIZE) + rng.random() * plank_height) // plank_height).astype(int)
    shade = rng.normal(0, 10, plank.max() + 1)[plank]
    grain = rng.standard_normal((SIZE, 8)).astype(np.float32)
    streaks = np.asarray(Image.fromarray(grain).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    picture = _jitter(rng, (170, 112, 62)) + shade[:, None, None] + streaks[..., None] * 6
    joints = np.concatenate([[True], plank[1:] != plank[:-1]])
    picture[joints] *= 0.6
    for index in range(plank.max() + 1):
        picture[plank == index, int(rng.integers(0, SIZE))] *= 0.65
    return picture


def cobblestones(rng: np.random.Generator) -> np.ndarray:
    """Grey stones: cells around jittered grid points."""
    count = int(rng.integers(6, 9))
    columns, rows = np.meshgrid(np.arange(-1, count + 1), np.arange(-1, count + 2), indexing="ij")
    points = np.stack([columns + (rows % 2) * 0.5, rows], -1).reshape(-1, 2)
    points = (points + rng.normal(0, 0.12, points.shape)) * SIZE / count
    squared = (_COLUMNS[..., None] - points[:, 0]) ** 2 + (_ROWS[..., None] - points[:, 1]) ** 2
    nearest = np.argsort(squared, -1)[..., :2]
    distance = np.sqrt(np.take_along_axis(squared, nearest, -1))
    shade = rng.normal(0, 14, len(points))[nearest[..., 0]]
    picture = _jitter(rng, (135, 132, 130), 6) + shade[..., None]
    picture += rng.standard_normal((SIZE, SIZE, 1)) * 4
    picture[(distance[..., 1] - distance[..., 0]) < 1.3] *= 0.5
    return picture


def fabric(rng: np.random.Generator, colour: Colour) -> np.ndarray:
    """Folded cloth of one colour."""
    angle = rng.random() * np.pi
    across = _COLUMNS * np.cos(angle) + _ROWS * np.sin(angle) + _noise(rng, 20) * 6
    return _jitter(rng, colour, 8) + (np.sin(across / rng.uniform(3, 5)) * 16)[..., None]


def night_sky(rng: np.random.Generator) -> np.ndarray:
    """Dark blue with stars and sometimes a moon."""
    picture = _gradient(_jitter(rng, (8, 10, 40), 5), _jitter(rng, (40, 40, 95), 8))
    for y, x in rng.integers(0, SIZE, (40, 2)):
        picture[y, x] = rng.uniform(170, 255)
    image, draw = _image(picture)
    if rng.random() < 0.6:
        x, y = int(rng.integers(5, 59)), int(rng.integers(4, 18))
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=(245, 240, 200))
    return _array(image)


def city(rng: np.random.Generator) -> np.ndarray:
    """A row of houses with windows behind a street."""
    image, draw = _image(_sky(rng))
    ground = int(rng.integers(48, 54))
    walls = [(120, 130, 150), (150, 110, 100), (95, 105, 125), (165, 160, 150)]
    left = -3
    while left < SIZE:
        width, height = int(rng.integers(7, 14)), int(rng.integers(18, 46))
        top = ground - height
        wall = _fill(rng, walls[int(rng.integers(len(walls)))], 8)
        draw.rectangle([left, top, left + width - 1, ground], fill=wall)
        for y in range(top + 2, ground - 2, 4):
            for x in range(left + 1, left + width - 2, 3):
                lit = (250, 235, 160) if rng.random() < 0.5 else (60, 70, 90)
                draw.rectangle([x, y, x, y + 1], fill=lit)
        left += width
    draw.rectangle([0, ground, SIZE, SIZE], fill=_fill(rng, (85, 85, 90), 5))
    middle = (ground + SIZE) // 2
    for x in range(int(rng.integers(0, 8)), SIZE, 12):
        draw.rectangle([x, middle, x + 6, middle + 1], fill=(235, 225, 150))
    return _array(image)


def mountains(rng: np.random.Generator) -> np.ndarray:
    """Snow-capped peaks above a meadow."""
    image, draw = _image(_sky(rng))
    ground = int(rng.integers(44, 52))
    for _ in range(int(rng.integers(2, 4))):
        x, y = int(rng.integers(0, SIZE)), int(rng.integers(4, 18))
        half, drop = int(rng.integers(22, 34)), (ground - y) * 0.28
        rock = _fill(rng, (115, 115, 135), 8)
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
    draw.rectangle([0, ground, SIZE, SIZE], fill=_fill(rng, (110, 155, 80), 8))
    picture = _array(image)
    picture[ground:] += rng.standard_normal((SIZE - ground, SIZE, 1)) * 6
    return picture


def water(rng: np.random.Generator) -> np.ndarray:
    """Rippled blue water."""
    picture = _gradient(_jitter(rng, (90, 170, 215)), _jitter(rng, (15, 80, 160)))
    phase = (_ROWS + _noise(rng, 10) * 4) / rng.uniform(1.1, 1.8)
    return picture + (np.sin(phase + np.sin(_COLUMNS / 7 + rng.random() * 6)) * 13)[..., None]


def rug(rng: np.random.Generator, field: Colour, border: Colour) -> np.ndarray:
    """A fringed rug seen from above."""
    image, draw = _image(_texture(rng, _jitter(rng, (190, 150, 105), 8), 8, 4, 3))
    margin = int(rng.integers(2, 6))
    far = SIZE - margin
    edge = _fill(rng, border, 8)
    draw.rectangle([margin, margin, far - 1, far - 1], fill=_fill(rng, field, 8))
    draw.rectangle([margin + 3, margin + 3, far - 4, far - 4], outline=edge, width=2)
    for y in range(margin, far, 3):
        draw.line([margin - 2, y, margin, y], fill=edge)
        draw.line([far, y, far + 2, y], fill=edge)
    return _array(image) + rng.standard_normal((SIZE, SIZE, 1)) * 5


def autumn_forest(rng: np.random.Generator) -> np.ndarray:
    """Trunks, and orange leaves above and on the ground."""
    image, draw = _image(_texture(rng, _jitter(rng, (200, 120, 50), 8), 6, 10, 8))
    for _ in range(6):
        x, width = int(rng.integers(0, SIZE)), int(rng.integers(2, 4))
        foot = int(rng.integers(36, 48))
        draw.rectangle([x, 0, x + width, foot], fill=_fill(rng, (85, 60, 45), 6))
    leaves = [(225, 110, 30), (240, 170, 40), (190, 60, 30)]
    for _ in range(70):
        x = int(rng.integers(-3, SIZE))
        y = int(rng.integers(-3, 22)) if rng.random() < 0.7 else int(rng.integers(44, SIZE))
        radius = int(rng.integers(2, 5))
        leaf = _fill(rng, leaves[int(rng.integers(len(leaves)))], 12)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=leaf)
    return _array(image)


def desert(rng: np.random.Generator) -> np.ndarray:
    """Two dunes under a hot sky."""
    horizon = int(rng.integers(20, 30))
    picture = _texture(rng, _jitter(rng, (225, 150, 80)), 10, 8, 4)
    picture[:horizon] = _gradient(
        _jitter(rng, (120, 185, 235)), _jitter(rng, (235, 225, 200)), horizon
    )
    near = horizon + 6 + np.sin(_COLUMNS / 11 + rng.random() * 6) * 5
    picture[near < _ROWS] *= np.array([0.9, 0.86, 0.8])
    far = horizon - 3 + np.sin(_COLUMNS / 14 + rng.random() * 6) * 4
    picture[(far < _ROWS) & (horizon + 3 > _ROWS)] = _jitter(rng, (235, 170, 95), 5)
    return picture


def brick_wall(rng: np.random.Generator) -> np.ndarray:
    """Red bricks in running bond."""
    height = int(rng.integers(6, 9))
    width = height * 2
    offset_x, offset_y = int(rng.integers(0, width)), int(rng.integers(0, height))
    picture = np.full((SIZE, SIZE, 3), (200.0, 190.0, 180.0))
    base = _jitter(rng, (165, 75, 58), 8)
    for row in range(-1, SIZE // height + 2):
        for column in range(-2, SIZE // width + 2):
            top = row * height - offset_y
            left = column * width - offset_x + (width // 2 if row % 2 else 0)
            rows = slice(max(0, top), max(0, top + height - 1))
            columns = slice(max(0, left), max(0, left + width - 1))
            picture[rows, columns] = base + rng.normal(0, 12)
    return picture + rng.standard_normal((SIZE, SIZE, 1)) * 4


def sunset(rng: np.random.Generator) -> np.ndarray:
    """A half-set sun over dark water."""
    horizon = int(rng.integers(36, 46))
    above = _gradient(_jitter(rng, (95, 50, 120)), _jitter(rng, (255, 150, 70)), horizon)
    below = _gradient(_jitter(rng, (190, 90, 80)), _jitter(rng, (50, 30, 70)), SIZE - horizon)
    image, draw = _image(np.concatenate([above, below]))
    x, radius = int(rng.integers(8, 56)), int(rng.integers(6, 10))
    box = [x - radius, horizon - radius, x + radius, horizon + radius]
    draw.pieslice(box, 180, 360, fill=(255, 225, 120))
    return _array(image)


def checkered(rng: np.random.Generator) -> np.ndarray:
    """A red and white tablecloth."""
    cell = int(rng.integers(6, 9))
    offset = int(rng.integers(0, cell))
    tone = (_ROWS + offset) // cell % 2 + (_COLUMNS + offset) // cell % 2
    tones = np.array([[250, 248, 245], [235, 140, 140], [210, 40, 50]], dtype=np.float64)
    return tones[tone] + rng.standard_normal((SIZE, SIZE, 1)) * 4


def plain(rng: np.random.Generator, colour: Colour) -> np.ndarray:
    """A studio background of one colour."""
    tone = _jitter(rng, colour, 7)
    return _gradient(tone, tone * rng.uniform(0.86, 1.0))


_PLAIN_COLOURS: dict[str, Colour] = {
    "white": (248, 248, 248),
    "blue": (70, 130, 225),
    "red": (220, 55, 50),
    "green": (70, 180, 85),
    "yellow": (248, 212, 70),
    "gray": (150, 150, 152),
    "black": (22, 22, 24),
    "orange": (245, 145, 45),
}

SCENES = (
    Scene("beach", beach, ("on the beach",)),
    Scene("snow", snow, ("in the snow",)),
    Scene("jungle", jungle, ("in the jungle",)),
    Scene("grass", grass, ("on the grass", "on top of green grass")),
    Scene("wooden floor", wooden_floor, ("on a wooden floor", "on top of a wooden floor")),
    Scene("cobblestones", cobblestones, ("on a cobblestone street",)),
    Scene(
        "pink fabric",
        partial(fabric, colour=(242, 140, 175)),
        ("on pink fabric", "on top of pink fabric"),
    ),
    Scene("night sky", night_sky, ("in the night sky", "at night")),
    Scene("city", city, ("in the city", "with a city in the background")),
    Scene("mountains", mountains, ("in the mountains", "with a mountain in the background")),
    Scene("water", water, ("on the water", "floating on top of water")),
    Scene(
        "purple rug",
        partial(rug, field=(120, 50, 160), border=(225, 190, 240)),
        ("on a purple rug", "on top of a purple rug"),
    ),
    Scene("autumn forest", autumn_forest, ("in an autumn forest", "with autumn leaves")),
    Scene("desert", desert, ("in the desert",)),
    Scene(
        "brick wall",
        brick_wall,
        ("in front of a brick wall", "with a brick wall in the background"),
    ),
    Scene("sunset", sunset, ("at sunset",)),
    Scene("checkered", checkered, ("on a checkered tablecloth",)),
    *(
        Scene(
            f"{name} background",
            partial(plain, colour=colour),
            (f"on {'an' if name == 'orange' else 'a'} {name} background",),
            weight=0.45,
        )
        for name, colour in _PLAIN_COLOURS.items()
    ),
)


def draw_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene as an 8-bit picture."""
    return np.clip(scene.draw(rng), 0, 255).astype(np.uint8)
