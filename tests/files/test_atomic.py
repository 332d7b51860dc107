"""Files that appear whole or not at all, from several threads, and files mapped into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from svfit_diffusion.files.atomic import (
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
