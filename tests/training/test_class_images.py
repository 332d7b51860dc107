"""Class images belong to a prompt and a base; the user's own belong to all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from svfit_diffusion.training.base import BaseSource
from svfit_diffusion.training.class_images import (
    class_photos,
    generate_class_images,
    missing_class_images,
)
from svfit_diffusion.training.folders import image_files


class Pipe:
    """Counts what it is asked to draw."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def __call__(self, prompt: list[str], generator: list[Any], **arguments: Any) -> Any:
        self.drawn += prompt
        return SimpleNamespace(images=[Image.new("RGB", (8, 8), "red") for _ in prompt])


def draw(folder: Path, prompt: str, base: str = "base", count: int = 3) -> int:
    """How many images were drawn to fill the folder up."""
    pipe = Pipe()
    generate_class_images(
        pipe, folder, prompt, count, {}, batch_size=2, seed=5, base=base, show_progress=False
    )
    assert set(pipe.drawn) <= {prompt}
    return len(pipe.drawn)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_prompt_or_base_has_its_own(tmp_path: Path) -> None:
    assert draw(tmp_path, "a dog") == 3
    first = contents(tmp_path)
    assert draw(tmp_path, "a dog") == 0
    assert missing_class_images(tmp_path, "a cat", "base", 3) == 3
    assert draw(tmp_path, "a cat") == 3
    assert draw(tmp_path, "a dog", base="other") == 3
    assert len(image_files(tmp_path)) == 9
    assert {name: contents(tmp_path)[name] for name in first} == first
    used = [
        {photo.path.name for photo in class_photos(tmp_path, *whose, 100)}
        for whose in (("a dog", "base"), ("a cat", "base"), ("a dog", "other"))
    ]
    assert used[0] == set(first)
    assert len(set.union(*used)) == 9


@pytest.mark.parametrize("name", ["mine.jpg", "class_0000.png", "class_portrait.png", "zebra.png"])
def test_own_files_count_whatever_their_names(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8), "blue").save(tmp_path / name)
    own = contents(tmp_path)
    assert missing_class_images(tmp_path, "a dog", "base", 3) == 2
    assert draw(tmp_path, "a dog") == 2
    assert draw(tmp_path, "a cat") == 2
    assert contents(tmp_path)[name] == own[name]
    # They are not those that a limit cuts off.
    assert [photo.path.name for photo in class_photos(tmp_path, "a dog", "base", 1)] == [name]


def test_own_files_added_later_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    draw(tmp_path, "a dog")
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"zebra{number}.png")
    assert missing_class_images(tmp_path, "a dog", "base", 3) == 0
    assert draw(tmp_path, "a dog") == 0
    names = [photo.path.name for photo in class_photos(tmp_path, "a dog", "base", 3)]
    assert names[:2] == ["zebra0.png", "zebra1.png"]


def test_each_says_what_it_was_drawn_for(tmp_path: Path) -> None:
    draw(tmp_path, "a dog")
    for number, path in enumerate(image_files(tmp_path)):
        with Image.open(path) as picture:
            about = json.loads(picture.text["svfit"])
        assert about == {"prompt": "a dog", "base": "base", "seed": 6 + number}


def test_a_base_is_the_same_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    names = ("base", "./base", str(tmp_path / "base"))
    assert len({BaseSource(name).identity for name in names}) == 1
    assert BaseSource("hub/base").identity != BaseSource("hub/base", "v2").identity
