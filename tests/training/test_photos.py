"""Photos, captions, crops, and the reproducible stream of examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from svfit_diffusion.errors import DataError
from svfit_diffusion.training.photos import draw_example, load_photos, square


def photo(folder: Path, name: str, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path = folder / name
    Image.new("RGB", size, colour).save(path)
    return path


def test_captions_go_before_the_prompt(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    photo(tmp_path, "b.jpg")
    photo(tmp_path, "c.webp")
    (tmp_path / ".a.png").write_bytes(b"left by some other program")
    (tmp_path / "a.txt").write_text("from a file\n")
    line = {"file_name": "b.jpg", "text": "from the list"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n\n")
    prompts = [p.prompt for p in load_photos(tmp_path, "a photo of sks dog")]
    assert prompts == ["from a file", "from the list", "a photo of sks dog"]


@pytest.mark.parametrize("line", ["{", "[]", '{"file_name": "a.png"}', '"text"'])
def test_bad_metadata_names_the_line(tmp_path: Path, line: str) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match=r"line 2.*file_name"):
        load_photos(tmp_path, "a photo")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image folder"):
        load_photos(tmp_path / "nowhere", "a photo")
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(DataError, match="holds no images"):
        load_photos(tmp_path, "a photo")


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"broken\.png"):
        load_photos(tmp_path, "a photo")


def test_missing_prompt(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    with pytest.raises(DataError, match="instance_prompt"):
        load_photos(tmp_path, "")


def test_orientation_and_transparency(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (4, 8), "red")
    exif = sideways.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    sideways.save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    turned, clear = load_photos(tmp_path, "a photo")
    assert turned.image.size == (8, 4)
    assert clear.image.getpixel((0, 0)) == (255, 255, 255)


def test_square_keeps_the_aspect() -> None:
    """A disc in a wide photo stays a disc, and sits where the crop puts it."""
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste((255, 255, 255), (24, 8, 40, 24))
    pixels = square(wide, 32)
    assert pixels.shape == (3, 32, 32)
    lit = pixels[0] > 0
    assert lit.any(0).sum() == lit.any(1).sum() == 16
    assert square(wide, 32, at=(0.0, 0.5))[0].gt(0).any(0).nonzero().min() == 24
    assert pixels.min() == -1
    assert pixels.max() == 1


def test_every_photo_once_an_epoch_in_changing_order() -> None:
    epochs = [[draw_example(3, 5 * e + i, 5).index for i in range(5)] for e in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_draws_depend_on_seed_position_and_stream_alone() -> None:
    def noise(seed: int, position: int, stream: int) -> torch.Tensor:
        return torch.randn(4, generator=draw_example(seed, position, 5, stream).generator)

    assert torch.equal(noise(0, 7, 0), noise(0, 7, 0))
    keys = [(s, p, k) for s in range(3) for p in range(20) for k in range(2)]
    assert len({tuple(noise(*key).tolist()) for key in keys}) == len(keys)
    flips = sum(draw_example(0, p, 5).flip for p in range(400))
    assert 140 < flips < 260
