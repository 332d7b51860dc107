"""Crops: undistorted, where they are wanted, of fitting sizes."""

from __future__ import annotations

import pytest
from PIL import Image

from svfit_diffusion.training.crops import bucket, cut


def test_square_keeps_the_aspect() -> None:
    """A disc in a wide photo stays a disc, and sits where the crop puts it."""
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste((255, 255, 255), (24, 8, 40, 24))
    pixels = cut(wide, (32, 32))[0]
    assert pixels.shape == (3, 32, 32)
    lit = pixels[0] > 0
    assert lit.any(0).sum() == lit.any(1).sum() == 16
    assert cut(wide, (32, 32), at=(0.0, 0.5))[0][0].gt(0).any(0).nonzero().min() == 24
    assert pixels.min() == -1
    assert pixels.max() == 1


def test_a_crop_says_how_it_was_cut() -> None:
    _, size = cut(Image.new("RGB", (200, 100)), (64, 32), at=(1.0, 0.0))
    assert size.original == (100, 200)
    assert size.target == (64, 32)
    assert size.top_left == (0, 96)  # resized to 128 × 64, of which the last 32 columns are taken


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((1000, 1000), (1024, 1024)),
        ((1600, 900), (768, 1344)),
        ((900, 1600), (1344, 768)),
        ((4000, 100), (704, 1408)),  # no longer than twice as wide
        ((3, 2), (832, 1216)),
    ],
)
def test_buckets_have_the_photos_shape_and_no_more_than_the_area(
    photo: tuple[int, int], expected: tuple[int, int]
) -> None:
    found = bucket(photo, 1024, 64)
    assert found == expected
    assert found[0] * found[1] <= 1024 * 1024


def test_a_bucket_of_the_smallest_size() -> None:
    assert bucket((10, 100), 16, 16) == (16, 16)
