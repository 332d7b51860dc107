"""Intake of uploaded photos: every file becomes a photo or is refused by name, and nothing else."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from app.photos import SMALLEST_SIDE, Crop, CroppedPhoto, take_in, write_squares
from app.settings import Limits
from svfit_diffusion.training.reading import FORMATS


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def reason(file: Path, limits: Limits | None = None) -> str:
    """Why a file is refused."""
    photos, refusals = take_in([file], limits or Limits())
    assert not photos
    (refusal,) = refusals
    assert refusal.name == file.name
    assert str(refusal).startswith(f"{file.name}: ")
    return refusal.reason


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_named_is_read(tmp_path: Path, format: str) -> None:
    (photo,), refusals = take_in([saved(picture(), tmp_path / "x", format=format)], Limits())
    assert not refusals
    assert (photo.image.mode, photo.image.size) == ("RGB", (60, 40))
    red, _, blue = photo.image.getpixel((50, 20))
    assert blue > 200 > 50 > red


def test_faulty_files_are_named_and_the_others_kept(tmp_path: Path) -> None:
    good = saved(picture(), tmp_path / "good.png")
    fake = tmp_path / "fake.jpg"
    fake.write_text("<script>alert(1)</script>")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-40])
    empty = tmp_path / "empty.webp"
    empty.touch()
    photos, refusals = take_in([fake, good, cut, empty], Limits())
    assert [photo.name for photo in photos] == ["good.png"]
    assert [refusal.name for refusal in refusals] == ["fake.jpg", "cut.png", "empty.webp"]
    assert "damaged" in refusals[1].reason
    assert "not a JPEG" in refusals[0].reason and "not a JPEG" in refusals[2].reason


def test_formats_beyond_those_named_are_refused(tmp_path: Path) -> None:
    assert "not a JPEG" in reason(saved(picture(), tmp_path / "x.png", format="PPM"))
    assert "not a JPEG" in reason(saved(picture(), tmp_path / "x.jpg", format="PDF"))


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header promises a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 60_000], ids=["our limit", "Pillow's own"])
def test_bombs_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    def decode(*args: object) -> None:
        raise AssertionError("decoded")

    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_claiming(side, side))
    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert "more than 50 million pixels" in reason(bomb)


def test_limits_on_bytes_count_and_shape(tmp_path: Path) -> None:
    noise = Image.effect_noise((800, 800), 100)
    heavy = saved(noise, tmp_path / "heavy.bmp")
    heavy.write_bytes(heavy.read_bytes() + bytes(2**20))
    assert "at most 1" in reason(heavy, Limits(max_file_megabytes=1))

    photo = saved(picture(), tmp_path / "a.png")
    photos, refusals = take_in([photo] * 3, Limits(max_photos=4), already=2)
    assert len(photos) == 2
    assert "no more than 4" in refusals[0].reason

    small = saved(picture(SMALLEST_SIDE - 1, 100), tmp_path / "small.png")
    assert f"at least {SMALLEST_SIDE}" in reason(small)
    assert "strip" in reason(saved(picture(500, 50), tmp_path / "strip.png"))


def test_photos_are_turned_upright_shown_on_white_and_reduced(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held at 90°
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    files = [
        saved(picture(), tmp_path / "turned.png", exif=turned),
        saved(clear, tmp_path / "clear.png"),
        saved(picture(4000, 3000), tmp_path / "large.jpg"),
    ]
    (upright, white, large), _ = take_in(files, Limits())
    assert upright.image.size == (40, 60)
    assert upright.image.getpixel((20, 5)) == (255, 0, 0)
    assert white.image.getpixel((0, 0)) == (255, 255, 255)
    assert large.image.size == (1365, 1024)


def test_deep_grey_is_not_burnt_out(tmp_path: Path) -> None:
    deep = saved(Image.new("I;16", (40, 40), 128 * 257), tmp_path / "deep.png")
    (photo,), _ = take_in([deep], Limits())
    assert photo.image.getpixel((0, 0)) == (128, 128, 128)
    assert "32 bits" in reason(saved(Image.new("F", (40, 40)), tmp_path / "deep.tif"))


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [picture(), picture().rotate(90)]
    file = tmp_path / "moving.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert "2 pictures in one file" in reason(file)


@pytest.mark.parametrize("format", [*FORMATS, "MPO"])
def test_damaged_files_never_raise(tmp_path: Path, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    options = {"exif": exif} if format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") else {}
    picture().save(buffer, format, **options)
    draw = random.Random(format)
    file = tmp_path / "x.jpg"
    for _ in range(60):
        data = bytearray(buffer.getvalue())
        for _ in range(draw.choice([1, 4, 20])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data[: draw.choice([None, draw.randrange(len(data))])])
        photos, refusals = take_in([file], Limits())
        assert len(photos) + len(refusals) == 1


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(), (10, 0, 50, 40)),
        (Crop(x=0), (0, 0, 40, 40)),
        (Crop(x=1, y=0.3), (20, 0, 60, 40)),
        (Crop(x=1, y=1, zoom=4), (50, 30, 60, 40)),
        (Crop(x=7, y=-3, zoom=99), (50, 0, 60, 10)),
        (Crop(zoom=0), (10, 0, 50, 40)),
    ],
)
def test_crops_are_squares_inside_the_photo(crop: Crop, box: tuple[int, ...]) -> None:
    assert crop.box((60, 40)) == box


def test_squares_are_what_the_frame_shows(tmp_path: Path) -> None:
    photo = CroppedPhoto("../../evil.png", picture()).with_crop(Crop(x=1, zoom=2))
    assert photo.square().size == (20, 20)
    framed = photo.framed()
    assert framed.getpixel((50, 20)) == (0, 0, 255)
    assert framed.getpixel((5, 20))[0] < 100
    write_squares([photo.square()], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00.png"]
    assert Image.open(tmp_path / "00.png").getcolors() == [(400, (0, 0, 255))]
