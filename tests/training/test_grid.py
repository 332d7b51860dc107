"""Labelled grids: every image where it belongs, nothing cut off."""

from __future__ import annotations

from PIL import Image

from svfit_diffusion.training.grid import labelled_grid, stacked


def test_tiles_keep_their_colour_place_and_aspect() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 32), "blue")
    picture = labelled_grid([[red, blue], [blue]], ["first", "a label " * 50], ["x", "y"], tile=40)
    counts = {colour: n for n, colour in picture.getcolors(100_000) or []}
    # Scaled flat colours stay flat but for their edges.
    assert counts[(255, 0, 0)] == 40 * 40
    assert counts[(0, 0, 255)] == 2 * 40 * 20
    below = labelled_grid([[red]], ["one"], [], tile=40)
    assert below.height < picture.height
    assert stacked([picture, below]).size == (picture.width, picture.height + below.height)
