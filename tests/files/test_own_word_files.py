"""Files with a word of the subject's own: exact round trips, and a reason for each refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from svfit_diffusion.errors import CheckpointError, InterchangeError
from svfit_diffusion.files.adapter import (
    Adapter,
    file_header,
    parse_adapter,
    read_adapter,
    refuse_words,
    state_dict,
    write_adapter,
)
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.files.own_word import OwnWord

VECTORS = torch.arange(24.0).reshape(3, 2, 4) - 5


def make_adapter() -> Adapter:
    words = {"unet": OwnWord("sks dög", ((7, 49407, 3),), VECTORS)}
    return Adapter({"unet": {"a.to_q": torch.ones(2)}}, AdapterMetadata(), words=words)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "word.safetensors"
    write_adapter(path, make_adapter())
    read = read_adapter(path)
    (word,) = read.words.values()
    assert (word.identifier, word.spellings) == ("sks dög", ((7, 49407, 3),))
    assert torch.equal(word.vectors, VECTORS)
    assert read.parameter_count == 2 + VECTORS.count_nonzero()
    again = tmp_path / "again.safetensors"
    write_adapter(again, read)
    assert again.read_bytes() == path.read_bytes()


def test_only_files_with_words_are_of_the_version_that_older_readers_refuse(tmp_path: Path) -> None:
    plain = Adapter(make_adapter().deltas, AdapterMetadata())
    for adapter, version in [(make_adapter(), "3"), (plain, "2")]:
        path = tmp_path / f"{version}.safetensors"
        write_adapter(path, adapter)
        with safe_open(path, "pt") as file:
            assert file.metadata()["format_version"] == version


BAD_TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "flat": (lambda t: t.flatten(), "expected \\(readers, places, width\\)"),
    "empty": (lambda t: t[:0], "expected \\(readers, places, width\\)"),
    "whole numbers": (lambda t: t.long(), "expected \\(readers, places, width\\)"),
    "not a number": (lambda t: t / 0, "NaN or infinite"),
    "huge": (lambda t: t * 1e6, "beyond the"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_vectors(kind: str) -> None:
    spoil, message = BAD_TENSORS[kind]
    tensors = state_dict(make_adapter())
    tensors["unet.word"] = spoil(tensors["unet.word"])
    with pytest.raises(CheckpointError, match=message):
        parse_adapter(tensors, file_header(make_adapter()))


@pytest.mark.parametrize(
    "said",
    [
        None,
        "{",
        "[]",
        '{"unet": "sks"}',
        '{"unet": {"identifier": "sks", "tokens": []}}',
        '{"unet": {"identifier": "sks", "tokens": [true]}}',
        '{"unet": {"identifier": "sks", "tokens": [-1]}}',
        '{"unet": {"identifier": 3, "tokens": [1]}}',
        '{"transformer": {"identifier": "sks", "tokens": [1]}}',
        '{"unet": {"identifier": "sks", "tokens": [[1], []]}}',
        '{"unet": {"identifier": "sks", "tokens": [[1], 2]}}',
        '{"unet": {"identifier": "sks", "tokens": [1, [2]]}}',
        json.dumps({"unet": {"identifier": "sks", "tokens": [1] * 65}}),
        json.dumps({"unet": {"identifier": "sks", "tokens": [[1]] * 5}}),
    ],
)
def test_bad_headers(said: Any) -> None:
    header = file_header(make_adapter())
    header.pop("own_words")
    header |= {"own_words": said} if said else {}
    with pytest.raises(CheckpointError, match=r"own_words|says whose"):
        parse_adapter(state_dict(make_adapter()), header)


def test_tensors_alone_and_words_without_shifts() -> None:
    with pytest.raises(CheckpointError, match="load the file, not its tensors alone"):
        parse_adapter(state_dict(make_adapter()), {})
    tensors = state_dict(make_adapter())
    tensors["transformer.a.delta"] = tensors.pop("unet.a.to_q.delta")
    with pytest.raises(CheckpointError, match="a word for unet, and no shifts"):
        parse_adapter(tensors, file_header(make_adapter()))


def test_vectors_that_a_header_speaks_of_and_that_are_missing() -> None:
    tensors = state_dict(make_adapter())
    del tensors["unet.word"]
    with pytest.raises(CheckpointError, match="words for no component"):
        parse_adapter(tensors, file_header(make_adapter()))


def test_refusal_names_the_word() -> None:
    with pytest.raises(InterchangeError, match=r"cannot sing: .*'sks dög'"):
        refuse_words(make_adapter(), "sing")
    refuse_words(Adapter(make_adapter().deltas, AdapterMetadata()), "sing")
