"""Adapters of low ranks ask for as many singular vectors; later ones of higher ranks get more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from peft_kinds import KINDS, layers

from svfit_diffusion.errors import StateError
from svfit_diffusion.peft import targets

NAMES = ["Linear", "Conv1D of GPT-2", "Embedding"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The ranks of each question to the cache of bases."""
    found: list[set[int]] = []
    ask: Callable[..., Any] = targets.load_bases

    def noting(base: Any, ranks: dict[str, int]) -> Any:
        if ranks:
            found.append(set(ranks.values()))
        return ask(base, ranks)

    monkeypatch.setattr(targets, "load_bases", noting)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_later_adapter_gets_the_vectors_it_needs(name: str, asked: list[set[int]]) -> None:
    kind = KINDS[name]
    model = kind.adapted("low", r=2)
    assert asked == [{2}]
    first = kind.run(model)
    model.add_adapter("same", kind.config(r=1))
    assert asked == [{2}]
    model.add_adapter("more", kind.config(r=3))
    model.add_adapter("energy", kind.config(r=0.9))
    assert asked[1] == {3} and len(asked) == 3
    assert torch.equal(kind.run(model), first)
    for adapter, other in (("more", {"r": 3}), ("energy", {"r": 0.9})):
        alone = kind.adapted(adapter, **other)
        for here, there in zip(layers(model), layers(alone), strict=True):
            there.svfit_delta[adapter].data.copy_(here.svfit_delta[adapter])
        model.set_adapter(adapter)
        # The same vectors, in products of other lengths.
        torch.testing.assert_close(kind.run(model), kind.run(alone), rtol=1e-5, atol=1e-5)


def test_a_file_with_longer_shifts_gets_the_vectors_it_needs(tmp_path: Path) -> None:
    kind = KINDS["Linear"]
    long, short = kind.adapted(r=3), kind.adapted(r=2)
    states = {
        f"base_model.model.{path}.svfit_delta": layer.svfit_delta["default"]
        for path, layer in long.base_model.model.named_modules()
        if hasattr(layer, "svfit_delta")
    }
    set_peft_model_state_dict(short, {name: value.detach() for name, value in states.items()})
    torch.testing.assert_close(kind.run(short), kind.run(long), rtol=1e-5, atol=1e-5)


def test_vectors_are_not_taken_of_merged_weights() -> None:
    kind = KINDS["Linear"]
    model = kind.adapted("low", r=2)
    model.merge_adapter()
    with pytest.raises(StateError, match=r"lacks singular vectors .* unmerge adapters first"):
        model.add_adapter("more", kind.config(r=3))
    model.unmerge_adapter()
    assert [layer.spectrum.asked for layer in layers(model)] == [2] * len(layers(model))
