"""Files that appear whole or not at all, from several threads, and files mapped into memory."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import full_disk
import pytest
import torch
from safetensors.torch import load_file, save_file

from svfit_diffusion.errors import StorageError, UnsavedError
from svfit_diffusion.files.atomic import (
    clean_up,
    remove_folder,
    write_atomically,
    write_folder_atomically,
    write_safetensors,
)
from svfit_diffusion.files.mapped import map_safetensors, read_metadata


def test_threads_leave_the_mask_of_permissions_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        paths = [tmp_path / str(number) for number in range(200)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda p: write_atomically(p, lambda t: t.write_text("x")), paths))
        assert os.umask(0o027) == 0o027
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o640}
    finally:
        os.umask(before)


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "x").write_text(text)

    return write


def test_a_folder_appears_with_the_permissions_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_folder_atomically(tmp_path / "new", fill("new"))
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "new" / "part" / "x").stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_is_replaced_whole_or_not_at_all(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        fill("half")(folder)
        raise error

    def move(source: Path, target: Path) -> Path:
        if source.suffix == ".tmp":
            raise error
        return rename(source, target)

    path, rename = tmp_path / "folder", Path.rename
    with pytest.raises(error):
        write_folder_atomically(path, fail)
    assert not list(tmp_path.iterdir())
    write_folder_atomically(path, fill("old"))
    with pytest.raises(error):
        write_folder_atomically(path, fail)
    with monkeypatch.context() as patch, pytest.raises(error):
        # At the worst of moments: the old folder is already out of the way.
        patch.setattr(Path, "rename", move)
        write_folder_atomically(path, fill("new"))
    assert list(tmp_path.iterdir()) == [path] and (path / "part" / "x").read_text() == "old"
    write_folder_atomically(path, fill("new"))
    assert list(tmp_path.iterdir()) == [path] and (path / "part" / "x").read_text() == "new"


TENSORS = {
    "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(7, generator=torch.Generator().manual_seed(1)).half(),
    "c": torch.tensor(2.0),
}


def test_a_mapped_file_holds_what_safetensors_wrote_before_and_after_release(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"format": "x"})
    mapped = map_safetensors(path)
    assert mapped.metadata == {"format": "x"}
    for _ in range(2):
        assert mapped.tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert mapped.tensors[name].dtype == tensor.dtype
            assert torch.equal(mapped.tensors[name], tensor)
        mapped.release()


def test_a_mapped_file_outlives_its_name_and_is_not_changed_by_writing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    mapped = map_safetensors(path)
    mapped.tensors["a"].zero_()
    assert torch.equal(load_file(path)["a"], TENSORS["a"])
    path.unlink()
    mapped.release()
    assert torch.equal(mapped.tensors["b"], TENSORS["b"])


def header_of(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        b"\xff" * 64,
        header_of(b"{not json"),
        header_of(b"\xff\xfe"),
        header_of([1, 2]),
        header_of(b"[" * 100_000),
        header_of({"a": {}}),
        header_of({"a": 3}),
        header_of({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}) + b"1",
        header_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-999, 4]}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": [-1, 1], "data_offsets": [0, 4]}}) + b"1234",
        # 2⁶² numbers of 4 bytes are 0 bytes in 64 bits.
        header_of({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"1234",
        header_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"1234",
        header_of({"__metadata__": []}),
        header_of({"__metadata__": {"format": 3}}),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    # Any message: an empty file is refused by mmap itself.
    with pytest.raises(ValueError):
        map_safetensors(path)
    with pytest.raises(OSError, match="absent"):
        map_safetensors(tmp_path / "absent")


@pytest.mark.parametrize("shape", [(0,), (0, 5), (4, 0)], ids=str)
def test_tensors_without_numbers_are_mapped(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(shape), "b": torch.ones(2)}, {})
    assert map_safetensors(path).tensors["a"].shape == shape


def test_metadata_are_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"format": "x"})
    path.write_bytes(path.read_bytes()[:-20])
    assert read_metadata(path) == {"format": "x"}
    save_file(TENSORS, path)
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2**40).to_bytes(8, "little") + b"{}",
        header_of(b"{not json"),
        header_of([1, 2]),
        header_of(b"[" * 100_000),
        header_of({"__metadata__": {"format": 3}}),
    ],
)
def test_a_header_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([-1, -2], [0, 8]),
        ([2**62, 4], [0, 0]),
        ([0, 2**70], [0, 0]),
        ([0, 2**62, 2**62], [0, 0]),
        ([2**31, 2**31, 2**31], [0, 8]),
        ([2.0], [0, 8]),
        ([1e400], [0, 8]),
        ("12", [0, 8]),
        ([[2]], [0, 8]),
        ([2], [0, 2**70]),
        ([2], [-(2**70), 8]),
    ],
    ids=str,
)
def test_a_tensor_of_no_sensible_shape_is_refused(
    shape: Any, offsets: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    path.write_bytes(header_of({"a": entry}) + b"12345678")
    with pytest.raises(ValueError, match="not a safetensors file of floats"):
        map_safetensors(path)


@pytest.mark.parametrize(
    "metadata", ["null", "3", "[]", '"x"', '{"a": 1}', '{"a": {}}', '{"a": []}']
)
def test_metadata_that_are_no_strings_are_refused(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_of(f'{{"__metadata__": {metadata}}}'.encode()))
    for read in (map_safetensors, read_metadata):
        with pytest.raises(ValueError, match="metadata are no strings"):
            read(path)


def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is synced and renamed from now on, each by the number of the file or folder."""
    seen: list[tuple[str, int]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def seen_fsync(descriptor: int) -> None:
        seen.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def seen_rename(source: Any, target: Any, move: Any = rename) -> None:
        seen.append(("move", Path(source).stat().st_ino))
        move(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    monkeypatch.setattr(os, "replace", functools.partial(seen_rename, move=replace))
    return seen


def test_contents_are_on_the_disk_before_a_name_and_the_name_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What survives a power cut."""
    seen = events(monkeypatch)
    write_atomically(tmp_path / "x", lambda target: target.write_text("new"))
    file = (tmp_path / "x").stat().st_ino
    assert seen == [("sync", file), ("move", file), ("sync", tmp_path.stat().st_ino)]

    seen.clear()
    write_folder_atomically(tmp_path / "folder", fill("new"))
    folder = tmp_path / "folder"
    number = folder.stat().st_ino
    inside = {("sync", path.stat().st_ino) for path in (folder, *folder.rglob("*"))}
    moved = seen.index(("move", number))
    assert set(seen[:moved]) == inside and seen[moved - 1] == ("sync", number)
    assert seen[moved + 1 :] == [("sync", tmp_path.stat().st_ino)]


def test_what_a_dead_process_left_is_undone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder_atomically(tmp_path / name, fill(name))
    (tmp_path / "one").rename(tmp_path / ".one.abcdefgh.old")  # died between two renames
    for left in (".two.abcdefgh.tmp", ".two.abcdefgh.old"):  # died after both of them
        (tmp_path / left).mkdir()
        fill("left over")(tmp_path / left)
    (tmp_path / ".one.12345678.tmp").write_text("half")
    strangers = [tmp_path / ".tmp", tmp_path / ".one.tmp", tmp_path / ".three.abcdefgh.tmp"]
    for path in strangers:
        path.write_text("a user's")
    (tmp_path / ".two.linklink.tmp").symlink_to(tmp_path / "two")
    clean_up(tmp_path, "one")
    clean_up(tmp_path, "t*o")
    clean_up(tmp_path / "absent", "one")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "one", tmp_path / "two", *strangers])
    for name in ("one", "two"):
        assert (tmp_path / name / "part" / "x").read_text() == name


def test_what_others_are_writing_is_left_to_them(tmp_path: Path) -> None:
    now, before = tmp_path / ".x.abcdefgh.tmp", tmp_path / ".x.12345678.tmp"
    for path in (now, before):
        path.write_text("half")
    os.utime(before, (0, 0))
    clean_up(tmp_path, "x", idle=60)
    assert list(tmp_path.iterdir()) == [now]


def test_a_removed_folder_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder_atomically(tmp_path / "folder", fill("x"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: None)  # died before the first file
        remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists() and len(list(tmp_path.iterdir())) == 1
    clean_up(tmp_path, "folder")
    assert not list(tmp_path.iterdir())


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_atomically(path, lambda target: target.write_text("x" * 9000)),
    "tensors": lambda path: write_safetensors(path, {"a": torch.ones(9000)}, {}),
    "folder": lambda path: write_folder_atomically(path, fill("x" * 9000)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_may_not_grow_is_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with full_disk.small_files(4096), pytest.raises(StorageError) as caught:
        WRITERS[kind](path)
    assert str(caught.value) == (
        f"cannot write {path}: File too large; larger files are not allowed there: choose another "
        f"folder"
    )
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (errno.ENOSPC, "No space left on device; make room there, or choose"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EROFS, "Read-only file system; choose a folder"),
        (errno.EACCES, "choose a folder that you may write"),
        (errno.EIO, "Input/output error$"),
    ],
)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_to_fail_is_one_sentence(
    kind: str, error: int, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "folder":
        write_folder_atomically(tmp_path / "x", fill("old"))
    else:
        (tmp_path / "x").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=way_out) as caught:
        full_disk.fill(patch, tmp_path, error=error)
        WRITERS[kind](tmp_path / "x")
    assert "\n" not in str(caught.value) and isinstance(caught.value, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert "old" in {path.read_text() for path in tmp_path.rglob("x") if path.is_file()}


def test_an_error_that_holds_an_adapter_says_its_sentence() -> None:
    error = UnsavedError("a sentence", "the adapter")
    assert (str(error), error.adapter, error.errno) == ("a sentence", "the adapter", None)
