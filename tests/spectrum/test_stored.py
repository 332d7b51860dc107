"""What lies in the cache's folder, ours and others', and what may go from it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import change, empty, garble_header, truncate
from safetensors.torch import save_file

from svfit_diffusion.spectrum import room, stored
from svfit_diffusion.spectrum.basis import as_matrix
from svfit_diffusion.spectrum.basis_file import FORMAT, basis_bytes, basis_path, mark_used
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases, missing_bases, read_base
from svfit_diffusion.spectrum.stored import leftovers, remove, size_of, stored_bases

DAY = 24 * 60 * 60


def make_base(seed: int = 0) -> BaseWeights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"square": (8, 8), "tall": (12, 8), "kernel": (6, 3, 3, 3)}
    return read_base({name: torch.randn(s, generator=generator) for name, s in shapes.items()})


@pytest.fixture
def folder(empty_cache: Path) -> Path:
    """A cache with the bases of `make_base()`."""
    load_bases(make_base(), show_progress=False)
    return empty_cache


def set_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_bases_are_listed_with_what_can_be_known(folder: Path) -> None:
    found = stored_bases(folder)
    assert {file.digest for file in found} == set(make_base().digests.values())
    for file in found:
        assert file.path == basis_path(folder, file.digest)
        assert file.size == file.path.stat().st_size == size_of(file.path)
        assert (file.format, file.is_old) == (FORMAT, False)
        assert abs(time.time() - file.used) < 600


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    assert stored_bases(tmp_path / "absent") == leftovers(tmp_path / "absent") == []


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        stored_bases(tmp_path / "file")


@pytest.mark.parametrize(
    ("format", "is_old"),
    [("svfit-basis-3", True), ("svfit-basis-10", False), (FORMAT, False)],
)
def test_formats_are_told_apart(format: str, is_old: bool, folder: Path) -> None:
    path = stored_bases(folder)[0].path
    change(path, {"format": format})
    file = stored_bases(folder)[0]
    assert (file.format, file.is_old) == (format, is_old)


@pytest.mark.parametrize("damage", [truncate, empty, garble_header])
def test_what_is_damaged_is_still_ours(damage: Any, folder: Path) -> None:
    path = stored_bases(folder)[0].path
    damage(path)
    file = stored_bases(folder)[0]
    assert file.path == path
    assert file.format == (FORMAT if damage is truncate else None)
    assert not file.is_old


def foreign_things(folder: Path) -> list[Path]:
    """What others could have put into the folder, ours by no more than a part of its name."""
    digest = "ab" * 32
    others = [
        folder / "notes.txt",
        folder / "lora.safetensors",
        folder / f"{digest[:-1]}.safetensors",
        folder / f"{digest.upper()}.safetensors",
        folder / f"{digest}.safetensors.bak",
        folder / f".{digest}.safetensors.swp",
        folder / f".{digest}.bin.abcd1234.tmp",
        folder / ".lora.safetensors.abcd1234.tmp",
        folder / ".pull.tmp",
    ]
    for path in others:
        path.write_text("mine")
    hashed = basis_path(folder, digest)  # a model in a folder that names files by their hash
    save_file({"lora.weight": torch.ones(3)}, hashed, {"format": "pt"})
    unnamed = basis_path(folder, "cd" * 32)
    save_file({"lora.weight": torch.ones(3)}, unnamed)
    directory = basis_path(folder, "ef" * 32)
    directory.mkdir()
    (directory / "inside").write_text("mine")
    target = folder.parent / "elsewhere.safetensors"
    target.write_bytes(stored_bases(folder)[0].path.read_bytes())
    link = basis_path(folder, "01" * 32)
    link.symlink_to(target)
    linked_folder = folder / ".pull.abcd1234.tmp"
    (folder.parent / "mine").mkdir()
    (folder.parent / "mine" / "inside").write_text("mine")
    linked_folder.symlink_to(folder.parent / "mine")
    broken = basis_path(folder, "23" * 32)
    broken.symlink_to(folder / "nowhere")
    return [*others, hashed, unnamed, directory, target, link, linked_folder, broken]


def test_what_is_not_ours_is_not_listed(folder: Path) -> None:
    own = stored_bases(folder)
    for path in foreign_things(folder):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert stored_bases(folder) == own
    assert leftovers(folder) == []


def test_leftovers_are_those_that_nobody_writes_any_more(folder: Path) -> None:
    digest = next(iter(make_base().digests.values()))
    old, new = (folder / f".{digest}.safetensors.{end}.tmp" for end in ("abcd_123", "efgh5678"))
    pulled, pulling = folder / ".pull.abcd1234.tmp", folder / ".pull.efgh5678.tmp"
    for path in (old, new):
        path.write_bytes(b"x" * 10)
    for path in (pulled, pulling):
        (path / "bases").mkdir(parents=True)
        (path / "bases" / "part").write_bytes(b"x" * 1000)
    for path in (old, pulled / "bases" / "part", pulled / "bases", pulled, pulling):
        set_age(path, 2 * 60 * 60)
    assert leftovers(folder) == [old, pulled]  # in `pulling` a file has just grown
    assert size_of(old) == 10
    assert 1000 <= size_of(pulled) < 100_000  # folders count as the file system says
    for path in leftovers(folder):
        remove(path)
    assert not old.exists() and not pulled.exists()
    assert new.exists() and pulling.exists()


def test_removing_what_is_gone_is_no_error(folder: Path) -> None:
    path = stored_bases(folder)[0].path
    remove(path)
    remove(path)
    assert size_of(path) == 0


def test_a_folder_that_vanishes_while_it_is_listed_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = stored_bases(folder)
    read = stored.read_metadata

    def gone(path: Path) -> Any:
        path.unlink()
        return read(path)

    monkeypatch.setattr(stored, "read_metadata", gone)
    assert listed and stored_bases(folder) == []


def test_reading_marks_as_used_and_looking_does_not(folder: Path) -> None:
    for file in stored_bases(folder):
        set_age(file.path, 30 * DAY)
    before = stored_bases(folder)
    assert all(time.time() - file.used > 29 * DAY for file in before)
    assert stored_bases(folder) == before
    load_bases(make_base().only(["tall"]), show_progress=False)
    fresh = [file for file in stored_bases(folder) if time.time() - file.used < DAY]
    assert [file.digest for file in fresh] == [make_base().digests["tall"]]


def test_a_file_of_others_is_used_without_a_mark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored_bases(folder)[0].path
    set_age(path, 30 * DAY)

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    mark_used(path)
    mark_used(folder / "absent")


def test_what_is_missing_is_known_before_anything_is_computed(folder: Path) -> None:
    base = make_base()
    assert missing_bases(base).weights == {}
    basis_path(folder, base.digests["tall"]).unlink()
    truncate(basis_path(folder, base.digests["kernel"]))
    missing = missing_bases(base)
    assert list(missing.weights) == list(missing.digests) == ["tall", "kernel"]
    load_bases(missing, show_progress=False)
    assert missing_bases(base).weights == {}


def test_one_weight_of_two_layers_is_missing_once(empty_cache: Path) -> None:
    weight = torch.randn(8, 8)
    base = read_base({"a": weight, "b": weight.clone(), "c": weight + 1})
    assert list(missing_bases(base).weights) == ["a", "c"]


def test_bytes_are_known_from_shapes(folder: Path) -> None:
    for name, weight in make_base().weights.items():
        size = basis_path(folder, make_base().digests[name]).stat().st_size
        assert (
            size <= basis_bytes(*as_matrix(weight).shape) <= size + 256
        )  # the slack of the header
    # Meta tensors have shapes and nothing else: the README's 10 GB of FLUX.1.
    flux = 266 * basis_bytes(3072, 3072)
    assert 10.0e9 < flux < 10.1e9


def test_room_is_asked_for_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Any) -> Any:
        asked.append(path)
        return type("Usage", (), {"free": 3 * 2**20})

    monkeypatch.setattr(room.shutil, "disk_usage", usage)
    folder = tmp_path / "not" / "there" / "yet"
    room.require_room(folder, 3 * 2**20)
    with pytest.raises(OSError, match=r"up to 3\.0 MiB.*there/yet has 3\.0 MiB free.*SVFIT_CACHE"):
        room.require_room(folder, 3 * 2**20 + 1)
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (10 * 2**30, "10.0 GiB"),
        (2**62, "4194304.0 TiB"),
    ],
)
def test_bytes_are_said_in_units(size: int, text: str) -> None:
    assert room.in_units(size) == text
