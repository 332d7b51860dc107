"""What a base model cannot take is said before its weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines
from command import refused
from tiny import save_without_weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_without_weights(tiny_pipelines.build("sd"), tmp_path / "base")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--height=30"], "height 30 does not fit this base model; use a multiple of 8"),
        (["--width=-8"], "width -8 does not fit"),
        ([], "cannot load base model"),
    ],
)
def test_drawing(words: list[str], message: str, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    assert message in refused("generate", "a dog", "--base", base, "--output", output, *words)


def test_a_negative_prompt_where_none_is_taken(tmp_path: Path) -> None:
    base = save_without_weights(tiny_pipelines.build("flux2"), tmp_path / "base")
    message = refused("generate", "a dog", "--base", base, "--negative_prompt=fog")
    assert "a Flux2Pipeline takes no negative prompt" in message


@pytest.mark.parametrize("words", [["--target=nonesuch"], ["--rank=9999"]])
def test_singular_vectors_ahead(words: list[str], base: Path) -> None:
    assert words[0].split("=")[1] in refused("basis", "compute", base, *words)
