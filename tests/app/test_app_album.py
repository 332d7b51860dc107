"""The album: a visitor's own pictures, over sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_server import AppServer, expect
from PIL import Image

from app.album import Album
from app.errors import SettingError
from app.picture import PictureSettings
from app.settings import Limits
from app.visitors import Visitor, acting_as

ANN, BOB = (Visitor(name, "127.0.0.1", f"{name} of/here") for name in ("ann", "bob"))
SMALL = Image.new("RGB", (8, 8))


def drawn(prompt: str, seed: int, **adapters: float) -> PictureSettings:
    return PictureSettings(prompt, seed=seed, adapters=adapters)


def seeds(found: list[tuple[Path, PictureSettings]]) -> list[int]:
    return [settings.seed for _, settings in found]


@pytest.fixture
def album(tmp_path: Path) -> Album:
    album = Album(tmp_path / "pictures", Limits())
    album.keep(SMALL, drawn("a dog on the Beach", 1))
    album.keep(SMALL, drawn("a cat on the beach", 2, rex=1.0))
    album.keep(SMALL, drawn("a dog in the snow", 3))
    return album


def test_pictures_are_found_by_all_of_the_words(album: Album) -> None:
    assert sorted(seeds(album.find())) == [1, 2, 3]
    assert sorted(seeds(album.find("BEACH"))) == [1, 2]
    assert seeds(album.find("beach dog")) == [1]
    assert seeds(album.find("rex")) == [2]
    assert album.find("moon") == []
    assert len(album.find(most=2)) == 2


def test_favourites_last(album: Album, tmp_path: Path) -> None:
    ((path, _),) = album.find("snow")
    assert album.toggle_favourite(path)
    again = Album(tmp_path / "pictures", Limits())
    assert seeds(again.find(favourites_only=True)) == [3]
    assert not again.toggle_favourite(path)
    assert again.find(favourites_only=True) == []


def test_foreign_files_and_damaged_lists_do_no_harm(album: Album) -> None:
    (album.folder / "foreign.png").write_bytes(b"no picture")
    SMALL.save(album.folder / "silent.png")
    for damaged in ("{", "[1, {}]", "[" * 10_000, '"x"'):
        (album.folder / "favourites.json").write_text(damaged)
        assert len(album.find()) == 3
        assert album.find(favourites_only=True) == []


def test_what_is_remembered_of_pictures_is_bounded(
    album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(album.find()) == len(album.find()) == 3
    assert (album._settings.cache_info().misses, album._settings.cache_info().hits) == (3, 3)
    monkeypatch.setattr("app.album._KNOWN", 2)
    small = Album(album.folder, Limits())
    assert len(small.find()) == 3
    assert small._settings.cache_info().currsize == 2


def test_visitors_have_albums_of_their_own(album: Album, tmp_path: Path) -> None:
    with acting_as(ANN):
        own = album.keep(SMALL, drawn("my secret", 4))
        assert seeds(album.find()) == [4]
        assert own.is_relative_to(tmp_path / "pictures")
    with acting_as(BOB):
        assert album.find() == []
        with pytest.raises(SettingError, match="of the album"):
            album.toggle_favourite(own)
    assert 4 not in seeds(album.find())


def test_the_album_of_an_earlier_session(visit: Callable[..., Any], app_server: AppServer) -> None:
    for seed, prompt in ((901, "a walrus on the moon"), (902, "a walrus at sea")):
        app_server.services.album.keep(
            Image.new("RGB", (16, 16), "teal"), PictureSettings(prompt, seed=seed, steps=3)
        )
    page = visit()
    page.click("#generate-album button")
    page.locator("#generate-find input, #generate-find textarea").fill("walrus")
    items = page.locator("#generate-pictures .gallery-item button")
    page.wait_for_function(
        "document.querySelectorAll('#generate-pictures .gallery-item').length === 2"
    )
    assert "walrus" in page.locator("#generate-pictures img").first.get_attribute("alt")
    items.nth(1).click()
    page.locator("#generate-status", has_text="a walrus on the moon · seed 901").wait_for()
    page.click("#generate-like")
    page.locator("#generate-like", has_text="No favourite any more").wait_for()
    page.locator("#generate-favourites input").check()
    page.wait_for_function(
        "document.querySelectorAll('#generate-pictures .gallery-item').length === 1"
    )
    page.click("#generate-reuse")
    page.locator("#generate-status", has_text="Settings restored, seed 901").wait_for()
    expect(page.locator("#generate-prompt textarea")).to_have_value("a walrus on the moon")
