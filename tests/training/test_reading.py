"""Pictures as cameras, phones, scanners and programs write them: read right, or refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from svfit_diffusion.errors import DataError
from svfit_diffusion.training import reading
from svfit_diffusion.training.reading import read_picture

GREY = 128


def half_bright(mode: str, size: tuple[int, int] = (32, 16)) -> Image.Image:
    """Black on the left, grey on the right; brighter above, so that every turn shows."""
    image = Image.new("L", size)
    image.paste(GREY, (size[0] // 2, 0, *size))
    image.paste(255, (size[0] // 2, 0, size[0], size[1] // 2))
    if mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * 257).convert(mode)
    return image.convert(mode)


def values(image: Image.Image) -> list[int]:
    """The grey levels of an RGB picture that is grey, row by row."""
    red, green, blue = (list(band.tobytes()) for band in image.split())
    assert red == green == blue
    return red


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_of_any_depth_is_upright(
    tmp_path: Path, mode: str, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    half_bright(mode).save(tmp_path / f"x{suffix}", exif=exif)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = half_bright("RGB")
    if orientation > 1:
        expected = expected.transpose(turn[orientation])
    found = read_picture(tmp_path / f"x{suffix}")
    assert (found.mode, found.size) == ("RGB", expected.size)
    assert values(found) == values(expected)


def tiff(levels: list[int], bits: int, photometric: int, order: str = "<") -> bytes:
    """A row of grey, packed as scanners do."""
    if bits == 16:
        data = struct.pack(f"{order}{len(levels)}H", *levels)
    else:
        packed = "".join(f"{level:0{bits}b}" for level in levels)
        data = int(packed, 2).to_bytes(len(packed) // 8, "big")
    tags = [
        *((256, len(levels)), (257, 1), (258, bits), (259, 1), (262, photometric)),
        *((273, 8), (277, 1), (278, 1), (279, len(data))),
    ]
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "photometric", "order", "expected"),
    [
        (16, 1, "<", [0, 64, 128, 255]),
        (16, 1, ">", [0, 64, 128, 255]),
        (16, 0, "<", [255, 191, 127, 0]),  # white is zero
        (12, 1, "<", [0, 64, 128, 255]),
    ],
)
def test_deep_grey_of_scanners(
    tmp_path: Path, bits: int, photometric: int, order: str, expected: list[int]
) -> None:
    white = 2**bits - 1
    levels = [round(white * level / 255) for level in (0, 64, 128, 255)]
    (tmp_path / "x.tif").write_bytes(tiff(levels, bits, photometric, order))
    assert values(read_picture(tmp_path / "x.tif")) == expected


def deep_png(colour: int, pixel: tuple[int, ...]) -> bytes:
    """One pixel of 16 bits per channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(f">{len(pixel)}H", *pixel))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "pixel", "expected"),
    [
        (0, (GREY * 257,), (GREY, GREY, GREY)),
        (2, (65535, 0, GREY * 257), (255, 0, GREY)),
        (4, (GREY * 257, 65535), (GREY, GREY, GREY)),
        (4, (0, 0), (255, 255, 255)),  # nothing but transparency, on white
        (6, (65535, 0, 0, 65535), (255, 0, 0)),
    ],
)
def test_deep_png(
    tmp_path: Path, colour: int, pixel: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    (tmp_path / "x.png").write_bytes(deep_png(colour, pixel))
    assert read_picture(tmp_path / "x.png").getpixel((0, 0)) == expected


def test_palettes_and_transparency_are_shown_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "red.png")
    palette.save(tmp_path / "clear.gif", transparency=1)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.tif")
    assert read_picture(tmp_path / "red.png").getpixel((0, 0)) == (255, 0, 0)
    for name in ("clear.gif", "la.png", "bits.tif"):
        assert read_picture(tmp_path / name).getpixel((0, 0)) == (255, 255, 255)


def test_ink_is_seen_as_printed(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = read_picture(tmp_path / "x.jpg").getpixel((0, 0))
    assert red > 240 and green < 15 and blue < 15


def swapped_profile() -> bytes:
    """sRGB under another name, whose red is blue and whose blue is red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def test_colours_of_a_profile_are_shown_in_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.new("RGB", (4, 4), (200, 20, 20))
    picture.save(tmp_path / "same.png", icc_profile=srgb)
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    for name in ("same.png", "damaged.png"):
        assert read_picture(tmp_path / name).getpixel((0, 0)) == (200, 20, 20)
    for mode in ("RGB", "RGBA", "P"):
        picture.convert(mode).save(tmp_path / "swapped.png", icc_profile=swapped_profile())
        red, _, blue = read_picture(tmp_path / "swapped.png").getpixel((0, 0))
        assert abs(blue - 200) < 5 and red < 30


def test_avif_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half_bright("RGB", (64, 32)).save(tmp_path / "x.avif", exif=exif, quality=95)
    found = read_picture(tmp_path / "x.avif")
    # Turned by 90°: what was on the right is below, and what was above is on the right.
    assert found.size == (32, 64)
    levels = [found.convert("L").getpixel(place) for place in ((16, 8), (8, 56), (24, 56))]
    assert [round(level / GREY) for level in levels] == [0, 1, 2]


@pytest.mark.skipif(not reading.reads_heic(), reason="pillow-heif is not installed")
def test_heic_is_read_where_its_decoder_is(tmp_path: Path) -> None:
    half_bright("RGB", (64, 32)).save(tmp_path / "x.heic", quality=95)
    (tmp_path / "x.heic").rename(tmp_path / "x.jpg")  # as some phones name it
    found = read_picture(tmp_path / "x.jpg")
    levels = [found.convert("L").getpixel(place) for place in ((8, 16), (48, 8), (48, 24))]
    assert [round(level / GREY) for level in levels] == [0, 2, 1]


def test_heic_without_its_decoder_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "reads_heic", lambda: False)
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(DataError, match=r"x\.jpg.*pip install pillow-heif"):
        read_picture(tmp_path / "x.jpg")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_several_pictures_in_one_are_refused(tmp_path: Path, suffix: str) -> None:
    first, second = half_bright("RGB"), half_bright("RGB").rotate(180)
    first.save(tmp_path / f"x{suffix}", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"x\..*2 pictures in one file"):
        read_picture(tmp_path / f"x{suffix}")


def test_a_phones_second_picture_is_no_matter(tmp_path: Path) -> None:
    picture = half_bright("RGB")
    picture.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[picture], quality=100)
    assert read_picture(tmp_path / "x.jpg").size == picture.size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG"),  # which Pillow would hand to Ghostscript
        (b"<html>", "not a JPEG"),
        (tiff([0], 16, 0, ">"), "a TIFF of a rare kind"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.png'.*{message}"):
        read_picture(tmp_path / "x.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP"])
def test_a_file_cut_short_is_named(tmp_path: Path, format: str) -> None:
    Image.effect_noise((64, 64), 100).convert("RGB").save(tmp_path / "x.png", format)
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"x\.png': "):
        read_picture(tmp_path / "x.png")


def test_more_than_eight_bits_of_another_kind_are_refused(tmp_path: Path) -> None:
    for mode in ("F", "I"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.tif")
        with pytest.raises(DataError, match=rf"{mode}\.tif.*32 bits"):
            read_picture(tmp_path / f"{mode}.tif")


def test_a_missing_file_is_no_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: No such file"):
        read_picture(tmp_path / "x.png")
