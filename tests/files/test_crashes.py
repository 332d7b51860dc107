"""Kill a process at every change of a file it makes: what was there is whole, or what is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crash
import pytest
import torch
from PIL import Image

from svfit_diffusion.files.adapter import Adapter, read_adapter, write_adapter
from svfit_diffusion.files.atomic import clean_up, remove_folder, write_folder_atomically
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.cache import load_bases, read_base
from svfit_diffusion.spectrum.stored import leftovers, stored_bases
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.folders import image_files


def adapter_of(value: float) -> Adapter:
    return Adapter({"unet": {"a.to_q": torch.full((50,), value)}}, AdapterMetadata())


def values(path: Path) -> float:
    (delta,) = read_adapter(path).deltas["unet"].values()
    assert torch.equal(delta, delta[0].expand(50))
    return float(delta[0])


def test_an_adapter_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter_of(1.0))
    seen = []
    for _ in crash.moments(lambda: write_adapter(path, adapter_of(2.0))):
        seen.append(values(path))
        clean_up(tmp_path, path.name)
        assert list(tmp_path.iterdir()) == [path]
        write_adapter(path, adapter_of(1.0))
    assert seen == sorted(seen) and set(seen) == {1.0, 2.0}
    assert values(path) == 2.0


def test_a_first_adapter_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    seen = []
    for _ in crash.moments(lambda: write_adapter(path, adapter_of(2.0))):
        seen.append(path.exists() and values(path))
        shutil.rmtree(path.parent, ignore_errors=True)
    assert set(seen) == {False, 2.0}
    assert values(path) == 2.0


def test_a_folder_is_the_old_or_the_new_one_after_cleaning_up(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def write(text: str) -> None:
        def fill(folder: Path) -> None:
            for name in ("a", "b"):
                (folder / name).write_text(text)

        write_folder_atomically(path, fill)

    write("old")
    seen = []
    for _ in crash.moments(lambda: write("new")):
        clean_up(tmp_path, "folder")
        assert list(tmp_path.iterdir()) == [path]
        (text,) = {(path / name).read_text() for name in ("a", "b")}
        seen.append(text)
        write("old")
    assert set(seen) == {"old", "new"}


def test_a_removed_folder_is_whole_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def write() -> None:
        path.mkdir()
        for name in ("a", "b"):
            (path / name).write_text(name)

    write()
    seen = []
    for _ in crash.moments(lambda: remove_folder(path)):
        seen.append(len(list(path.iterdir())) if path.exists() else 0)
        clean_up(tmp_path, "folder")
        assert list(tmp_path.iterdir()) == [path] * (seen[-1] > 0)
        if not path.exists():
            write()
    assert set(seen) == {2, 0}


def test_a_cache_serves_the_right_bases(tmp_path: Path) -> None:
    weights = {"a": torch.randn(8, 6, generator=torch.Generator().manual_seed(0))}
    weights["b"] = weights["a"].mT.contiguous() * 2
    base = read_base(weights)
    good = load_bases(base, show_progress=False, cache=tmp_path / "good")
    folder, found = tmp_path / "cache", set()
    for _ in crash.moments(lambda: load_bases(base, show_progress=False, cache=folder)):
        found.add(len(stored_bases(folder)))
        bases = load_bases(base, show_progress=False, cache=folder)
        for path, basis in bases.items():
            assert torch.equal(basis.u, good[path].u) and torch.equal(basis.v, good[path].v)
        ours = {file.path for file in stored_bases(folder)}
        assert len(ours) == 2
        # What is half written is known as such, and goes in an hour, when next something is kept.
        halves = set(folder.iterdir()) - ours
        for half in halves:
            old = half.stat().st_mtime - 2 * 60 * 60
            os.utime(half, (old, old))
        assert set(leftovers(folder)) == halves
        ours.pop().unlink()
        load_bases(base, show_progress=False, cache=folder)
        assert set(folder.iterdir()) == {file.path for file in stored_bases(folder)}
        shutil.rmtree(folder)
    assert found == {0, 1, 2}


def draw(prompt: list[str], generator: list[torch.Generator], size: int) -> Any:
    """A pipeline that draws squares of a colour that its seed decides."""
    colours = [tuple(torch.randint(256, (3,), generator=g).tolist()) for g in generator]
    return SimpleNamespace(images=[Image.new("RGB", (size, size), c) for c in colours])


def generate(folder: Path) -> None:
    options = {"batch_size": 2, "seed": 5, "show_progress": False}
    generate_class_images(draw, folder, "a dog", 5, {"size": 8}, **options)


def test_class_pictures_are_whole_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path / "good")
    good = {path.name: path.read_bytes() for path in image_files(tmp_path / "good")}
    monkeypatch.setattr("svfit_diffusion.training.class_images._HOUR", 0)
    folder, found = tmp_path / "pictures", set()
    for _ in crash.moments(lambda: generate(folder)):
        drawn = image_files(folder) if folder.exists() else []
        assert all(path.read_bytes() == good[path.name] for path in drawn)
        found.add(len(drawn))
        generate(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == good
        shutil.rmtree(folder)
    assert found == {0, 1, 2, 3, 4, 5}
