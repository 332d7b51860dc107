"""A library of adapters in a place: what is in it, and what is taken in."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from serving_helpers import NAMES
from tiny_adapters import make_adapter

from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    CheckpointError,
    ConfigError,
    StorageError,
)
from svfit_diffusion.files.adapter import WEIGHTS_NAME, write_adapter
from svfit_diffusion.serving.library import AdapterLibrary

PATHS = ["../s0", "a/b", "", ".hidden", "a" * 65, "s0\n", "C:\\s0", "..", "/etc/passwd"]


@pytest.fixture(params=["folder", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "of[1]") if request.param == "folder" else f"memory://{uuid4().hex}"


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    write_adapter(tmp_path / "given.safetensors", make_adapter(0))
    return (tmp_path / "given.safetensors").read_bytes()


def fits(_: Any) -> None:
    """What checks nothing."""


def names(library: AdapterLibrary) -> list[str]:
    return [file.name for file in library.files()]


def test_what_is_added_is_listed_read_and_deleted(place: str, data: bytes) -> None:
    library, other = AdapterLibrary(place), AdapterLibrary(place)
    library.add("rex", data, fits)
    library.add("my dog 2", data, fits)
    assert [(file.name, file.bytes) for file in other.files()] == [
        ("my dog 2", len(data)),
        ("rex", len(data)),
    ]
    assert other.read("rex").parameter_count == make_adapter(0).parameter_count
    version = other.version("rex")
    library.delete("rex")
    assert names(other) == ["my dog 2"]
    for lost in (other.read, other.version, other.delete):
        with pytest.raises(AdapterNameError, match="no adapter 'rex'"):
            lost("rex")
    library.add("rex", data, fits)
    assert other.version("rex") != version


def test_what_training_wrote_is_there_too(library: AdapterLibrary, library_folder: Path) -> None:
    write_adapter(library_folder / "trained" / WEIGHTS_NAME, make_adapter(5))
    (library_folder / "notes.txt").write_text("no adapter")
    (library_folder / "trained" / "other.safetensors").write_bytes(b"")
    assert names(library) == [*NAMES, "trained"]
    library.read("trained")
    library.delete("trained")
    assert names(library) == [*NAMES]


@pytest.mark.parametrize("name", PATHS)
def test_names_that_are_paths_reach_nothing(
    name: str, library: AdapterLibrary, library_folder: Path, data: bytes
) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        library.add(name, data, fits)
    for reach in (library.read, library.version, library.delete):
        with pytest.raises(AdapterNameError):
            reach(name)
    assert names(library) == [*NAMES]


def test_nothing_is_added_that_is_damaged_or_does_not_fit(place: str, data: bytes) -> None:
    library = AdapterLibrary(place)

    def foreign(_: Any) -> None:
        raise BaseMismatchError("of another base")

    for damaged in (b"", b"PK\x03\x04", data[:-1], data[:100]):
        with pytest.raises(CheckpointError, match="'rex'"):
            library.add("rex", damaged, fits)
    with pytest.raises(BaseMismatchError):
        library.add("rex", data, foreign)
    assert names(library) == []


def test_a_name_that_is_taken_is_not_taken_again(place: str, data: bytes) -> None:
    library = AdapterLibrary(place)
    library.add("rex", data, fits)
    version = library.version("rex")
    with pytest.raises(AdapterNameError, match="already"):
        library.add("rex", data, fits)
    assert library.version("rex") == version


def test_a_place_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot reach .*file"):
        AdapterLibrary(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="nowhere"):
        AdapterLibrary("nowhere://adapters")
