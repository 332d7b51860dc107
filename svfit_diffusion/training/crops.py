"""Which part of a photo is trained on, and at what size."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageOps
from torch import Tensor

from svfit_diffusion.families import PhotoSize

_MOST_ASPECT = 2.0


def bucket(photo: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """Height and width for a photo that keeps its shape as far as possible.

    Of all sizes in whole multiples with at most the area of a square, and sides that differ by no
    more than a factor of 2, the one of the most similar shape; of equals, the largest.

    Args:
        photo: width and height in pixels.
        side: of the square.
        multiple: both sides are multiples of it.
    """
    wanted = math.log(photo[0] / photo[1])
    sizes = []
    for height in range(multiple, int(side * _MOST_ASPECT**0.5) + 1, multiple):
        width = min(side * side // height, int(_MOST_ASPECT * height)) // multiple * multiple
        if width and 1 / _MOST_ASPECT <= width / height <= _MOST_ASPECT:
            sizes.append((height, width))
    return min(
        sizes or [(side, side)],
        key=lambda size: (round(abs(math.log(size[1] / size[0]) - wanted), 6), -size[0] * size[1]),
    )


def cut(
    image: Image.Image, target: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)
) -> tuple[Tensor, PhotoSize]:
    """Scale an image to cover a rectangle without distorting it, and crop it to that.

    Args:
        image: RGB, or greyscale.
        target: height and width in pixels.
        at: where the crop lies along the width and the height, 0 to 1; 0.5 is the centre.

    Returns:
        `(channels, height, width)`, float32 in −1..1, and how it was cut.
    """
    height, width = target
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS, centering=at)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    channels = len(fitted.getbands())
    scale = max(width / image.width, height / image.height)
    top = round((image.height * scale - height) * at[1])
    left = round((image.width * scale - width) * at[0])
    size = PhotoSize((image.height, image.width), (top, left), target)
    return pixels.view(height, width, channels).permute(2, 0, 1).float() / 127.5 - 1, size
