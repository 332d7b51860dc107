"""What only weights go to refuses an adapter with a word of its own, before anything is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_words import make_pipe, saved, worded

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.interchange import (
    export_checkpoint,
    export_dense,
    export_lora,
    export_pipeline,
    merge_adapters,
    reduce_adapter,
    with_base,
)
from svfit_diffusion.peft import write_peft_adapter

WAYS: dict[str, Callable[[Any, Adapter, Path], object]] = {
    "LoRA": lambda pipe, adapter, path: export_lora(pipe, adapter, path / "a.safetensors"),
    "changes": lambda pipe, adapter, path: export_dense(pipe, adapter, path / "a.safetensors"),
    "checkpoint": lambda pipe, adapter, path: export_checkpoint(
        pipe, [(adapter, 1.0)], path / "a.safetensors"
    ),
    "pipeline": lambda pipe, adapter, path: export_pipeline(
        pipe, [(adapter, 1.0)], path / "merged"
    ),
    "sum": lambda pipe, adapter, path: merge_adapters([(adapter, 0.5)]),
    "PEFT": lambda pipe, adapter, path: write_peft_adapter(adapter, path / "peft"),
}


@pytest.mark.parametrize("way", WAYS)
def test_refused_by_name(way: str, tmp_path: Path) -> None:
    with pytest.raises(InterchangeError, match="a word of the subject's own, 'sks'"):
        WAYS[way](make_pipe("unet"), worded("unet"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fewer_values_and_marks_of_the_base_leave_the_word(tmp_path: Path) -> None:
    pipe, adapter = make_pipe("unet"), worded("unet")
    reduced = with_base(pipe, reduce_adapter(saved(adapter, tmp_path), budget=20).adapter)
    word, before = reduced.words["unet"], adapter.words["unet"]
    assert (word.spellings, word.identifier) == (before.spellings, before.identifier)
    assert word.vectors.equal(before.vectors)
    assert reduced.parameter_count == 20 + word.vectors.count_nonzero()
