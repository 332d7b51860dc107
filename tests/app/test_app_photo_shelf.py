"""Photos over a reload: for the browser that has the key, as long as the uploads lie there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app.photo_shelf import PhotoShelf
from app.photos import Crop, CroppedPhoto, take_in
from app.settings import Limits
from app.visitors import Visitor, acting_as


@pytest.fixture
def photos(tmp_path: Path) -> list[CroppedPhoto]:
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    for file in files:
        Image.new("RGB", (40, 40), file.stem).save(file)
    taken, refusals = take_in(files, Limits())
    assert not refusals
    return [taken[0].with_crop(Crop(x=1, zoom=2)), taken[1].with_caption("sks dog asleep")]


def test_photos_come_back_with_their_crops_and_captions(photos: list[CroppedPhoto]) -> None:
    shelf = PhotoShelf(Limits())
    key = shelf.key(None)
    assert shelf.key(key) == key
    shelf.put(key, photos)
    assert shelf.photos(key) == photos
    assert photos[0].file is not None
    photos[0].file.unlink()
    assert shelf.photos(key) == photos[1:]


def test_a_key_is_given_by_the_server_and_opens_nothing_else(photos: list[CroppedPhoto]) -> None:
    shelf = PhotoShelf(Limits())
    shelf.put(shelf.key(None), photos)
    for guess in ("", "guess", None, ["guess"], {"key": 1}):
        shelf.put(guess, photos)
        assert shelf.photos(guess) == []
        assert shelf.key(guess) not in (guess, shelf.key(guess))


def test_drafts_longest_untouched_are_forgotten(
    photos: list[CroppedPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.photo_shelf._DRAFTS", 2)
    shelf = PhotoShelf(Limits())
    first, second = shelf.key(None), shelf.key(None)
    for key in (second, first):
        shelf.put(key, photos)
    shelf.key(None)
    assert shelf.photos(first) == photos and shelf.photos(second) == []


def test_nobody_opens_or_crowds_out_anothers(
    photos: list[CroppedPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.photo_shelf._OWN_DRAFTS", 3)
    shelf = PhotoShelf(Limits())
    ann, bob = (Visitor(name, "", name) for name in ("ann", "bob"))
    with acting_as(ann):
        key = shelf.key(None)
        shelf.put(key, photos)
    with acting_as(bob):
        assert shelf.photos(key) == [] and shelf.key(key) != key
        shelf.put(key, [])
        several = [shelf.key(None) for _ in range(10)]
        for own in several:
            shelf.put(own, photos)
        assert [bool(shelf.photos(own)) for own in several] == [False] * 7 + [True] * 3
    with acting_as(ann):
        assert shelf.photos(key) == photos


def test_many_cookies_of_one_address_crowd_out_nobody_elsewhere(
    photos: list[CroppedPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.photo_shelf._DRAFTS", 4)
    shelf = PhotoShelf(Limits())
    with acting_as(Visitor("ann", "10.0.0.1", "ann")):
        key = shelf.key(None)
        shelf.put(key, photos)
    for number in range(10):
        with acting_as(Visitor(f"crowd {number}", "10.0.0.2", "")):
            shelf.put(shelf.key(None), photos)
    with acting_as(Visitor("ann", "10.0.0.1", "ann")):
        assert shelf.photos(key) == photos and shelf.key(key) == key
