"""PNGs that carry settings: a faithful round trip, and nothing to fear from foreign files."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.errors import UploadError
from app.picture import PictureSettings
from app.png_metadata import KEY, read_settings, save_picture
from app.settings import Limits

LIMITS = Limits()
SETTINGS = PictureSettings(
    'ein Foto von sks Hündchen 🐶 "im Schnee"',
    "blurry",
    {"rex": -0.35, "blue_car": 1.2},
    17,
    3.5,
    72,
    64,
    seed=4_000_000_000,
    scheduler="Euler",
)


def png(path: Path, text: str, key: str = KEY) -> Path:
    chunks = PngInfo()
    chunks.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    image = Image.effect_noise((16, 16), 50).convert("RGB")
    path = save_picture(tmp_path / "new", image, SETTINGS)
    assert read_settings(path, LIMITS) == SETTINGS
    assert Image.open(path).tobytes() == image.tobytes()


def test_every_picture_gets_a_file_of_its_own(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    assert len({save_picture(tmp_path, image, SETTINGS) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not JSON",
        "[]",
        "null",
        '"prompt"',
        "{}",
        '{"prompt": 7}',
        '{"prompt": "x", "steps": 1e999}',
        '{"prompt": "x", "guidance_scale": NaN}',
        '{"prompt": "x", "seed": ' + "9" * 5000 + "}",
        '{"prompt": "x", "adapters": {"../../etc/passwd": "1"}}',
        '{"prompt": "\\ud800"}',
        "[" * 100_000,
        '{"prompt": "x", "adapters": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"prompt": "' + "x" * 500_000 + '"}',
    ],
    ids=lambda text: text[:30],
)
def test_settings_that_cannot_be_used_are_refused_in_one_sentence(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(UploadError) as refusal:
        read_settings(png(tmp_path / "a.png", text), LIMITS)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_a_picture_of_another_program_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UploadError, match="carries no settings"):
        read_settings(png(tmp_path / "other.png", "{}", key="parameters"), LIMITS)


def test_what_is_no_png_is_refused(tmp_path: Path) -> None:
    fake, jpeg, cut = tmp_path / "fake.png", tmp_path / "jpeg.png", tmp_path / "cut.png"
    fake.write_text("<svg onload='alert(1)'/>")
    Image.new("RGB", (8, 8)).save(jpeg, format="JPEG")
    cut.write_bytes(png(tmp_path / "whole.png", '{"prompt": "x"}').read_bytes()[:30])
    for path in (fake, jpeg, cut):
        with pytest.raises(UploadError, match="no readable PNG"):
            read_settings(path, LIMITS)


def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    def header(side: int) -> bytes:
        size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)

    pixels = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    inflating = KEY.encode() + b"\0\0" + zlib.compress(b" " * 8 * 2**20)
    (tmp_path / "text.png").write_bytes(header(8) + chunk(b"zTXt", inflating) + pixels)
    (tmp_path / "wide.png").write_bytes(header(100_000) + pixels)
    for name in ("text.png", "wide.png"):
        with pytest.raises(UploadError):
            read_settings(tmp_path / name, LIMITS)


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", json.dumps({"prompt": "x"}))
    with path.open("ab") as file:
        file.write(b"\0" * 2**20)
    with pytest.raises(UploadError, match="larger"):
        read_settings(path, Limits(max_file_megabytes=1))
