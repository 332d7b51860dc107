"""Photos take a bounded amount of memory: of one visitor, of all, and while they are decoded."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import photos
from app.photos import CroppedPhoto, take_in
from app.settings import Limits
from app.visitors import Visitor, acting_as

LIMITS = Limits(max_visitor_photo_megabytes=6, max_all_photo_megabytes=14)
_SIDE = 1024  # 4 MiB decoded


def picture(folder: Path, number: int) -> Path:
    path = folder / f"{number}.png"
    Image.new("RGB", (_SIDE, _SIDE), (number, 0, 0)).save(path)
    return path


def visitor(name: str, address: str | None = None) -> Visitor:
    return Visitor(name, address or f"of {name}", name)


def taken(
    name: str, files: list[Path], address: str | None = None
) -> tuple[list[CroppedPhoto], list[str]]:
    with acting_as(visitor(name, address)):
        accepted, refusals = take_in(files, LIMITS)
    return accepted, [refusal.reason for refusal in refusals]


def test_a_picture_named_often_is_held_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    read = photos._read
    monkeypatch.setattr(photos, "_read", lambda *args: (decoded.append(args), read(*args))[1])
    one = picture(tmp_path, 1)
    same = tmp_path / "another name.png"
    same.write_bytes(one.read_bytes())
    accepted, reasons = taken("ann", [one, same] * 10)
    assert len(accepted) == 20 and not reasons
    assert len(decoded) == 1 and len({id(photo.image) for photo in accepted}) == 1
    assert accepted[1].name == "another name.png"


def test_one_visitor_holds_so_much_and_all_together_too(tmp_path: Path) -> None:
    files = [picture(tmp_path, number) for number in range(20)]
    ann, reasons = taken("ann", files[:4])
    assert len(ann) == 2 and set(reasons) == {"you have as many photos here as one visitor may"}
    bob, _ = taken("bob", files[4:8])
    nobody, reasons = taken("carl", files[8:])
    assert len(bob) == 2 and not nobody and "as many photos as it can" in reasons[0]
    again, reasons = taken("ann", files[:2])
    assert len(again) == 2 and not reasons, "what is held already takes no more"
    del ann, again
    gc.collect()
    assert len(taken("carl", files[8:])[0]) == 2, "what nobody uses is not held"


def test_cookies_of_ones_own_making_bring_no_more_photos(tmp_path: Path) -> None:
    files = [picture(tmp_path, number) for number in range(6)]
    first, _ = taken("first", files[:2], "one address")
    second, reasons = taken("second", files[2:4], "one address")
    assert len(first) == 2 and not second and "from where you are" in reasons[0]
    assert len(taken("ann", files[4:])[0]) == 2, "there is room for others"


def test_one_file_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = most = 0
    read = photos._read
    together = threading.Barrier(4)

    def counting(*args: object) -> Image.Image:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        photo = read(*args)
        under_way -= 1
        return photo

    monkeypatch.setattr(photos, "_read", counting)
    files = [picture(tmp_path, number) for number in range(4)]

    def visit(file: Path) -> None:
        together.wait(60)
        assert taken(file.name, [file])[0] or True

    with ThreadPoolExecutor(4) as visitors:
        list(visitors.map(visit, files))
    assert most == 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_large_picture_is_reduced_before_it_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    ramp = Image.linear_gradient("L").resize((4200, 4500), Image.Resampling.BILINEAR)
    channels = len(Image.new(mode, (1, 1)).getbands())
    opaque = Image.new("L", ramp.size, 255)
    bands = [ramp] * channels if mode in ("L", "RGB") else [ramp] * (channels - 1) + [opaque]
    path = tmp_path / "large.png"
    (Image.merge(mode, bands) if channels > 1 else ramp).save(path, compress_level=1)
    worked_on = []
    rgb = photos.rgb
    monkeypatch.setattr(photos, "rgb", lambda image: (worked_on.append(image.size), rgb(image))[1])
    (photo,), _ = take_in([path], Limits())
    assert worked_on == [(2100, 2250)]
    assert photo.image.size == (1024, round(4500 * 1024 / 4200))
    direct = ramp.resize(photo.image.size, Image.Resampling.LANCZOS)
    # Averages of pixels, rounded once more on the way.
    difference = np.asarray(photo.image, int)[..., 0] - np.asarray(direct, int)
    assert np.abs(difference).max() <= 1
